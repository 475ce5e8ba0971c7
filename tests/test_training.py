"""Curves over the epochs: what the last one brought, and what is said of it."""

import math

import pandas as pd
import pytest

from lib import data, tables, training
from tests import mnist
from tests.test_tables import cell, record

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
    assert "Are 5 epochs enough for the CNN on MNIST?" in text and "at 0.0001: not run yet" in text
    assert "the unpruned network +9.80 points" in text and "not known yet (fewer than two seeds)" in text


def test_seeds_decide_whether_the_last_epoch_is_much():
    assert "so not enough" in training.sentence(history(mnist.records()), "mnist", "cnn", RATES)
    flat = [mnist.made(each.cell, [1000, *[mnist.final(each.cell)] * 5]) for each in mnist.records()]
    text = training.sentence(history(flat), "mnist", "cnn", RATES)
    assert text.count("so enough by that measure") == 2 and "not enough" not in text


def test_the_spread_is_of_seeds_at_the_main_rate():
    both, main = (training.sentence(history(mnist.records(rates=rates)), "mnist", "cnn", RATES)
                  for rates in (RATES, RATES[:1]))
    assert both.partition("a seed alone")[2] == main.partition("a seed alone")[2] != ""


def ended(*rows):
    """(method, compression, seed, top-1, gain, alive) of each network after its last epoch."""
    frame = pd.DataFrame(rows, columns=["method", "compression", "seed", "top1", "gain", "alive"])
    return frame.assign(base=[method.partition("@")[0] for method in frame["method"]])


def test_the_spread_is_the_median_over_pruned_networks_that_live():
    values = {"SNIP@run": [80, 82], "LAMP@run": [70, 74], "OBD@run": [50, 60]}
    rows = [(name, 4.0, seed, top, 0, True) for name, tops in values.items() for seed, top in enumerate(tops)]
    others = [("Dense", 1.0, seed, top, 0, True) for seed, top in enumerate((90, 99))]
    others += [(name, 4.0, seed, top, 0, False) for name in ("GraSP@run", "Random@run") for seed, top in ((1, 9), (2, 11.3))]
    assert training.spread(ended(*rows, *others)) == pytest.approx(4 / math.sqrt(2))
    assert math.isnan(training.spread(ended(*rows[:1])))


def test_what_the_last_epoch_brought_is_told_of_the_living():
    ends = ended(("Dense", 1.0, 1, 90, 1.5, True), ("Dense@xavier_normal", 1.0, 1, 90, 2.5, True),
                 ("SNIP@run", 4.0, 1, 80, 2, True), ("LAMP@run", 4.0, 1, 70, 3, True), ("OBD@run", 64.0, 1, 40, 10, True),
                 *((name, ratio, 1, 10, 0, False) for name in ("GraSP@run", "Random@run") for ratio in (4.0, 64.0)))
    told = training._told(ends, 1e-3, math.nan)
    assert told == ("at 0.001 the last epoch still brought the unpruned network +1.50 points, "
                    "pruned @run networks that are above chance a median of +3.00 points, those at r = 64 +10.00 points")
    assert training._told(ends, 1e-3, 3.0).endswith("no more than a seed moves, so enough by that measure")
    assert training._told(ends, 1e-3, 2.9).endswith("more than a seed moves, so not enough")


def test_chance_level_is_that_of_the_claims():
    cells = [cell(method, 4, "cifar10", "vgg16") for method in ("SNIP@run", "LAMP@run")]
    tops = {cells[0].key: 1050, cells[1].key: 1051}
    ends = training.last(training.histories([record(each, [tops[each.key]] * 3) for each in cells], cells))
    assert ends["alive"].tolist() == [False, True] and 1.05 * data.constant_answer("cifar10") == 10.5


def test_the_worst_says_how_many_end_where_it_does():
    dead = ("GlobalMag@run", "Random@run", "OBD@run")
    found = [mnist.made(each.cell, [1135] * 6 if each.cell.method in dead else None) for each in mnist.records([42], [1e-3])]
    rows = training.of(history(found), "mnist", "cnn")
    assert training._best_and_worst(rows, 64)[-1][0].endswith(" and 2 more")


@pytest.mark.parametrize("there, shown", [([1, 2, 4, 8, 64], [1, 8, 64]), ([4, 16, 32], [1, 16, 32]), ([4], [1, 8, 64]),
                                          ([2, 4, 8, 16], [1, 4, 16])])
def test_the_panels_are_at_the_thesis_ratios_or_at_the_ends_and_the_middle(there, shown):
    assert training._ratios(pd.DataFrame({"compression": map(float, there)})) == shown


def test_a_line_is_the_mean_over_the_seeds_with_its_last_gain():
    records = mnist.records(rates=[1e-3])
    axis = training.diagram(history(records), "mnist", "cnn", (1e-3, None)).axes[2]
    best = next(line for line in axis.get_lines() if line.get_label().startswith("best: "))
    tops = [[epoch["top1"] / 100 for epoch in each.history] for each in records
            if (each.cell.method, each.cell.compression) == (f"{tables.ORDER[0]}@run", 64)]
    means = [sum(seeds) / 3 for seeds in zip(*tops)]
    assert len(tops) == 3 and best.get_ydata().tolist() == pytest.approx(means)
    assert best.get_label() == f"best: {tables.ORDER[0]} ({means[-1] - means[-2]:+.2f})"
    assert any(list(line.get_ydata()) == [11.35, 11.35] and line.get_linestyle() == ":" for line in axis.get_lines())


def test_published_readings_do_not_count():
    every, run = history(mnist.records()), training.of(history(mnist.records()), "mnist", "cnn")
    assert set(run.loc[run["base"] != "Dense", "reading"]) == {"run"} and len(run) < len(every)


@pytest.mark.parametrize("found", [[], mnist.records([42], [1e-3]), mnist.records()])
def test_a_panel_for_each_rate_and_ratio(found):
    figure = training.diagram(history(found), "mnist", "cnn", RATES)
    titles = [axis.get_legend().get_title().get_text() if axis.get_legend() else axis.get_title() for axis in figure.axes]
    assert len([title for title in titles if title.endswith("not run yet")]) == (3 if len(found) == 183 else 0)
    if not found:
        assert not titles and figure.get_suptitle().endswith("no such cells yet") and not figure.asked
    else:
        labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
        assert len(titles) == 6 and "learning rate 0.001, r = 64" in titles[2]
        assert labels[0].startswith("unpruned (") and labels[1].startswith(f"best: {tables.ORDER[0]} (")
        assert labels[2].startswith("worst: OBD (")


def test_no_second_rate_is_one_row():
    figure = training.diagram(history(mnist.records()), "mnist", "cnn", (1e-3, None))
    assert len(figure.axes) == 3 and set(figure.data["learning_rate"]) == {1e-3}
