"""Both learning rates: what each is asked, what is said of them, and that neither leaks into what is about the other."""

import nbformat
import pandas as pd
import pytest

from lib import UserError, claims, execution, figures, notebook, profile, rates, readme, sweep, tables
from tests import mnist
from tests.test_notebooks import TINY
from tests.test_tables import TOP, cell, grid, record

RATES = (1e-3, 1e-4)


def test_it_asks_what_the_thesis_says_of_mnist():
    assert len(rates.STATEMENTS) == 5 and all("4.3" in claim.section for claim in rates.STATEMENTS)


def test_what_has_not_run_is_said():
    table = rates.statements(mnist.frame(mnist.records([42], [1e-3])), RATES)
    assert "0.0001: not decided yet (0 of 86 cells). So the two cannot be compared yet." in table.caption
    assert table.body["at 0.0001"].str.startswith("not run yet").all()
    assert not table.body["at 0.001"].str.contains("not run").any()
    figure = rates.diagram(mnist.frame(mnist.records([42], [1e-3])), RATES)
    assert "not run yet" in figure.axes[1].get_title() and "86 of 172 cells" in figure.get_suptitle()
    assert "no second learning rate" in rates.statements(mnist.frame([]), (1e-3, None)).caption


def both(slow, fast=TOP, **errors):
    """A frame with the CNN at both rates: top-1 by method."""
    parts = [grid(top1, ratios=(2, 64), **errors).assign(learning_rate=rate)
             for rate, top1 in zip(RATES, (fast, slow), strict=True)]
    return pd.concat(parts, ignore_index=True)


ERRORS = {"errors": {"GraSP": -40, "OBD": -40}}


def test_the_rate_that_fits_and_the_one_that_does_not_are_named():
    text = rates.verdict_on(both(TOP | {"LAMP": 95}, **ERRORS), RATES)
    first, second = text.partition("0.0001 agrees")[::2]
    assert "0.001 agrees with 4 of 5" in first and "top four" not in first       # nothing recovers in these errors
    assert "top four" in second and "every other method has collapsed" in second
    assert "On 2 the verdict differs" in text and "4 of 4 of the thesis at 0.001 and 3 of 4 of the thesis at 0.0001" in text
    assert text.count("rests on one seed") == 2


def test_alike_verdicts_do_not_tell_the_rates_apart():
    text = rates.verdict_on(both(TOP, **ERRORS), RATES)
    assert "On none does the verdict differ, so they do not tell the rates apart" in text
    assert "5 of the statements come out alike to the digit" in text


def test_numbers_that_differ_are_not_alike_although_their_verdict_is():
    text = rates.verdict_on(both(TOP | {"GraSP": 91}, **ERRORS), RATES)    # the four lead at both, by other numbers
    assert "4 of the statements come out alike to the digit" in text and "On none does the verdict differ" in text


def test_how_sure_a_verdict_is_depends_on_the_seeds_of_the_statement_that_has_fewest():
    agree, other = grid(TOP, ratios=(2, 64), **ERRORS), grid(TOP | {"LAMP": 95}, ratios=(2, 64), **ERRORS)
    seeds = lambda *frames: pd.concat([part.assign(seed=seed) for seed, part in enumerate(frames)], ignore_index=True)
    sure = lambda frame: rates._how_sure(frame, RATES[0])
    assert sure(seeds(agree)) == "What is said of 0.001 rests on one seed."
    assert sure(seeds(agree, agree)) == "What is said of 0.001 holds for each of 2 seeds."
    assert sure(seeds(agree, agree, other)) == "At 0.001 2 of 5 verdicts depend on the seed (3 seeds)."
    part = agree[~((agree["method"] == "LAMP@run") & (agree["compression"] == 64))]      # not enough for two statements
    assert sure(seeds(agree, part)) == "What is said of 0.001 rests on one seed."


def test_places_are_compared_on_the_seeds_that_both_rates_have():
    frame = both(TOP, **ERRORS)
    beside = tables.at_rate(frame, RATES[0]).assign(seed=43)
    beside.loc[beside["base"].isin(["LAMP", "LayerMag"]), "top1_thesis"] = 99.0
    text = rates.verdict_on(pd.concat([frame, beside], ignore_index=True), RATES)
    assert ("Among the first four at r = 64, and above chance, are 4 of 4 of the thesis at 0.001 "
            "and 4 of 4 of the thesis at 0.0001.") in text


def test_training_everything_less_is_no_agreement():
    less = {base: 10 + (top - 10) / 4 for base, top in (TOP | {"LAMP": 95}).items()}
    assert rates.among_first(grid(TOP)) == 4
    assert rates.among_first(grid(TOP | {"LAMP": 95})) == 3 == rates.among_first(grid(less))
    assert rates.among_first(grid(TOP | {"SNIP": 10})) == 3    # a tie at chance level is no place
    assert rates.among_first(tables.frame([])) is None


def test_a_mask_that_lets_nothing_pass_fails_at_every_rate():
    frame = both(TOP, **ERRORS)
    at_64 = frame["compression"] == 64
    frame.loc[frame["method"].isin(["SNIP@run", "LAMP@run"]) & at_64, "collapsed"] = True    # LAMP is not of the four
    frame.loc[(frame["method"] == "GraSP@run") & ~at_64, "collapsed"] = True
    frame.loc[(frame["method"] == "OBD@run") & at_64 & (frame["learning_rate"] == RATES[1]), "collapsed"] = True
    assert rates.closed(tables.at_rate(frame, RATES[0])) == {"SNIP": [42]}
    text = rates.verdict_on(frame, RATES)    # the main rate's masks are told; the same masks are made for the other
    assert text.count("Whatever the rate") == 1 and "SNIP cannot train at r = 64" in text and "(seeds 42)" in text


def test_rates_are_compared_on_the_seeds_that_both_have_and_the_other_seeds_say_how_sure_it_is():
    found = mnist.records()
    for index, each in enumerate(found):    # at the main rate, seeds 43 and 44 say otherwise than seed 42
        if each.cell.seed != 42 and each.cell.method == "OBD@run":
            found[index] = mnist.made(each.cell, [9900] * 6)
    one = rates.statements(mnist.frame(mnist.records([42])), RATES).body
    three = rates.statements(mnist.frame(found), RATES).body
    assert one["at 0.001"].tolist() == three["at 0.001"].tolist()
    assert three["at 0.001, seeds that agree"].iloc[3] == "0 of 3"
    assert three["at 0.0001, seeds that agree"].iloc[3] == "0 of 1"
    assert three["at 0.001, seeds that agree"].iloc[-1] == "1 of 4, 2 of 4, 2 of 4"


def test_the_thesiss_four_stand_out():
    figure = rates.diagram(mnist.frame(mnist.records()), RATES)
    lines = {line.get_label(): line for line in figure.axes[1].get_lines() if not line.get_label().startswith("_")}
    assert {name for name, line in lines.items() if line.get_alpha() is None} == set(claims.TOP_FOUR)
    assert all(line.get_color() == figures.LOOKS[name][0] for name, line in lines.items())
    assert set(figure.data["learning_rate"]) == set(RATES) and figure.data["seeds"].eq(1).all()
    levels = {text.get_text(): text.xy[1] for text in figure.axes[0].texts}
    assert set(levels) == {"chance", "unpruned"} and levels["chance"] == pytest.approx(11.35 * tables.thesis_factor(10_000))
    assert figure.axes[0].get_title().endswith("(bears out 0 of the thesis's 5 statements)")


def test_resnets_printed_numbers_beside_both_rates():
    table = rates.resnet(tables.frame([]), RATES)
    assert "0 of 5 numbers" in table.caption and set(table.body["at 0.001"]) == {"not run yet"}
    cells = {rate: cell("Dense", 1, "cifar10", "resnet56", rate=rate) for rate in RATES}
    slow = [record(cell("Dense", 1, "cifar10", "resnet56", seed, 1e-4), (1000, 3000, top))
            for seed, top in ((42, 4400), (43, 4600))]      # of which the mean counts
    frame = tables.frame([record(cells[1e-3], (1000, 7000, 6900)), *slow])
    table = rates.resnet(frame, RATES)
    assert "2 of 5 numbers" in table.caption and ("nearer to the printed one: 0.001 in 2 "
        "(median distance 0.83 points) and 0.0001 in 0 (median distance 25.55 points)") in table.caption
    assert table.body.iloc[0].tolist() == ["SynFlow, r = 32", "Dense, r = 1", "69.73", "69.22", "44.50"]


# ---- nothing leaks

ABOUT_BOTH = ("mnist-rates", "mnist-training", "resnet-rates")


def rendered(folder, found, monkeypatch):
    """Name -> content of every table and every figure's numbers that 06_results makes of these records."""
    mnist.write(folder / "mnist" / "results.jsonl", found)
    monkeypatch.setenv("FORESIGHT_OUTPUTS", str(folder))
    monkeypatch.setattr(figures, "save", lambda figure, stem: tables.write(f"{stem}.csv", figure.data.to_csv(index=False)))
    names = {"__name__": "__main__"} | mnist.GRID.model_dump()
    for each in nbformat.read(execution.FOLDER / "06_results.ipynb", as_version=4).cells:
        if each.cell_type == "code" and "parameters" not in each.metadata.get("tags", ()):
            exec(each.source, names)
    return {path.name: path.read_text() for kind in ("tables", "figures") for path in (folder / "mnist" / kind).iterdir()}


def test_no_table_or_figure_of_the_main_rate_counts_a_record_of_the_other(tmp_path, monkeypatch, capsys):
    alone = rendered(tmp_path / "alone", mnist.records(rates=[1e-3]), monkeypatch)
    other = rendered(tmp_path / "both", mnist.records(), monkeypatch)
    differ = {name for name in other if other[name] != alone.get(name)}
    assert set(alone) == set(other) and len(other) > 30
    assert differ and all(name.startswith(ABOUT_BOTH) for name in differ)
    assert "at 0.0001 the last epoch still brought" in capsys.readouterr().out


def found_by(folder, found, monkeypatch):
    mnist.write(folder / "outputs" / "mnist" / "results.jsonl", found)
    (folder / "outputs" / "masks").symlink_to(profile.ROOT / "outputs" / "masks")
    monkeypatch.setattr(readme, "ROOT", folder)
    return readme.found().splitlines(), readme.caveat()


def test_the_readme_counts_the_main_rate_and_says_the_other_in_one_line(tmp_path, monkeypatch):
    alone, _ = found_by(tmp_path / "alone", mnist.records(rates=[1e-3]), monkeypatch)
    other, caveat = found_by(tmp_path / "both", mnist.records(), monkeypatch)
    differ = [line for before, line in zip(alone, other, strict=True) if before != line]
    assert not differ or [line for line in differ if line.startswith("- The learning rate: ")] == differ
    assert "549 of 549 cells computed; seeds 42, 43, 44" in "\n".join(other) and "at 0.0001 the last epoch" in caveat
    assert any("above chance on the mean over seeds" in line and "SNIP 6" in line for line in other)


def test_the_readme_says_what_is_missing_of_an_empty_store(tmp_path, monkeypatch):
    lines, caveat = found_by(tmp_path, [], monkeypatch)
    text = "\n".join(lines)
    assert "0 of 549 cells computed; seed none yet" in text and "no difference can be tested" in text
    assert "not run yet" in caveat


def test_method_notebooks_take_the_main_rate(tmp_path, monkeypatch):
    monkeypatch.setenv("FORESIGHT_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(sweep, "run", lambda cells, store, workers=None: [])
    chapter = notebook.Chapter("02_obd", TINY | {"text_learning_rate": 1e-4})
    assert {each.learning_rate for each in chapter.cells} == {1e-3, 1e-4}
    assert set(chapter.results()["learning_rate"]) == {1e-3}


def test_tables_of_both_rates_at_once_are_refused():
    frame = both(TOP).assign(dataset="cifar10", model="vgg16")
    with pytest.raises(UserError, match="mix several values of learning_rate"):
        tables.agreement(frame)
