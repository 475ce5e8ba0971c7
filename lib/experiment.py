"""One cell of the grid: a network, a mask, a training run; and the record that is left of it."""

import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import UserError, data, methods, models, pruning, stack, trainer
from lib.scorers import SCORERS, needs_data
from lib.scorers.common import check_batchnorm

# Raised when the meaning of a computation changes: records of another version are not found and are computed again.
VERSION = 1

# Masks that differ in less than this share of the kept weights are trained once: a seed moves an accuracy far more.
SAME = 0.001

# Training images that a score sees, but for OBD's.
SCORE_IMAGES = 128


@dataclass(frozen=True)
class Cell:
    """What is computed. Its fields, and nothing else, make the key; where and how it ran stands in `Record.run`.

    dataset, model, method: names, as `data.load`, `models.build` and `methods.get` take them.
    compression: r, all parameters over those that are left; 1 is the unpruned network. seed: of everything random.
    epochs: 0 makes and audits the mask alone. learning_rate: of SGD, constant. width: multiplies channels.
    score_images: training images that the score sees. train_images: the first so many of the training set; None: all.
    Raises `UserError` for a name that is unknown and for a number that is none or out of range.
    """

    dataset: str
    model: str
    method: str
    compression: float
    seed: int
    epochs: int
    learning_rate: float
    batch_size: int = 128
    width: float = 1.0
    score_images: int = SCORE_IMAGES
    train_images: int | None = None

    def __post_init__(self):
        for name, kind in _NUMBERS.items():
            value = getattr(self, name)
            if type(value) is not kind and not (name == "train_images" and value is None):
                object.__setattr__(self, name, _number(name, value, kind))
        if self.dataset not in data.NAMES:
            raise UserError(f"Unknown data set {self.dataset!r}: choose one of {', '.join(data.NAMES)}.")
        if self.model not in models.NAMES:
            raise UserError(f"Unknown model {self.model!r}: choose one of {', '.join(models.NAMES)}.")
        if not (self.compression >= 1 and math.isfinite(self.compression)):
            raise UserError(f"The compression must be a number of at least 1, not {self.compression:g}.")
        if methods.get(self.method).score is None and self.compression != 1:
            raise UserError(f"{self.method} is the unpruned network: its compression is 1, not {self.compression:g}.")
        if not (math.isfinite(self.learning_rate) and math.isfinite(self.width)):
            raise UserError(f"Learning rate and width must be finite, not {self.learning_rate} and {self.width}.")
        if self.epochs < 0:
            raise UserError(f"The epochs of a cell may not be negative, as {self.epochs} is.")
        for name in ("batch_size", "score_images", "train_images", "learning_rate", "width"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UserError(f"The {name.replace('_', ' ')} of a cell must be positive, not {value}.")

    @property
    def key(self) -> str:
        """Sixteen hex digits of a hash of the fields and the version."""
        text = json.dumps([VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def score_key(self) -> tuple:
        """What a one-shot score depends on: cells that share it differ in compression or training alone."""
        return (self.method, self.dataset, self.model, self.seed, self.width, self.score_images, self.train_images)

    @property
    def work_key(self) -> tuple:
        """What the dear part of a score depends on: OBD's curvature serves both its readings, another score itself."""
        method = methods.get(self.method)
        return (method.base if method.mode == "calibrated" else self.method, *self.score_key[1:])

    @property
    def stack_key(self) -> tuple:
        """Cells that share it can be trained in lock-step: the same network, and the same images in the same order."""
        return (self.dataset, self.model, self.seed, self.epochs, self.batch_size, self.width, self.train_images)

    @property
    def task(self) -> object:
        """Neighbours of one task are sent to a worker together: a trained cell is alone, masks share their score."""
        return self if self.epochs else (self.work_key, self.batch_size)

    def __str__(self) -> str:
        return f"{self.dataset}/{self.model} {self.method} r={self.compression:g} seed {self.seed}"


_NUMBERS = {"compression": float, "learning_rate": float, "width": float,
            "seed": int, "epochs": int, "batch_size": int, "score_images": int, "train_images": int}


def _number(name: str, value: object, kind: type) -> int | float:
    """The value as an int or a float; raises `UserError` for what is neither, and for what is cut to become one."""
    try:
        if isinstance(value, (str, bool)) or kind(value) != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"The {name.replace('_', ' ')} of a cell must be {what}, not {value!r}.") from None
    return kind(value)


@dataclass
class Record:
    """A line of `results.jsonl`."""

    key: str
    version: int
    cell: Cell
    report: dict
    history: list[dict]
    test_images: int
    run: dict = field(default_factory=dict)

    @property
    def made_of(self) -> Cell:
        """What has the record's key."""
        return self.cell

    def to_json(self) -> str:
        """One line of JSON, without the line's end. Raises ValueError for a number that is not finite."""
        return json.dumps(vars(self) | {"cell": vars(self.cell)}, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """The record of such a line; raises ValueError, KeyError, TypeError or AttributeError for anything else."""
        values = json.loads(line)
        _share_layers(values["report"])
        record = cls(**{**values, "cell": Cell(**values["cell"])})
        if not all(0 <= epoch["top1"] <= epoch["top5"] <= record.test_images for epoch in record.history):
            raise ValueError("an epoch's counts are not those of its test images")
        diverged = record.run.get("diverged")
        last = record.cell.epochs if diverged is None else diverged
        if len(record.history) != (last + 1 if record.cell.epochs else 0):
            raise ValueError(f"its history is not that of {last} epochs")
        if not record.report["compression"] >= 1:
            raise ValueError("its report has no compression")
        return record

    def summary(self) -> str:
        """What came of the cell, in a few words."""
        collapsed = ", collapsed" if self.report["collapsed"] else ""
        compression = f"compression {self.report['compression']:.4g}{collapsed}"
        if not self.history:
            return compression
        trained = f", trained as {self.run['trained_as']}" if "trained_as" in self.run else ""
        return f"top-1 {100 * self.history[-1]['top1'] / self.test_images:.2f} %, {compression}{trained}"


_layers: dict[tuple, dict[str, int]] = {}   # of each network, as it was read first


def _share_layers(report: dict) -> None:
    """Gives the reports of one network the same names and sizes of layers, which are half of what they would take."""
    sizes, kept = report.get("sizes", {}), report.get("kept", {})
    if sizes and list(sizes) == list(kept):
        report["sizes"] = _layers.setdefault((*sizes, *sizes.values()), sizes)
        report["kept"] = dict(zip(report["sizes"], kept.values()))


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread inside: how many threads share a sum decides on its last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def run(cell: Cell, data_root: str | None = None, device: str = "cpu", checkpoints: Path | None = None,
        precision: str = "float32") -> Record:
    """Computes a cell: initial weights, mask, audit, training. The same cell gives the same record, bit for bit, on
    the same machine and versions, whatever else runs and in whatever order (times apart).

    checkpoints: a folder for the training's checkpoint, from which a cell that was interrupted goes on. precision: of the
    training, one of `trainer.PRECISIONS`; it is no part of the cell, so the record says which.
    Raises `UserError` for a data set that is not there or a compression out of reach.
    """
    began = time.perf_counter()
    trainer.check_precision(precision)
    images = images_of(cell, data_root)
    model = network(cell, images).to(device)
    masks = masks_of(cell, model, images)
    scored = time.perf_counter()
    report = audited(model, masks)
    history = trainer.History()
    if cell.epochs:
        history = trainer.train(
            model, masks, images.to(device), epochs=cell.epochs, learning_rate=cell.learning_rate,
            batch_size=cell.batch_size, generator=generator(cell, "training"), precision=precision,
            checkpoint=checkpoints and checkpoints / f"{cell.key}.{precision}.pt",
        )
    return Record(
        key=cell.key, version=VERSION, cell=cell, report=report, history=list(history),
        test_images=len(images.test_labels),
        run=circumstances(device, precision) | {
            "diverged": history.diverged,
            "score_seconds": round(scored - began, 3),
            "seconds": round(time.perf_counter() - began + history.before, 3),
        },
    )


@one_thread()
def run_together(cells: list[Cell], data_root: str | None = None, device: str = "cpu",
                 precision: str = "float32") -> list[Record]:
    """The records of cells that differ in method, compression and learning rate only, trained in lock-step (`lib.stack`).

    They are `run`'s on that device, bit for bit. `seconds` of a record are its share of the group's. Raises as `run` does.
    """
    first, began = cells[0], time.perf_counter()
    if {cell.stack_key for cell in cells} != {first.stack_key}:
        raise UserError("Cells that are trained together must share everything but method, compression and learning rate.")
    images = images_of(first, data_root)
    models = [network(cell, images).to(device) for cell in cells]
    masks = [masks_of(cell, model, images) for cell, model in zip(cells, models)]
    reports = [audited(model, its) for model, its in zip(models, masks)]
    histories = stack.train(
        models, masks, images.to(device), epochs=first.epochs, batch_size=first.batch_size,
        learning_rates=[cell.learning_rate for cell in cells], generator=generator(first, "training"), precision=precision)
    share = round((time.perf_counter() - began) / len(cells), 3)
    common = circumstances(device, precision) | {"seconds": share, "stacked": len(cells)}
    return [Record(cell.key, VERSION, cell, report, list(history), len(images.test_labels),
                   common | {"diverged": history.diverged})
            for cell, report, history in zip(cells, reports, histories)]


def twin(cell: Cell) -> Cell | None:
    """The cell whose mask may be all but that of this one: of a published cell its `@run`, where both are made of one
    score, of the same weights and without data; of `SynFlow@run` on a residual network the unpruned one, since where its
    score overflows nothing is dropped. None where there is no such cell, or nothing is trained."""
    if not cell.epochs:
        return None
    if cell.method == "SynFlow@run" and cell.model.startswith("resnet"):
        return replace(cell, method=methods.dense(cell.method), compression=1)
    method, released = methods.get(cell.method), methods.METHODS.get(f"{cell.method}@run")
    if released is None or released.selection != "quantile":   # "bernoulli" looks at no score
        return None
    same = all(getattr(method, name) == getattr(released, name) for name in ("score", "scope", "rounds", "init"))
    return replace(cell, method=released.name) if same and not needs_data(method.score) else None


def served(cell: Cell, known: Record, data_root: str | None = None) -> Record | None:
    """The record of a cell that is not trained: its own masks, audited, and the training of its twin, whose record is
    `known`. None where their masks differ in `SAME` of the kept weights or more.

    `Record.run` tells of the training that is shown and, under `trained_as`, whose it is; the seconds are the masks'.
    Raises as `run` does.
    """
    began = time.perf_counter()
    images = images_of(cell, data_root)
    model = network(cell, images)
    masks, others = (masks_of(each, model, images) for each in (cell, known.cell))
    different = sum(int((mask != others[name]).sum()) for name, mask in masks.items())
    if different >= SAME * pruning.kept_count(model, cell.compression):
        return None
    report = audited(model, masks)
    seconds = round(time.perf_counter() - began, 3)
    return Record(cell.key, VERSION, cell, report, known.history, known.test_images,
                  known.run | {"score_seconds": seconds, "seconds": seconds, "trained_as": known.cell.method})


def generator(cell: Cell, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of a cell.

    It does not depend on the method, the compression or the recipe: all methods of a seed share their initial
    weights, their scoring batch and the order of their training images.
    """
    text = json.dumps([cell.dataset, cell.model, cell.width, cell.seed, purpose])
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def architecture(cell: Cell, images: data.Data) -> nn.Module:
    """The cell's network, with weights of no meaning yet. Raises `UserError` where it does not take such images."""
    model = models.build(cell.model, len(images.classes), cell.width)
    shape = tuple(images.train_images.shape[1:])
    if shape != model.input_shape:
        raise UserError(f"{cell.model} takes images of shape {model.input_shape}, and those of {cell.dataset} are "
                        f"{shape}: choose another pair.")
    return model


def network(cell: Cell, images: data.Data) -> nn.Module:
    """The cell's network at initialisation: the architecture's own weights of this seed, then the method's `init`."""
    model = architecture(cell, images)
    init = methods.get(cell.method).init
    models.initialise(model, "own", generator(cell, "weights"))
    if init != "own":
        models.initialise(model, init, generator(cell, f"weights {init}"))
    return model


def scoring_batch(cell: Cell, images: data.Data) -> tuple[Tensor, Tensor]:
    """The cell's scoring images (float32, normalised) and labels: the same for all methods of a seed.

    OBD takes the first `score_images` of the training set, in order; every other method a random batch, which the
    released reading augments as in training.
    """
    method = methods.get(cell.method)
    if method.mode == "calibrated":
        return trainer.batch(images, torch.arange(min(cell.score_images, len(images.train_labels))), None)
    index = torch.randperm(len(images.train_labels), generator=generator(cell, "scoring batch"))[:cell.score_images]
    return trainer.batch(images, index, generator(cell, "augmentation") if method.reading == "run" else None)


def check_score_images(cell: Cell, images: data.Data) -> None:
    """Raises `UserError` where OBD's curvature asks for more than these images, or for so many that BatchNorm gets a last
    chunk of one."""
    if cell.score_images > (there := len(images.train_labels)):
        raise UserError(f"{cell} is scored on {cell.score_images} images, but there are {there}: lower obd_images, or make "
                        "it null, for all.")
    check_batchnorm(architecture(cell, images).train(), cell.score_images % pruning.CALIBRATION_CHUNK)


def masks_of(cell: Cell, model: nn.Module, images: data.Data, batch_of: Cell | None = None) -> pruning.Masks:
    """The cell's masks. model: `network(cell, images)`, not trained and not changed, on the device that is to score: scores
    are remembered by cell. batch_of: a cell whose scoring batch, another seed's, is used in place of the cell's own."""
    method = methods.get(cell.method)
    pruning.kept_count(model, cell.compression)
    if method.rounds > 1:
        batch = [tensor.to(next(model.parameters()).device) for tensor in scoring_batch(batch_of or cell, images)]
        return pruning.masks(model, method, *batch, cell.compression, generator(cell, "score"))
    found = scores(cell, model, images, batch_of)
    return pruning.select(model, method, found, cell.compression, generator(cell, "random mask"))


_kept_scores: dict[tuple, dict[str, Tensor]] = {}


def scores(cell: Cell, model: nn.Module, images: data.Data, batch_of: Cell | None = None) -> dict[str, Tensor]:
    """A one-shot method's scores. They are kept for the next cell, which often asks for another compression of them.
    Arguments as those of `masks_of`."""
    device, method = next(model.parameters()).device, methods.get(cell.method)
    # The images and the function themselves: another folder's have the same name, and a notebook may write a score anew.
    key = method, SCORERS.get(method.score), cell.score_key, (batch_of or cell).score_key, images, device
    if key not in _kept_scores:
        _kept_scores.clear()  # one at a time: VGG-16's scores take 120 MB
        inputs, targets = (tensor.to(device) for tensor in scoring_batch(batch_of or cell, images))
        _kept_scores[key] = pruning.score(model, method, inputs, targets, generator(cell, "score"))
    return _kept_scores[key]


def audited(model: nn.Module, masks: pruning.Masks) -> dict:
    """`Record.report`: the fields of `pruning.Report`, and the masks' digest."""
    return asdict(pruning.report(model, masks)) | {"digest": pruning.digest(masks)}


@lru_cache(maxsize=2)
def _subset(dataset: str, train_images: int | None, root: str | None) -> data.Data:
    return data.load(dataset, root).first(train_images)


def images_of(cell: Cell, root: str | None = None) -> data.Data:
    """The cell's data set, or the part of it that it trains on and is tested with; the last two stay in memory."""
    return _subset(cell.dataset, cell.train_images, root)


def device_name(device: str) -> str:
    """What records call a device: a card by its name, where it is here; else its kind, such as "cpu"."""
    kind = str(device).partition(":")[0]
    return torch.cuda.get_device_name(device) if kind == "cuda" and torch.cuda.is_available() else kind


def circumstances(device: str, precision: str = "float32") -> dict:
    """Where and with what something was computed, for `Record.run`."""
    return {
        "device": device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": platform.machine(),
    }
