"""What bf16 does to a training: the same cells in float32, epoch by epoch, against what a seed alone moves.

A recipe's rate is constant and no batch depends on how many epochs there will be, so a cell of few epochs is the beginning
of the cell of many: a short float32 training can be compared with a whole one in bf16.
"""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from lib.experiment import Cell, Record
from lib.tables import DASH, Table, label

COLUMNS = ["network", "cell", "masks", "epochs", "float32 (seed)", "bf16 (seed)", "float32 is", "largest difference",
           "range of seeds then", "epochs within it"]
INSIDE, BELOW, ABOVE = "inside their range", "below them all", "above them all"


def comparison(records: Iterable[Record]) -> Table:
    """Each cell that was trained in float32 beside the same cell in bf16, after the last epoch that both have.

    records: of any lengths. Epoch by epoch, the difference is set against the range of the bf16 trainings that differ in
    their seed only; with one seed there is none. In percent, respectively points, of top-1. Masks may differ where scores
    were taken in float32 on two devices.
    """
    records = [record for record in records if record.history]
    exact = [record for record in records if record.run.get("precision") == "float32"]
    rounded = [record for record in records if record.run.get("precision") == "bf16"]
    lines = [line for record in exact if (line := _line(record, rounded))]
    body = pd.DataFrame([each for _, each in lines], columns=COLUMNS)
    if not lines:
        return Table("bf16 beside float32: no cell has been trained in both.", body)
    words = [_words(name, [each for each in lines if each[1]["network"] == name]) for name in sorted(set(body["network"]))]
    return Table(f"bf16 beside float32, top-1 in percent. {' '.join(words)} No other network has been compared.", body)


def _words(network: str, lines: list[tuple[tuple[int, int], dict]]) -> str:
    """What the cells of one network say: bf16 stands for float32 where no float32 lies outside the seeds of bf16."""
    within, epochs = (sum(counts) for counts in zip(*(counts for counts, _ in lines)))
    sides = [line["float32 is"] for _, line in lines if line["float32 is"] != DASH]
    outside = " and ".join(f"{side} in {sides.count(side)}" for side in (BELOW, ABOVE) if side in sides)
    said = (f"{outside} of {len(sides)}: its bf16 numbers do not stand for float32" if outside else
            "outside them in none" if sides else "not judged by a single one")
    return (f"{network} ({len(lines)} cells): of {epochs} differences, epoch by epoch, {within} are within the range of the "
            f"seeds at that epoch; after the last one, beside the seeds of bf16, float32 is {said}.")


def _line(record: Record, rounded: list[Record]) -> tuple[tuple[int, int], dict] | None:
    """How many epochs are within what seeds move, of how many, and the table's line; None where there is no bf16."""
    cell = record.cell
    alike = {each.cell.seed: each for each in rounded if _apart_from_seed(each.cell) == _apart_from_seed(cell)}
    if cell.seed not in alike:
        return None
    last = min(len(each.history) for each in (record, *alike.values())) - 1
    curves = {seed: _top1(alike[seed])[1:last + 1] for seed in sorted(alike)}
    exact = _top1(record)[1:last + 1]
    differences = [abs(a - b) for a, b in zip(exact, curves[cell.seed])]
    ranges = [max(values) - min(values) for values in zip(*curves.values())]
    within = sum(a <= b for a, b in zip(differences, ranges)) if len(curves) > 1 else 0
    largest = differences.index(max(differences))
    ends = [curve[-1] for curve in curves.values()]
    side = DASH if len(ends) < 2 else BELOW if exact[-1] < min(ends) else ABOVE if exact[-1] > max(ends) else INSIDE
    same = record.report.get("digest") == alike[cell.seed].report.get("digest")
    return (within, last), dict(zip(COLUMNS, (
        f"{label(cell.model)} on {label(cell.dataset)}", f"{cell.method}, r = {cell.compression:g}",
        "the same" if same else "differ", str(last), f"{exact[-1]:.2f} ({cell.seed})",
        ", ".join(f"{curve[-1]:.2f} ({seed})" for seed, curve in curves.items()), side,
        f"{differences[largest]:.2f} (epoch {largest + 1})", f"{ranges[largest]:.2f}" if len(curves) > 1 else DASH,
        f"{within} of {last}"), strict=True))


def _apart_from_seed(cell: Cell) -> Cell:
    return replace(cell, seed=0, epochs=1)


def _top1(record: Record) -> list[float]:
    return [100 * entry["top1"] / record.test_images for entry in record.history]
