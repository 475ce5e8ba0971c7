"""The atlas on frames made by hand, whose numbers are known."""

import math

import numpy as np
import pandas as pd
import pytest

from lib import atlas, audit
from lib.experiment import VERSION, Cell, Record


def masks(*rows):
    """(method, ratio, seed, further columns) of VGG-16 on CIFAR-10."""
    plain = {"dataset": "cifar10", "model": "vgg16", "collapsed": False, "empty": 0, "parameters": 1000}
    made = [plain | {"method": method, "ratio": float(ratio), "seed": seed, "base": method.split("@")[0],
                     "reading": method.partition("@")[2] or "published", "effective": float(ratio), "reached": float(ratio),
                     "released": float(ratio)} | further for method, ratio, seed, further in rows]
    return pd.DataFrame(made)


def critical(*rows, model="vgg16"):
    """(method, rho by path, rho by layers, rho of the collapse, whole again) with n = 1000 and L = 10."""
    return pd.DataFrame([
        {"dataset": "cifar10", "model": model, "method": method, "seed": 42, "by": by, "weights": 1000, "layers": 10,
         "rho": rho, "kept": round(1000 / rho), "collapsed": collapsed, "whole_again": again}
        for method, path, layers, collapsed, again in rows for by, rho in (("path", path), ("layers", layers))])


def studied(question, method, rows, seed=42, model="vgg16"):
    study = audit.Study(question, "cifar10", model, method, seed)
    return audit.Answer(study.key, VERSION, study, rows, {"seconds": 1.0})


# ---- frames

def test_a_row_of_masks_holds_the_audit_of_its_record_and_unpruned_networks_have_none():
    report = {"collapsed": True, "empty_layers": ["a", "b"], "effective_compression": 5.0, "compression": 4.0,
              "parameters": 99, "compression_released": 3.0, "kept": {"a": 0}, "sizes": {"a": 7}}
    cells = [Cell("mnist", "cnn", method, ratio, 42, 0, 1e-3) for method, ratio in (("LAMP@run", 4), ("Dense", 1))]
    row, = atlas.masks(Record(cell.key, VERSION, cell, report, [], 10) for cell in cells).to_dict("records")
    assert row == {"dataset": "mnist", "model": "cnn", "method": "LAMP@run", "reading": "run", "base": "LAMP", "ratio": 4.0,
                   "seed": 42, "collapsed": True, "empty": 2, "effective": 5.0, "reached": 4.0,
                   "parameters": 99, "released": 3.0, "kept": {"a": 0}, "sizes": {"a": 7}}


# ---- compression

def test_errors_are_in_weights_where_the_count_is_exact_and_in_percent_of_the_mean_as_released():
    frame = masks(("SNIP", 4, 42, {"reached": 1000 / 246}), ("LAMP", 4, 42, {"reached": 1000 / 253}), ("OBD", 8, 42, {}),
                  *(("GraSP@run", ratio, seed, {"released": released}) for ratio, seed, released in (
                      (2, 1, 1.0), (2, 2, 1.0), (4, 1, 3.0), (4, 2, 3.4), (8, 1, 7.6), (8, 2, 8.4))))
    line = atlas.error_table(frame).body.iloc[0]
    assert line["published and written: most weights off"] == "4 in 3 masks"
    assert line["GraSP@run: median (range)"] == "−20 % (−50 to 0)"      # of -50, -20 and 0
    assert line["OBD@run: median (range)"] == "–"


# ---- collapse

@pytest.mark.parametrize("collapsed, empty, effective, told", [
    ([False, False], [0, 0], [5.0, 6.0], "5.50"), ([False, False], [1, 0], [5.0, 6.0], "5.50; empty 1/2"),
    ([True, False], [3, 0], [9.0, 6.0], "6.00; no path 1/2"), ([False, True], [0, 3], [6.0, 9.0], "6.00; no path 1/2"),
    ([True, False], [3, 1], [9.0, 6.0], "6.00; empty 2/2; no path 1/2"), ([True, True], [0, 0], [9.0, 9.0], "no path 2/2"),
])
def test_a_fate_is_the_mean_over_what_is_open_and_how_many_are_not(collapsed, empty, effective, told):
    assert atlas._fate(pd.DataFrame({"collapsed": collapsed, "empty": empty, "effective": effective})) == told


def test_the_fates_of_a_network_stand_under_their_ratio():
    frame = masks(("SNIP", 4, 1, {"effective": 4.5}), ("SNIP", 8, 1, {"effective": 9.0}),
                  ("LAMP", 8, 1, {"collapsed": True}))
    body = atlas.collapse_table(frame, "cifar10/vgg16").body
    assert body.to_dict("records") == [{"method": "LAMP", "r = 4": "–", "r = 8": "no path 1/1"},
                                       {"method": "SNIP", "r = 4": "4.50", "r = 8": "9.00"}]


def test_the_critical_table_tells_path_and_layers_apart_and_bounds_chains_alone():
    line = atlas.critical_table(critical(("SNIP", 50.0, 20.0, 51.0, [62.5, 80.0]))).body.iloc[0].to_dict()
    assert line == {"network": "VGG-16 on CIFAR-10", "method": "SNIP", "ρ_cr": "50", "weights left": "20",
                    "ρ_max = n/L": "100", "weights per layer at ρ_cr": "2", "largest ρ with no empty layer": "20",
                    "whole again at": "62.5, 80"}
    residual = atlas.critical_table(critical(("SNIP", 50.0, 20.0, 51.0, []), model="resnet56")).body.iloc[0]
    assert residual[["ρ_max = n/L", "weights per layer at ρ_cr", "whole again at"]].tolist() == ["–"] * 3
    assert residual["ρ_cr"] == "50"


def test_where_no_collapse_was_seen_a_residual_network_has_a_lower_bound_and_a_chain_its_own():
    rows = ("SNIP", 100.0, 20.0, None, [])
    assert atlas.critical_table(critical(rows)).body.loc[0, "ρ_cr"] == "100"
    residual = critical(rows, model="resnet56")
    line = atlas.critical_table(residual).body.loc[0]
    assert line["ρ_cr"] == "≥ 100"
    marks = {mark.get_xdata()[0]: mark.get_marker() for mark in atlas.critical_compression(residual).axes[0].get_lines()}
    assert marks[100.0] == ">"


def test_the_first_so_many_are_named_and_how_far_down_it_goes():
    found = critical(("SNIP", 10.0, 10.0, 11.0, []), ("SynFlow", 100.0, 100.0, None, []), ("LAMP", 50.0, 20.0, 51.0, []))
    assert atlas.maximal(found, 1)[0].endswith("SynFlow 1.00 down to SNIP 0.50.")


def test_what_reaches_the_bound_is_named_and_the_rest_ranked_by_logarithms():
    found = critical(("SNIP", 10.0, 10.0, 11.0, []), ("SynFlow", 100.0, 100.0, None, []), ("LAMP", 50.0, 20.0, 51.0, []))
    line, = atlas.maximal(found)
    assert line == ("VGG-16 on CIFAR-10: ρ_max itself is reached by SynFlow; log ρ_cr / log ρ_max: SynFlow 1.00, "
                    f"LAMP {math.log(50) / math.log(100):.2f}, SNIP 0.50.")
    line, = atlas.maximal(critical(("SNIP", 10.0, 10.0, 11.0, [])))
    assert "no method reaches ρ_max itself" in line
    assert atlas.maximal(critical(("SNIP", 10.0, 10.0, 11.0, []), model="resnet56")) == []


def test_the_bound_is_drawn_where_it_is():
    lines = atlas.critical_compression(critical(("SNIP", 50.0, 20.0, 51.0, []))).axes[0].get_lines()
    marks = {line.get_xdata()[0]: line.get_markerfacecolor() for line in lines if len(line.get_xdata()) == 1}
    assert set(marks) == {50.0, 20.0} and marks[20.0] == "white" != marks[50.0]
    assert any(list(line.get_xdata()) == [100, 100] for line in lines)


def test_a_map_of_densities_shows_the_first_seed_and_what_is_on_a_path():
    sizes, kept = {"a.weight": 10, "b.weight": 40}, {1: {"a.weight": 5, "b.weight": 0}, 2: {"a.weight": 1, "b.weight": 1}}
    frame = masks(*((method, 4, seed, {"sizes": sizes, "kept": kept[seed], "effective": 7.25, "collapsed": method == "LAMP"})
                    for method in ("SNIP", "LAMP") for seed in (1, 2)))
    figure = atlas.density_map(frame, "cifar10/vgg16", 4)
    assert figure.data.to_numpy().tolist() == [["LAMP", 0.5, 0.0, 7.25, True], ["SNIP", 0.5, 0.0, 7.25, False]]
    assert [text.get_text() for text in figure.axes[0].texts] == ["no path", "7.2", "effective r"]
    crosses = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "x")
    assert list(zip(crosses.get_xdata(), crosses.get_ydata())) == [(1, 0), (1, 1)]


@pytest.mark.parametrize("collapsed, empty, counts, found", [
    ([True, True], [2, 2], "2/2 0/2 0/2", "nothing passes"), ([False, False], [0, 0], "0/2 0/2 2/2", "neither"),
    ([False, False], [1, 2], "0/2 2/2 0/2", "an empty layer is bypassed"),
    ([True, False], [2, 2], "1/2 1/2 0/2", "it depends on the seed"),
    ([False, False], [0, 1], "0/2 1/2 1/2", "it depends on the seed"),
    ([True, False], [1, 0], "1/2 0/2 1/2", "it depends on the seed"),
])
def test_an_entry_at_chance_level_is_explained_by_what_all_its_masks_say(collapsed, empty, counts, found):
    rows = [("GlobalMag@run", 32, seed, {"collapsed": closed, "empty": count})
            for seed, (closed, count) in enumerate(zip(collapsed, empty))]
    others = [("GlobalMag", 32, 1, {}), ("GlobalMag@run", 64, 1, {})]     # another reading, another ratio
    body = atlas.chance_table(masks(*rows, *others)).body
    line = body[(body["method"] == "GlobalMag") & (body["r"] == "32") & (body["network"] == "VGG-16 on CIFAR-10")].iloc[0]
    assert line["explained by"] == found
    assert " ".join(line[["nothing passes", "an empty layer is bypassed", "neither"]]) == counts


# ---- why

def signs():
    layers = [{"what": "layer", "layer": name, "weights": weights, "zeros": zeros, "negative": 1}
              for name, weights, zeros in (("a", 10, 5), ("b", 90, 9))]
    bars = [{"what": "bar", "sign": sign, "from": low, "to": 10 * low, "weights": weights}
            for sign, low, weights in ((1, 1e-3, 7), (1, 1e-2, 8), (-1, 1e-3, 9))]
    ratio = {"what": "ratio", "ratio": 16.0, "released": 1e-2, "exact": -1e-2, "ties": 12.0, "two_sided": 8.0}
    return atlas.answers([studied("signed", "GraSP@run", [*layers, *bars, ratio])], "signed")


def test_zeros_are_the_share_of_all_weights_and_of_each_layers():
    assert atlas._zeros(signs()) == "14.00 % exactly 0"
    line = atlas.zeros_by_layer(signs()).axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2] and line.get_ydata().tolist() == [50, 10]


def test_signed_scores_stand_on_their_side_of_zero_with_both_thresholds():
    axis = atlas.signed_scores(signs(), "cifar10/vgg16").axes[0]
    bars = sorted((round(bar.get_x(), 9), round(bar.get_x() + bar.get_width(), 9), bar.get_height()) for bar in axis.patches)
    assert bars == [(0, -1, 9), (0, 1, 7), (1, 2, 8)]       # decades above the lowest bar's 1e-3, to both sides
    cuts = {(line.get_linestyle(), round(float(line.get_xdata()[0]), 9)) for line in axis.get_lines()}
    assert cuts == {("--", -1.0), (":", 1.0), (":", -1.0)}


def test_hypotheses_and_what_is_seen_are_errors_in_percent_by_masks():
    frame = masks(("GraSP@run", 16, 1, {"reached": 8.0, "released": 9.0}), ("GraSP@run", 16, 2, {"reached": 12.0}),
                  ("GraSP@run", 32, 1, {}))
    figure = atlas.two_hypotheses(signs(), frame, "cifar10/vgg16")
    drawn = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].get_lines()}
    assert list(drawn.values()) == [[-25], [-50], [-50, -25]]
    seen = figure.data[["ratio", "ties", "two_sided", "seed", "reached"]].to_numpy().tolist()
    assert seen == [[16, 12, 8, 1, 8], [16, 12, 8, 2, 12]]


def test_what_is_not_finite_stands_on_the_upper_edge_at_its_depth():
    flows = {(20, "float64"): 10.0, (110, "float64"): 1e50, (20, "float32"): 10.0, (110, "float32"): None}
    rows = [{"network": f"resnet{depth}", "precision": precision, "flow": flow, "largest": flow}
            for (depth, precision), flow in flows.items()]
    figure = atlas.depths(atlas.answers([studied("depth", "", rows, model="resnet56")], "depth"))
    lost = next(line for line in figure.axes[0].get_lines() if line.get_marker() == "^")
    shown = figure.axes[0].transAxes.inverted().transform(lost.get_transform().transform((110, lost.get_ydata()[0])))
    assert list(lost.get_xdata()) == [110] and shown[1] == pytest.approx(1) and figure.axes[0].get_ylim()[1] > 1e50


def test_one_round_and_many_are_densities_with_a_cross_for_an_empty_layer():
    rows = [{"ratio": 4, "rounds": rounds, "layer": layer, "kept": kept, "size": size}
            for rounds, layer, kept, size in ((1, "a", 5, 10), (1, "b", 0, 40), (100, "a", 2, 10), (100, "b", 4, 40))]
    axis = atlas.one_round_or_many(atlas.answers([studied("rounds", "", rows)], "rounds"), "cifar10/vgg16").axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axis.get_lines() if not line.get_label().startswith("_")}
    assert lines["100 rounds"].tolist() == [0.2, 0.1] and lines["1 round"][0] == 0.5 and np.isnan(lines["1 round"][1])
    assert [list(line.get_xdata()) for line in axis.get_lines() if line.get_marker() == "x"] == [[2], []]


# ---- overlaps and costs

def test_a_map_of_overlaps_is_symmetric():
    pairs = [{"ratio": ratio, "first": "SNIP", "second": "LAMP", "jaccard": share}
             for ratio, share in ((4, 0.25), (16, 0.75))]
    data = atlas.overlap_map(atlas.answers([studied("overlap", "", pairs)], "overlap"), "cifar10/vgg16", 16).data
    assert data.set_index("method").to_numpy().tolist() == [[1, 0.75], [0.75, 1]]


def test_readings_are_found_whichever_of_the_two_comes_first():
    pairs = [{"ratio": 4, "first": "SNIP", "second": "SNIP@written", "jaccard": 0.5},
             {"ratio": 4, "first": "SNIP@run", "second": "SNIP", "jaccard": 0.125},
             {"ratio": 16, "first": "SNIP@run", "second": "SNIP", "jaccard": 0.25}]
    body = atlas.readings_table(atlas.answers([studied("overlap", "", pairs)], "overlap")).body
    assert body.drop(columns="network").to_numpy().tolist() == [
        ["SNIP and SNIP@written", "50.0 %", "–"], ["SNIP and SNIP@run", "12.5 %", "25.0 %"]]


def test_what_survives_a_seed_and_more_images_stands_beside_chance():
    rows = [{"against": "another seed", "ratio": 4, "jaccard": 0.5, "by_chance": 0.125}]
    line = atlas.variation_table(atlas.answers([studied("variation", "LAMP", rows)], "variation")).body.iloc[0]
    assert line["another seed, r = 4"] == "50.0 %" and line["by chance, r = 4"] == "12.5 %"
    fewer = studied("images", "OBD", [rows[0] | {"images": 128, "against": "512 images"}])
    line = atlas.images_table(atlas.answers([fewer], "images")).body.iloc[0]
    assert line.drop("network").tolist() == ["128", "512 images", "4", "50.0 %", "12.5 %"]


def test_exactness_is_the_largest_difference_relative_to_double_backward():
    rows = [{"layer": "a", "index": 1, "double_backward": exact, "diagonal": exact + off, "float32": exact - 2 * off}
            for exact, off in ((10.0, -1.0), (-2.0, 0.1), (100.0, 2.0))]
    line = atlas.exactness_table(atlas.answers([studied("exactness", "OBD", rows)], "exactness")).body.iloc[0]
    assert line["largest relative difference, float64"] == "1.0e-01"
    assert line["the same, float32 with float64 sums"] == "2.0e-01"
    assert line[["weights drawn", "h from", "to"]].tolist() == ["3", "-2.00e+00", "1.00e+02"]


def test_costs_are_summed_over_the_compressions_and_averaged_over_the_seeds():
    cells = [(Cell("mnist", "cnn", method, ratio, seed, 0, 1e-3), seconds) for method, ratio, seed, seconds in (
        ("LAMP", 4, 1, 10.0), ("LAMP", 8, 1, 20.0), ("LAMP", 4, 2, 30.0), ("LAMP", 8, 2, 40.0), ("SNIP", 4, 1, 3500.0))]
    table = atlas.cost_table([Record(cell.key, VERSION, cell, {}, [], 10, {"seconds": seconds}) for cell, seconds in cells])
    assert table.body.to_numpy().tolist() == [["SNIP", "3500.0"], ["LAMP", "50.0"]]
    assert "in all 1.0 hours for 5 cells" in table.caption


def test_answers_are_those_of_their_question_alone():
    found = [studied("signed", "OBD", [{"what": "layer"}]), studied("rounds", "", [{"kept": 1}, {"kept": 2}], seed=7)]
    assert atlas.answers(found, "rounds")[["seed", "kept"]].to_numpy().tolist() == [[7, 1], [7, 2]]
    assert atlas.answers(found, "depth").empty
