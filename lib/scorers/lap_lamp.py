"""Lookahead pruning (LAP) and layer-adaptive magnitude pruning (LAMP): magnitudes seen in the network's context."""

import torch
from torch import Tensor, nn

from lib import UserError
from lib.scorers.common import Scores, along, classifier, scorer, weights


@scorer(data=False)
def lap(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """|w| * ||W_prev[j, :]|| * ||W_next[:, k]|| for a weight from channel j to channel k (thesis, eq. 3.3; Park et
    al. 2020, whose code takes the square, which moves no rank).

    The neighbours are the previous and the next Conv2d or Linear in definition order, the classifier included;
    shortcuts and BatchNorm are ignored; the ends have factor 1; a convolution meets a linear layer through the
    flattening. Raises `UserError`, naming the layers, where channels do not chain.
    """
    return _lookahead(weights(model))


@scorer(data=False)
def lap_run(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """`lap` with the *prunable* layers as neighbours, as the released code ran it (pruning/vision.py:15-21): the
    classifier is nobody's neighbour and keeps its plain magnitude. (It takes the square, which ranks alike:
    strategies/lap.py.)"""
    scored = dict(weights(model))
    last = classifier(model)
    rest = {last: scored.pop(last).detach().abs()} if last else {}
    return _lookahead(scored) | rest


def _lookahead(scored: dict[str, Tensor]) -> Scores:
    scored = {name: weight.detach() for name, weight in scored.items()}
    names, scores = list(scored), {}
    for before, name, after in zip([None, *names], names, [*names[1:], None]):
        weight = scored[name]
        score = weight.abs()
        if before is not None:
            score *= along(1, _incoming(scored[before], weight, (before, name)), weight.dim())
        if after is not None:
            score *= along(0, _outgoing(weight, scored[after], (name, after)), weight.dim())
        scores[name] = score
    return scores


def _incoming(before: Tensor, weight: Tensor, names: tuple[str, str]) -> Tensor:
    """Norms of `before`'s rows, one per input channel (after a flattening: per unit) of `weight`."""
    return before.flatten(1).norm(dim=1).repeat_interleave(_repeats(before, weight, names))


def _outgoing(weight: Tensor, after: Tensor, names: tuple[str, str]) -> Tensor:
    """Norms of the weights of `after` that read each output channel of `weight`."""
    _repeats(weight, after, names)
    return after.transpose(0, 1).reshape(weight.shape[0], -1).norm(dim=1)


def _repeats(before: Tensor, after: Tensor, names: tuple[str, str]) -> int:
    """How many inputs of `after` read one output channel of `before`: 1, or the positions that were flattened."""
    if after.shape[1] % before.shape[0] or (after.dim() > 2 and after.shape[1] != before.shape[0]):
        raise UserError(
            f"Lookahead pruning does not apply to this network: {names[0]} has {before.shape[0]} outputs, but "
            f"{names[1]}, the next layer in definition order, has {after.shape[1]} inputs."
        )
    return after.shape[1] // before.shape[0]


@scorer(data=False)
def lamp(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """w_u^2 / sum of w_v^2 over v >= u, u over the layer's ascending magnitudes (thesis, eq. 3.4; Lee et al. 2021).

    Always float64. Of equal magnitudes the lower flat index comes first. The layer's maximum is exactly 1; where a
    layer holds nothing but zeros, 0/0 counts as 0.
    """
    return {name: _lamp(weight.detach()) for name, weight in weights(model).items()}


def _lamp(weight: Tensor) -> Tensor:
    squares, order = weight.flatten().double().square().sort(stable=True)
    survivors = squares.flip(0).cumsum(0).flip(0)
    ratio = torch.where(survivors == 0, 0, squares / survivors)
    return torch.empty_like(ratio).scatter_(0, order, ratio).view(weight.shape)
