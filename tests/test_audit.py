"""Studies: their answers against definitions, and how they are stored and asked again."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib import UserError, atlas, audit, collapse, experiment, methods, pruning, sweep
from lib.profile import Profile
from lib.scorers import SCORERS
from lib.store import Store
from lib.study import Answer, Study
from tests import nets

GRID = Profile(profile="tiny", pairs={"digits/cnn": 0, "shapes10/resnet20": 0}, compressions=[1, 4], further_compressions=[],
               seeds=[42, 43], learning_rate=1e-3, text_learning_rate=None, width=0.125, train_images=256, obd_images=32,
               audit=["digits/cnn"])


def study(question, method="", **changed):
    fields = dict(dataset="digits", model="cnn", seed=42, width=0.125, train_images=256, score_images=32) | changed
    return Study(question, method=method, **fields)


@pytest.fixture(scope="module")
def answered():
    """Every study of the tiny profile's CNN, once."""
    return [audit.run(each) for each in audit.studies(GRID)]


def rows(answered, question, method=""):
    return next(answer.rows for answer in answered
                if (answer.study.question, answer.study.method) == (question, method or answer.study.method))


def test_a_profile_asks_every_question_of_the_pairs_that_it_audits():
    asked = audit.studies(GRID)
    assert {each.question for each in asked} == set(audit.QUESTIONS) - {"depth"}
    assert {each.dataset for each in asked} == {"digits"}
    residual = GRID.model_copy(update={"audit": ["shapes10/resnet20"]})
    depths = [each for each in audit.studies(residual) if each.question == "depth"]
    assert [each.seed for each in depths] == [42, 43]
    assert len({each.key for each in asked}) == len(asked)


def test_a_pair_that_is_not_in_the_profile_is_refused():
    with pytest.raises((UserError, ValueError), match="not among the pairs"):
        Profile(**GRID.model_dump() | {"audit": ["mnist/cnn"]})


def test_answers_come_back_from_their_store_and_are_not_computed_again(answered, tmp_path):
    store = Store(tmp_path / "audit.jsonl", Answer)
    with store.writing():
        for answer in answered:
            store.add(answer)
    again = Store(tmp_path / "audit.jsonl", Answer)
    assert list(again.records.values()) == answered
    assert sweep.missing(audit.studies(GRID), again) == []


def test_the_same_study_gives_the_same_rows(answered):
    for answer in answered:
        if answer.study.question in ("variation", "exactness") and answer.study.method in ("SNIP", "OBD"):
            assert audit.run(answer.study).rows == answer.rows


def test_studies_of_one_method_go_to_one_worker():
    groups = sweep.tasks(audit.studies(GRID))
    snip = next(group for group in groups if group[0].method == "SNIP")
    assert [each.question for each in snip] == ["critical", "variation"]
    obd = next(group for group in groups if group[0].method == "OBD")
    assert [(each.question, each.method) for each in obd] == [
        ("signed", "OBD"), ("critical", "OBD"), ("variation", "OBD"), ("signed", "OBD@run")]


def test_jaccard_and_chance_by_hand():
    first, second = (pruning.pack({"a": torch.tensor(bits).bool()}) for bits in ([1, 1, 1, 0], [0, 1, 1, 1]))
    assert audit.jaccard(first, second) == 2 / 4 and audit.jaccard(first, first) == 1
    assert audit.by_chance(first, second, 4) == pytest.approx((9 / 4) / (6 - 9 / 4))
    nothing = pruning.pack({"a": torch.zeros(4).bool()})
    assert audit.jaccard(nothing, nothing) == 0


def test_overlaps_are_those_of_the_cells_masks(answered):
    each, images = study("overlap"), experiment.images_of(study("overlap").cell("Dense"))
    kept = {}
    for name in ("SNIP", "GlobalMag@run"):
        cell = each.cell(name, 4.0)
        kept[name] = pruning.pack(experiment.masks_of(cell, experiment.network(cell, images), images))
    found = next(row for row in rows(answered, "overlap") if (row["first"], row["second"]) == ("SNIP", "GlobalMag@run"))
    assert found["jaccard"] == audit.jaccard(*kept.values())
    assert len(rows(answered, "overlap")) == len(methods.METHODS) * (len(methods.METHODS) - 1) // 2


def test_another_batch_changes_the_batch_and_nothing_else(answered):
    shown = {row["against"]: row["jaccard"] for row in rows(answered, "variation", "GlobalAct") if row["ratio"] == 4}
    assert 1 > shown["another batch"] > shown["another seed"]   # the weights count for more than the images
    assert {row["against"] for row in rows(answered, "variation", "LAMP")} == {"another seed"}


def test_another_seed_is_the_next_one(answered):
    each, images = study("variation", "LAMP"), experiment.images_of(study("variation").cell("Dense"))
    cells = [each.cell(ratio=4.0, seed=seed) for seed in (42, 43)]
    kept = [pruning.pack(experiment.masks_of(cell, experiment.network(cell, images), images)) for cell in cells]
    row = next(row for row in rows(answered, "variation", "LAMP") if row["ratio"] == 4)
    assert row["jaccard"] == audit.jaccard(*kept)


@pytest.mark.parametrize("width, ratios", [(0.125, [2, 4, 8]), (1.0, [2, 4, 8, 16, 32, 64])])
def test_hypotheses_are_asked_at_the_powers_of_two_that_are_reached(width, ratios):
    found = audit.run(study("signed", "GraSP", width=width)).rows
    assert [row["ratio"] for row in found if row["what"] == "ratio"] == ratios


def test_the_critical_compression_is_the_edge_of_collapse(answered):
    for method in ("GlobalMag", "Random", "LAMP"):
        each = study("critical", method)
        images = experiment.images_of(each.cell("Dense"))
        model = experiment.network(each.cell(), images)
        scores = experiment.scores(each.cell(), model, images)
        for row in rows(answered, "critical", method):
            beyond = row["kept"] if row["collapsed"] is None else round(row["weights"] / row["collapsed"])
            whole = {kept: collapse.whole(model, collapse.masks_keeping(model, methods.get(method), scores, kept))[row["by"]]
                     for kept in (row["kept"], beyond)}
            assert whole[row["kept"]] and row["rho"] == row["weights"] / row["kept"]
            assert (beyond == row["layers"]) if row["collapsed"] is None else not whole[beyond]
            assert row["collapsed"] is None or beyond >= row["kept"] - 1 or row["collapsed"] <= 1.011 * row["rho"]


def test_a_network_is_whole_by_path_and_by_layers():
    model = nets.chain()
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.prunable(model).items()}
    assert collapse.whole(model, masks) == {"path": True, "layers": True}
    next(iter(masks.values())).zero_()
    assert collapse.whole(model, masks) == {"path": False, "layers": False}


def test_the_diagonal_is_that_of_double_backward(answered):
    found = rows(answered, "exactness", "OBD")
    assert len(found) == 12
    for row in found:
        assert row["diagonal"] == pytest.approx(row["double_backward"], rel=1e-9, abs=1e-18)
        assert row["float32"] == pytest.approx(row["double_backward"], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("model, dataset", [("resnet56", "shapes10"), ("vgg16", "shapes10")])
def test_the_diagonal_is_exact_on_deep_networks(model, dataset):
    answer = audit.run(study("exactness", "OBD", model=model, dataset=dataset, width=0.125))
    values = [row["double_backward"] for row in answer.rows]
    assert any(value > 0 for value in values)
    for row in answer.rows:
        assert row["diagonal"] == pytest.approx(row["double_backward"], rel=1e-7, abs=1e-15)


def test_signs_zeros_and_both_hypotheses_by_brute_force(answered):
    each = study("signed", "GraSP@run")
    images = experiment.images_of(each.cell("Dense"))
    model = experiment.network(each.cell(), images)
    scores = experiment.scores(each.cell(), model, images)
    found = rows(answered, "signed", "GraSP@run")
    for row in found:
        if row["what"] == "layer":
            score = scores[row["layer"]]
            zeros, negative = int((score == 0).sum()), int((score < 0).sum())
            assert (row["weights"], row["zeros"], row["negative"]) == (score.numel(), zeros, negative)
    flat = torch.cat([score.flatten() for score in scores.values()]).double().numpy()
    bars = [row for row in found if row["what"] == "bar"]
    assert sum(row["weights"] for row in bars) == (flat != 0).sum() and len(bars) == 2 * 60
    assert sum(row["weights"] for row in bars if row["sign"] < 0) == (flat < 0).sum()
    total = sum(parameter.numel() for parameter in model.parameters())
    for row in (row for row in found if row["what"] == "ratio"):
        cut = np.quantile(flat, 1 - pruning.released_density(model, row["ratio"]))
        assert row["released"] == pytest.approx(cut, rel=1e-6)
        assert row["two_sided"] == pytest.approx(total / (total - ((flat > -cut) & (flat < cut)).sum()))
        assert row["ties"] == pytest.approx(total / (total - (flat < cut).sum()))
        mask = pruning.select(model, methods.get("GraSP@run"), scores, row["ratio"], None)
        assert pruning.report(model, mask).compression == pytest.approx(row["two_sided"], rel=1e-3)
        exact = pruning.select(model, methods.get("GraSP"), scores, row["ratio"], None)
        assert row["exact"] == min(float(scores[name][kept].min()) for name, kept in exact.items() if kept.any())


def test_fewer_images_are_compared_with_the_most(answered):
    assert {(row["images"], row["against"]) for row in rows(answered, "images", "OBD")} == {(32, "128 images")}


def test_one_round_and_a_hundred_keep_the_same_count(answered):
    found = rows(answered, "rounds")
    kept = {rounds: sum(row["kept"] for row in found if row["rounds"] == rounds) for rounds in (1, 100)}
    assert kept[1] == kept[100] == pruning.kept_count(experiment.network(
        study("rounds").cell("Dense"), experiment.images_of(study("rounds").cell("Dense"))), 4)


def test_the_flow_overflows_float32_with_depth_and_not_float64():
    found = audit.run(study("depth", model="resnet20", dataset="shapes10", width=1.0)).rows
    double = {row["network"]: row["flow"] for row in found if row["precision"] == "float64"}
    single = {row["network"]: row["flow"] for row in found if row["precision"] == "float32"}
    assert None not in double.values() and list(double.values()) == sorted(double.values())
    assert single["resnet20"] == pytest.approx(double["resnet20"], rel=1e-4) and single["resnet110"] is None
    cell = study("depth", model="resnet20", dataset="shapes10", width=1.0).cell("Dense")
    network = experiment.network(cell, experiment.images_of(cell))
    largest = max(score.max() for score in SCORERS["synflow"](network, None, None).values())
    assert next(row["largest"] for row in found if row["network"] == "resnet20" and row["precision"] == "float64") == (
        pytest.approx(float(largest)))


def test_the_flow_is_what_its_scores_are_derived_from():
    from lib.scorers.synflow import flow, synflow
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    model.input_shape = (3,)
    first, second = (model[place].weight.detach().abs().double() for place in (0, 2))
    by_hand = second @ (first @ torch.ones(3, dtype=torch.float64))
    total, _ = flow(model, None, torch.float64)
    assert float(total.detach()) == pytest.approx(float(by_hand.sum()))
    assert all(float(score.sum()) == pytest.approx(float(total.detach())) for score in synflow(model, None, None).values())


# ---- the atlas

def records():
    cells = [cell for cell in GRID.cells(["Random", "SynFlow", "GlobalAct"], ["digits/cnn"])]
    return [experiment.run(cell) for cell in cells]


def test_the_atlas_tells_fates_by_the_seeds(answered):
    frame = atlas.masks(records())
    fate = frame[(frame["method"] == "Random") & (frame["ratio"] == 4)].copy()
    assert len(fate) == 2 and "no path" not in atlas._fate(fate)
    fate["collapsed"] = [True, False]
    assert atlas._fate(fate).endswith("no path 1/2")
    fate["collapsed"], fate["empty"] = False, [2, 0]
    assert "empty 1/2" in atlas._fate(fate)


def test_every_entry_at_chance_level_gets_its_explanation():
    frame = atlas.masks(records()).iloc[:0]
    for collapsed, empty, reason in [([True, True], [5, 5], "nothing passes"),
                                     ([False, False], [5, 1], "an empty layer is bypassed"),
                                     ([False, False], [0, 0], "neither"), ([True, False], [5, 0], "it depends on the seed")]:
        table = atlas.chance_table(_made(collapsed, empty))
        assert len(table.body) == 24
        ours = table.body[(table.body["method"] == "GlobalMag") & (table.body["network"] == "VGG-16 on CIFAR-10")]
        assert len(ours) and set(ours["explained by"]) == {reason}
        assert (table.body["explained by"] == "–").sum() == 24 - len(ours)
    assert "Nothing in the store yet" in atlas.chance_table(frame).caption


def _made(collapsed, empty):
    """The masks of GlobalMag@run on VGG-16 at both ratios, a seed for each entry."""
    return pd.DataFrame([{"dataset": "cifar10", "model": "vgg16", "method": "GlobalMag@run", "ratio": ratio,
                          "collapsed": closed, "empty": layers, "seed": 42 + index}
                         for ratio in (32.0, 64.0) for index, (closed, layers) in enumerate(zip(collapsed, empty))])


def test_maximal_critical_compression_is_told_in_logarithms(answered):
    found = atlas.answers(answered, "critical")
    line, = atlas.maximal(found)
    random = next(row for row in rows(answered, "critical", "Random") if row["by"] == "path")
    share = math.log(random["rho"]) / math.log(random["weights"] / random["layers"])
    assert line.startswith("CNN on digits") and f"Random {share:.2f}" in line
