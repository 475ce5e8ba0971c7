"""What bf16 does to a training: the same cells in float32, epoch by epoch, against what a seed alone moves.

A recipe's rate is constant and no batch depends on how many epochs there will be, so a cell of few epochs is the beginning of
the cell of many: a short float32 training can be compared with a whole one in bf16.
"""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from lib.experiment import Cell, Record
from lib.tables import DASH, Table, label

COLUMNS = ["network", "cell", "epochs", "float32 (seed)", "bf16 (seed)", "largest difference", "largest range of seeds"]


def comparison(records: Iterable[Record]) -> Table:
    """Each cell that was trained in float32 beside the same cell in bf16, after the last epoch that both have.

    records: of any lengths. The largest difference is over all epochs that both have, and so is the largest range of the
    bf16 trainings that differ in their seed only. In percent, respectively points, of top-1.
    """
    records = [record for record in records if record.history]
    exact = [record for record in records if record.run.get("precision") == "float32"]
    rounded = [record for record in records if record.run.get("precision") == "bf16"]
    lines = [line for record in exact if (line := _line(record, rounded))]
    body = pd.DataFrame([each for _, each in lines], columns=COLUMNS)
    if not lines:
        return Table("bf16 beside float32: no cell has been trained in both.", body)
    within = sum(inside for inside, _ in lines)
    return Table(f"bf16 beside float32, top-1 in percent. {_networks(lines)} In {within} of {len(lines)} cells no epoch's "
                 "difference is larger than the largest range of the seeds.", body)


def _networks(lines: list[tuple[bool, dict]]) -> str:
    names = sorted({line["network"] for _, line in lines})
    return f"{', '.join(names)}: bf16 is compared there and nowhere else."


def _line(record: Record, rounded: list[Record]) -> tuple[bool, dict] | None:
    """Whether bf16 is within what seeds move, and the table's line; None where the cell was not trained in bf16."""
    alike = [each for each in rounded if _apart_from_seed(each.cell) == _apart_from_seed(record.cell)]
    own = next((each for each in alike if each.cell.seed == record.cell.seed), None)
    if own is None:
        return None
    last = min(len(each.history) for each in [record, *alike]) - 1
    curves = {each.cell.seed: _top1(each)[1:last + 1] for each in alike}
    exact, seeds = _top1(record)[1:last + 1], sorted(curves)
    difference = max(abs(a - b) for a, b in zip(exact, curves[record.cell.seed]))
    ranges = [max(values) - min(values) for values in zip(*curves.values())]
    cell = record.cell
    return len(seeds) > 1 and difference <= max(ranges), dict(zip(COLUMNS, (
        f"{label(cell.model)} on {label(cell.dataset)}", f"{cell.method}, r = {cell.compression:g}", str(last),
        f"{exact[-1]:.2f} ({cell.seed})", ", ".join(f"{curves[seed][-1]:.2f} ({seed})" for seed in seeds),
        f"{difference:.2f}", f"{max(ranges):.2f}" if len(seeds) > 1 else DASH), strict=True))


def _apart_from_seed(cell: Cell) -> Cell:
    return replace(cell, seed=0, epochs=1)


def _top1(record: Record) -> list[float]:
    return [100 * entry["top1"] / record.test_images for entry in record.history]
