"""bf16 beside float32: which cells are compared, over which epochs, and what counts as within what seeds move."""

from dataclasses import replace

import pytest

from lib import experiment, precision
from lib.experiment import Cell, Record

CELL = Cell("cifar10", "resnet56", "Dense", 1, 42, 3, 1e-3)


def record(kind, top1, losses=None, **changes):
    """A record of 1000 test images whose top-1 after each epoch is given in percent; a training loss not given is 1."""
    cell = replace(CELL, epochs=len(top1) - 1, **changes)
    history = [{"epoch": epoch, "top1": round(10 * value), "top5": 1000, "test_loss": 1.0,
                "train_loss": (losses or {}).get(epoch, 1.0)}
               for epoch, value in enumerate(top1)]
    return Record(cell.key, experiment.VERSION, cell, {}, history, 1000, {"precision": kind})


EXACT = record("float32", [10, 40, 44, 47])
OWN = record("bf16", [10, 40.5, 44, 46, 90])
OTHERS = [record("bf16", [10, 41, 45, 45], seed=43), record("bf16", [10, 39, 44, 46], seed=44)]


def test_the_common_epochs_are_compared():
    table = precision.comparison([EXACT, OWN, *OTHERS])
    line = table.body.iloc[0]
    assert len(table.body) == 1 and line["epochs"] == "3" and line["float32 (seed)"] == "47.00 (42)"
    assert line["bf16 (seed)"] == "46.00 (42), 45.00 (43), 46.00 (44)"
    assert line["largest difference"] == "1.00 (epoch 3)" and line["range of seeds then"] == "1.00"
    assert line["masks"] == "the same" and line["epochs within it"] == "3 of 3"
    assert ("ResNet-56 on CIFAR-10 (1 cells, the first 3 epochs): epoch by epoch, 3 of 3 differences in top-1 and 3 of "
            "those in training loss are no larger" in table.caption)
    assert line["float32 is"] == "above them all"
    assert "above them all in 1 of 1 cells, where chance would put one more seed in one of 4." in table.caption


def test_an_epochs_difference_is_set_against_that_epochs_range():
    wide_first = [record("bf16", [10, 30, 44, 46], seed=43), record("bf16", [10, 50, 44, 46], seed=44)]
    table = precision.comparison([EXACT, OWN, *wide_first])    # a range of 20 at epoch 1 excuses nothing at epoch 3
    assert table.body.iloc[0]["epochs within it"] == "2 of 3" and table.body.iloc[0]["range of seeds then"] == "0.00"


def test_masks_that_differ_are_told():
    own = record("bf16", [10, 40.5, 44, 46])
    own.report["digest"] = "another"
    assert precision.comparison([EXACT, own, *OTHERS]).body.iloc[0]["masks"] == "differ"


def test_a_difference_larger_than_what_seeds_move_is_told():
    shifted = [record("bf16", [10, 43, 47, 50 + of / 10], seed=42 + of) for of in range(3)]
    table = precision.comparison([EXACT, *shifted])
    assert table.body.iloc[0]["largest difference"] == "3.00 (epoch 1)"
    assert "epoch by epoch, 0 of 3 differences in top-1" in table.caption
    assert table.body.iloc[0]["float32 is"] == "below them all"


def test_float32_amid_the_seeds_is_told():
    amid = [record("bf16", [10, 41, 45, 47 + of], seed=42 + of) for of in range(2)]
    table = precision.comparison([EXACT, *amid])
    assert table.body.iloc[0]["float32 is"] == "inside their range" and "inside their range in all 1 cells" in table.caption


def test_training_losses_are_compared_too():
    losses = [{1: 1.1, 2: 1.2, 3: 1.3}, {1: 1.0, 2: 1.1, 3: 1.35}, {1: 1.2, 2: 1.15, 3: 1.34}]
    exact = record("float32", [10, 40, 44, 47], losses[0])
    table = precision.comparison([exact, record("bf16", [10, 40, 44, 47], losses[1]),
                                  record("bf16", [10, 41, 45, 48], losses[2], seed=43)])   # 0.1 of 0.2, of 0.05; 0.05 of .01
    assert table.body.iloc[0]["losses within theirs"] == "1 of 3"
    assert "and 1 of those in training loss are no larger" in table.caption


def test_a_loss_that_is_none_is_within_nothing():
    exact = record("float32", [10, 40], {1: None})
    table = precision.comparison([exact, record("bf16", [10, 40]), record("bf16", [10, 41], {1: 2.0}, seed=43)])
    assert table.body.iloc[0]["losses within theirs"] == "0 of 1"


def test_a_record_that_shows_anothers_training_is_left_out():
    shown = record("bf16", [10, 41, 45, 90], seed=44)
    shown.run["trained_as"] = "Dense"
    alone = precision.comparison([EXACT, OWN, OTHERS[0]])
    assert precision.comparison([EXACT, OWN, OTHERS[0], shown]).caption == alone.caption
    served = record("float32", [10, 40, 44, 47])
    served.run["trained_as"] = "Dense"
    assert len(precision.comparison([served, OWN]).body) == 0


def test_what_diverged_before_the_first_epoch_is_left_out():
    assert len(precision.comparison([record("float32", [10]), OWN]).body) == 0


def test_networks_are_judged_apart():
    other = {"model": "vgg16"}
    amid = [record("bf16", [10, 41, 45, 47 + of], seed=42 + of) for of in range(2)]
    ahead = [record("bf16", [10, 41, 45, 50 + of], seed=42 + of, **other) for of in range(2)]
    table = precision.comparison([EXACT, *amid, record("float32", [10, 40, 44, 47], **other), *ahead])
    resnet, vgg = table.caption.split("ResNet-56 on")[1].split("VGG-16 on")
    assert "inside their range in all 1 cells" in resnet and "do not take" not in resnet
    assert "below them all in 1 of 1 cells, where chance would put one more seed in one of 3." in vgg


ODDS = "where chance would put one more seed in one of 3"


@pytest.mark.parametrize("tops, said", [
    ((50, 50, 50), f"below them all in 3 of 3 cells, {ODDS}: do not take its tests"),
    ((40, 40, 40), f"above them all in 3 of 3 cells, {ODDS}: do not take its tests"),
    ((50, 50, 40), f"below them all in 2 and above them all in 1 of 3 cells, {ODDS}."),
    ((50, 50, 47), f"below them all in 2 of 3 cells, {ODDS}.")])
def test_only_one_side_in_every_cell_of_three_condemns_a_precision(tops, said):
    exact = [record("float32", [10, 40, 44, 47], method=method) for method in ("LAMP", "SNIP", "GraSP")]
    rounded = [record("bf16", [10, 41, 45, top + of], seed=42 + of, method=each.cell.method)
               for each, top in zip(exact, tops) for of in range(2)]
    single = [record(kind, [10, 40, 44, 47], method="OBD") for kind in ("float32", "bf16")]    # of one seed: not judged
    assert said in precision.comparison([*exact, *rounded, *single]).caption


def test_one_seed_proves_nothing():
    table = precision.comparison([EXACT, OWN])
    assert table.body.iloc[0]["float32 is"] == "–" and "inside" not in table.caption
    assert table.body.iloc[0]["range of seeds then"] == "–"
    assert "epoch by epoch, 0 of 3 differences in top-1" in table.caption


@pytest.mark.parametrize("records", [[], [EXACT], [OWN, *OTHERS], [EXACT, *OTHERS],
                                     [EXACT, record("bf16", [10, 40], method="SNIP", compression=2)],
                                     [EXACT, record("bf16", [10, 40], learning_rate=1e-4)]])
def test_without_the_same_cell_in_both_nothing_is_compared(records):
    table = precision.comparison(records)
    assert table.body.empty and "no cell has been trained in both" in table.caption
