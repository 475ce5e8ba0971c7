"""What the figures draw, and that they draw it the same way twice."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch

from lib import UserError, figures, rates, significance, tables, training
from tests.test_tables import cell, record


def store(dataset="mnist", ratios=(2, 64)):
    """SNIP in two readings, LayerMag, and the dense networks that serve them, by a known accuracy each."""
    known = {"SNIP": 70, "SNIP@run": 60, "LayerMag": 50}
    dense = {"Dense": 95, "Dense@variance_scaling": 96, "Dense@xavier_normal": 97}
    cells = [(cell(name, ratio, dataset), top) for name, top in known.items() for ratio in ratios]
    cells += [(cell(name, 1, dataset), top) for name, top in dense.items()]
    return tables.frame(record(of, [100 * top] * 3, released=of.compression / 2) for of, top in cells)


def drawn(figure, panel, label):
    [line] = [line for line in figure.axes[panel].get_lines() if line.get_label() == label]
    return line.get_xdata().tolist(), line.get_ydata().tolist()


def heights(figure, panel):
    """Of the horizontal lines, from the bottom."""
    lines = figure.axes[panel].get_lines()
    return sorted(line.get_ydata()[0] for line in lines if line.get_label().startswith("_"))


def test_methods_of_ones_own_look_different(monkeypatch):
    monkeypatch.setattr(tables, "bases", lambda: [*tables.ORDER, "Mine", "ERK"])
    looks = {figures.look(base) for base in tables.bases()}
    assert len(looks - set(figures.LOOKS.values())) == 2 and figures.look("SNIP") == figures.LOOKS["SNIP"]


def test_every_method_looks_different():
    assert set(figures.LOOKS) == set(tables.ORDER)
    looks = {(*look, base.startswith("Layer")) for base, look in figures.LOOKS.items()}
    assert len(looks) == len(tables.ORDER)


def test_a_curve_starts_at_the_dense_network_of_its_own_initialisation():
    figure = figures.accuracy_curves(store(), "mnist", "cnn")
    factor = tables.thesis_factor(10_000)
    assert drawn(figure, 1, "SNIP") == ([1, 2, 64], [96, 70, 70])
    assert drawn(figure, 0, "SNIP") == ([1, 2, 64], pytest.approx([97 * factor, 60 * factor, 60 * factor]))


def test_an_interval_wider_than_the_axis_does_not_stretch_it():
    cells = [(cell("SNIP", 2, seed=seed), top) for seed, top in ((42, 95), (43, 11))]
    frame = tables.frame(record(of, [100 * top] * 3) for of, top in cells)
    figure = figures.accuracy_curves(frame, "mnist", "cnn", readings=["published"])
    assert figure.data["half"].max() > 100 and 95 < figure.axes[0].get_ylim()[1] < 105


def test_no_line_leads_over_a_ratio_that_is_missing():
    frame = store(ratios=(2, 8, 64))
    frame.loc[(frame["method"] == "SNIP") & (frame["compression"] == 8), "top1"] = float("nan")
    ratios, heights = drawn(figures.accuracy_curves(frame, "mnist", "cnn"), 1, "SNIP")
    assert ratios == [1, 2, 8, 64] and heights == pytest.approx([96, 70, float("nan"), 70], nan_ok=True)


@pytest.mark.parametrize("metric, chance", [("top1", 11.35), ("top5", 52.14)])
def test_chance_and_dense_are_drawn_in_the_panels_accounting(metric, chance):
    figure = figures.accuracy_curves(store(), "mnist", "cnn", metric)
    dense = {"top1": 95, "top5": 94}[metric]
    assert heights(figure, 1) == [chance, dense]
    assert heights(figure, 0)[0] == pytest.approx(chance * tables.thesis_factor(10_000))
    assert {text.get_text() for text in figure.axes[0].texts} == {"chance", "unpruned"}


def test_title_tells_stand_ins_and_missing_cells():
    frame = store("digits")
    frame.loc[frame["method"] == "LayerMag", "top1"] = float("nan")
    title = figures.accuracy_curves(frame, "digits", "cnn").get_suptitle()
    assert "stand-in for MNIST" in title and "7 of 9 cells" in title
    assert "cells" not in figures.accuracy_curves(store(), "mnist", "cnn").get_suptitle()


def test_nothing_to_draw_is_said():
    figure = figures.accuracy_curves(store(), "cifar10", "vgg16")
    assert "no such cells in this profile" in figure.get_suptitle() and figure.data.empty and not figure.axes


def test_a_method_without_a_pruned_network_is_no_line_and_a_single_seed_is_named():
    records = [record(cell("Dense", 1), [9000] * 3), record(cell("SNIP@run", 4), [8000] * 3)]
    cells = [each.cell for each in records] + [cell("Dense@xavier_normal", 1), cell("LAMP", 4), cell("LAMP@run", 4)]
    figure = figures.accuracy_curves(tables.frame(records, cells), "mnist", "cnn")
    assert set(figure.data["base"]) == {"SNIP"} and f"seed {records[0].cell.seed}" in figure.get_suptitle()
    other = [record(cell("SNIP@run", 4, seed=7), [8000] * 3)]
    assert "seed 7" not in figures.accuracy_curves(tables.frame([*records, *other]), "mnist", "cnn").get_suptitle()


def test_bands_of_compression_errors_are_intervals_also_below_0():
    records = [record(cell("GraSP@run", 16, seed=seed), [9000] * 3, achieved=8 + seed / 10, released=8 + seed / 10)
               for seed in (1, 2, 3)]
    data = figures.compression_error(tables.frame(records), "mnist", "cnn").data
    assert (data["mean"] < -40).all() and not data["ranged"].any()


def test_what_a_profile_has_no_cells_of_is_not_written(tmp_path):
    assert figures.save(figures.accuracy_curves(store(), "cifar10", "vgg16"), tmp_path / "none").data
    waiting = store().assign(top1=float("nan"))
    figures.save(figures.accuracy_curves(waiting, "mnist", "cnn"), tmp_path / "waiting")
    assert {path.stem for path in tmp_path.iterdir()} == {"waiting"}
    for figure in (significance.diagram(tables.frame([]), "mnist", "cnn"),
                   training.diagram(training.histories([], []), "mnist", "cnn", (1e-3,))):
        figures.save(figure, tmp_path / "none")
    assert rates.statements(tables.frame([]), (1e-3, 1e-4)).body.empty and not list(tmp_path.glob("none*"))


def test_a_band_that_would_leave_0_to_100_percent_is_the_range_and_one_without_neighbours_a_bar():
    tops = {2: (98.9, 99.5, 99.9), 4: (80, 81, 82), 16: (11, 86, 84), 64: (20, 21, 22)}
    frame = tables.frame(record(cell("LAMP", ratio, seed=seed), [round(100 * top)] * 3)
                         for ratio, values in tops.items() for seed, top in enumerate(values) if ratio < 16 or seed < 3)
    single = frame["compression"].eq(16) & frame["seed"].gt(0)
    figure = figures.accuracy_curves(frame[~single], "mnist", "cnn", readings=["published"])
    band, bar = figure.axes[0].collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.max() == 99.9 and 98.9 in edges and edges.min() == pytest.approx(81 - 2.48, abs=0.01)
    [[(x, low), (_, high)]] = bar.get_segments()
    assert x == 64 and (low + high) / 2 == pytest.approx(21) and high - low == pytest.approx(2 * 2.484, abs=0.01)
    assert "over up to 3 seeds, or their range where that is impossible" in figure.get_suptitle()


def test_cells_that_are_not_trained_have_no_accuracy_to_wait_for():
    figure = figures.accuracy_curves(store().assign(epochs=0, top1=float("nan")), "mnist", "cnn")
    assert "no such cells in this profile" in figure.get_suptitle()


def test_bases_choose_the_lines_and_keep_the_dense_network():
    figure = figures.accuracy_curves(store(), "mnist", "cnn", readings=["published"], bases=["LayerMag"])
    assert figure.data["base"].unique().tolist() == ["LayerMag"]
    assert drawn(figure, 0, "LayerMag") == ([1, 2, 64], [95, 50, 50])


def test_seeds_make_a_band():
    frame = tables.frame(record(cell("LAMP", seed=seed), [7000 + 100 * seed] * 3) for seed in (1, 2, 3))
    figure = figures.accuracy_curves(frame, "mnist", "cnn", readings=["published"])
    [row] = figure.data.to_dict("records")
    assert (row["mean"], row["seeds"]) == (72, 3)
    [[(_, low), (_, high)]] = figure.axes[0].collections[1].get_segments()
    assert high - low == pytest.approx(2 * row["half"])
    assert "95 % interval (Student's t) over 3 seeds" in figure.get_suptitle()
    fewer = frame[(frame["seed"] < 3) | (frame["compression"] == 1)]
    more = pd.concat([frame, fewer.assign(compression=64.0)])
    assert "over up to 3 seeds" in figures.accuracy_curves(more, "mnist", "cnn", readings=["published"]).get_suptitle()
    assert "interval" not in figures.accuracy_curves(store(), "mnist", "cnn").get_suptitle()


def test_compression_error_counts_values_left_and_masks_right():
    figure = figures.compression_error(store(), "mnist", "cnn")
    assert drawn(figure, 0, "SNIP") == ([1, 2, 64], [-50, -50, -50])
    assert drawn(figure, 1, "SNIP") == ([1, 2, 64], [0, 0, 0])


def test_two_recipes_in_one_curve_are_refused():
    frame = tables.frame([record(cell("LAMP")), record(cell("LAMP", rate=1e-4))])
    with pytest.raises(UserError, match="mix"):
        figures.accuracy_curves(frame, "mnist", "cnn")


def test_saved_twice_the_bytes_are_the_same(tmp_path):
    for name in ("a", "b"):
        figures.save(figures.accuracy_curves(store(), "mnist", "cnn"), tmp_path / name / "figure-4.11")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == [f"figure-4.11.{suffix}" for suffix in ("csv", "pdf", "png", "svg")]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_the_csv_is_what_is_drawn(tmp_path):
    figure = figures.accuracy_curves(store(), "mnist", "cnn")
    shown = figures.save(figure, tmp_path / "f")
    assert shown.data == (tmp_path / "f.png").read_bytes()
    back = pd.read_csv(tmp_path / "f.csv").query("method == 'SNIP'")
    assert (back["compression"].tolist(), back["mean"].tolist()) == drawn(figure, 1, "SNIP")


def test_a_figure_names_the_store_that_it_is_made_of(tmp_path):
    figure = figures.accuracy_curves(store(), "mnist", "cnn")
    figures.save(figure, tmp_path / "none" / "figures" / "f")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "results.jsonl").write_bytes(b"cells")
    figures.save(figure, tmp_path / "some" / "figures" / "f")
    origin = f"some/results.jsonl, SHA-256 {hashlib.sha256(b'cells').hexdigest()}".encode()
    for suffix in ("pdf", "svg", "png"):
        assert origin in (tmp_path / f"some/figures/f.{suffix}").read_bytes()
        assert b"SHA-256" not in (tmp_path / f"none/figures/f.{suffix}").read_bytes()


def test_unsigned_scores_get_a_logarithmic_axis_and_signed_ones_do_not():
    scores = {"plain": torch.tensor([0.0, 1e-6, 1e-3, 1]), "signed": torch.tensor([-1, 0.5, float("nan")])}
    figure = figures.score_distribution(scores, {"signed": {2: -0.5, 8: 0.5}})
    plain, signed = figure.axes
    assert (plain.get_xscale(), signed.get_xscale(), signed.get_yscale()) == ("log", "linear", "log")
    assert "25.0 % exactly 0" in plain.get_title() and "33.3 % not finite" in signed.get_title()
    assert [line.get_xdata()[0] for line in signed.get_lines()] == [-0.5, 0.5]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["r = 2", "r = 8"]
    drawn = [line.get_color() for line in figure.legends[0].get_lines()]
    assert all(np.array_equal(line.get_color(), colour) for line, colour in zip(signed.get_lines(), drawn, strict=True))
    assert not np.array_equal(*drawn)


def test_every_finite_score_is_counted_once():
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    data = figures.score_distribution({"signed": scores, "plain": scores.abs()}).data
    assert data.groupby("scores")["weights"].sum().tolist() == [1000, 1000]
    assert figures.score_distribution({"x": torch.zeros(7)}).data["weights"].sum() == 7


MASKS = {4.0: {"conv.weight": torch.eye(4)[0].reshape(1, 1, 2, 2) > 0, "fc.weight": torch.ones(2, 2) > 0},
         64.0: {"conv.weight": torch.zeros(1, 1, 2, 2) > 0, "fc.weight": torch.eye(2) > 0}}


def test_density_of_layers_and_a_cross_for_an_empty_one():
    figure = figures.layer_density(MASKS)
    assert figure.data["density"].tolist() == [0.25, 1, 0, 0.5]
    crosses = [line.get_xdata().tolist() for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert crosses == [[], [1]]


def test_the_first_layer_is_tiled_filter_by_filter():
    mask = torch.zeros(5, 2, 2, 2, dtype=torch.bool)
    mask[4, 0, 1, 0] = True
    image = figures._tiles(mask)    # 3 tiles across: the fifth filter is the second of the second row
    assert image.shape == (5, 8) and image[4, 3] == 0.5 and (image == 0.5).sum() == 1
    figure = figures.first_layer(MASKS)
    assert [axis.get_title() for axis in figure.axes] == ["r = 4: 1 of 4 kept", "r = 64: 0 of 4 kept"]
