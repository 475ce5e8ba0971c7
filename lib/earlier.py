"""Which state of the released code made the thesis's numbers of SNIP and GraSP?

As released both start from Xavier-normal weights; an earlier state of that code leaves the network its own
(`methods.EARLIER`). No grid has the cells of that state: `tests/benchmarks/bench_earlier.py` computes them.
"""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from lib import methods, tables
from lib.experiment import Cell, Record
from lib.tables import DASH, Table

RELEASED = {method.name: name for name, method in methods.EARLIER.items()}
COLUMNS = ["network", "r", "method", "epochs", "training loss: earlier", "training loss: @run", "top-1: earlier",
           "top-1: @run", "top-1: printed"]


def comparison(records: Iterable[Record]) -> Table:
    """A line for each cell of the earlier state, beside the same one of `@run` after the epochs that both have (a cell of
    few epochs is the beginning of one of many) and the printed number. Top-1 in percent as the thesis counts."""
    trained = [record for record in records if record.history[1:]]
    released = {_released(record.cell): record for record in trained if record.cell.method not in RELEASED}
    pairs = [(record, released[_released(record.cell)]) for record in trained
             if record.cell.method in RELEASED and _released(record.cell) in released]
    lines = [_line(*pair) for pair in pairs]
    kinds = sorted({record.run.get("precision", "float32") for pair in pairs for record in pair})
    return Table("SNIP and GraSP from the network's own initial weights, as in an earlier state of the released code "
                 "(commit f01a221), beside @run, which draws Xavier-normal ones; both after the epochs that both have"
                 f"{', trained in ' * bool(kinds)}{' and '.join(kinds)}; top-1 in percent as the thesis counts. "
                 f"{_told(lines)}", pd.DataFrame(lines, columns=COLUMNS))


def _released(cell: Cell) -> Cell:
    """The cell of `@run`, of any length."""
    return replace(cell, method=RELEASED.get(cell.method, cell.method), epochs=0)


def _line(earlier: Record, released: Record) -> dict[str, str]:
    cell, last = released.cell, min(len(earlier.history), len(released.history)) - 1
    both, base = (earlier, released), methods.get(cell.method).base
    best = [tables.accuracies(replace(each, history=each.history[:last + 1]))["top1_thesis"] for each in both]
    printed = tables.thesis().set_index(["model", "dataset", "compression", "method"])["top1"]
    number = printed.get((cell.model, cell.dataset, cell.compression, base))
    numbers = [*(each.history[last]["train_loss"] for each in both), *best, number]
    return dict(zip(COLUMNS, (tables.network_label(cell.dataset, cell.model), f"{cell.compression:g}", base,
                              f"{last} of {cell.epochs}", *(DASH if each is None else f"{each:.2f}" for each in numbers))))


def _told(lines: list[dict[str, str]]) -> str:
    """The lines in words, and how many of them can be compared with what is printed."""
    if not lines:
        return "No such cell is computed."
    whole = sum(len(set(line["epochs"].split(" of "))) == 1 for line in lines)
    words = "; ".join(f"{line['method']} at r = {line['r']} after {line['epochs']} epochs: training loss "
                      f"{line['training loss: earlier']} (@run {line['training loss: @run']}), top-1 "
                      f"{line['top-1: earlier']} (@run {line['top-1: @run']})" for line in lines)
    return f"{words}. {whole} of {len(lines)} cells have all epochs; only these can be compared with the printed number."
