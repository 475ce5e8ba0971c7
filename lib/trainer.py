"""Trains a masked network by the thesis's recipe: SGD with Nesterov momentum, constant rate, every epoch recorded."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib import UserError, pruning
from lib.data import Data, augment
from lib.lanes import Lanes
from lib.scorers.common import check_batch, check_batchnorm

MOMENTUM = 0.9
TEST_BATCH = 128
# Of what layers compute in training; weights, momentum, loss and every test are float32 in both (but for `conditions`).
PRECISIONS = ("float32", "bf16")
RECOLLECTED = 12_800   # training images that give BatchNorm its statistics anew
SAVE_EVERY = 60   # seconds between checkpoints: a short cell writes none


class History(list):
    """One dict per epoch, from epoch 0 (the network before training): epoch, train_loss (mean over the epoch's images;
    None at epoch 0), test_loss, top1 and top5 (counts of test images); the last one, of a network with dropout and
    BatchNorm, `recollected` too: see `recollect`. `diverged` is the epoch whose loss was not
    finite, on the training or on the test images, at which training stopped, or None."""

    diverged: int | None = None
    before: float = 0.0   # seconds that the training had taken before it was last resumed

    def add(self, epoch: int, loss: float | None, tested: dict) -> None:
        """An epoch's entry, of its training loss (None at epoch 0) and of what `evaluate` says."""
        finite = loss is None or math.isfinite(loss)
        self.append({"epoch": epoch, "train_loss": loss if finite else None} | tested)
        if not finite or tested["test_loss"] is None:
            self.diverged = epoch


class Learner:
    """A masked network in training. What its steps and tests add up stays on the device, so that nothing waits for it."""

    def __init__(self, model: nn.Module, masks: pruning.Masks, learning_rate: float, precision: str):
        model.to(memory_format=getattr(model, "layout", torch.preserve_format))
        pruning.apply(model, masks)
        self.model, self.precision, self.history = model, precision, History()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=MOMENTUM, nesterov=True)
        device = next(model.parameters()).device
        self.loss = torch.zeros((), device=device)                            # summed over images of an epoch
        self.marks = torch.zeros(3, dtype=torch.float64, device=device)       # of a test: see `_marks`

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """A step of SGD on a batch."""
        with computing(self.precision, images.device):
            logits = self.model(images).to(images.dtype)
        loss = cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss += loss.detach() * len(labels)

    def answer(self, images: Tensor, labels: Tensor) -> None:
        """A batch of a test."""
        self.marks += _marks(self.model, images, labels)


def train(model: nn.Module, masks: pruning.Masks, data: Data, *, epochs: int, learning_rate: float,
          generator: torch.Generator, batch_size: int = 128, said: Callable[[dict], None] | None = None,
          checkpoint: Path | None = None, precision: str = "float32") -> History:
    """Applies `masks` and trains `model`, in place, for `epochs` epochs; tests it after every one.

    data: on the model's device, uint8. generator: a CPU generator; it alone decides on the order of the images, their
    augmentation and dropout (the global generator is restored). said: called with each epoch's entry as it is made.
    precision: one of `PRECISIONS`.
    checkpoint: a file to which the training goes now and then, and from which, where it exists, it goes on, bit for bit
    as if it had never stopped; it is removed at the end. Raises `UserError` for masks or a checkpoint that do not fit, a
    recipe that is none, and a batch that BatchNorm cannot take. The last, smaller batch of an epoch is trained on like the
    others.
    """
    check(model, data, epochs, learning_rate, batch_size, precision)
    if not isinstance(generator, torch.Generator):
        raise UserError("Training needs a torch.Generator for its batches, augmentation and dropout, such as "
                        f"torch.Generator().manual_seed(42), not {generator!r}.")
    learner, lanes = Learner(model, masks, learning_rate, precision), Lanes(data.train_images.device, 1)
    history, state = learner.history, {"model": model, "optimizer": learner.optimizer, "generator": generator}
    recipe = {"masks": pruning.digest(masks), "learning_rate": float(learning_rate), "batch_size": int(batch_size),
              "precision": precision}
    _resume(checkpoint, state, history, recipe, epochs)
    saved = began = time.monotonic()
    with conditions(data, precision):
        for epoch in range(len(history), epochs + 1):
            advance([learner], lanes, data, epoch, batch_size, generator)
            if said:
                said(history[-1])
            if history.diverged is not None:
                break
            if checkpoint and epoch and time.monotonic() - saved >= SAVE_EVERY:
                _save(checkpoint, state, history, recipe, history.before + time.monotonic() - began)
                saved = time.monotonic()
        recollect([learner], data)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return history


def advance(learners: list[Learner], lanes: Lanes, data: Data, epoch: int, batch_size: int,
            generator: torch.Generator) -> None:
    """Trains learners for an epoch (none if it is 0) on the same batches, tests them, and adds to their histories, but to
    those that have diverged."""
    losses = _epoch(learners, lanes, data, batch_size, generator) if epoch else [None] * len(learners)
    for learner, loss, tested in zip(learners, losses, _tests(learners, lanes, data)):
        if learner.history.diverged is None:
            learner.history.add(epoch, loss, tested)


def recollect(learners: list[Learner], data: Data) -> None:
    """Tests trained networks that have dropout and BatchNorm once more, with BatchNorm's statistics collected anew, without
    dropout, from the first `RECOLLECTED` training images as they are; the networks stay as they are.

    The running statistics, of which every other test is made, were collected under dropout: they belong to wider signals
    than a test's, and can make it fail (`lib.shift`).
    """
    count, chunk = min(RECOLLECTED, len(data.train_images)), pruning.CALIBRATION_CHUNK
    count = count // chunk * chunk or count    # no last chunk of a single image
    for learner in learners:
        drops = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in learner.model.modules())
        if len(learner.history) > 1 and learner.history.diverged is None and drops and pruning.has_batchnorm(learner.model):
            fresh = copy.deepcopy(learner.model)
            pruning.set_mode(fresh, "calibrated", data.normalise(data.train_images[:count]))
            learner.history[-1]["recollected"] = evaluate(fresh, data)


@contextmanager
def conditions(data: Data, precision: str) -> Iterator[None]:
    """What all training happens in: gradients, also inside of `no_grad`; global generators, which dropout draws from, that
    are left as they are found; and on a card sums in an order that does not change, with float32 rounded to ten bits in the
    tests of bf16 alone."""
    images = data.train_images
    with (torch.enable_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []),
          torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=precision == "bf16")):
        yield


def check(model: nn.Module, data: Data, epochs: int, learning_rate: float, batch_size: int, precision: str) -> None:
    """Raises `UserError` for a recipe by which nothing can be trained, or not what it says, and where an epoch has a batch
    that BatchNorm cannot take. The model is in train mode afterwards, if there is anything to train."""
    whole = isinstance(epochs, Integral) and isinstance(batch_size, Integral) and isinstance(learning_rate, Real)
    if not whole or epochs < 0 or batch_size < 1 or not 0 <= learning_rate < math.inf:
        raise UserError("Epochs may not be negative, a batch needs at least 1 image, both whole numbers, and the learning "
                        f"rate must be a finite number from 0 on, not {epochs!r} epochs, {batch_size!r} images, "
                        f"{learning_rate!r}.")
    check_precision(precision)
    if (dtype := next(model.parameters()).dtype) != torch.float32:
        raise UserError(f"The network is {dtype}: training takes float32, as in model.float().")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("All parameters of the network are frozen: model.requires_grad_() thaws them.")
    for what, images, labels in (("training", data.train_images, data.train_labels),
                                 ("test", data.test_images, data.test_labels)):
        if images.dtype != torch.uint8 or not 0 < len(images) == len(labels):
            raise UserError(f"The {what} images must be uint8, from 0 to 255, at least one, and each with its label, not "
                            f"{len(images)} of {images.dtype} with {len(labels)} labels.")
        # One image and the largest label stand for all.
        check_batch(model, images[:1].float(), labels.max().view(1))
    if epochs:
        check_batchnorm(model.train(), len(data.train_images) % batch_size if batch_size > 1 else 1)


def check_precision(precision: str) -> None:
    """Raises `UserError` for what is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UserError(f"Unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}.")


def _save(checkpoint: Path, state: dict, history: History, recipe: dict, seconds: float) -> None:
    """Writes a checkpoint, whole or not at all. A full disk costs the checkpoint, not the training."""
    values = {name: each.get_state() if name == "generator" else each.state_dict() for name, each in state.items()}
    partial = checkpoint.with_suffix(".partial")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(values | {"history": list(history), "recipe": recipe, "seconds": seconds}, partial)
        partial.replace(checkpoint)
    except (OSError, RuntimeError) as error:   # torch wraps what its writer meets
        warnings.warn(f"{checkpoint} cannot be written ({error}): if this run is stopped, the cell starts anew.",
                      stacklevel=3)
        partial.unlink(missing_ok=True)


def _resume(checkpoint: Path | None, state: dict, history: History, recipe: dict, epochs: int) -> None:
    """Puts model, optimiser, generator and history where the checkpoint left them; raises `UserError` for one of another
    recipe or of more epochs."""
    if checkpoint is None or not checkpoint.exists():
        return
    try:
        values = torch.load(checkpoint, weights_only=True, map_location=next(state["model"].parameters()).device)
        if values["recipe"] != recipe or len(values["history"]) > epochs + 1:
            raise ValueError("it is of other masks, another recipe or more epochs")
        state["model"].load_state_dict(values["model"])
        state["optimizer"].load_state_dict(values["optimizer"])
        state["generator"].set_state(values["generator"].cpu())
        history.extend(values["history"])
        history.before = values["seconds"]
    except Exception as error:   # whatever a damaged file makes torch raise
        raise UserError(f"{checkpoint} is no checkpoint of this training ({' '.join(str(error).split())[:200]}): delete it, "
                        "and the cell starts anew.") from error


def computing(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which layers compute in this precision; one step long, since it keeps the weights that it has cast."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _epoch(learners: list[Learner], lanes: Lanes, data: Data, batch_size: int, generator: torch.Generator) -> list[float]:
    """One pass over the shuffled training images; returns each learner's mean loss per image."""
    for learner in learners:
        learner.model.train()
        learner.loss.zero_()
    shuffled = order(data, generator)
    for index in shuffled.split(batch_size):
        lanes.each("learn", [learner.learn for learner in learners], *batch(data, index, generator))
    lanes.join()
    return [float(learner.loss) / len(shuffled) for learner in learners]


def order(data: Data, generator: torch.Generator) -> Tensor:
    """An epoch's order of the training images; the global generator, which dropout takes, is seeded on the way."""
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return torch.randperm(len(data.train_images), generator=generator).to(data.train_images.device)


def batch(data: Data, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Training images of `index` as the network takes them, float32, and their labels.

    Augmented with `generator` where the data set is (`data.augmented`); with None as they are.
    """
    images = data.train_images[index]
    if generator is not None and data.augmented:
        images = augment(images, generator)
    return data.normalise(images), data.train_labels[index]


@torch.no_grad()
def _tests(learners: list[Learner], lanes: Lanes, data: Data) -> list[dict]:
    """What `evaluate` says of each learner's network."""
    for learner in learners:
        learner.model.eval()
        learner.marks.zero_()
    for images, labels in _test_batches(data):
        lanes.each("answer", [learner.answer for learner in learners], images, labels)
    lanes.join()
    return [_result(learner.marks, data) for learner in learners]


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> dict:
    """test_loss (mean), top1 and top5 (counts, of all test images), in eval mode. A loss that is not finite is None."""
    model.eval()
    return _result(sum(_marks(model, images, labels) for images, labels in _test_batches(data)), data)


def _test_batches(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in zip(data.test_images.split(TEST_BATCH), data.test_labels.split(TEST_BATCH)):
        yield data.normalise(images), labels


def _marks(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of a batch of test images, float64 (3,): summed loss, right at once, right in five."""
    logits = model(images)
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    loss = cross_entropy(logits, labels, reduction="sum")
    return torch.stack([loss.double(), best[:, 0].sum().double(), best.sum().double()])


def _result(marks: Tensor, data: Data) -> dict:
    loss, top1, top5 = marks.tolist()
    loss /= len(data.test_labels)
    return {"test_loss": loss if math.isfinite(loss) else None, "top1": int(top1), "top5": int(top5)}
