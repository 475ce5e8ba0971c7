"""SNIP and GraSP of an earlier state of the released code: what they differ in, and what stands beside what."""

from dataclasses import replace

import pytest

from lib import earlier, experiment, methods, tables
from lib.experiment import Cell, Record

CELL = Cell("cifar10", "vgg16", "SNIP@run", 32, 42, 25, 1e-3)


def record(top1, method="SNIP@run", **changes):
    """10,000 test images; top-1 of epochs from 0 on in percent; training losses fall by a tenth an epoch."""
    history = [{"epoch": epoch, "train_loss": None if epoch == 0 else 2.5 - epoch / 10, "top1": round(100 * value),
                "test_loss": 2.0, "top5": 10_000} for epoch, value in enumerate(top1)]
    cell = replace(CELL, method=method, epochs=len(top1) - 1, **changes)
    return Record(cell.key, experiment.VERSION, cell, {}, history, 10_000, {"precision": "bf16"})


@pytest.mark.parametrize("name", methods.EARLIER)
def test_the_earlier_state_is_that_of_run_but_for_the_initial_weights(name):
    method = methods.EARLIER[name]
    assert replace(method, name=name, init="xavier_normal") == methods.get(name) and method.init == "own"
    assert methods.get(method.name) is method and method.name not in methods.METHODS
    assert method.reading == "run" and method.base not in tables.bases()


def test_what_both_have_trained_is_compared_in_the_thesis_accounting():
    table = earlier.comparison([record([10, 15, 20, 90]), record([10, 20, 30], "SNIP-f01a221@run"),
                                record([10, 20], "GraSP-f01a221@run"), record([10, 20], "GraSP@run", seed=43)])
    factor = 10_000 / (79 * 128)
    assert table.body.to_numpy().tolist() == [["VGG-16 on CIFAR-10", "32", "SNIP", "2 of 3", "2.30", "2.30",
                                               f"{30 * factor:.2f}", f"{20 * factor:.2f}", "56.00"]]
    assert f"SNIP at r = 32 after 2 of 3 epochs: training loss 2.30 (@run 2.30), top-1 {30 * factor:.2f}" in table.caption
    assert "the epochs that both have, trained in bf16; top-1" in table.caption
    assert table.caption.endswith("0 of 1 cells have all epochs; only these can be compared with the printed number.")


def test_whole_cells_are_told_apart_and_other_ratios_have_no_printed_number():
    table = earlier.comparison([record([10, 20]), record([10, 30], "SNIP-f01a221@run"), record([10, 20], compression=8.0),
                                record([10, 40, 50], "SNIP-f01a221@run", compression=8.0)])
    assert table.body["epochs"].tolist() == ["1 of 1", "1 of 1"] and table.body["top-1: printed"].tolist() == ["56.00", "–"]
    assert "2 of 2 cells have all epochs" in table.caption
    assert earlier.comparison([record([10, 20])]).caption.endswith("No such cell is computed.")
