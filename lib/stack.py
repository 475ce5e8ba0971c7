"""Trains many sparse copies of one network in lock-step, on the same batches.

All cells of a network, data set and seed share the order of the images, augmentation and dropout (`experiment.generator`),
and differ in weights and masks. One small network leaves an accelerator nearly idle; K of them, side by side (`lib.lanes`),
fill it. Each copy computes what `trainer.train` would, in the same order: its neighbours do not move a bit of it.
"""

import gc

import torch
from torch import Tensor, nn

from lib import pruning, trainer
from lib.data import Data
from lib.lanes import Lanes
from lib.trainer import History, Learner


def train(models: list[nn.Module], masks: list[pruning.Masks], data: Data, *, epochs: int, learning_rates: list[float],
          generator: torch.Generator, batch_size: int = 128, precision: str = "float32") -> list[History]:
    """The histories of the models, trained as `trainer.train` trains each at its learning rate, in place.

    models: of one architecture, on the data's device. A copy whose loss is not finite has diverged: its history ends there,
    and its neighbours do not notice, since no operation mixes copies. Where the device runs out of memory, the group is
    trained in two halves. Raises `UserError` as `trainer.train` does.
    """
    before, state = [_copied(model) for model in models], generator.get_state()
    try:
        return _train(models, masks, data, epochs, learning_rates, generator, batch_size, precision)
    except torch.OutOfMemoryError:
        if len(models) == 1:
            raise
    half, histories = len(models) // 2, []
    for model, values in zip(models, before):
        model.load_state_dict(values)
        model.zero_grad()
    gc.collect()   # outside of `except`: the traceback would hold on to the tensors
    torch.cuda.empty_cache()
    for part in (slice(half), slice(half, None)):
        generator.set_state(state)
        histories += train(models[part], masks[part], data, epochs=epochs, learning_rates=learning_rates[part],
                           generator=generator, batch_size=batch_size, precision=precision)
    return histories


def _copied(model: nn.Module) -> dict[str, Tensor]:
    """Its values, kept off the device: they are wanted when that is full."""
    return {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}


def _train(models: list[nn.Module], masks: list[pruning.Masks], data: Data, epochs: int, learning_rates: list[float],
           generator: torch.Generator, batch_size: int, precision: str) -> list[History]:
    learners = []
    for model, its, learning_rate in zip(models, masks, learning_rates, strict=True):
        trainer.check(model, data, epochs, learning_rate, batch_size, precision)
        learners.append(Learner(model, its, learning_rate, precision))
    lanes = Lanes(data.train_images.device, len(learners))
    with trainer.conditions(data, precision):
        for epoch in range(epochs + 1):
            trainer.advance(learners, lanes, data, epoch, batch_size, generator)
        trainer.recollect(learners, data)
    return [learner.history for learner in learners]
