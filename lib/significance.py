"""Which differences between methods are larger than what a seed alone moves.

The unit is the seed: it draws the initial weights, the batches and the random masks anew. Ratios of one seed share
all of these, so they are averaged first and never counted as repetitions. With as few seeds as here
Wilcoxon's signed-rank test cannot reject: its smallest p-value over n pairs is 2/2^n. So differences are tested by
Student's t over the seeds' paired differences, by Holm's step-down correction over all pairs of methods (Holm 1979);
Friedman's test and Nemenyi's critical difference of mean ranks (Demsar 2006) stand beside them.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from functools import cached_property

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from lib import figures, tables
from lib.data import constant_answer
from lib.tables import ACCOUNTING, DASH, Table

LEVEL = 0.05
READINGS = ("run", "published")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The methods of one reading, seed by seed. `values`: a row per seed that has all its cells, a column per method,
    the best mean first. `seeds`: of every seed asked for, how many of the methods' cells there are, of how many."""

    reading: str
    ratios: list[float]
    values: pd.DataFrame
    seeds: dict[int, tuple[int, int]]

    @property
    def names(self) -> list[str]:
        return list(self.values.columns)

    @property
    def testable(self) -> bool:
        return len(self.values) > 1 and len(self.names) > 1

    @cached_property
    def p(self) -> pd.Series:
        """Holm's adjusted p-value of each pair (better by its mean, worse)."""
        pairs = list(itertools.combinations(self.names, 2))
        raw = [paired_t(self.values[better] - self.values[worse]) for better, worse in pairs]
        return pd.Series(holm(raw), pd.MultiIndex.from_tuples(pairs))

    def apart(self, better: str, worse: str) -> bool:
        return self.testable and bool(self.p[better, worse] < LEVEL)

    @cached_property
    def ranks(self) -> pd.Series:
        """Mean rank over the seeds, 1 = best; equal values share their ranks."""
        return self.values.rank(axis=1, ascending=False).mean()

    @property
    def critical_difference(self) -> float:
        """Nemenyi's: mean ranks that differ by less may do so by chance."""
        k, n = len(self.names), len(self.values)
        return stats.studentized_range.ppf(1 - LEVEL, k, np.inf) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))

    def near_first(self) -> list[str]:
        """The methods that are not told apart from the one whose mean is the best."""
        return [name for name in self.names[1:] if not self.apart(self.names[0], name)]


def compare(frame: pd.DataFrame, dataset: str, model: str, reading: str,
            ratios: Iterable[float] | None = None) -> Comparison:
    """Top-1, in the reading's accounting, averaged over these ratios (by default all above 1), method by method and seed by
    seed. Seeds that lack a cell are left out. Raises `UserError` where the frame mixes recipes, such as learning rates."""
    rows = tables.select(frame, dataset, model)
    rows = rows[(rows["reading"] == reading) & (rows["base"] != "Dense") & (rows["compression"] > 1) & (rows["epochs"] > 0)]
    ratios = sorted(set(rows["compression"]) if ratios is None else set(map(float, ratios)) & set(rows["compression"]))
    rows = rows[rows["compression"].isin(ratios)].astype({f"top1{ACCOUNTING[reading]}": float})
    names = [base for base in tables.bases() if base in set(rows["base"])]
    groups = rows.groupby(["seed", "base"])[f"top1{ACCOUNTING[reading]}"]
    counts = groups.count().unstack(fill_value=0).reindex(columns=names)
    values = groups.mean().unstack().reindex(columns=names)[counts.eq(len(ratios)).all(axis=1)]
    order = values.mean().sort_values(ascending=False, kind="stable").index
    there = {int(seed): (int(count), len(names) * len(ratios)) for seed, count in counts.sum(axis=1).items()}
    return Comparison(reading, ratios, values[order], there)


def paired_t(differences: pd.Series) -> float:
    """Two-sided p-value that paired differences have mean 0. Equal in every seed: 1."""
    if np.ptp(differences) < 1e-9:    # no spread, no t: the same difference in every seed, or none at all
        return float(abs(differences.iloc[0]) < 1e-9)
    return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p: Iterable[float]) -> np.ndarray:
    """Holm's adjusted p-values: the i-th smallest of m times m + 1 - i, never below the one before it, at most 1."""
    p = np.asarray(list(p), dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


# ---- In words

def sentences(found: Comparison) -> str:
    """What survives, what cannot be told, and what a test on ranks would have said."""
    return f"{survives(found)} {_by_ranks(found)}" if found.testable else survives(found)


def survives(found: Comparison) -> str:
    """The ranking that is left of the order of means, and what cannot be told."""
    if not found.testable:
        return f"{_where(found)}: {_untestable(found)}"
    pairs, better = list(found.p.index), [pair for pair in found.p.index if found.apart(*pair)]
    first, near, means = found.names[0], found.near_first(), found.values.mean()
    steps = [f"{above} over {below}" for above, below in itertools.pairwise(found.names) if found.apart(above, below)]
    moving = found.values.std(ddof=1)
    alive = moving[moving > 1e-9]    # dead networks give the same answer in every seed
    whose = f" of the {len(alive)} methods that it moves at all" if len(alive) < len(moving) else ""
    head = (f"another seed moves a method by {alive.median():.2f} points (median standard deviation over seeds "
            f"{_seeds(found)}{whose}). {len(better)} of the {len(pairs)} pairs of methods differ by more than seeds explain "
            f"(paired t-test, Holm, {100 * LEVEL:g} %)")
    best = (f"{first} ({means[first]:.1f}) is the best" if not near else
            f"{first} is first ({means[first]:.1f}); over {len(found.values)} seeds this test cannot tell it from "
            f"{', '.join(near)} ({'means down to ' * (len(near) > 1)}{means[near[-1]]:.1f}): a sign of a weak test, not of "
            "equal methods")
    order = (f"of neighbours in the order only these differ: {'; '.join(steps)}" if steps
             else "no two neighbours in the order differ by more than seeds explain")
    return f"{_where(found)}: {head}. {best}; {order}."


def _where(found: Comparison) -> str:
    return f"{_reading(found)}, {_at(found.ratios)}"


def _reading(found: Comparison) -> str:
    return "@run" if found.reading == "run" else found.reading


def _at(ratios: list[float]) -> str:
    if len(ratios) > 1:
        return f"mean over r = {ratios[0]:g} to {ratios[-1]:g}"
    return f"r = {ratios[0]:g}" if ratios else "no ratio"


def _seeds(found: Comparison) -> str:
    return ", ".join(map(str, found.values.index))


def _untestable(found: Comparison) -> str:
    if not found.seeds:
        return "no cells in this profile."
    told = ", ".join(f"{seed}: {k} of {n}" for seed, (k, n) in found.seeds.items())
    whole = len(found.values)
    return (f"{whole or 'none'} of {len(found.seeds)} seeds has all its cells ({told}), so what a seed alone moves is not "
            "known and no difference can be tested.")


def _by_ranks(found: Comparison) -> str:
    seeds, widest = len(found.values), found.ranks.max() - found.ranks.min()
    uneven = len(found.names) > 2 and found.values.nunique(axis=1).gt(1).any()
    p = stats.friedmanchisquare(*found.values.T.to_numpy()).pvalue if uneven else 1.0
    return (f"By ranks alone: Friedman's test over {seeds} seeds gives p = {p:.2g}, Nemenyi's critical difference is "
            f"{found.critical_difference:.1f} ranks, where the mean ranks differ by at most {widest:.1f}; Wilcoxon's "
            f"signed-rank p cannot fall below {2 / 2 ** seeds:g} "
            f"for a pair{', so it can reject nothing' if 2 / 2 ** seeds > LEVEL else ''}.")


def ranking(frame: pd.DataFrame, dataset: str, model: str, ratios: Iterable[float] | None = None) -> Table:
    """Every method's place in both readings, and which others it is better than by more than seeds explain."""
    found = [compare(frame, dataset, model, reading, ratios) for reading in READINGS]
    rows = tables.select(frame, dataset, model)
    lines = [line for each in found for line in _lines(each, 100 * tables.factor_of(rows, each.reading))]
    columns = ["reading", "method", "mean top-1", "mean rank", "better than", "not told apart from"]
    caption = (f"{tables.network_label(dataset, model)}: top-1 in percent, mean ± 95 % interval of Student's "
               f"t over seeds; {tables.RANGE}, in brackets. “Better than”: by the paired t-test, whose normal differences "
               "so few seeds cannot check. "
               + " ".join(map(sentences, found)))
    return Table(caption, pd.DataFrame(lines, columns=columns))


def _lines(found: Comparison, ceiling: float) -> list[dict]:
    if found.values.empty:
        return []
    lines, means = [], tables.intervals(found.values.stack().groupby(level=1), ceiling)
    for place, name in enumerate(found.names):
        better, worse = found.names[:place], found.names[place + 1:]
        below = [other for other in worse if found.apart(name, other)]
        equal = [other for other in better if not found.apart(other, name)] + [
            other for other in worse if not found.apart(name, other)]
        lines.append({"reading": _reading(found), "method": name,
                      "mean top-1": f"{means.loc[name, 'mean']:.2f}{tables.spread(means.loc[name])}",
                      "mean rank": f"{found.ranks[name]:.1f}",
                      "better than": _names(below, found), "not told apart from": _names(equal, found)})
    return lines


def _names(chosen: list[str], found: Comparison) -> str:
    if not found.testable:
        return "not known yet"
    return "all others" if len(chosen) == len(found.names) - 1 else ", ".join(chosen) or DASH


# ---- In a picture

@figures.drawing
def diagram(frame: pd.DataFrame, dataset: str, model: str, ratios: Iterable[float] | None = None) -> Figure:
    """The methods in their order, a dot per seed; a bar beside the first and all that are not told apart from it."""
    found = [compare(frame, dataset, model, reading, ratios) for reading in READINGS]
    figure, axes = plt.subplots(1, len(found), figsize=(figures.PAGE, 3.4), sharex=True)
    for comparison, axis in zip(found, axes, strict=True):
        _draw(axis, comparison)
        _draw_levels(axis, tables.select(frame, dataset, model), dataset, comparison)
        axis.set_title(f"{figures.PANELS[comparison.reading]}\n({_told(comparison)})")
        factor = tables.factor_of(tables.select(frame, dataset, model), comparison.reading)
        axis.set_xlabel("top-1 accuracy (%)" + (f", best epoch × {factor:.5f}" if factor < 1 else ""))
    bar = f"\nbar: not told apart from the first (paired t, Holm, {100 * LEVEL:g} %)" if found[0].testable else ""
    figure.asked, network = any(comparison.seeds for comparison in found), tables.network_label(dataset, model)
    if figure.asked:
        figure.suptitle(f"{network}: {_at(found[0].ratios)}, a dot per seed, the first on top, a tick at their mean{bar}")
    else:
        figures.one_line(figure, f"{network}: what a seed alone moves · no such cells in this profile")
    figure.data = pd.concat([comparison.values.rename_axis(index="seed", columns="base").stack().rename("top1").reset_index()
                             .assign(reading=comparison.reading) for comparison in found], ignore_index=True)
    return figure


def _told(found: Comparison) -> str:
    return f"{len(found.values)} of {len(found.seeds)} seeds" + ": nothing can be told apart" * (not found.testable)


def _draw(axis: plt.Axes, found: Comparison) -> None:
    names = found.names if len(found.values) else []
    for place, name in enumerate(names):
        colour, marker = figures.look(name)
        face = "none" if name.startswith("Layer") else colour
        axis.plot([found.values[name].mean()] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=1)
        kind = {"color": colour} if marker == "x" else {"edgecolors": colour, "facecolors": face}
        # A seed above the next: the first is at the top, and marks do not lie on each other.
        heights = place + 0.2 * np.linspace(-1, 1, len(found.values)) * (len(found.values) > 1)
        axis.scatter(found.values[name], heights, s=16, marker=marker, linewidths=0.8, zorder=3, **kind)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(max(len(names), 1) - 0.4, -0.6)
    near = found.near_first() if found.testable else []
    for name in [*names[:1], *near] if near else ():
        # Beside the axis, where no dot lies; neighbours make one bar.
        axis.plot([1.02] * 2, [names.index(name) - 0.5, names.index(name) + 0.5], transform=axis.get_yaxis_transform(),
                  color="#333333", linewidth=2, solid_capstyle="butt", clip_on=False)


def _draw_levels(axis: plt.Axes, rows: pd.DataFrame, dataset: str, found: Comparison) -> None:
    column = f"top1{ACCOUNTING[found.reading]}"
    dense = rows.loc[(rows["method"] == "Dense") & rows["seed"].isin(found.values.index), column].astype(float).mean()
    chance = constant_answer(dataset) * tables.factor_of(rows, found.reading)
    for level, name, line, side in ((chance, "chance", ":", "left"), (dense, "unpruned", (0, (5, 3)), "right")):
        if not math.isnan(level):
            axis.axvline(level, color="#555555", linestyle=line, linewidth=0.9, zorder=1)
            axis.annotate(name, (level, 0), xycoords=("data", "axes fraction"), xytext=(2 if side == "left" else -2, 2),
                          textcoords="offset points", ha=side, fontsize=7, color="#555555")
