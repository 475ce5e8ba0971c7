"""SNIP and GraSP: what the loss, and what the gradient flow, would lose with a connection."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib.scorers.baselines import loss_gradient, sensitivity
from lib.scorers.common import Scores, call, leaves, product, scorer, weights


@scorer()
def snip(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """|dL/dc| at c = 1 for a mask c on the connections (Lee et al. 2019, eq. 5).

    The weight enters as c w, so dL/dc = w g: on the same weights this is the gradient baseline. SNIP differs from it
    by its initialisation alone. (The paper divides by the sum over all weights, which moves no rank.)
    """
    return sensitivity(model, inputs, targets)


@scorer()
def snip_written(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """|g|, as the thesis writes SNIP (eq. 3.5) and its released code ran it (strategies/snip.py, `model_masks`): the
    derivative with respect to the weight, not to the connection. (Both divide by the sum over all weights, which moves no
    rank.)"""
    return {name: score.abs() for name, score in loss_gradient(model, inputs, targets).items()}


@scorer()
def grasp(model: nn.Module, inputs: Tensor, targets: Tensor, *, temperature: float = 200) -> Scores:
    """w * (H g), the negative of S(-w) (Wang et al. 2020, eq. 8): their code removes the highest S.

    S(-w) = -w * (H g) is the change of the squared gradient norm when a weight is removed; what raises it goes first.
    g and H belong to the batch's mean cross-entropy of logits / temperature, over every Conv2d and Linear weight.
    """
    parameters = leaves(model)
    names = list(weights(model))
    chosen = [parameters[name] for name in names]
    loss = cross_entropy(call(model, inputs, parameters) / temperature, targets)
    slopes = torch.autograd.grad(loss, chosen, create_graph=True)
    return product(model, dict(zip(names, _hessian_times(slopes, [g.detach() for g in slopes], chosen))))


@scorer()
def grasp_written(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """-w * (H g): the thesis keeps the highest values of eq. 3.6, which its source removes. It names no temperature: that
    stays 200, so that the sign alone differs."""
    return {name: -score for name, score in grasp(model, inputs, targets).items()}


@scorer()
def grasp_run(model: nn.Module, inputs: Tensor, targets: Tensor, *, temperature: float = 200) -> Scores:
    """-w * (H g) as the released code ran it (strategies/grasp.py, `model_masks`): g over *all* parameters, from a first
    forward pass; H from a second.

    Where there is dropout the two passes draw two masks. Logits are divided by `temperature`, 200 as released. (It divides
    by the magnitude of the sum over all weights too, which moves no rank.)
    """
    parameters = leaves(model)
    every = list(parameters.values())
    loss = cross_entropy(call(model, inputs, parameters) / temperature, targets)
    fixed = torch.autograd.grad(loss, every)
    loss = cross_entropy(call(model, inputs, parameters) / temperature, targets)
    slopes = torch.autograd.grad(loss, every, create_graph=True)
    names = list(weights(model))
    products = _hessian_times(slopes, fixed, [parameters[name] for name in names])
    return {name: -score for name, score in product(model, dict(zip(names, products))).items()}


def _hessian_times(slopes: list[Tensor], direction: list[Tensor], chosen: list[Tensor]) -> tuple[Tensor, ...]:
    """H v by double backward: the derivative of <slope, v> (Pearlmutter 1994)."""
    return torch.autograd.grad(sum((g * v).sum() for g, v in zip(slopes, direction)), chosen)
