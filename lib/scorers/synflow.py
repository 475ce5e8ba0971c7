"""SynFlow: the share of each weight in the network's total synaptic flow."""

import torch
from torch import Tensor, nn

from lib.scorers.common import Scores, call, evaluating, input_shape, scorer, weights


@scorer(data=False)
def synflow(model: nn.Module, inputs: Tensor | None, targets: Tensor | None) -> Scores:
    """|w| dR/d|w|, R the sum of the outputs for an all-ones input (thesis, eqs. 3.7, 3.8; Tanaka et al. 2020).

    Eval mode, every weight, bias and BatchNorm parameter and buffer by its absolute value; always float64, because
    R passes float32's largest number on deep residual networks. Data-free: of `inputs` only the shape
    is used, and that only where the model has no `input_shape`. Raises `UserError` where a score is not finite.
    """
    return _flow(model, inputs, torch.float64)


@scorer(data=False, finite=False)
def synflow_run(model: nn.Module, inputs: Tensor | None, targets: Tensor | None) -> Scores:
    """`synflow` in float32 and unchecked, as the released code ran it (strategies/synflow.py, `model_masks`), once: on
    ResNet-56 it overflows into NaN."""
    return _flow(model, inputs, torch.float32)


def _flow(model: nn.Module, inputs: Tensor | None, dtype: torch.dtype) -> Scores:
    total, parameters = flow(model, inputs, dtype)
    chosen = {name: parameters[name] for name in weights(model)}
    gradients = torch.autograd.grad(total, list(chosen.values()))
    return {name: (weight * slope).detach() for (name, weight), slope in zip(chosen.items(), gradients)}


def flow(model: nn.Module, inputs: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """R (thesis, eq. 3.7), a scalar of this dtype, and the absolute parameters that it is made of: it can be derived by
    those of Conv2d and Linear weights."""

    def positive(value: Tensor) -> Tensor:
        return value.detach().to(dtype).abs() if value.is_floating_point() else value.clone()

    parameters = {name: positive(parameter) for name, parameter in model.named_parameters()}
    for name in weights(model):
        parameters[name].requires_grad_()
    # What a network says of itself comes before a batch that is not looked at.
    shape = inputs.shape[1:] if isinstance(inputs, Tensor) and not hasattr(model, "input_shape") else input_shape(model)
    ones = torch.ones(1, *shape, dtype=dtype, device=next(iter(parameters.values())).device)
    with evaluating(model):
        return call(model, ones, parameters, transform=positive).sum(), parameters
