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

import pandas as pd

from lib import data
from lib.experiment import Record
from lib.tables import DASH, Table, network_label

LEARNED = 0.9   # of the loss of guessing, ln(classes): a training loss below that has learned something
COLUMNS = ["network", "cells trained", "that learned", "epochs at chance meanwhile (median)",
           "at chance after the last epoch", "these (their training loss)", "tested anew", "top-1 then (median change)"]


def silent(records: Iterable[Record], learning_rate: float) -> Table:
    """A line for each network: of its cells trained at this rate, how many learned, and how long these were
    tested at chance meanwhile.

    Chance level is what one answer to all images gives, and up to a twentieth more. Tested anew: with statistics that were
    collected without dropout (`trainer.recollect`), as far as records have it. A cell that shows its twin's training
    (`experiment.served`) is not counted.
    """
    network = lambda record: (record.cell.dataset, record.cell.model)
    trained = [record for record in records if record.history[1:] and "trained_as" not in record.run
               and record.cell.learning_rate == learning_rate]
    lines = [_line(*pair, list(group)) for pair, group in groupby(sorted(trained, key=network), network)]
    words = " ".join(_words(line) for line in lines) or "No cell has been trained."
    return Table(f"Learning, and tested at chance level, at learning rate {learning_rate:g}. Learned: the training loss "
                 f"fell below {LEARNED:g} of that of guessing. {words}",
                 pd.DataFrame([dict(zip(COLUMNS, line)) for line in lines], columns=COLUMNS))


def learns(record: Record, epoch: int) -> bool:
    """Whether the training loss of an epoch is below `LEARNED` of that of guessing."""
    loss = record.history[epoch]["train_loss"]
    return loss is not None and loss < LEARNED * math.log(data.classes(record.cell.dataset))


def at_chance(record: Record, epoch: int) -> bool:
    """Whether the test after an epoch is no better than one answer to all images."""
    return data.at_chance(100 * record.history[epoch]["top1"] / record.test_images, record.cell.dataset)


def _line(dataset: str, model: str, records: list[Record]) -> list[str]:
    learned = [record for record in records if learns(record, -1)]
    waits = [sum(learns(record, epoch) and at_chance(record, epoch) for epoch in range(1, len(record.history)))
             for record in learned]
    mute = [record for record in learned if at_chance(record, -1)]
    named = ", ".join(f"{each.cell.method} at r = {each.cell.compression:g} ({each.history[-1]['train_loss']:.2f})"
                      for each in mute)
    gains = [gain for record in learned if (gain := _gain(record)) is not None]
    return [network_label(dataset, model), str(len(records)), str(len(learned)),
            f"{median(waits):g}" if waits else DASH, str(len(mute)), named or DASH,
            str(len(gains)) if gains else DASH, f"{median(gains):+.2f}" if gains else DASH]


def _gain(record: Record) -> float | None:
    """By how many points a test with recollected statistics is better; None where the record has none."""
    last = record.history[-1]
    if "recollected" not in last:
        return None
    return 100 * (last["recollected"]["top1"] - last["top1"]) / record.test_images


def _words(line: list[str]) -> str:
    network, trained, learned, waits, mute, named, again, gain = line
    meanwhile = "" if waits in (DASH, "0") else (
        f", which after a median of {waits} of their epochs were still tested at chance")
    still = f", and {mute} after the last one too: {named}" if named != DASH else ""
    anew = f"; tested with statistics collected without dropout, {again} of them move by {gain} points (median)"
    return f"{network}: {learned} of {trained} trained cells learned{meanwhile}{still}{anew * (gain != DASH)}."
