"""Optimal Brain Damage: the exact diagonal of the loss's Hessian, from first derivatives alone."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.functional import unfold
from torch.nn.modules.batchnorm import _BatchNorm

from lib import UserError
from lib.scorers.common import Scores, call, evaluating, layers, leaves, scorer, watching, weight_name, weights

# Images times classes of a chunk: few, so that what a layer's squares are made of stays near the cache, and the memory that
# the classes' backward signals take is bounded; and how many chunks may take it at a time.
CHUNK, AT_ONCE = 320, 4
# Modules that curve. (What a `forward` does by functions alone, nobody can see from outside.)
SMOOTH = (nn.Tanh, nn.Tanhshrink, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Softplus, nn.Softmax,
          nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.Softsign, nn.LogSigmoid, nn.Hardswish, nn.LPPool1d, nn.LPPool2d,
          nn.GLU, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.LocalResponseNorm)


@scorer()
def obd(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """h w^2 / 2, h the diagonal of the Hessian (thesis, eq. 3.1; Le Cun et al. 1990). Eval mode; products in the model's
    dtype, sums and scores float64. Raises `UserError` as `diagonal` does."""
    return _saliency(model, inputs, lambda weight, h: h * weight.square() / 2)


@scorer()
def obd_run(model: nn.Module, inputs: Tensor, targets: Tensor) -> Scores:
    """w h^2 / 2, as the released code ran it (strategies/obd.py, `compute_saliency`): the square falls on h, so the score
    is signed by w. h is taken over each image once, as for `obd`; the released code sums it over 1000 random batches of 60,
    of which that is the expectation but for a factor."""
    return _saliency(model, inputs, lambda weight, h: weight * h.square() / 2)


# The last curvature, by what it was computed from: `obd` and `obd_run` differ only in what they make of it, and it takes
# minutes where they take milliseconds.
_last: dict[tuple, Scores] = {}


def _saliency(model: nn.Module, inputs: Tensor, formula: Callable[[Tensor, Tensor], Tensor]) -> Scores:
    key = _digest(model, inputs), *map(type, model.modules())   # the classes, whose `forward` no digest sees
    if key not in _last:
        computed = diagonal(model, inputs)
        _last.clear()
        _last[key] = computed
    curvature = _last[key]
    return {name: formula(weight.detach().double(), curvature[name]) for name, weight in weights(model).items()}


def _digest(model: nn.Module, inputs: Tensor) -> str:
    """Tells inputs apart, and networks of the same classes, to the bit: by their values, by their settings, such as a flag
    that `forward` asks for, and by their hooks."""
    settings = [{name: value for name, value in vars(module).items() if name[0] != "_"}
                | {"hooks": [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]}
                for module in model.modules()]
    digest = hashlib.sha256(f"{model} {settings} {inputs.dtype} {inputs.device}".encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers(), ("inputs", inputs)]:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def diagonal(model: nn.Module, inputs: Tensor) -> Scores:
    """h_kk, the exact Hessian diagonal of the mean cross-entropy over `inputs` (images, ...), in the model's dtype, in eval
    mode: parameter name -> float64, in the weight's shape.

    A network of ReLUs and max-pooling is piecewise linear in each single weight, so the Hessian's diagonal equals the
    generalised Gauss-Newton's: h = sum_c p_c (df_c/dw)^2 - (sum_c p_c df_c/dw)^2 per image, f the logits, p their
    softmax. No label enters. Written as S S^T = diag(p) - p p^T, it is a sum over the columns s of S of
    (d<s, f>/dw)^2: as many backward passes as columns. Raises `UserError`, naming the layer, for a layer it cannot
    square: smooth (`SMOOTH`), grouped, padded other than with zeros, fed with more than two axes (linear), or called more
    than once.
    """
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights(model).items()}
    if (classes := _check(model)) == 1:   # whatever the weights are, the one class has p = 1
        return sums
    chunks = inputs.split(max(1, CHUNK // classes))
    for squares in _each(lambda chunk: _squared_gradients(copy.deepcopy(model), chunk), chunks):
        for name, total in sums.items():
            total += squares[name]
    return {name: total / len(inputs) for name, total in sums.items()}


def _each(compute: Callable, chunks: Iterable[Tensor]) -> Iterator[Scores]:
    """What `compute` makes of each chunk, in order, with PyTorch's threads at a chunk each: the products are too small
    to be shared out among them. So the result does not depend on their number either."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(min(threads, AT_ONCE), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(compute, chunks)
    finally:
        torch.set_num_threads(threads)


def _check(model: nn.Module) -> int:
    """The number of classes; raises for a layer whose per-image gradients this module does not know."""
    for name, module in model.named_modules():
        if isinstance(module, SMOOTH) or isinstance(module, _BatchNorm) and module.running_var is None:
            raise UserError(f"OBD does not apply to {name or 'the network'}: "
                            f"with {type(module).__name__} the logits are not piecewise linear in each weight, "
                            "so the Hessian's diagonal needs second derivatives.")
    for name, layer in layers(model).items():
        if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"
                                             or isinstance(layer.padding, str)):
            raise UserError(f"OBD does not apply to {name}: only ungrouped convolutions padded with zeros are known.")
    return list(weights(model).values())[-1].shape[0]


def _squared_gradients(model: nn.Module, images: Tensor) -> Scores:
    """sum over images and columns s of (d<s, f>/dw)^2, for every scored weight."""
    seen: dict[str, tuple[Tensor, GradientEdge]] = {}

    def record(name, layer, inputs, output):
        if name in seen or (isinstance(layer, nn.Linear) and output.dim() != 2):
            raise UserError(f"OBD does not apply to {name}: it is called more than once or on more than two axes.")
        # The edge, not the tensor: a ReLU that works in place makes of the layer's output its own.
        seen[name] = inputs[0].detach(), get_gradient_edge(output)

    with evaluating(model), watching(model, record):
        logits = call(model, images, leaves(model))
    edges, modules = [edge for _, edge in seen.values()], layers(model)
    # Column by column: one batched backward pass (`is_grads_batched`) would loop over the columns too, and copy.
    signals = zip(*(torch.autograd.grad(logits, edges, column, retain_graph=True)
                    for column in _columns(logits.detach().softmax(1))))
    return {
        weight_name(name): _sum_of_squares(modules[name], inputs, torch.stack(signal, dim=1))
        for (name, (inputs, _)), signal in zip(seen.items(), signals)
    }


def _columns(p: Tensor) -> Tensor:
    """The columns of S, S S^T = diag(p) - p p^T: (classes - 1, images, classes).

    S = sqrt-scaled (e_c - p) has a null vector, sqrt(p); a Householder reflection turns that into the last column,
    which is dropped: one backward pass fewer.
    """
    root = p.sqrt()
    classes = p.shape[1]
    columns = root[:, None, :] * (torch.eye(classes, dtype=p.dtype, device=p.device) - p[:, :, None])
    mirror = root.clone()
    mirror[:, -1] += 1
    along = (columns @ mirror[:, :, None]) / (1 + root[:, -1])[:, None, None]
    return (columns - along * mirror[:, None, :])[:, :, :-1].permute(2, 0, 1)


def _sum_of_squares(layer: nn.Module, inputs: Tensor, signal: Tensor) -> Tensor:
    """sum over images n and columns c of (signal[n, c] x inputs[n])^2, in the weight's shape.

    A linear layer's gradient is an outer product, so its square factorises. A convolution's is a sum over positions
    first, then a square: either that product itself, or, where positions are fewer than twice the columns, the
    square written out over pairs of positions, in which the columns are summed before the large product.
    """
    if isinstance(layer, nn.Linear):
        return signal.square().sum(1).T @ inputs.square()
    patches = unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    signal = signal.flatten(3)
    _, columns, channels, positions = signal.shape
    if positions + 1 < 2 * columns:
        squares = _by_pairs(signal, patches)
    else:
        squares = _by_image(signal.flatten(1, 2), patches).view(columns, channels, -1).sum(0)
    return squares.view(layer.weight.shape)


def _by_image(signal: Tensor, patches: Tensor) -> Tensor:
    """sum_n (sum_p s_np x_np)^2, one image at a time: the products of a whole chunk would not fit into the cache."""
    each = signal.new_empty(signal.shape[1], patches.shape[1])
    total = torch.zeros_like(each)
    for s, x in zip(signal, patches):
        torch.mm(s, x.T, out=each)
        total.addcmul_(each, each)
    return total


def _by_pairs(signal: Tensor, patches: Tensor) -> Tensor:
    """(sum_p s_p x_p)^2 = sum_p s_p^2 x_p^2 + 2 sum_{p<q} s_p s_q x_p x_q, one p at a time."""
    total = 0
    for p in range(signal.shape[3]):
        pairs = torch.einsum("nco,ncoq->noq", signal[..., p], signal[..., p:])
        pairs[..., 1:] *= 2
        total = total + torch.einsum("noq,nkq->ok", pairs, patches[..., p:p + 1] * patches[..., p:])
    return total
