"""Layer-collapse: how far a method prunes before its network carries no signal (Tanaka et al. 2020, section 3).

Compression is counted here on the prunable weights alone: rho = n / kept, at most rho_max = n / L in a chain of L layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lib import paths, pruning
from lib.methods import Method
from lib.pruning import Masks
from lib.scorers.common import Scores

# Points per doubling of rho at which a network is looked at, before the first collapse is closed in upon.
PER_OCTAVE = 4
PRECISION = 1.01


@dataclass(frozen=True)
class Critical:
    """How far a method prunes a network without collapse."""

    rho: float              # rho_cr: no collapse was seen at it and below, within 1 % of the next that is known; 1 for a
                            # network that is never whole
    kept: int               # the prunable weights that are left there
    collapsed: float | None   # the smallest rho that was seen to collapse; None: not even the largest does
    whole_again: tuple[float, ...]   # points beyond it at which the network was whole: collapse is not monotone


def critical(whole: Callable[[int], bool], weights: int, layers: int, per_octave: int = PER_OCTAVE) -> Critical:
    """Searches rho_cr: a geometric grid from rho = 1 to weights / layers, then bisection before its first collapse.

    whole: kept weights -> is the network whole? weights, layers: n and L, the prunable ones.
    """
    steps = math.ceil(per_octave * math.log2(weights / layers))
    counts = sorted({round(weights * (layers / weights) ** (step / max(1, steps))) for step in range(steps + 1)},
                    reverse=True)
    found = {kept: whole(kept) for kept in counts}
    low = next((kept for kept in counts if not found[kept]), None)
    if low is None:
        return Critical(weights / counts[-1], counts[-1], None, ())
    again = tuple(weights / kept for kept in counts if kept < low and found[kept])
    high = min((kept for kept in counts if kept > low), default=weights)
    while high > PRECISION * low and high - low > 1:
        middle = round(math.sqrt(high * low))
        middle = min(max(middle, low + 1), high - 1)
        high, low = (middle, low) if whole(middle) else (high, middle)
    return Critical(weights / high, high, weights / low, again)


def masks_keeping(model: nn.Module, method: Method, scores: Scores | None, kept: int,
                  batch: tuple[Tensor | None, Tensor | None] = (None, None)) -> Masks:
    """The method's masks of exactly `kept` prunable weights: from its scores or, of several rounds, from the model and the
    batch of images and labels."""
    total, _, fixed = pruning.totals(model)
    compression = total / (fixed + kept)
    if method.rounds > 1:
        return pruning.masks(model, method, *batch, compression)
    return pruning.select(model, method, scores, compression, None)


def whole(model: nn.Module, masks: Masks) -> dict[str, bool]:
    """Whether a path of kept weights leads from input to logits, and whether no layer is empty."""
    path = any(bool(mask.any()) for mask in paths.on_path(model, masks).values())
    return {"path": path, "layers": all(bool(mask.any()) for mask in masks.values())}
