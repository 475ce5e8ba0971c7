"""Trains a masked network by the thesis's recipe: SGD with Nesterov momentum, constant rate, every epoch recorded."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib import pruning
from lib.data import Data, augment
from lib.scorers.common import check_batchnorm

MOMENTUM = 0.9
TEST_BATCH = 128


class History(list):
    """One dict per epoch, from epoch 0 (the network before training): epoch, train_loss (mean over the epoch's images;
    None at epoch 0), test_loss, top1 and top5 (counts of test images). `diverged` is the epoch whose loss was not
    finite, on the training or on the test images, at which training stopped, or None."""

    diverged: int | None = None


def train(model: nn.Module, masks: pruning.Masks, data: Data, *, epochs: int, learning_rate: float,
          generator: torch.Generator, batch_size: int = 128, said: Callable[[dict], None] | None = None) -> History:
    """Applies `masks` and trains `model`, in place, for `epochs` epochs; tests it after every one.

    data: on the model's device, uint8. generator: a CPU generator; it alone decides on the order of the images, their
    augmentation and dropout (the global generator is restored). said: called with each epoch's entry as it is made.
    Raises `UserError` for masks that do not fit and for a batch that BatchNorm cannot take. The last, smaller batch of
    an epoch is trained on like the others.
    """
    if epochs:
        check_batchnorm(model.train(), len(data.train_images) % batch_size if batch_size > 1 else 1)
    pruning.apply(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=MOMENTUM, nesterov=True)
    history = History()
    with torch.random.fork_rng(devices=[data.train_images.device] if data.train_images.is_cuda else []):
        for epoch in range(epochs + 1):
            loss = _epoch(model, optimizer, data, batch_size, generator) if epoch else None
            finite = loss is None or math.isfinite(loss)
            history.append({"epoch": epoch, "train_loss": loss if finite else None} | evaluate(model, data))
            if said:
                said(history[-1])
            if not finite or history[-1]["test_loss"] is None:
                history.diverged = epoch
                break
    return history


def _epoch(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, batch_size: int,
           generator: torch.Generator) -> float:
    """One pass over the shuffled training images; returns the mean loss per image."""
    model.train()
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))  # dropout takes no generator of its own
    order = torch.randperm(len(data.train_images), generator=generator).to(data.train_images.device)
    total = torch.zeros((), device=order.device)
    for index in order.split(batch_size):
        images, labels = batch(data, index, generator)
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(index)
    return float(total) / len(order)


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
