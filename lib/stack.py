"""Trains many sparse copies of one network in lock-step: their weights are stacked, their batches are the same.

All cells of a network, data set and seed share initial shapes, the order of the images, augmentation and dropout
(`experiment.generator`), and differ in weights and masks. One small network leaves an accelerator nearly idle; K of them,
stacked by `torch.func.vmap` (convolutions become grouped ones), fill it. Each copy computes what `trainer.train` would:
the same sums in another order, so the two agree to rounding.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from lib import pruning, trainer
from lib.data import Data
from lib.trainer import MOMENTUM, TEST_BATCH, History


def train(models: list[nn.Module], masks: list[pruning.Masks], data: Data, *, epochs: int, learning_rate: float,
          generator: torch.Generator, batch_size: int = 128, precision: str = "float32") -> list[History]:
    """The histories of the models, trained as `trainer.train` trains each, in place.

    models: of one architecture, on the data's device. A copy whose loss is not finite has diverged: its history ends there,
    and its neighbours do not notice, since no operation mixes copies. Where the device runs out of memory, the group is
    trained in two halves. Raises `UserError` as `trainer.train` does.
    """
    before, state = [_copied(model) for model in models], generator.get_state()
    try:
        return _train(models, masks, data, epochs, learning_rate, generator, batch_size, precision)
    except torch.OutOfMemoryError:
        if len(models) == 1:
            raise
    torch.cuda.empty_cache()   # outside of `except`: the traceback would hold on to the tensors
    half, histories = len(models) // 2, []
    for model, values in zip(models, before):
        model.load_state_dict(values)
    for part in (slice(half), slice(half, None)):
        generator.set_state(state)
        histories += train(models[part], masks[part], data, epochs=epochs, learning_rate=learning_rate, generator=generator,
                           batch_size=batch_size, precision=precision)
    return histories


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _train(models: list[nn.Module], masks: list[pruning.Masks], data: Data, epochs: int, learning_rate: float,
           generator: torch.Generator, batch_size: int, precision: str) -> list[History]:
    trainer.check(models[0], data, epochs, learning_rate, batch_size, precision)
    for model, its in zip(models, masks):
        pruning.check(model, its)
    parameters, buffers = stack_module_state(models)
    kept = {name: torch.stack([its[name] for its in masks]).to(parameters[name].dtype) for name in masks[0]}
    with torch.no_grad():
        for name, mask in kept.items():
            parameters[name].mul_(mask)
    optimizer = torch.optim.SGD(parameters.values(), lr=learning_rate, momentum=MOMENTUM, nesterov=True)
    histories = [History() for _ in models]
    with torch.random.fork_rng(devices=[data.train_images.device] if data.train_images.is_cuda else []):
        for epoch in range(epochs + 1):
            losses = (_epoch(models[0], parameters, buffers, kept, optimizer, data, batch_size, generator, precision)
                      if epoch else None)
            tested = _evaluate(models[0], parameters, buffers, data)
            for copy, history in enumerate(histories):
                if history.diverged is None:
                    history.add(epoch, None if losses is None else float(losses[copy]), tested[copy])
    for copy, model in enumerate(models):
        model.load_state_dict({name: value[copy] for name, value in (parameters | buffers).items()})
    return histories


def _forward(model: nn.Module, parameters: dict, buffers: dict, images: Tensor) -> Tensor:
    """Logits (copies, images, classes). All copies drop the same units, as they do when each is trained alone."""
    return vmap(lambda own, state: functional_call(model, (own, state), (images,)), randomness="same")(parameters, buffers)


def _epoch(model: nn.Module, parameters: dict, buffers: dict, kept: dict, optimizer: torch.optim.Optimizer, data: Data,
           batch_size: int, generator: torch.Generator, precision: str) -> Tensor:
    """One pass over the shuffled training images, in `trainer`'s order; returns each copy's mean loss per image."""
    model.train()
    order = trainer.order(data, generator)
    total = 0
    for index in order.split(batch_size):
        images, labels = trainer.batch(data, index, generator)
        with trainer.computing(precision, images.device):
            logits = _forward(model, parameters, buffers, images).to(images.dtype)
        losses = vmap(cross_entropy, in_dims=(0, None))(logits, labels)
        optimizer.zero_grad()
        losses.sum().backward()   # each copy's loss has a slope of 1: its gradient is its own
        for name, mask in kept.items():
            parameters[name].grad.mul_(mask)
        optimizer.step()
        total = total + losses.detach() * len(index)
    return total / len(order)


@torch.no_grad()
def _evaluate(model: nn.Module, parameters: dict, buffers: dict, data: Data) -> list[dict]:
    """What `trainer.evaluate` says of each copy."""
    model.eval()
    sums = 0
    for images, labels in zip(data.test_images.split(TEST_BATCH), data.test_labels.split(TEST_BATCH)):
        logits = _forward(model, parameters, buffers, data.normalise(images))
        best = logits.topk(min(5, logits.shape[2])).indices == labels[:, None]
        loss = vmap(lambda each: cross_entropy(each, labels, reduction="sum"))(logits).double()
        sums = sums + torch.stack([loss, best[:, :, 0].sum(1).double(), best.sum((1, 2)).double()])
    return [{"test_loss": loss / len(data.test_labels) if math.isfinite(loss) else None, "top1": int(one), "top5": int(five)}
            for loss, one, five in sums.T.tolist()]
