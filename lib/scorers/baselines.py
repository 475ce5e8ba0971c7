"""The baselines: random, magnitude, gradient and activation (thesis, section 2.2).

Every scorer here and beside takes (model, inputs, targets): inputs float (batch, ...), targets int64 (batch,); it
returns parameter name -> score, in the weight's shape and dtype, for every Conv2d and Linear; HIGHER = KEEP. It scores
in the mode that the model is in, leaves the model as it was, and raises `UserError` for an unfit batch or a score
that is not finite. Where one differs in mode, dtype or what it raises, it says so. Files of the released code are below
`shrinkbench/` of GitHub noajam/sota-prune, commit 067e5fc.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from lib import UserError
from lib.scorers.common import Scores, along, call, layers, leaves, product, scorer, watching, weight_name, weights


@scorer(data=False)
def random(model: nn.Module, inputs: Tensor, targets: Tensor, *, generator: torch.Generator) -> Scores:
    """Uniform on [0, 1), drawn from `generator`: a random set of the size asked for (thesis, section 2.2.4)."""
    return {
        name: torch.rand(weight.shape, generator=generator, device=generator.device).to(weight)
        for name, weight in weights(model).items()
    }


@scorer(data=False)
def magnitude(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """|w| (thesis, eq. 2.1; Han et al. 2015)."""
    return {name: weight.detach().abs() for name, weight in weights(model).items()}


def loss_gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """g = dL/dw of the batch's mean cross-entropy, for every Conv2d and Linear weight."""
    parameters = leaves(model)
    loss = cross_entropy(call(model, inputs, parameters), targets)
    names = list(weights(model))
    return dict(zip(names, torch.autograd.grad(loss, [parameters[name] for name in names])))


def sensitivity(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """|w g|, which is the gradient baseline's score and SNIP's."""
    return {name: score.abs_() for name, score in product(model, loss_gradient(model, inputs, targets)).items()}


@scorer()
def gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """|w g| on one batch (thesis, eq. 2.2)."""
    return sensitivity(model, inputs, targets)


@scorer()
def activation(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """|w| a, a the activation that follows the layer (thesis, eq. 2.3).

    a is the output of the first ReLU that runs after the layer (after BatchNorm, and after the addition for a block's
    second convolution), averaged over the batch, then its absolute value averaged over space: one number per output
    channel. A layer that no ReLU follows uses its own output. Raises `UserError` where the ReLU has other channels.
    """
    return _weighed(model, _recorded(model, inputs).outputs, 0)


@scorer()
def activation_run(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """|w| a with a the layer's *input*, one number per input channel, as the released code ran it.

    The text's a is an output; the released code takes the module's input (`GlobalMagAct` and `LayerMagAct` of
    strategies/magnitude.py, from pruning/utils.py:66-89), averaged over the batch and, as an L1 norm, over space.
    """
    return _weighed(model, _recorded(model, inputs).inputs, 1)


def _weighed(model: nn.Module, factors: dict[str, Tensor], axis: int) -> Scores:
    """|w| times a factor per channel, along this axis of the weight."""
    return {weight_name(name): layer.weight.detach().abs() * _aligned(name, layer, factors[name], axis)
            for name, layer in layers(model).items()}


def _recorded(model: nn.Module, inputs: Tensor) -> "_Recorder":
    recorder = _Recorder()
    with torch.no_grad(), watching(model, recorder.record), recorder:
        call(model, inputs, dict(model.named_parameters()))
    return recorder


class _Recorder(TorchDispatchMode):
    """Channel means of every layer's input and of the first ReLU after it, whichever way the ReLU is called."""

    def __init__(self):
        super().__init__()
        self.inputs, self.outputs, self.waiting = {}, {}, []

    def record(self, name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.inputs[name], self.outputs[name] = _channels(inputs[0]), _channels(output)
        self.waiting.append(name)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default) and self.waiting:
            self.outputs.update(dict.fromkeys(self.waiting, _channels(output)))
            self.waiting = []
        return output


def _channels(values: Tensor) -> Tensor:
    """(batch, channels, ...) -> (channels,): mean over the batch, then mean absolute value over space."""
    mean = values.mean(0).abs()
    return mean.flatten(1).mean(1) if mean.dim() > 1 else mean


def _aligned(name: str, layer: nn.Module, factor: Tensor, axis: int) -> Tensor:
    """The per-channel factor, shaped to multiply the layer's weight along `axis`."""
    weight = layer.weight
    if len(factor) != weight.shape[axis]:
        raise UserError(
            f"The activation score does not apply to {name}: its weight has {weight.shape[axis]} channels, but the "
            f"activation has {len(factor)}."
        )
    return along(axis, factor, weight.dim())
