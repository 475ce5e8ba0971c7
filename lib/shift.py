"""Networks that learn and are tested at chance level all the same.

Where dropout is followed by BatchNorm, as in VGG-16, the running statistics are gathered while dropout widens the signals'
variance, and used in tests, where it does not: the signal shrinks, layer by layer (variance shift: Li et al., CVPR 2019,
"Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift"). A test at chance level then says
nothing of the mask. The training loss, which the store has too, tells these cases apart.
"""

import math
from collections.abc import Iterable
from itertools import groupby
from statistics import median
from typing import NamedTuple

import pandas as pd

from lib import data
from lib.experiment import Record
from lib.tables import DASH, Table, network_label

LEARNED = 0.9   # of the loss of guessing, ln(classes): a training loss below that has learned something
COLUMNS = ["network", "cells trained", "that learned", "epochs at chance meanwhile (median)",
           "at chance after the last epoch", "these (their training loss)", "tested anew", "top-1 then (median change)"]
ENTRY, TESTS = ["network", "r", "method"], ["training loss", "top-1", "top-1, tested anew"]


def silent(records: Iterable[Record], learning_rate: float) -> Table:
    """A line for each network: of its cells trained at this rate, how many learned, and how long these were
    tested at chance meanwhile.

    Chance level is what one answer to all images gives, and up to a twentieth more. Tested anew: with statistics that were
    collected without dropout (`trainer.recollect`), as far as records have it. A cell that shows its twin's training
    (`experiment.served`) is not counted.
    """
    network = lambda record: (record.cell.dataset, record.cell.model)
    trained = sorted(_trained(records, learning_rate), key=network)
    found = [_found(*pair, list(group)) for pair, group in groupby(trained, network)]
    words = " ".join(map(_words, found)) or "No cell has been trained."
    return Table("Networks that learn but still test at chance level, at learning rate "
                 f"{learning_rate:g}. Learned: the training loss fell below {LEARNED:g} of that of guessing. At "
                 f"chance: at most a twentieth above a constant answer. {words}",
                 pd.DataFrame(list(map(_line, found)), columns=COLUMNS))


def retested(records: Iterable[Record], learning_rate: float) -> Table:
    """A line for each network, ratio and method that learned and was tested twice: top-1 after the last epoch (means of the
    seeds), with the statistics of training and with those collected without dropout, by the latter.

    Cells as in `silent`.
    """
    found = _tested_twice(records, learning_rate)
    words = "; ".join(_moved(network, entries) for network, entries in found.groupby("network"))
    return Table("Top-1 in percent after the last epoch, tested with BatchNorm's running statistics and with statistics "
                 "collected without dropout, of the networks that learned and were tested so at learning rate "
                 f"{learning_rate:g} (means of the seeds). {words or 'There is none'}.",
                 found.assign(r=found["r"].map("{:g}".format), **{name: found[name].map("{:.2f}".format) for name in TESTS}))


def told(records: Iterable[Record], learning_rate: float) -> str:
    """How far the second test moves the networks of `retested`, and which the most."""
    found = _tested_twice(records, learning_rate)
    if found.empty:
        return "No network that learned has been tested twice."
    usual, anew = found[TESTS[1]], found[TESTS[2]]
    most = found.loc[(anew - usual).abs().idxmax()]
    name = most["method"] if "@" in most["method"] else f"{most['method']} as published"
    return (f"Tested anew with statistics collected without dropout, {len(found)} that learned move by "
            f"{(anew - usual).median():+.1f} points of top-1 (median), {name} at r = {most['r']:g} from "
            f"{most[TESTS[1]]:.1f} to {most[TESTS[2]]:.1f}.")


def _tested_twice(records: Iterable[Record], learning_rate: float) -> pd.DataFrame:
    rows = pd.DataFrame([_both_tests(record) for record in _trained(records, learning_rate)
                         if "recollected" in record.history[-1] and learns(record, -1)], columns=[*ENTRY, *TESTS])
    means = rows.groupby(ENTRY, sort=False)[TESTS].mean().reset_index()
    return means.sort_values([*ENTRY[:2], TESTS[-1]], ascending=[True, True, False], kind="stable", ignore_index=True)


def _trained(records: Iterable[Record], learning_rate: float) -> list[Record]:
    return [record for record in records if record.history[1:] and "trained_as" not in record.run
            and record.cell.learning_rate == learning_rate]


def _both_tests(record: Record) -> tuple:
    cell, last = record.cell, record.history[-1]
    return (network_label(cell.dataset, cell.model), cell.compression, cell.method, last["train_loss"],
            *(100 * test["top1"] / record.test_images for test in (last, last["recollected"])))


def _moved(network: str, entries: pd.DataFrame) -> str:
    """How far one test orders a network's entries as the other does."""
    usual, anew = entries[TESTS[1]], entries[TESTS[2]]
    ranked = (f", rank correlation of the two tests {usual.corr(anew, 'spearman'):.2f}"
              if len(entries) > 2 and usual.nunique() > 1 and anew.nunique() > 1 else "")
    return f"{network}: {len(entries)} methods and ratios{ranked}"


def learns(record: Record, epoch: int) -> bool:
    """Whether the training loss of an epoch is below `LEARNED` of that of guessing."""
    loss = record.history[epoch]["train_loss"]
    return loss is not None and loss < LEARNED * math.log(data.classes(record.cell.dataset))


def at_chance(record: Record, epoch: int) -> bool:
    """Whether the test after an epoch is no better than one answer to all images."""
    return data.at_chance(100 * record.history[epoch]["top1"] / record.test_images, record.cell.dataset)


class _Found(NamedTuple):
    """What the trained cells of a network say."""

    network: str
    trained: int
    waits: list[int]     # of each cell that learned, in how many epochs it was tested at chance level meanwhile
    mute: list[str]      # those at chance after the last epoch too, with their training loss
    gains: list[float]   # points that tests with recollected statistics are better by


def _found(dataset: str, model: str, records: list[Record]) -> _Found:
    learned = [record for record in records if learns(record, -1)]
    waits = [sum(learns(record, epoch) and at_chance(record, epoch) for epoch in range(1, len(record.history)))
             for record in learned]
    mute = [f"{each.cell.method} at r = {each.cell.compression:g} ({each.history[-1]['train_loss']:.2f})"
            for each in learned if at_chance(each, -1)]
    gains = [gain for record in learned if (gain := _gain(record)) is not None]
    return _Found(network_label(dataset, model), len(records), waits, mute, gains)


def _line(found: _Found) -> list[str]:
    return [found.network, str(found.trained), str(len(found.waits)), f"{median(found.waits):g}" if found.waits else DASH,
            str(len(found.mute)), ", ".join(found.mute) or DASH, str(len(found.gains)) if found.gains else DASH,
            f"{median(found.gains):+.2f}" if found.gains else DASH]


def _gain(record: Record) -> float | None:
    """By how many points a test with recollected statistics is better; None where the record has none."""
    last = record.history[-1]
    if "recollected" not in last:
        return None
    return 100 * (last["recollected"]["top1"] - last["top1"]) / record.test_images


def _words(found: _Found) -> str:
    wait = median(found.waits or [0])
    meanwhile = (f"; for a median of {wait:g} of the epochs in which they were learning they were still tested at chance"
                 if wait else "")
    still = (f"; {len(found.mute)} at chance after the last epoch too (training loss in brackets): {', '.join(found.mute)}"
             if found.mute else "")
    anew = (f"; tested with statistics collected without dropout, {len(found.gains)} of them move by "
            f"{median(found.gains):+.2f} points (median)" if found.gains else "")
    return f"{found.network}: {len(found.waits)} of {found.trained} trained cells learned{meanwhile}{still}{anew}."
