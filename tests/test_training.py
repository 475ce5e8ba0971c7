"""Curves over the epochs: what the last one brought, and what is said of it."""

import pytest

from lib import tables, training
from tests import mnist

RATES = (1e-3, 1e-4)


def history(records):
    return training.histories(records, mnist.GRID.cells())


def test_gain_is_the_last_epochs_and_dead_networks_are_apart():
    cells = [cell for cell in mnist.GRID.cells() if cell.seed == 42 and cell.learning_rate == 1e-3]
    random, snip = (next(cell for cell in cells if cell.method == name) for name in ("Random@run", "SNIP@run"))
    ends = training.last(history([mnist.made(random, [900, 1000, 1135, 1135, 1135, 1135]),
                                  mnist.made(snip, [900, 5000, 6000, 7000, 8000, 8250])])).set_index("method")
    assert ends.loc["SNIP@run", ["gain", "alive"]].tolist() == [2.5, True]
    assert ends.loc["Random@run", ["gain", "alive"]].tolist() == [0, False]


def test_one_seed_says_what_came_and_not_whether_it_is_much():
    text = training.sentence(history(mnist.records([42], [1e-3])), "mnist", "cnn", RATES)
    assert "Are 5 epochs of the CNN on MNIST trained out?" in text and "at 0.0001: not run yet" in text
    assert "the unpruned network +9.80 points" in text and "not known yet (fewer than two seeds)" in text


def test_seeds_decide_whether_the_last_epoch_is_much():
    assert "so not trained out" in training.sentence(history(mnist.records()), "mnist", "cnn", RATES)
    flat = [mnist.made(each.cell, [1000, *[mnist.final(each.cell)] * 5]) for each in mnist.records()]
    text = training.sentence(history(flat), "mnist", "cnn", RATES)
    assert text.count("trained out by that measure") == 2 and "not trained out" not in text


def test_the_spread_is_of_seeds_at_the_main_rate():
    both, main = (training.sentence(history(mnist.records(rates=rates)), "mnist", "cnn", RATES)
                  for rates in (RATES, RATES[:1]))
    assert both.partition("a seed alone")[2] == main.partition("a seed alone")[2] != ""


def test_published_readings_do_not_count():
    every, run = history(mnist.records()), training.of(history(mnist.records()), "mnist", "cnn")
    assert set(run.loc[run["base"] != "Dense", "reading"]) == {"run"} and len(run) < len(every)


@pytest.mark.parametrize("found", [[], mnist.records([42], [1e-3]), mnist.records()])
def test_a_panel_for_each_rate_and_ratio(found):
    figure = training.diagram(history(found), "mnist", "cnn", RATES)
    titles = [axis.get_legend().get_title().get_text() if axis.get_legend() else axis.get_title() for axis in figure.axes]
    assert len([title for title in titles if title.endswith("not run yet")]) == {0: 6, 183: 3}.get(len(found), 0)
    if found:
        labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
        assert len(titles) == 6 and "learning rate 0.001, r = 64" in titles[2]
        assert labels[0].startswith("unpruned (") and labels[1].startswith(f"best: {tables.ORDER[0]} (")
        assert labels[2].startswith("worst: OBD (")


def test_no_second_rate_is_one_row():
    figure = training.diagram(history(mnist.records()), "mnist", "cnn", (1e-3, None))
    assert len(figure.axes) == 3 and set(figure.data["learning_rate"]) == {1e-3}
