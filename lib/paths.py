"""Which kept weights lie on a path from the input to the logits: a search of the network's graph, in one backward pass."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lib import UserError
from lib.scorers.common import input_shape, weights


@torch.enable_grad()
def on_path(model: nn.Module, masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Which kept weights lie on a path of kept weights from an input pixel to a logit, exact in position.

    One forward and backward pass in which every value is 0 or 1: on a copy, weights become their masks, biases 0,
    norms, activations and dropout the identity, pooling a mean (any input passes); after each layer
    the signal, and on the way back the gradient, is cut to whether it is there at all. A weight's gradient is then positive
    exactly if some position sees a signal before it and a way to the logits behind it. Raises `UserError` for a model that
    does not say by `input_shape` what it takes, for a module of unknown kind that has parameters, and for functions that
    choose among signals, as a sort does, or pool with dilation. What it cannot see in
    a `forward` of one's own, `check_understood` finds.
    """
    network = copy.deepcopy(model).float().eval().requires_grad_()   # also where the model's own weights are frozen
    _replace(network)
    chosen = weights(network)
    _check_known(network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(masks[name] if name in masks else torch.full_like(parameter, name in chosen))
    device = next(network.parameters()).device
    with _AnyInputPasses():
        paths = network(torch.ones(1, *input_shape(model), device=device)).sum()
    gradients = torch.autograd.grad(paths, [chosen[name] for name in masks], materialize_grads=True)   # 0 where idle
    return {name: masks[name] & (gradient > 0) for name, gradient in zip(masks, gradients)}


@torch.enable_grad()
def check_understood(model: nn.Module) -> None:
    """Raises `UserError` where the search finds a weight of the unpruned network, at no position of its kernel, on a path,
    although the network's output depends on it: then the network does what the search does not follow, such as arithmetic
    that can make a signal negative. (On a weight of a layer that is never called, or that only ever meets padding, nothing
    depends.)"""
    whole = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights(model).items()}
    anywhere = lambda found: found.flatten(2).any(-1) if found.dim() > 2 else found
    lost = {name: ~anywhere(found) for name, found in on_path(model, whole).items() if not anywhere(found).all()}
    felt = _felt(model) if lost else {}
    lost = [name for name, where in lost.items() if (where & anywhere(felt[name])).any()]
    if lost:
        raise UserError(f"The audit finds no path through all of {lost[0]} although nothing is pruned: it does not follow "
                        "what the network's forward does, such as a subtraction. Normalise images before the network, and "
                        "use modules of torch.nn.")


def _felt(model: nn.Module) -> dict[str, Tensor]:
    """Weight name -> bool, of its shape: does the network's own output, with random weights and images and no biases, depend
    on it?"""
    network, draw = copy.deepcopy(model).double().eval().requires_grad_(), torch.Generator().manual_seed(0)
    chosen, device = weights(network), next(network.parameters()).device
    random = lambda shape: torch.randn(shape, generator=draw, dtype=torch.float64).to(device)
    for module in network.modules():   # stored means are biases too
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in chosen:
                parameter.copy_(random(parameter.shape) * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.fill_(not name.endswith("bias"))   # norms of 1, also where they begin at 0
    logits = network(random((8, *input_shape(model))))
    gradients = torch.autograd.grad((logits * random(logits.shape)).sum(), list(chosen.values()), materialize_grads=True)
    return {name: gradient != 0 for name, gradient in zip(chosen, gradients)}


# What hands on each signal that there is, and makes none: norms (_NormBase: BatchNorm and InstanceNorm), dropout, ReLU, and
# the activations that have parameters or are not 0 at 0.
_IDENTITIES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.dropout._DropoutNd,
               nn.ReLU, nn.PReLU, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid)


def _replace(module: nn.Module) -> None:
    """Turns a network's modules into their part in the question whether a path exists."""
    for name, child in module._modules.items():   # unlike `named_children`, also what stands in two places
        if isinstance(child, _IDENTITIES):
            setattr(module, name, _Presence())
        elif isinstance(child, (nn.Conv2d, nn.Linear)):
            child.register_forward_hook(lambda layer, inputs, output: _Cut.apply(output))
        elif child is not None:
            _replace(child)


def _check_known(network: nn.Module) -> None:
    """Raises `UserError` for parameters of other modules than layers: nobody can see from outside whether they scale a
    signal or make one."""
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)) and list(module.parameters(recurse=False)):
            raise UserError(f"The audit does not know {name or 'the network'}, a {type(module).__name__} with parameters of "
                            "its own, so it cannot tell where a path leads: use layers and norms of torch.nn.")


# The same as functions, and what weighs signals by one another.
_IDENTITY_FUNCTIONS = {"batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm", "softmax", "log_softmax",
                       "sigmoid", "hardsigmoid", "softplus", "logsigmoid", "log_sigmoid"}


# What hands on one signal of several, by its value, or none where one is missing. (amax hands on all that are equal.)
_CHOOSING = {"topk", "sort", "kthvalue", "median", "nanmedian", "mode", "min", "amin", "minimum", "fmin", "cummin", "cummax",
             "aminmax"}


class _AnyInputPasses(TorchFunctionMode):
    """Turns max-pooling, of modules and of functions, into a mean: any input passes, not the largest alone; and functions
    that hand on each signal into the identity."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        along = name == "max" and ("dim" in kwargs or len(args) > 1 and not isinstance(args[1], Tensor))
        if along or name in _CHOOSING or name.endswith("_with_indices"):
            raise UserError(f"The audit does not follow {name.replace('_with_indices', ' with indices')}, which chooses one "
                            "signal by its value: pool by amax, or by a module of torch.nn.")
        if name in _IDENTITY_FUNCTIONS and args:
            return args[0]
        if "max_pool" not in name or function is not getattr(functional, name, None):
            return function(*args, **kwargs)
        if kwargs.get("dilation", 1) not in (1, (1, 1)):
            raise UserError("The audit does not know dilated pooling.")
        kept = {key: kwargs[key] for key in ("stride", "padding", "ceil_mode") if key in kwargs}
        return getattr(functional, name.replace("max", "avg"))(*args, **kept)


class _Presence(nn.Module):
    def forward(self, signal: Tensor) -> Tensor:
        return _Cut.apply(signal)


class _Cut(torch.autograd.Function):
    """Whether a signal is there, forwards and backwards: keeps path counts from overflowing in deep networks."""

    @staticmethod
    def forward(context, signal: Tensor) -> Tensor:
        return (signal > 0).to(signal.dtype)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        return (gradient > 0).to(gradient.dtype)
