"""Trains a masked network by the thesis's recipe: SGD with Nesterov momentum, constant rate, every epoch recorded."""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib import UserError, pruning
from lib.data import Data, augment
from lib.scorers.common import check_batchnorm

MOMENTUM = 0.9
TEST_BATCH = 128
# Of what layers compute in training; weights, momentum, loss and every test are float32 in both.
PRECISIONS = ("float32", "bf16")
SAVE_EVERY = 60   # seconds between checkpoints: a short cell writes none


class History(list):
    """One dict per epoch, from epoch 0 (the network before training): epoch, train_loss (mean over the epoch's images;
    None at epoch 0), test_loss, top1 and top5 (counts of test images). `diverged` is the epoch whose loss was not
    finite, on the training or on the test images, at which training stopped, or None."""

    diverged: int | None = None

    def add(self, epoch: int, loss: float | None, tested: dict) -> None:
        """An epoch's entry, of its training loss (None at epoch 0) and of what `evaluate` says."""
        finite = loss is None or math.isfinite(loss)
        self.append({"epoch": epoch, "train_loss": loss if finite else None} | tested)
        if not finite or tested["test_loss"] is None:
            self.diverged = epoch


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
    model.to(memory_format=getattr(model, "layout", torch.preserve_format))
    pruning.apply(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=MOMENTUM, nesterov=True)
    history, state = History(), {"model": model, "optimizer": optimizer, "generator": generator}
    _resume(checkpoint, state, history)
    saved = time.monotonic()
    with torch.random.fork_rng(devices=[data.train_images.device] if data.train_images.is_cuda else []):
        for epoch in range(len(history), epochs + 1):
            loss = _epoch(model, optimizer, data, batch_size, generator, precision) if epoch else None
            history.add(epoch, loss, evaluate(model, data))
            if said:
                said(history[-1])
            if history.diverged is not None:
                break
            if checkpoint and epoch and time.monotonic() - saved >= SAVE_EVERY:
                _save(checkpoint, state, history)
                saved = time.monotonic()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return history


def check(model: nn.Module, data: Data, epochs: int, learning_rate: float, batch_size: int, precision: str) -> None:
    """Raises `UserError` for a recipe by which nothing can be trained, or not what it says, and where an epoch has a batch
    that BatchNorm cannot take."""
    if epochs < 0 or batch_size < 1 or not 0 <= learning_rate < math.inf:
        raise UserError("Epochs may not be negative, a batch needs at least 1 image, and the learning rate must be a finite "
                        f"number from 0 on, not {epochs} epochs, {batch_size} images, {learning_rate:g}.")
    if precision not in PRECISIONS:
        raise UserError(f"Unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    if epochs:
        check_batchnorm(model.train(), len(data.train_images) % batch_size if batch_size > 1 else 1)


def _save(checkpoint: Path, state: dict, history: History) -> None:
    """Writes a checkpoint, whole or not at all. A full disk costs the checkpoint, not the training."""
    values = {name: each.get_state() if name == "generator" else each.state_dict() for name, each in state.items()}
    partial = checkpoint.with_suffix(".partial")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(values | {"history": list(history)}, partial)
        partial.replace(checkpoint)
    except (OSError, RuntimeError) as error:   # torch wraps what its writer meets
        warnings.warn(f"{checkpoint} cannot be written ({error}): if this run is stopped, the cell starts anew.",
                      stacklevel=3)
        partial.unlink(missing_ok=True)


def _resume(checkpoint: Path | None, state: dict, history: History) -> None:
    """Puts model, optimiser, generator and history where the checkpoint left them."""
    if checkpoint is None or not checkpoint.exists():
        return
    try:
        values = torch.load(checkpoint, weights_only=True)
        state["model"].load_state_dict(values["model"])
        state["optimizer"].load_state_dict(values["optimizer"])
        state["generator"].set_state(values["generator"])
        history.extend(values["history"])
    except Exception as error:   # whatever a damaged file makes torch raise
        raise UserError(f"{checkpoint} is no checkpoint of this training ({' '.join(str(error).split())[:200]}): delete it, "
                        "and the cell starts anew.") from error


def computing(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which layers compute in this precision; one step long, since it keeps the weights that it has cast."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, batch_size: int,
           generator: torch.Generator, precision: str) -> float:
    """One pass over the shuffled training images; returns the mean loss per image."""
    model.train()
    shuffled = order(data, generator)
    total = torch.zeros((), device=shuffled.device)
    for index in shuffled.split(batch_size):
        images, labels = batch(data, index, generator)
        with computing(precision, images.device):
            logits = model(images).to(images.dtype)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(index)
    return float(total) / len(shuffled)


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
def evaluate(model: nn.Module, data: Data) -> dict:
    """test_loss (mean), top1 and top5 (counts, of all test images), in eval mode. A loss that is not finite is None."""
    model.eval()
    loss, top1, top5 = 0.0, 0, 0
    for images, labels in zip(data.test_images.split(TEST_BATCH), data.test_labels.split(TEST_BATCH)):
        logits = model(data.normalise(images))
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss += float(cross_entropy(logits, labels, reduction="sum"))
        top1 += int(best[:, 0].sum())
        top5 += int(best.sum())
    loss /= len(data.test_labels)
    return {"test_loss": loss if math.isfinite(loss) else None, "top1": top1, "top5": top5}
