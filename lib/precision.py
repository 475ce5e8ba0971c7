"""What bf16 does to a training: the same cells in float32, epoch by epoch, against what a seed alone moves.

A recipe's rate is constant and no batch depends on how many epochs there will be, so a cell of few epochs is the beginning
of the cell of many: a short float32 training can be compared with a whole one in bf16.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from lib.experiment import Cell, Record
from lib.tables import DASH, Table, network_label

COLUMNS = ["network", "cell", "masks", "epochs", "float32 (seed)", "bf16 (seed)", "float32 is", "largest difference",
           "range of seeds then", "epochs within it", "losses within theirs"]
INSIDE, BELOW, ABOVE = "inside their range", "below them all", "above them all"


def comparison(records: Iterable[Record]) -> Table:
    """Each cell that was trained in float32 beside the same cell in bf16, after the last epoch that both have.

    records: of any lengths. Epoch by epoch, the difference is set against the range of the bf16 trainings that differ in
    their seed only; with one seed there is none. In percent, respectively points, of top-1. Masks may differ where scores
    were taken in float32 on two devices. Records that show another's training are left out.
    """
    records = [record for record in records if record.history[1:] and "trained_as" not in record.run]
    exact = [record for record in records if record.run.get("precision") == "float32"]
    rounded = [record for record in records if record.run.get("precision") == "bf16"]
    lines = [line for record in exact if (line := _line(record, rounded))]
    body = pd.DataFrame([line for _, line in lines], columns=COLUMNS)
    if not lines:
        return Table("bf16 beside float32: no cell has been trained in both.", body)
    words = [_words(name, [each for each in lines if each[1]["network"] == name]) for name in sorted(set(body["network"]))]
    return Table(f"bf16 beside float32, top-1 in percent. {' '.join(words)} No other network has been compared.", body)


class _Counts(NamedTuple):
    """Of how many epochs top-1 is within what seeds move, and the training loss; and how many seeds of bf16 there are."""

    top1: int
    losses: int
    epochs: int
    seeds: int


def _words(network: str, lines: list[tuple[_Counts, dict]]) -> str:
    """What the cells of one network say. One more seed of bf16 would often lie outside of a few others too: only where
    float32 lies on one side of them in every cell, of three at least, is its difference called one of precision."""
    top1, losses, epochs, _ = map(sum, zip(*(counts for counts, _ in lines)))
    judged = [(counts.seeds, line["float32 is"]) for counts, line in lines if counts.seeds > 1]
    seeds, sides = min((seeds for seeds, _ in judged), default=0), [side for _, side in judged]
    outside = " and ".join(f"{side} in {sides.count(side)}" for side in (BELOW, ABOVE) if side in sides)
    alike = len(sides) >= 3 and set(sides) in ({BELOW}, {ABOVE})
    apart = ": do not take its tests in bf16 for float32" if alike else ""
    said = (f"{outside} of {len(sides)} cells, where chance would put one more seed in one of {seeds + 1}{apart}"
            if outside else
            f"{INSIDE} in all {len(sides)} cells" if sides else "not judged by a single one")
    compared = " and ".join(sorted({line["epochs"] for _, line in lines}, key=int))
    return (f"{network} ({len(lines)} cells, the first {compared} epochs): epoch by epoch, {top1} of {epochs} differences "
            f"in top-1 and {losses} of those in training loss are no larger than the range of the bf16 seeds; after the "
            f"last epoch, against these seeds, float32 is {said}.")


def _line(record: Record, rounded: list[Record]) -> tuple[_Counts, dict] | None:
    """A cell's counts and its line of the table; None where there is no bf16."""
    cell = record.cell
    alike = {each.cell.seed: each for each in rounded if _apart_from_seed(each.cell) == _apart_from_seed(cell)}
    if cell.seed not in alike:
        return None
    last = min(len(each.history) for each in (record, *alike.values())) - 1
    curves = {seed: _top1(alike[seed])[1:last + 1] for seed in sorted(alike)}
    exact = _top1(record)[1:last + 1]
    differences, ranges = _apart(exact, curves, cell.seed)
    within = _within(differences, ranges)
    losses = _within(*_apart(_losses(record)[:last], {seed: _losses(alike[seed])[:last] for seed in alike}, cell.seed))
    largest = differences.index(max(differences))
    ends = [curve[-1] for curve in curves.values()]
    side = DASH if len(ends) < 2 else BELOW if exact[-1] < min(ends) else ABOVE if exact[-1] > max(ends) else INSIDE
    same = record.report.get("digest") == alike[cell.seed].report.get("digest")
    return _Counts(within, losses, last, len(ends)), dict(zip(COLUMNS, (
        network_label(cell.dataset, cell.model), f"{cell.method}, r = {cell.compression:g}",
        "the same" if same else "differ", str(last), f"{exact[-1]:.2f} ({cell.seed})",
        ", ".join(f"{curve[-1]:.2f} ({seed})" for seed, curve in curves.items()), side,
        f"{differences[largest]:.2f} (epoch {largest + 1})", f"{ranges[largest]:.2f}" if ranges else DASH,
        f"{within} of {last}", f"{losses} of {last}"), strict=True))


def _apart(exact: list[float], curves: dict[int, list[float]], seed: int) -> tuple[list[float], list[float]]:
    """Epoch by epoch: how far float32 is from the same seed in bf16, and the range of bf16 over the seeds, none for one."""
    return ([abs(a - b) for a, b in zip(exact, curves[seed])],
            [max(values) - min(values) for values in zip(*curves.values())] if len(curves) > 1 else [])


def _within(differences: list[float], ranges: list[float]) -> int:
    """In how many epochs a difference is no larger than a range."""
    return sum(a <= b for a, b in zip(differences, ranges))


def _apart_from_seed(cell: Cell) -> Cell:
    return replace(cell, seed=0, epochs=1)


def _top1(record: Record) -> list[float]:
    return [100 * entry["top1"] / record.test_images for entry in record.history]


def _losses(record: Record) -> list[float]:
    """The training losses; of a diverged epoch, which has none, not a number."""
    return [math.nan if entry["train_loss"] is None else entry["train_loss"] for entry in record.history[1:]]
