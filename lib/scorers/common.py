"""What every scorer shares: which weights are scored, a model that stays untouched, a batch and scores that are sound."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps

import torch
from torch import Tensor, nn

from lib import UserError

Scores = dict[str, Tensor]


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameter name -> weight of every Conv2d and Linear, in definition order, the classifier included."""
    return {weight_name(name): layer.weight for name, layer in layers(model).items()}


def weight_name(layer: str) -> str:
    """The name of a layer's weight; a network that is a single layer calls it ""."""
    return f"{layer}.weight".removeprefix(".")


def layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Module name -> layer, for every Conv2d and Linear, in definition order.

    Raises `UserError` where there is none, for another layer that has weights of more than one axis, which would silently
    stay as it is, and for two layers that share a weight, of which no mask could tell one from the other.
    """
    found, owners = {}, {}
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            if (owner := owners.setdefault(layer.weight, name)) != name:
                raise UserError(f"{owner} and {name} share one weight, which no method here can score: give each its own.")
            found[name] = layer
        elif large := [each for each, parameter in layer.named_parameters(recurse=False) if parameter.dim() > 1]:
            raise UserError(f"{name or 'The network'} is a {type(layer).__name__}, whose {', '.join(large)} no method here "
                            "can score: only weights of Conv2d and Linear are known. Build the network of these.")
    if not found:
        raise UserError("The network has no Conv2d and no Linear: there is nothing that could be scored or pruned.")
    return found


def classifier(model: nn.Module) -> str | None:
    """Name of the weight of the last Linear in definition order (which no method prunes), or None where there is none."""
    linear = [name for name, layer in layers(model).items() if isinstance(layer, nn.Linear)]
    return weight_name(linear[-1]) if linear else None


def call(model: nn.Module, inputs: Tensor, parameters: dict[str, Tensor], transform: Callable = torch.clone) -> Tensor:
    """The model's output with `parameters` in place of its own, and `transform`ed copies of its buffers.

    BatchNorm in train mode writes to its buffers; here it writes to the copies, so the model stays as it was. Raises
    `UserError` as `check_batchnorm` does.
    """
    check_batchnorm(model, len(inputs))
    buffers = {name: transform(buffer) for name, buffer in model.named_buffers()}
    return torch.func.functional_call(model, (parameters, buffers), (inputs,))


def leaves(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> every parameter, detached and asking for a gradient: differentiation never meets the model's own."""
    return {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}


def product(model: nn.Module, factors: dict[str, Tensor]) -> Scores:
    """weight x factor for every scored weight."""
    return {name: weight.detach() * factors[name] for name, weight in weights(model).items()}


def input_shape(model: nn.Module) -> tuple[int, ...]:
    """The shape of one image that the model takes, without the batch. Raises `UserError` where the model does not say."""
    if not hasattr(model, "input_shape"):
        raise UserError(f"The network does not say what it takes: set {type(model).__name__}.input_shape to the shape of "
                        "one image, such as (3, 32, 32).")
    return tuple(model.input_shape)


def along(axis: int, factor: Tensor, dims: int) -> Tensor:
    """A vector shaped to multiply a tensor of `dims` axes along `axis`."""
    return factor.view([-1 if dim == axis else 1 for dim in range(dims)])


def check_batchnorm(model: nn.Module, images: int) -> None:
    """Raises `UserError` for a batch of a single image in train mode where BatchNorm follows a Linear: one value per
    channel has no variance."""
    if images == 1 and any(isinstance(module, nn.BatchNorm1d) and module.training for module in model.modules()):
        raise UserError("A batch of one image gives BatchNorm1d a single value per channel, which has no variance: "
                        "take at least two images, or a number that does not leave a last batch of one.")


@contextmanager
def watching(model: nn.Module, watch: Callable[[str, nn.Module, tuple, Tensor], None]) -> Iterator[None]:
    """Inside, watch(name, layer, inputs, output) is called after each call of a Conv2d or Linear."""
    handles = [layer.register_forward_hook(partial(watch, name)) for name, layer in layers(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def scorer(data: bool = True, finite: bool = True) -> Callable:
    """Decorates a scorer: checks the batch (where `data` is used) and that every score is `finite`.

    Inputs are cast to the model's dtype, so that a float64 copy is scored in float64. What is decorated says by its
    attribute `data` whether it looks at the batch.
    """

    def decorate(function: Callable[..., Scores]) -> Callable[..., Scores]:
        what = getattr(function, "__name__", "given")   # a functools.partial has no name

        @wraps(function)
        def scored(model: nn.Module, inputs: Tensor | None, targets: Tensor | None, **options) -> Scores:
            if data:
                check_batch(model, inputs, targets)
                inputs = inputs.to(next(iter(weights(model).values())).dtype)
            try:
                with torch.inference_mode(False), torch.enable_grad():   # whoever asks for scores inside of `no_grad`
                    scores = function(model, inputs, targets, **options)
            except (KeyError, RuntimeError) as error:
                if data and (unused := idle(model, inputs)):
                    raise UserError(f"The network never calls {', '.join(unused)}, so no data can score it: leave it out of "
                                    "the network.") from error
                raise
            if data:
                _hand_back_memory()
            _check_tensors(what, scores)
            if finite:
                _check_finite(what, scores)
            return scores

        scored.data = data
        return scored

    return decorate


def idle(model: nn.Module, inputs: Tensor) -> list[str]:
    """The layers that play no part in the network's output."""
    called = set()
    with torch.no_grad(), watching(model, lambda name, *_: called.add(name)):
        call(model, inputs, dict(model.named_parameters()))
    return [name for name in layers(model) if name not in called]


def _check_tensors(what: str, scores: Scores) -> None:
    if not (isinstance(scores, dict) and all(isinstance(score, Tensor) for score in scores.values())):
        raise UserError(f"The {what} score is no dict of tensors: a scorer returns parameter name -> score.")


def _check_finite(what: str, scores: Scores) -> None:
    for name, score in scores.items():
        # A sum is finite only where all are, and costs a tenth; it may overflow where none is at fault.
        if not score.sum().isfinite() and not score.isfinite().all():
            raise UserError(f"The {what} score of {name} is not finite (NaN or infinite): the network's signal or gradient "
                            "overflows in this precision, or its weights or the images are not finite.")


def check_scores(what: str, scores: Scores, chosen: dict[str, nn.Parameter]) -> None:
    """Raises `UserError` where a scorer left out a weight of `chosen`, or returned what no mask can be made of."""
    for name, weight in chosen.items():
        score = scores.get(name)
        if not isinstance(score, Tensor) or score.shape != weight.shape or score.dtype not in (torch.float32, torch.float64):
            given = f"{score.dtype} of shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise UserError(f"The {what} score of {name} is {given}: it must be a float32 or float64 tensor of the weight's "
                            f"shape, {tuple(weight.shape)}.")


def _hand_back_memory() -> None:
    """glibc keeps what is freed, in pieces: a process that scores one network after the other, as a worker or a notebook
    does, would grow to 1.5 times of what its dearest score takes. Elsewhere than on Linux nothing is done."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def check_batch(model: nn.Module, inputs: Tensor | None, targets: Tensor | None) -> None:
    """Raises `UserError` unless inputs (batch, ...) and integer targets (batch,) fit each other and the model: its
    `input_shape`, where it has one, and the outputs of its last Linear, where it has one."""
    if inputs is None or targets is None or len(inputs) == 0:
        raise UserError("The scoring batch is empty: pass at least one image and its label.")
    if not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
        raise UserError(f"The scoring batch must be tensors, not {type(inputs).__name__} and {type(targets).__name__}: pass "
                        "torch.as_tensor of them.")
    if not inputs.is_floating_point():
        raise UserError(f"The images are {inputs.dtype}: pass them as floats, normalised as in training (data.normalise).")
    if targets.dim() != 1 or targets.dtype not in (torch.int64, torch.uint8):
        raise UserError(f"The labels must be one int64 for each image, not {targets.dtype} of shape "
                        f"{tuple(targets.shape)}: pass the numbers of the classes, as in labels.long().")
    if len(inputs) != len(targets):
        raise UserError(f"The scoring batch has {len(inputs)} images but {len(targets)} labels.")
    shape = getattr(model, "input_shape", None)
    if shape is not None and tuple(inputs.shape[1:]) != tuple(shape):
        raise UserError(f"The images have shape {tuple(inputs.shape[1:])}, but the network takes {tuple(shape)}.")
    last = classifier(model)
    classes = weights(model)[last].shape[0] if last else None
    if classes is not None and not (0 <= int(targets.min()) and int(targets.max()) < classes):
        raise UserError(f"The labels go from {int(targets.min())} to {int(targets.max())}, but there are {classes} classes: "
                        f"so many outputs has {last}, and the last Linear to be defined is taken for the classifier.")
