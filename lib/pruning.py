"""From scores to masks, by exact count or by the released code's rule; masks that hold in training; and their audit."""

import copy
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lib import UserError, methods
from lib.methods import Method
from lib.paths import check_understood, on_path
from lib.scorers import SCORERS, needs_data
from lib.scorers.common import (
    Scores,
    check_batch,
    check_batchnorm,
    check_scores,
    classifier,
    scorer,
    weights,
)

Masks = dict[str, Tensor]

# Images per forward pass when BatchNorm's statistics are set from the scoring images.
CALIBRATION_CHUNK = 128


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameter name -> weight, for every Conv2d and Linear except the last Linear in definition order (the classifier).

    Official codes prune the classifier too; the thesis's code does not, so no method does here.
    """
    last = classifier(model)
    return {name: weight for name, weight in weights(model).items() if name != last}


def kept_count(model: nn.Module, compression: float) -> int:
    """K = round(N / r) - F: prunable weights to keep, N all parameters, F those that cannot be pruned.

    Raises `UserError` for r below 1 and for r so large that K falls below the number of prunable layers.
    """
    if not (isinstance(compression, Real) and math.isfinite(compression) and compression >= 1):
        raise UserError(f"The compression must be a number of at least 1, not {compression!r}.")
    total, layers, fixed = totals(model)
    _check_prunable(layers)
    kept = round(total / compression) - fixed
    if kept < layers:
        largest = math.floor(10 * largest_compression(model)) / 10
        raise UserError(
            f"Compression {compression:g} is out of reach: {total} parameters, of which {fixed} cannot be pruned, "
            f"leave fewer than one weight for each of the {layers} prunable layers. The largest is {largest:g}."
        )
    return kept


def _check_prunable(layers: int) -> None:
    if not layers:
        raise UserError("The network has nothing to prune: no Conv2d and no Linear but its last one, the classifier.")


def largest_compression(model: nn.Module) -> float:
    """The r at which one weight for each prunable layer is left."""
    total, layers, fixed = totals(model)
    return total / (fixed + layers)


def totals(model: nn.Module) -> tuple[int, int, int]:
    """N, the number of prunable layers, and F: all parameters, and those that cannot be pruned."""
    total = sum(parameter.numel() for parameter in model.parameters())
    sizes = [weight.numel() for weight in prunable(model).values()]
    return total, len(sizes), total - sum(sizes)


@torch.inference_mode(False)
def masks(model: nn.Module, method: Method | str, inputs: Tensor | None, targets: Tensor | None, compression: float,
          generator: torch.Generator | None = None) -> Masks:
    """Prunable parameter name -> bool mask of the weight's shape, True = kept. The model is untouched.

    inputs: float images (batch, ...), normalised; targets: int64 (batch,); both only matter to scores that use data.
    generator: a CPU generator, for random scores, dropout while scoring (`@run`) and the Bernoulli mask; a fixed one by
    default. A scorer that has a keyword `generator` gets it, and what one draws from torch's own is seeded by it. The
    weights are scored as they are: `models.initialise` comes before. Raises `UserError` for a compression out of reach, an
    unfit batch or a score that is not finite.
    """
    method = methods.get(method) if isinstance(method, str) else method
    kept_count(model, compression)
    if method.score is None and compression != 1:
        raise UserError(f"{method.name} is the unpruned network: its compression is 1, not {compression:g}.")
    generator = generator or torch.Generator().manual_seed(0)
    if method.rounds > 1:
        return _rounds(model, method, inputs, targets, compression, generator)
    return select(model, method, score(model, method, inputs, targets, generator), compression, generator)


@torch.inference_mode(False)
def score(model: nn.Module, method: Method, inputs: Tensor | None, targets: Tensor | None,
          generator: torch.Generator) -> Scores:
    """Prunable parameter name -> score, of the weight's shape, float64 or float32 (see `as_scored`; `lamp`, `synflow`, `obd`
    and `obd_run` always float64); one serves every compression of a one-shot method.

    Arguments as those of `masks`. Raises `UserError` for an unfit batch or a score that is not finite.
    """
    if method.score is None:
        return {name: torch.ones_like(weight) for name, weight in prunable(model).items()}
    with _scoring(model, method, inputs, targets, generator) as scored:
        return scored(as_scored(model, method, inputs))


@contextmanager
def _scoring(model: nn.Module, method: Method, inputs: Tensor | None, targets: Tensor | None,
             generator: torch.Generator) -> Iterator[Callable[[nn.Module], Scores]]:
    """A function that scores the prunable weights of a copy of the model; inside, the global generator, from which dropout
    and a score of one's own may draw, is seeded by `generator`, and afterwards as it was."""
    if needs_data(method.score):
        check_batch(model, inputs, targets)   # here, because BatchNorm's statistics may be taken from it first
    function, chosen = SCORERS[method.score], prunable(model)
    checked = function if hasattr(function, "data") else scorer()(function)    # where it was registered without the checks
    options = {"generator": generator} if "generator" in inspect.signature(function).parameters else {}

    def scored(copied: nn.Module) -> Scores:
        scores = checked(copied, inputs, targets, **options)
        check_scores(method.score, scores, chosen)
        return {name: scores[name].detach() for name in chosen}

    with torch.random.fork_rng(devices=[p.device for p in model.parameters()][:1] if _on_gpu(model) else []):
        # Without dropout nothing is drawn from `generator`: random scores are its first.
        torch.manual_seed(_draw(generator) if method.mode == "dropout" else generator.initial_seed())
        yield scored


def as_scored(model: nn.Module, method: Method, inputs: Tensor | None) -> nn.Module:
    """A copy of the model in the precision and the mode in which the method scores it.

    Published and written readings are scored in float64, so that device, layout and threads do not move a weight; `@run`
    in float32, as released. OBD's curvature takes float64 on plain networks and, on those with BatchNorm, float32 with
    float64 sums: how near that is to float64, 07_audit measures ("exactness").
    """
    single = method.reading == "run" or (method.mode == "calibrated" and has_batchnorm(model))
    scored = copy.deepcopy(model).to(torch.float32 if single else torch.float64)
    set_mode(scored, method.mode, inputs)
    return scored


def has_batchnorm(model: nn.Module) -> bool:
    """Whether there is a BatchNorm in the model, of any number of axes."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _draw(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


def set_mode(model: nn.Module, mode: str, inputs: Tensor | None) -> None:
    """Puts a model, in place, into one of `methods.MODES`; inputs: what "calibrated" takes BatchNorm's statistics from."""
    model.train(mode != "eval")
    if mode != "dropout":
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):   # whole channels (Dropout2d) too
                module.eval()
    if mode == "calibrated":
        calibrate(model, inputs)
        model.eval()


@torch.no_grad()
def calibrate(model: nn.Module, inputs: Tensor) -> None:
    """Sets BatchNorm's stored statistics, in place: the mean of those of the inputs' chunks of 128, in order. From then on
    they are cumulative averages (`momentum` None).

    At initialisation the stored statistics (0 and 1) say nothing of the network, and OBD scores in eval mode. inputs:
    (images, ...), cast to the model's dtype. The model is to be in train mode, with dropout off. Raises `UserError` for a
    last chunk of a single image where BatchNorm follows a Linear.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    if has_batchnorm(model):
        dtype = next(model.parameters()).dtype
        check_batchnorm(model, len(inputs) % CALIBRATION_CHUNK)
        for chunk in inputs.split(CALIBRATION_CHUNK):
            model(chunk.to(dtype))


def select(model: nn.Module, method: Method, scores: Scores, compression: float,
           generator: torch.Generator | None) -> Masks:
    """The mask that the method's scope and selection make of the scores of `score` at this compression, as that of `masks`.

    generator: a CPU generator, for the Bernoulli mask alone. Raises `UserError` for a compression out of reach.
    """
    if method.selection == "bernoulli":
        density = released_density(model, compression)
        return {name: torch.rand(s.shape, generator=generator).to(s.device) < density for name, s in scores.items()}
    if method.selection == "quantile":
        return _quantile(scores, method.scope, released_density(model, compression))
    kept = kept_count(model, compression)
    if method.scope == "global":
        return _split(top(_flat(scores), kept), scores)
    shares = layer_counts([s.numel() for s in scores.values()], kept)
    return {name: top(s.flatten(), share).view(s.shape) for (name, s), share in zip(scores.items(), shares)}


def top(scores: Tensor, count: int) -> Tensor:
    """Bool mask of the `count` highest of a flat tensor of scores without NaN; of equal scores the lower index is kept.

    A partition finds the threshold, then ties are kept by index: a stable sort of VGG-16's 15 million scores takes
    seconds, and SynFlow selects a hundred times.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _ascending(scores, len(scores) - count)
    kept = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    kept[ties[:count - int(kept.count_nonzero())]] = True
    return kept


def _ascending(scores: Tensor, position: int) -> Tensor:
    """The value that sorting would bring to this position. On a CPU numpy's partition is ten times as fast as kthvalue."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.partition(scores.detach().numpy(), position))[position]
    return scores.kthvalue(position + 1).values


def layer_counts(sizes: list[int], kept: int) -> list[int]:
    """floor(d n_l) weights in each layer, the rest by largest remainder, ties by layer order; the sum is `kept`."""
    total = sum(sizes)
    counts = [kept * size // total for size in sizes]
    remainders = [kept * size % total for size in sizes]
    for layer in sorted(range(len(sizes)), key=lambda layer: -remainders[layer])[:kept - sum(counts)]:
        counts[layer] += 1
    return counts


def _rounds(model: nn.Module, method: Method, inputs: Tensor | None, targets: Tensor | None, compression: float,
            generator: torch.Generator) -> Masks:
    """Scores and prunes `rounds` times: round(n (K/n)^(k/rounds)) weights stay after round k; the mask only shrinks."""
    kept, pruned = kept_count(model, compression), as_scored(model, method, inputs)
    chosen = prunable(pruned)
    total = sum(weight.numel() for weight in chosen.values())
    alive = torch.arange(total, device=next(iter(chosen.values())).device)
    result = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in chosen.items()}
    with _scoring(model, method, inputs, targets, generator) as scored:
        for k in range(1, method.rounds + 1):
            stay = kept if k == method.rounds else round(total * (kept / total) ** (k / method.rounds))
            alive = alive[top(_flat(scored(pruned))[alive], stay)]
            flat = torch.zeros(total, dtype=torch.bool, device=alive.device)
            flat[alive] = True
            result = _split(flat, result)
            with torch.no_grad():
                for name, weight in chosen.items():
                    weight *= result[name]
            set_mode(pruned, method.mode, inputs)   # "calibrated": to the statistics of what is left
    return result


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def pack(masks: Masks) -> np.ndarray:
    """The masks as bits, eight to a byte: a thirtieth of what the weights take."""
    return np.packbits(_flat(masks).cpu().numpy())


def digest(masks: Masks) -> str:
    """Sixteen hex digits that tell masks apart."""
    return hashlib.sha256(pack(masks).tobytes()).hexdigest()[:16]


def _split(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The flat tensor, cut into the shapes of `like`, in order."""
    parts = flat.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(like.items(), parts)}


def released_density(model: nn.Module, compression: float) -> float:
    """d = (N/r - F') / n', the released code's density of the prunable weights (pruning/utils.py:141-164).

    n' counts the prunable layers' weights *and biases*, although biases are never masked; F' = N - n'. Raises `UserError`
    for a compression out of reach.
    """
    kept_count(model, compression)
    total, _, _ = totals(model)
    named = dict(model.named_parameters())
    layers = [name.removesuffix("weight") for name in prunable(model)]
    counted = sum(named[layer + part].numel() for layer in layers for part in ("weight", "bias")
                  if layer + part in named)
    return (total / compression - (total - counted)) / counted


def _quantile(scores: Scores, scope: str, density: float) -> Masks:
    """The released mask (strategies/utils.py:14-48): t = quantile(scores, 1 - d); drop where -t < s < t.

    Right for scores that are never negative; of signed ones both tails survive. A NaN makes t NaN: nothing is dropped.
    """
    if scope == "global":
        threshold = dict.fromkeys(scores, _threshold(_flat(scores), density))
    else:
        threshold = {name: _threshold(s, density) for name, s in scores.items()}
    return {name: ~((s > -threshold[name]) & (s < threshold[name])) for name, s in scores.items()}


def _threshold(scores: Tensor, density: float) -> float:
    with np.errstate(invalid="ignore"):  # infinite scores make NaN, which is the released code's answer too
        return float(np.quantile(scores.cpu().numpy(), 1 - density))


def apply(model: nn.Module, masks: Masks) -> None:
    """Zeroes the pruned weights, in place; their gradients are zeroed from now on, so they stay exactly 0.

    That holds under any optimiser that moves a weight by its gradients since then and its own value (momentum of before
    would move it: make a new one), as long as the gradients are finite, and for this model: call `apply` on a copy.deepcopy
    of it again. Masks that were applied before hold no
    longer: a weight that these keep is trained again, from the value that it has. Raises `UserError` where a mask does not
    fit the model.
    """
    check(model, masks)
    for name, weight in prunable(model).items():
        if weight in _held:
            _held.pop(weight).remove()
        if not masks[name].all():
            # On a CPU a product is twenty times as fast as a masked fill, if both lie in memory in the same order.
            kept = torch.empty_like(weight, requires_grad=False).copy_(masks[name])
            with torch.no_grad():
                weight *= kept
            trained = weight.requires_grad   # a frozen weight may be thawed later, and takes no hook while it is frozen
            _held[weight] = weight.requires_grad_().register_hook(lambda gradient, kept=kept: gradient * kept)
            weight.requires_grad_(trained)


_held = WeakTensorKeyDictionary()   # weight -> the hook by which `apply` holds its mask


def check(model: nn.Module, masks: Masks) -> None:
    """Raises `UserError` where masks do not fit the model: another name, another shape, or other values than bool."""
    if odd := [name for name, mask in masks.items() if not isinstance(mask, Tensor)]:
        raise UserError(f"The masks do not fit the model: {odd[0]} is a {type(masks[odd[0]]).__name__}, not a tensor.")
    expected = {name: tuple(weight.shape) for name, weight in prunable(model).items()}
    given = {name: tuple(mask.shape) for name, mask in masks.items()}
    if expected != given:
        odd = next(name for name in expected | given if expected.get(name) != given.get(name))
        raise UserError("The masks do not fit the model: " + (
            f"there is none for {odd}." if odd not in given else f"{odd} is no prunable weight of it." if odd not in expected
            else f"{odd} is {given[odd]}, it should be {expected[odd]}."))
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise UserError(f"The masks do not fit the model: {name} is {mask.dtype}, it should be bool, True for kept.")


@dataclass(frozen=True)
class Report:
    """The audit of a mask. Counts are of masks; `compression_released` alone counts values."""

    parameters: int               # N, before pruning
    compression: float            # N / (F + kept); where nothing at all is left, N
    compression_released: float   # N / values that are not 0 (metrics/size.py): BatchNorm's fresh biases count as pruned
    kept: dict[str, int]          # kept weights per prunable layer
    sizes: dict[str, int]         # weights per prunable layer
    empty_layers: list[str]       # layers that keep nothing; inside a residual block that is survivable
    collapsed: bool               # no path of kept weights leads from the input to the logits
    effective_kept: int           # kept weights that lie on such a path (0 when collapsed)
    effective_compression: float  # N / (F + effective_kept)


@torch.inference_mode(False)
def report(model: nn.Module, masks: Masks) -> Report:
    """Audits masks on a model at initialisation; the model is untouched. Its `input_shape` must say what one image is, such
    as (3, 32, 32). Raises `UserError` for masks that do not fit, a network with nothing to prune, and one that the search of
    paths does not understand (`paths.check_understood`)."""
    check(model, masks)
    total, layers, fixed = totals(model)
    _check_prunable(layers)
    check_understood(model)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    connected = {name: int(mask.sum()) for name, mask in on_path(model, masks).items()}
    values = sum(int(((masks[name] & (value != 0)) if name in masks else (value != 0)).sum())
                 for name, value in model.named_parameters())
    return Report(
        parameters=total,
        compression=total / max(1, fixed + sum(kept.values())),
        compression_released=total / max(1, values),
        kept=kept,
        sizes={name: mask.numel() for name, mask in masks.items()},
        empty_layers=[name for name, count in kept.items() if count == 0],
        collapsed=sum(connected.values()) == 0,
        effective_kept=sum(connected.values()),
        effective_compression=total / max(1, fixed + sum(connected.values())),
    )
