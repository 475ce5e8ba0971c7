"""Tests over seeds: their numbers against hand calculation, their units, and what they say of few seeds."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib import UserError, figures, significance, tables
from tests import mnist
from tests.test_tables import cell, record


def frame(values, ratios=(2, 64), readings=("", "@run")):
    """values: method -> top-1 in percent, one per seed from 42 on; the same at every ratio."""
    return tables.frame(record(cell(base + reading, ratio, seed=42 + place), [round(100 * value)] * 3)
                        for base, tops in values.items() for reading in readings for ratio in ratios
                        for place, value in enumerate(tops))


def compare(values, **options):
    return significance.compare(frame(values, **options), "mnist", "cnn", "published")


def test_holm_by_hand():
    # 0.01 × 4, 0.02 × 3, 0.03 × 2, and 0.04 × 1, which may not fall below the one before it.
    assert significance.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert significance.holm([0.9, 0.8]).max() == 1


def test_paired_t_is_scipys_and_pairs_without_spread_are_told():
    differences = pd.Series([1.0, 2.0, 2.5])
    assert significance.paired_t(differences) == pytest.approx(stats.ttest_rel(differences, [0, 0, 0]).pvalue)
    assert [significance.paired_t(pd.Series([each] * 3)) for each in (0.0, 3.0, -3.0)] == [1, 0, 0]


def test_the_seed_is_the_unit_and_ratios_are_no_repetitions():
    values = {"SNIP": [90, 91, 92.5], "LAMP": [89, 91.5, 90], "OBD": [50, 50.5, 51.2]}
    few, many = compare(values, ratios=(2, 64)), compare(values, ratios=(2, 4, 8, 16, 32, 64))
    assert len(few.values) == len(many.values) == 3
    assert few.p.to_dict() == pytest.approx(many.p.to_dict()) and few.critical_difference == many.critical_difference


def test_what_is_larger_than_a_seed_is_told_apart_and_the_rest_is_not():
    found = compare({"SNIP": [90, 90.4, 90.2], "LAMP": [90.1, 90, 90.3],
                     "OBD": [50, 50.3, 50.1], "Random": [20, 20.1, 20.3]})
    assert found.names == ["SNIP", "LAMP", "OBD", "Random"] and found.near_first() == ["LAMP"]
    text = significance.sentences(found)
    assert "SNIP is first (90.2); over 3 seeds this test cannot tell it from LAMP (90.1)" in text
    assert "LAMP over OBD; OBD over Random" in text and "SNIP over LAMP" not in text
    assert "5 of the 6 pairs of methods differ by more than seeds explain" in text


def test_what_is_not_told_apart_from_the_first_may_lie_behind_what_is():
    values = {"SNIP": [90, 91, 92], "OBD": [84, 85.1, 86], "LAMP": [60, 95, 89], "GraSP": [50, 51, 52]}
    found = compare(values)
    assert found.names == list(values) and found.near_first() == ["LAMP"]
    assert "over 3 seeds this test cannot tell it from LAMP (81.3): a sign of a weak test" in significance.survives(found)
    axis = significance.diagram(frame(values), "mnist", "cnn").axes[1]
    bars = [tuple(line.get_ydata()) for line in axis.get_lines() if tuple(line.get_xdata()) == (1.02, 1.02)]
    assert bars == [(-0.5, 0.5), (1.5, 2.5)]


def test_the_best_is_named_where_it_is_told_apart_from_all():
    found = compare({"SNIP": [90, 90.4, 90.2], "LAMP": [80.1, 80.5, 80.4]})
    assert found.near_first() == [] and "SNIP (90.2) is the best" in significance.survives(found)
    assert not any(line.get_xdata()[0] == 1.02 for line in
                   significance.diagram(frame({"SNIP": [90, 90.4], "LAMP": [80, 80.5]}), "mnist", "cnn").axes[1].get_lines())


def test_methods_that_are_all_alike_stand_beside_the_first():
    found = compare({"SNIP": [90, 91, 92], "LAMP": [89, 92, 91], "OBD": [91, 90, 90]})
    assert found.near_first() == ["LAMP", "OBD"] and "LAMP, OBD (means down to 90.3)" in significance.survives(found)


def test_nemenyi_as_tabled_by_demsar():
    # His table 5: q = 2.569 for 4 classifiers; over 14 data sets CD = 1.25.
    found = significance.Comparison("published", [2.0], pd.DataFrame(np.zeros((14, 4)), columns=list("abcd")), {})
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=2e-3)


def test_ranks_alone_say_little_of_three_seeds():
    text = significance.sentences(compare({"SNIP": [90, 91, 92], "LAMP": [80, 81, 82.5]}))
    assert "cannot fall below 0.25 for a pair, so it can reject nothing" in text


def test_what_a_seed_moves_is_the_median_deviation_of_the_methods_that_move():
    values = {"SNIP": [80, 82, 87], "LAMP": [70, 71, 72], "OBD": [50, 50.2, 50.1], "Random": [10, 10, 10]}   # one is dead
    text = significance.survives(compare(values))
    assert "moves a method by 1.00 points" in text and "over seeds 42, 43, 44 of the 3 methods that it" in text
    assert "mean over r = 2 to 64: " in text


def test_friedman_is_scipys_over_the_methods_and_the_ranks_differ_by_their_range():
    values = {"SNIP": [80, 82, 87, 70], "LAMP": [70, 71, 72, 70], "OBD": [50, 50.2, 50.1, 70]}    # a tie in the last seed
    expected = stats.friedmanchisquare(*values.values()).pvalue
    text = significance.sentences(compare(values))
    assert f"over 4 seeds gives p = {expected:.2g}, " in text and "differ by at most 1.5;" in text   # ranks 1.25, 2, 2.75


def test_a_methods_line_has_its_interval_and_its_equals():
    values = {"SNIP": [80, 82, 87], "LAMP": [81, 83, 84], "Random": [10, 10, 10]}
    body = significance.ranking(frame(values), "mnist", "cnn").body
    lines = body[body["reading"] == "published"].set_index("method")
    low, high = stats.t.interval(0.95, 2, loc=83, scale=stats.sem([80, 82, 87]))
    assert lines.loc["SNIP", "mean top-1"] == f"83.00 ± {(high - low) / 2:.2f}"
    assert lines["better than"].to_dict() == {"SNIP": "Random", "LAMP": "Random", "Random": "–"}
    assert lines["not told apart from"].to_dict() == {"SNIP": "LAMP", "LAMP": "SNIP", "Random": "–"}


def test_run_counts_as_the_thesis_does_and_the_unpruned_network_is_no_ratio():
    rows = [record(cell("LAMP@run", ratio, seed=seed), (1000, 9000, 8000)) for ratio in (1, 4) for seed in (42, 43)]
    found = significance.compare(tables.frame(rows), "mnist", "cnn", "run")
    assert found.ratios == [4] and found.values["LAMP"].tolist() == pytest.approx([90 * tables.thesis_factor(10_000)] * 2)


def test_two_seeds_can_be_tested_and_one_cannot():
    assert compare({"SNIP": [90, 90.5], "LAMP": [20, 20.4]}).testable and not compare({"SNIP": [90], "LAMP": [20]}).testable


def test_one_seed_tells_nothing_apart():
    found = compare({"SNIP": [90], "LAMP": [20]})
    assert not found.apart("SNIP", "LAMP") and "no difference can be tested" in significance.sentences(found)
    table = significance.ranking(frame({"SNIP": [90], "LAMP": [20]}), "mnist", "cnn")
    assert set(table.body["better than"]) == {"not known yet"} and "±" not in "".join(table.body["mean top-1"])


def test_a_seed_that_lacks_a_cell_is_left_out_and_said():
    records = [each for each in mnist.records(rates=[1e-3])
               if (each.cell.seed, each.cell.method, each.cell.compression) != (44, "LAMP", 8)]
    found = significance.compare(tables.at_rate(mnist.frame(records), 1e-3), "mnist", "cnn", "published")
    assert list(found.values.index) == [42, 43] and found.seeds[44] == (83, 84)


def test_nothing_at_all_is_said():
    table = significance.ranking(tables.frame([]), "mnist", "cnn")
    assert table.body.empty and "no cells in this profile" in table.caption
    figure = significance.diagram(tables.frame([]), "mnist", "cnn")
    assert not figure.axes and figure.get_suptitle().endswith("no such cells in this profile") and not figure.asked


def test_an_interval_above_what_the_thesis_can_count_gives_way_to_the_range():
    tops = {"SNIP": (98.0, 98.8, 97.6), "LAMP": (50, 51, 52)}    # 98.1 ± 1.5: below 100, above 98.892
    records = [record(cell(f"{base}@run", 2, seed=seed), [round(100 * top / tables.thesis_factor(10_000))] * 3)
               for base, values in tops.items() for seed, top in enumerate(values)]
    body = significance.ranking(tables.frame(records), "mnist", "cnn").body.set_index("method")
    assert body.loc["SNIP", "mean top-1"] == "98.13 (97.60 to 98.80)" and "±" in body.loc["LAMP", "mean top-1"]


def test_two_learning_rates_are_not_mixed():
    with pytest.raises(UserError, match="mix several values of learning_rate"):
        significance.compare(mnist.frame(mnist.records()), "mnist", "cnn", "run")


def test_table_over_three_seeds():
    table = significance.ranking(tables.at_rate(mnist.frame(mnist.records()), 1e-3), "mnist", "cnn")
    assert table.body["reading"].value_counts().to_dict() == {"@run": 14, "published": 14}
    first = table.body.iloc[0]
    assert (first["method"], first["mean rank"], first["better than"]) == (tables.ORDER[0], "1.0", "all others")
    assert "95 % interval of Student's t over seeds" in table.caption and " ± " in first["mean top-1"]


def test_diagram_draws_a_dot_per_seed_in_the_methods_colour_with_chance_and_the_unpruned_network():
    rows = tables.at_rate(mnist.frame(mnist.records()), 1e-3)
    figure = significance.diagram(rows, "mnist", "cnn")
    assert figure.data.groupby(["reading", "base"]).size().eq(3).all()
    axis = figure.axes[1]
    assert [tick.get_text() for tick in axis.get_yticklabels()][0] == tables.ORDER[0]
    assert {text.get_text() for text in axis.texts} == {"chance", "unpruned"}
    assert {line.get_color() for line in axis.get_lines()} >= {colour for colour, _ in figures.LOOKS.values()}


def test_chance_and_the_unpruned_network_stand_where_the_panel_counts_them():
    rows = [record(cell("LAMP" + reading, 4, seed=seed)) for reading in ("", "@run") for seed in (42, 43)]
    rows += [record(cell("Dense", 1, seed=seed), (0, 0, top)) for seed, top in ((42, 9000), (43, 9200), (44, 1000))]
    figure = significance.diagram(tables.frame(rows), "mnist", "cnn")      # seed 44 has no pruned network
    for axis, factor in zip(figure.axes, (tables.thesis_factor(10_000), 1)):
        levels = {text.get_text(): text.xy[0] for text in axis.texts}
        assert levels == pytest.approx({"chance": 11.35 * factor, "unpruned": 91 * factor})
