"""bf16 beside float32: which cells are compared, over which epochs, and what counts as within what seeds move."""

from dataclasses import replace

import pytest

from lib import experiment, precision
from lib.experiment import Cell, Record

CELL = Cell("cifar10", "resnet56", "Dense", 1, 42, 3, 1e-3)


def record(kind, top1, **changes):
    """A record of 1000 test images whose top-1 after each epoch is given in percent."""
    cell = replace(CELL, epochs=len(top1) - 1, **changes)
    history = [{"epoch": epoch, "top1": round(10 * value), "top5": 1000, "test_loss": 1.0, "train_loss": 1.0}
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
    assert line["largest difference"] == "1.00" and line["largest range of seeds"] == "2.00"
    assert "In 1 of 1 cells no epoch's difference is larger" in table.caption


def test_a_difference_larger_than_what_seeds_move_is_told():
    shifted = [record("bf16", [10, 43, 47, 50 + of / 10], seed=42 + of) for of in range(3)]
    table = precision.comparison([EXACT, *shifted])
    assert table.body.iloc[0]["largest difference"] == "3.00"
    assert "In 0 of 1 cells" in table.caption


def test_one_seed_proves_nothing():
    table = precision.comparison([EXACT, OWN])
    assert table.body.iloc[0]["largest range of seeds"] == "–" and "In 0 of 1 cells" in table.caption


@pytest.mark.parametrize("records", [[], [EXACT], [OWN, *OTHERS], [EXACT, *OTHERS],
                                     [EXACT, record("bf16", [10, 40], method="SNIP", compression=2)],
                                     [EXACT, record("bf16", [10, 40], learning_rate=1e-4)]])
def test_without_the_same_cell_in_both_nothing_is_compared(records):
    table = precision.comparison(records)
    assert table.body.empty and "no cell has been trained in both" in table.caption
