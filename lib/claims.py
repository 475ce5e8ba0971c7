"""What the thesis claims, each sentence as a question to the cells, asked of the `@run` and the published reading."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from lib.data import at_chance, classes
from lib.tables import (
    ACCOUNTING,
    DASH,
    ORDER,
    RATIOS,
    STAND_INS,
    THESIS,
    Table,
    coverage,
    dataset_for,
    factor_of,
    label,
    pairs_of,
    printed_at_chance,
    reduced,
    select,
    summary,
)


@dataclasses.dataclass(frozen=True)
class View:
    """A frame in one reading, as the claims ask it: means over the seeds that have all the cells asked for.

    `run` counts as the thesis does (best epoch × 0.98892, compression by values), `published` plainly.
    """

    frame: pd.DataFrame
    reading: str
    asked: dict[tuple, tuple[int, int]] = dataclasses.field(default_factory=dict)
    precisions: set[str] = dataclasses.field(default_factory=set)    # of what the accuracies asked for were trained in

    def rows(self, model: str, count: int) -> pd.DataFrame:
        rows = select(self.frame, dataset_for(pairs_of(self.frame), model, count), model)
        return rows[(rows["reading"] == self.reading) & (rows["base"] != "Dense")]

    def values(self, column: str, model: str, count: int, bases=THESIS, ratios=None) -> pd.DataFrame:
        """Mean of `column`, one row per method and one column per ratio (by default all above 1 that the thesis goes to).

        Zeros where cells are missing: `asked` then says how many, and no answer made of them counts.
        """
        rows, ratios = self._whole(column, model, count, bases, ratios)
        if rows.empty:
            return pd.DataFrame(0.0, list(bases), ratios)
        return rows.pivot_table(index="base", columns="compression", values=column).loc[list(bases), ratios]

    def summary(self, column: str, model: str, count: int, ratio: float, bases=THESIS) -> pd.DataFrame:
        """`tables.summary` of these values at one ratio, over the same seeds, a row per method."""
        return summary(self._whole(column, model, count, bases, [ratio])[0], column).set_index("base")

    def _whole(self, column: str, model: str, count: int, bases, ratios) -> tuple[pd.DataFrame, list[float]]:
        """The rows of the seeds that have all the cells asked for, and the ratios asked for."""
        rows = self.rows(model, count)
        there = sorted(ratio for ratio in rows["compression"].unique() if ratio <= RATIOS[-1])
        ratios = list(ratios or there or RATIOS[1:])
        names = [base if self.reading == "published" else f"{base}@{self.reading}" for base in bases]
        counts = {seed: coverage(part, names, ratios, column) for seed, part in rows.groupby("seed")}
        whole = [seed for seed, (k, n) in counts.items() if k == n]
        best = max(counts.values(), default=(0, len(names) * len(ratios)))
        case = (model, count, *names, *ratios)     # a cell is counted once, whatever is asked of it
        self.asked[case] = min(best, self.asked.get(case, best))
        rows = rows[rows["seed"].isin(whole) & rows["base"].isin(list(bases)) & rows["compression"].isin(ratios)]
        if column.startswith("top"):
            self.precisions.update(rows["precision"].dropna())
        return rows.astype({column: float}), ratios

    def top1(self, model: str, count: int, bases=THESIS, ratios=None) -> pd.DataFrame:
        return self.values(f"top1{ACCOUNTING[self.reading]}", model, count, bases, ratios)

    def compression(self, model: str, count: int, bases: Iterable[str]) -> pd.DataFrame:
        column = "compression_released" if self.reading == "run" else "compression_achieved"
        return self.values(column, model, count, bases)

    def error(self, model: str, count: int, base: str) -> pd.Series:
        """(r_e − r) / r in percent, by ratio."""
        achieved = self.compression(model, count, [base]).loc[base]
        return 100 * (achieved / achieved.index - 1)

    def at_chance(self, top1: pd.DataFrame, model: str, count: int) -> pd.DataFrame:
        """Whether an accuracy, in the reading's accounting, is what one constant answer reaches (`data.at_chance`)."""
        dataset = dataset_for(pairs_of(self.frame), model, count)
        return at_chance(top1, dataset, factor=factor_of(self.rows(model, count), self.reading))


Answer = tuple[str, bool | None]   # what was found, and whether it agrees; None: what the claim is about does not arise
EXACT = "exact at every r"
MOOT = "does not arise"
HESSIAN = ("GraSP", "OBD")
KINDS = ("Mag", "Grad", "Act", "LAP")   # what is done both globally and layer by layer


def _ranking(values: pd.Series, count: int = 3) -> str:
    best = values.sort_values(ascending=False, kind="stable").head(count)
    return ", ".join(f"{name} {value:.2f}" for name, value in best.items())


def _field(view: View, *apart: str) -> list[str]:
    """The thesis's methods, without those `apart` that it stars for their compression error: published ones have none."""
    return [base for base in THESIS if view.reading != "run" or base not in apart]


def place(view: View, model: str, count: int, ratio: float, base: str, apart: tuple = ("GraSP",), rank: int = 1) -> Answer:
    """Is `base` at this rank, in `@run` methods `apart` left out?"""
    top1 = view.top1(model, count, _field(view, *apart), [ratio])[ratio]
    found = int((top1 >= top1[base]).sum())    # strict: among methods that are all at chance level, none is first
    behind = "" if f"{base} " in _ranking(top1) else f"; {base} {top1[base]:.2f}, place {found}"
    return _ranking(top1) + behind, found == rank


def snip_first_on_resnet(view: View) -> Answer:
    """On ResNet-56 at r = 32 and 64, is SNIP first on both data sets, in `@run` GraSP and SynFlow apart?"""
    answers = [place(view, "resnet56", count, ratio, "SNIP", ("GraSP", "SynFlow"))
               for count in (10, 100) for ratio in (32, 64)]
    first = sum(answer for _, answer in answers)
    return f"first in {first} of {len(answers)}", first >= 3


def lamp_then_layergrad(view: View) -> Answer:
    """On VGG-16 and CIFAR-100 at r = 64, is LAMP first and LayerGrad second?"""
    (told, first), (_, second) = (place(view, "vgg16", 100, 64, base, rank=rank)
                                  for rank, base in enumerate(("LAMP", "LayerGrad"), start=1))
    return told, first and second


def _closing(view: View, model: str, count: int, bases: Iterable[str] = THESIS) -> pd.Series:
    """The smallest ratio at which a method's masks let nothing pass in most seeds; infinite where there is none."""
    closed = view.values("collapsed", model, count, bases) > 0.5
    return closed.idxmax(axis=1).where(closed.any(axis=1), math.inf)


def _at(closing: pd.Series) -> str:
    names = {base: "at no r" if ratio == math.inf else f"from r = {ratio:g}" for base, ratio in closing.items()}
    return ", ".join(f"{base} {told}" for base, told in names.items())


def layers_survive(view: View) -> Answer:
    """On VGG-16, do some global methods' masks let nothing pass at some r, and no layer-wise one's?"""
    closing = pd.concat([_closing(view, "vgg16", count) for count in (10, 100)], axis=1).min(axis=1)
    closing = closing[closing < math.inf]
    answer = len(closing) > 0 and not any(base.startswith("Layer") for base in closing.index)
    return f"nothing passes, on one data set at least: {_at(closing) or 'none'}", answer


def snip_and_grasp_later(view: View) -> Answer:
    """On VGG-16, do the masks of SNIP and GraSP let nothing pass only at larger r than those of GlobalMag?"""
    found = {count: _closing(view, "vgg16", count, ["GlobalMag", "SNIP", "GraSP"]) for count in (10, 100)}
    later = all(each["GlobalMag"] < each[["SNIP", "GraSP"]].min() for each in found.values())
    return "nothing passes, " + "; ".join(f"{count} classes: {_at(each)}" for count, each in found.items()), later


def chance_is_collapse(view: View) -> Answer:
    """Is every entry of Tables 4.2-4.5 that is printed at chance level one of a mask that lets nothing pass in most seeds?

    The printed numbers are of the `@run` reading: of the published one this cannot be asked.
    """
    closed, always, printed = 0, 0, printed_at_chance()
    for (dataset, model, ratio), rows in printed.groupby(["dataset", "model", "compression"]):
        shares = view.values("collapsed", model, classes(dataset), rows["method"], [ratio])[ratio]
        closed, always = closed + int((shares > 0.5).sum()), always + int((shares == 1).sum())
    if view.reading != "run":
        return "the printed numbers are of another reading", None
    return f"{closed} of {len(printed)} let nothing pass in most seeds, {always} in all", closed == len(printed)


def lamp_keeps_more(view: View) -> Answer:
    """From r = 32 to 64 on VGG-16, does LAMP keep a larger share of its top-1 than most others, in `@run` GraSP apart?"""
    shares = []
    for count in (10, 100):
        top1 = view.top1("vgg16", count, _field(view, "GraSP"), [32, 64])
        alive = ~view.at_chance(top1, "vgg16", count)[32]
        shares.append(100 * (top1[64] / top1[32])[alive])
    kept = pd.concat(shares, axis=1).dropna().mean(axis=1)
    lamp = kept.get("LAMP", 0.0)
    fewer = int((kept < lamp).sum())
    return f"LAMP keeps {lamp:.0f} %, {fewer} of {len(kept) - 1} others less", 2 * fewer > len(kept) - 1


def snip_most_consistent(view: View) -> Answer:
    """Does SNIP have the best mean rank over data sets and ratios on VGG-16, in `@run` GraSP apart?"""
    mean = _mean_ranks(view, _field(view, "GraSP"), _CIFAR[:2])
    return f"mean rank: {_ranked(mean, 3)}", mean.index[0] == "SNIP"


def order_of_the_abstract(view: View) -> Answer:
    """Have SNIP, GraSP, LAMP and a gradient baseline, in this order, the best mean ranks on VGG-16 and ResNet-56?"""
    mean = _mean_ranks(view, THESIS, _CIFAR)
    order = [base.removeprefix("Global").removeprefix("Layer") for base in mean.index[:4]]
    return f"mean rank: {_ranked(mean, 4)}", order == ["SNIP", "GraSP", "LAMP", "Grad"]


def gradient_leads(view: View) -> Answer:
    """On VGG-16 and ResNet-56, have GlobalGrad and LayerGrad the best mean rank among Mag, Grad, Act, LAP of their scope?"""
    means = [_mean_ranks(view, [scope + kind for kind in KINDS], _CIFAR) for scope in ("Global", "Layer")]
    return ("mean rank: " + "; ".join(_ranked(mean, 2) for mean in means),
            all(mean.index[0].endswith("Grad") for mean in means))


def _mean_ranks(view: View, bases: Iterable[str], pairs: Iterable[tuple[str, int]]) -> pd.Series:
    """Mean rank by top-1 of these methods among themselves over networks, data sets and ratios, the best first."""
    ranks = pd.concat([view.top1(*pair, bases).rank(ascending=False) for pair in pairs], axis=1)
    return ranks.mean(axis=1).sort_values(kind="stable")


def _ranked(mean: pd.Series, count: int) -> str:
    return ", ".join(f"{base} {rank:.1f}" for base, rank in mean.head(count).items())


def under_prunes(view: View, model: str, count: int, base: str, least: float, most: float) -> Answer:
    """Is the median compression error over the ratios, in whole percent, between −`most` and −`least`?"""
    error = view.error(model, count, base)
    if _exact(error):
        return EXACT, None
    obtained = f"median {_percent(error.median())}, from {_percent(error.min())} to {_percent(error.max())}"
    return obtained, -most <= round(error.median()) <= -least


def _exact(*errors: pd.Series) -> bool:
    """Whether no error is half a percent: as by definition in the published reading, of which such a claim asks nothing."""
    return all(error.abs().max() < 0.5 for error in errors)


def _percent(value: float) -> str:
    return f"{round(value)} %".replace("-", "−")


def recovers(view: View) -> Answer:
    """Is the error of GraSP and OBD at the largest ratio at least 5 points nearer to 0 than at its worst?"""
    errors = {base: view.error("cnn", 10, base) for base in HESSIAN}
    if _exact(*errors.values()):
        return EXACT, None
    texts = [f"{base} at worst {_percent(error.min())}, at r = {error.index[-1]:g} {_percent(error.iloc[-1])}"
             for base, error in errors.items()]
    return "; ".join(texts), all(-error.min() - abs(error.iloc[-1]) >= 5 for error in errors.values())


def errors_alike(view: View, model: str) -> Answer:
    """Do the compression errors on the two data sets differ by at most 5 points, method by method, ratio by ratio?"""
    errors = {base: [view.error(model, count, base) for count in (10, 100)] for base in THESIS}
    if all(_exact(*pair) for pair in errors.values()):
        return EXACT, None
    apart = pd.DataFrame({base: (one - other).abs() for base, (one, other) in errors.items()}).stack()
    (ratio, base), beyond = apart.idxmax(), int((apart > 5).sum())
    told = f"; more than 5 in {beyond} of {len(apart)}" if beyond else ""
    return f"up to {apart.max():.0f} points apart ({base} at r = {ratio:g}){told}", beyond == 0


def _excess(view: View) -> int:
    """How many times the weights asked for GraSP keeps, so that a rival is asked at as many: as released about twice (the
    thesis compares at half the compression), by the exact count once."""
    return 2 if view.reading == "run" else 1


def grasp_matches_snip(view: View) -> Answer:
    """On VGG-16 and CIFAR-10, is GraSP at r = 64 at most 5 points below SNIP at half of that, both above chance?"""
    ratio = 64 // _excess(view)
    top1 = view.top1("vgg16", 10, ["SNIP", "GraSP"], sorted({ratio, 64}))
    grasp, snip, dead = top1.loc["GraSP", 64], top1.loc["SNIP", ratio], view.at_chance(top1, "vgg16", 10)
    alive = not (dead.loc["GraSP", 64] or dead.loc["SNIP", ratio])
    return f"GraSP at 64 {grasp:.2f}, SNIP at {ratio} {snip:.2f}", bool(alive and grasp >= snip - 5)


def grasp_collapses_early(view: View) -> Answer:
    """On VGG-16 and CIFAR-100, does GraSP's mask let nothing pass by r = 8?"""
    closing = _closing(view, "vgg16", 100, ["GraSP"])
    return f"nothing passes: {_at(closing)}", bool(closing["GraSP"] <= 8)


def grasp_loses(view: View, rival: str, share: float) -> Answer:
    """On ResNet-56, does GraSP lose to `rival` at half the compression in more than this share of the cases?"""
    losses = []
    for count in (10, 100):
        top1 = view.top1("resnet56", count, [rival, "GraSP"])
        ratios = [ratio for ratio in top1.columns if ratio / _excess(view) in top1.columns]
        losses += [top1.loc["GraSP", ratio] < top1.loc[rival, ratio / _excess(view)] for ratio in ratios]
    return f"loses in {sum(losses)} of {len(losses)}", sum(losses) > share * len(losses)


def hessian_loses(view: View) -> Answer:
    """On MNIST, are GraSP and OBD below the best other method at the compression reached, in more than half of the cases?

    Between two ratios the others' accuracies are taken as linear in log r; where no other reached as little, it is no case.
    """
    top1, reached = view.top1("cnn", 10, ORDER), view.compression("cnn", 10, ORDER).clip(lower=1)   # 0 where one is missing
    if _exact(*(view.error("cnn", 10, base) for base in HESSIAN)):
        return EXACT, None
    losses = []
    for (base, ratio), at in reached.loc[list(HESSIAN)].stack().items():
        best = max(np.interp(math.log(at), np.log(reached.loc[other]), top1.loc[other], left=-math.inf, right=-math.inf)
                   for other in top1.index.drop(list(HESSIAN)))
        if best > -math.inf:
            losses.append(top1.loc[base, ratio] < best)
    return f"below it in {sum(losses)} of {len(losses)}", 2 * sum(losses) > len(losses)


def only_these_collapse(view: View) -> Answer:
    """On ResNet-56, are GlobalAct and Random the methods whose masks let nothing pass at some r, in most seeds?"""
    shares = pd.concat([view.values("collapsed", "resnet56", count) for count in (10, 100)], axis=1).max(axis=1)
    most, some = shares.index[shares > 0.5], shares.index[(shares > 0) & (shares <= 0.5)]
    return (f"nothing passes at some r, in most seeds: {', '.join(most) or 'none'}"
            + f"; in fewer: {', '.join(some)}" * bool(len(some)), set(most) == {"GlobalAct", "Random"})


def resnet_is_smoother(view: View) -> Answer:
    """Do the curves of live networks bend less on ResNet-56 than on VGG-16? A bend is |top1(r/2) − 2 top1(r) + top1(2r)|."""
    bends = {}
    for model in ("vgg16", "resnet56"):
        found = []
        for count in (10, 100):
            top1 = view.top1(model, count)
            before, after = top1.shift(1, axis=1), top1.shift(-1, axis=1)
            found.append((before - 2 * top1 + after).abs().where(~view.at_chance(before, model, count)).stack())
        bends[model] = pd.concat(found).mean()
    return (f"mean bend: {bends['resnet56']:.1f} points on ResNet-56, {bends['vgg16']:.1f} on VGG-16",
            bool(bends["resnet56"] < bends["vgg16"]))


def synflow_collapses_first(view: View) -> Answer:
    """On VGG-16, is SynFlow among the methods whose masks are the first, as r grows, to let nothing pass?"""
    told, found = [], False
    for count in (10, 100):
        closing = _closing(view, "vgg16", count)
        first = closing.index[closing.eq(closing.min()) & closing.lt(math.inf)]
        found |= "SynFlow" in first
        told.append(f"{count} classes: " + (f"{', '.join(first)} at r = {closing.min():g}" if len(first) else "none"))
    return f"first to cut every path, {'; '.join(told)}", found


def layers_stay(view: View) -> Answer:
    """On VGG-16, does every layer-wise mask leave a weight in every layer? Tells how many have no path all the same."""
    bases, empty, closed = [base for base in THESIS if base.startswith("Layer")], [], []
    for count in (10, 100):
        empty.append(view.values("empty_layers", "vgg16", count, bases) > 0)
        closed.append(view.values("collapsed", "vgg16", count, bases) > 0.5)
    asked = sum(part.size for part in empty)
    empty, closed = (sum(int(part.to_numpy().sum()) for part in parts) for parts in (empty, closed))
    return (f"an empty layer in {empty} of {asked} cases (method, r, data set); no path all the same, in most seeds: "
            f"{closed}", empty == 0)


def hardly_prunes(view: View) -> Answer:
    """Does SynFlow on ResNet-56 compress less than twofold at the largest ratio?"""
    achieved = view.compression("resnet56", 10, ["SynFlow"]).loc["SynFlow"]
    if _exact(view.error("resnet56", 10, "SynFlow")):
        return EXACT, None
    return f"compression {achieved.iloc[-1]:.2f} where {achieved.index[-1]:g} was asked for", achieved.iloc[-1] < 2


def _against_random(view: View, bases: Iterable[str], pairs: Iterable[tuple[str, int]]) -> tuple[int, int, int]:
    """Comparisons that Random wins, all comparisons, and those of two networks at chance; one for each pair, method, r."""
    won = total = void = 0
    for model, count in pairs:
        top1 = view.top1(model, count)
        lost, dead = top1.loc[list(bases)].lt(top1.loc["Random"], axis=1), view.at_chance(top1, model, count)
        won, total = won + int(lost.to_numpy().sum()), total + lost.size
        void += int((dead.loc[list(bases)] & dead.loc["Random"]).to_numpy().sum())
    return won, total, void


def _won(won: int, total: int, void: int) -> str:
    return f"Random wins {won} of {total} comparisons{f'; in {void} both networks are at chance' * bool(void)}"


_CIFAR = (("vgg16", 10), ("vgg16", 100), ("resnet56", 10), ("resnet56", 100))


def most_lose_to_random(view: View) -> Answer:
    """Do more than half of the methods lose more than half of their comparisons with Random?"""
    found = {base: _against_random(view, [base], _CIFAR) for base in THESIS[:-1]}
    losers = sum(2 * won > total for won, total, _ in found.values())
    told = _won(*map(sum, zip(*found.values(), strict=True)))
    return f"{losers} of {len(found)} methods lose more often than not; {told}", 2 * losers > len(found)


def magnitude_loses_to_random(view: View, pairs: Iterable[tuple[str, int]], share: float) -> Answer:
    """Does Random win more than this share of its comparisons with the magnitude-based methods?"""
    won, total, void = _against_random(view, ("GlobalMag", "GlobalLAP", "LayerMag", "LayerLAP"), pairs)
    return _won(won, total, void), won > share * total


def global_beats_layer(view: View, pairs: Iterable[tuple[str, int]]) -> Answer:
    """Is the global form of a method better than its layer-wise form in more than half of the cases?"""
    better = worse = total = 0
    for pair in pairs:
        for kind in KINDS:
            top1 = view.top1(*pair, [f"Global{kind}", f"Layer{kind}"])
            ahead = top1.loc[f"Global{kind}"] - top1.loc[f"Layer{kind}"]
            better, worse, total = better + int((ahead > 0).sum()), worse + int((ahead < 0).sum()), total + len(ahead)
    return f"better in {better}, worse in {worse} of {total} cases (method, r, network)", 2 * better > total


def snip_surpassed_by_random(view: View) -> Answer:
    """On CIFAR-100, does Random beat SNIP at least once?"""
    won, total, void = _against_random(view, ["SNIP"], (("vgg16", 100), ("resnet56", 100)))
    return _won(won, total, void), won > 0


TOP_FOUR = ("GraSP", "OBD", "GlobalGrad", "SNIP")


def top_four(view: View) -> Answer:
    """Are the thesis's four at the top of the CNN on MNIST at r = 64?"""
    top1 = view.top1("cnn", 10, ORDER, [64])[64]
    return _ranking(top1, 5), bool(top1[list(TOP_FOUR)].min() > top1.drop(list(TOP_FOUR)).max())


def others_collapsed(view: View) -> Answer:
    """Is every method but the top four at chance level at r = 64? Tells of how many no path is left."""
    others = [base for base in ORDER if base not in TOP_FOUR]
    top1 = view.top1("cnn", 10, others, [64])
    at_chance = view.at_chance(top1, "cnn", 10)[64]
    closed = int((view.values("collapsed", "cnn", 10, others, [64])[64] > 0.5).sum())
    above = ", ".join(f"{base} {top1.loc[base, 64]:.2f}" for base in others if not at_chance[base])
    return (f"{int(at_chance.sum())} of {len(others)} at chance level; above it: {above or 'none'}; "
            f"no path, in most seeds: {closed}"), bool(at_chance.all())


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the thesis, what it takes to agree with it, and the question that decides."""

    section: str
    text: str
    expected: str
    decide: Callable[[View], Answer]


_VGG = functools.partial(place, model="vgg16")
_HALF = functools.partial(under_prunes, base="GraSP", least=45, most=55)
_REAL = "GraSP at r less accurate than {} at r/2 (published: at r, for its compression is exact) {}"
_CNN = (("cnn", 10),)
CLAIMS = (
    Claim("2.2", "Global pruning normally performs better than layer-wise (VGG-16 and ResNet-56)",
          "better in more than half of the cases", functools.partial(global_beats_layer, pairs=_CIFAR)),
    Claim("2.2", "Global pruning normally performs better than layer-wise (the CNN on MNIST)",
          "better in more than half of the cases", functools.partial(global_beats_layer, pairs=_CNN)),
    Claim("3.6", "SNIP and GraSP collapse less than magnitude-based methods (VGG-16)",
          "their masks let nothing pass only at larger r than GlobalMag's, on both data sets", snip_and_grasp_later),
    Claim("abstract", "VGG-16 and ResNet-56: SNIP is the most consistent, then GraSP, LAMP and the gradient baselines",
          "the best four mean ranks, in this order", order_of_the_abstract),
    Claim("4.2.1", "VGG-16: compression errors on CIFAR-100 differ negligibly from those on CIFAR-10",
          "at most 5 points, for each method and r", functools.partial(errors_alike, model="vgg16")),
    Claim("4.2.2", "ResNet-56: compression errors on CIFAR-100 differ negligibly from those on CIFAR-10",
          "at most 5 points, for each method and r", functools.partial(errors_alike, model="resnet56")),
    Claim("4.3", "VGG-16 on CIFAR-10 at r = 32: SNIP is best", "SNIP first, @run: GraSP (starred) apart",
          functools.partial(_VGG, count=10, ratio=32, base="SNIP")),
    Claim("4.3", "VGG-16 on CIFAR-10 at r = 64: LAMP is best", "LAMP first, @run: GraSP (starred) apart",
          functools.partial(_VGG, count=10, ratio=64, base="LAMP")),
    Claim("4.3", "VGG-16 on CIFAR-100 at r = 32: GlobalGrad is best", "GlobalGrad first, @run: GraSP (starred) apart",
          functools.partial(_VGG, count=100, ratio=32, base="GlobalGrad")),
    Claim("4.3", "VGG-16 on CIFAR-100 at r = 64: LAMP is best", "LAMP first, @run: GraSP (starred) apart",
          functools.partial(_VGG, count=100, ratio=64, base="LAMP")),
    Claim("4.3", "VGG-16 on CIFAR-100 at r = 64: behind LAMP only LayerGrad comes near", "LAMP first, LayerGrad second",
          lamp_then_layergrad),
    Claim("4.3", "Accuracies at chance level (Tables 4.2-4.5) come from layer-collapse",
          "every mask of these entries lets nothing pass, in most seeds", chance_is_collapse),
    Claim("4.3", "VGG-16: global methods collapse where layer-wise ones survive",
          "up to r = 64 the masks of some global and of no layer-wise method let nothing pass", layers_survive),
    Claim("4.3", "VGG-16: layer-wise pruning empties no layer while r is below the size of the smallest",
          "no layer-wise mask with an empty layer up to r = 64 (beyond: 07-critical)", layers_stay),
    Claim("4.3", "VGG-16: LAMP is more consistent at high sparsity",
          "LAMP keeps a larger share of its top-1 from r = 32 to 64 than most", lamp_keeps_more),
    Claim("4.3", "VGG-16: SNIP is the most consistent over all ratios",
          "SNIP has the best mean rank, @run: GraSP apart", snip_most_consistent),
    Claim("4.3", "VGG-16 on CIFAR-10: GraSP nearly always under-prunes by 50 %", "median error −45 to −55 %",
          functools.partial(_HALF, model="vgg16", count=10)),
    Claim("4.3", "VGG-16 on CIFAR-10: compared at half the compression GraSP is about as good as SNIP",
          "GraSP at r = 64 at most 5 points below SNIP at r = 32 (published: at r = 64), both above chance",
          grasp_matches_snip),
    Claim("4.3", "VGG-16 on CIFAR-100: GraSP collapses almost at once", "its mask lets nothing pass by r = 8",
          grasp_collapses_early),
    Claim("4.3", "ResNet-56: only GlobalAct and Random collapse", "the masks of only these two let nothing pass",
          only_these_collapse),
    Claim("4.3", "ResNet-56: SNIP is best where compression errors are small",
          "SNIP first in at least 3 of 4 columns of top-1, @run: GraSP and SynFlow apart", snip_first_on_resnet),
    Claim("4.3", "ResNet-56 on CIFAR-10: SynFlow hardly prunes", "compression below 2 at the largest r", hardly_prunes),
    Claim("4.3", "ResNet-56 on CIFAR-10: GraSP compresses at half the rate", "median error −45 to −55 %",
          functools.partial(_HALF, model="resnet56", count=10)),
    Claim("4.3", "ResNet-56: compared at half the compression GraSP loses to SNIP in most cases",
          _REAL.format("SNIP", "in more than half"), functools.partial(grasp_loses, rival="SNIP", share=0.5)),
    Claim("4.3", "ResNet-56: compared at half the compression GraSP sometimes loses to random pruning",
          _REAL.format("Random", "at least once"), functools.partial(grasp_loses, rival="Random", share=0)),
    Claim("4.3", "Most methods lose to random pruning on VGG-16 and ResNet-56",
          "more than half of them lose more than half of the cases", most_lose_to_random),
    Claim("4.3", "Magnitude-based methods apart from LAMP rarely beat random pruning (VGG-16 and ResNet-56)",
          "Random wins more than two thirds against GlobalMag, GlobalLAP, LayerMag, LayerLAP",
          functools.partial(magnitude_loses_to_random, pairs=_CIFAR, share=2 / 3)),
    Claim("abstract", "Magnitude-based methods do worse than random pruning in a large share of cases (those on MNIST)",
          "Random wins more than a third against GlobalMag, GlobalLAP, LayerMag, LayerLAP",
          functools.partial(magnitude_loses_to_random, pairs=_CNN, share=1 / 3)),
    Claim("abstract", "Hessian-based methods, which keep more, are slightly worse than others (the CNN on MNIST)",
          "GraSP and OBD below the best other method at the compression that they reached, in more than half of the cases",
          hessian_loses),
    Claim("4.3", "On CIFAR-100 even SNIP is surpassed by random pruning at some ratios",
          "Random wins at least once", snip_surpassed_by_random),
    Claim("4.3", "VGG-16 and ResNet-56: of the methods that use magnitudes those with the gradient are best",
          "GlobalGrad and LayerGrad have the best mean ranks among Mag, Grad, Act and LAP of their scope", gradient_leads),
    Claim("5", "ResNet-56 gives less volatile results than VGG-16",
          "curves that are above chance bend less from one r to the next", resnet_is_smoother),
    Claim("5", "VGG-16: SynFlow is sometimes among the first to collapse",
          "no method's mask lets nothing pass at a smaller r, on one data set at least", synflow_collapses_first),
    Claim("4.3", "CNN on MNIST: GraSP under-prunes by 30-50 %", "median error −30 to −50 %",
          functools.partial(under_prunes, model="cnn", count=10, base="GraSP", least=30, most=50)),
    Claim("4.3", "CNN on MNIST: OBD under-prunes by 20-50 %", "median error −20 to −50 %",
          functools.partial(under_prunes, model="cnn", count=10, base="OBD", least=20, most=50)),
    Claim("4.3", "CNN on MNIST: both start to recover the right compression at higher sparsity",
          "error at the largest r at least 5 points nearer to 0 than at its worst", recovers),
    Claim("4.3", "CNN on MNIST: the top four are GraSP, OBD, GlobalGrad and SNIP",
          "these four first at r = 64", top_four),
    Claim("4.3", "CNN on MNIST: every other method has collapsed by r = 64",
          "the other ten at chance level at r = 64, which is all that the thesis saw", others_collapsed),
)


def claims(frame: pd.DataFrame) -> pd.DataFrame:
    """The thesis's claims, asked of the `@run` reading (in the thesis's accounting) and the published.

    Columns: section, claim, expected, and for both readings what was obtained and the verdict: agrees or disagrees, with
    the seeds that bear it out where there are several, does not arise, or not decidable with k of n cells.
    """
    lines = []
    for claim in CLAIMS:
        line = {"section": claim.section, "claim": claim.text, "expected": claim.expected}
        for reading in ("run", "published"):
            name = "@run" if reading == "run" else reading
            line[f"{name}: obtained"], line[f"{name}: verdict"] = weighed(claim, frame, reading)
        lines.append(line)
    return pd.DataFrame(lines)


def judge(claim: Claim, frame: pd.DataFrame, reading: str) -> tuple[str, str]:
    """What a claim finds in one reading, and the verdict."""
    return _judged(claim, View(frame, reading))


def _judged(claim: Claim, view: View) -> tuple[str, str]:
    obtained, answer = claim.decide(view)
    k, n = map(sum, zip(*view.asked.values(), strict=True))
    if k < n:
        return DASH, f"not decidable ({k} of {n} cells)"
    return obtained, MOOT if answer is None else "agrees" if answer else "disagrees"


def by_seed(claim: Claim, frame: pd.DataFrame, reading: str) -> list[bool]:
    """Whether each seed alone, of those that decide a claim, agrees with it."""
    verdicts = [judge(claim, part, reading)[1] for _, part in frame.groupby("seed")]
    return [verdict == "agrees" for verdict in verdicts if verdict in ("agrees", "disagrees")]


def weighed(claim: Claim, frame: pd.DataFrame, reading: str) -> tuple[str, str]:
    """What `judge` says, of how many seeds, with those that agree where not all say the same, and of what precision
    accuracies are where that is not float32 alone."""
    view = View(frame, reading)
    obtained, verdict = _judged(claim, view)
    if obtained == DASH or verdict == MOOT:
        return obtained, verdict
    seeds = by_seed(claim, frame, reading)
    in_part = " in part" * (len(view.precisions) > 1)
    facts = [f"{len(seeds)} seed{'s' * (len(seeds) != 1)}",
             *(name + in_part for name in sorted(view.precisions - {"float32"}))]
    alone = f"; taken alone, {sum(seeds)} agree{'s' * (sum(seeds) == 1)}" if len(set(seeds)) > 1 else ""
    return obtained, f"{verdict} ({', '.join(facts)}{alone})"


def counted(verdicts: pd.Series) -> str:
    """How many claims agree, disagree, do not arise (if any), and cannot be decided yet."""
    counts = {words: int(verdicts.str.startswith(begin).sum()) for begin, words in (
        ("agrees", "agree"), ("disagrees", "disagree"), (MOOT, "do not arise"), ("not", "cannot be decided yet"))}
    return ", ".join(f"{count} {words}" for words, count in counts.items() if count or words != "do not arise")


def claims_table(frame: pd.DataFrame) -> Table:
    """`claims` under a caption that says how accuracies and compressions were counted, and on which data."""
    found = claims(frame)
    run, published = (counted(found[f"{name}: verdict"]) for name in ("@run", "published"))
    stand_ins = sorted(set(frame["dataset"]) & set(STAND_INS.values()))
    caption = (f"What the thesis claims, and what these cells say. Of {len(found)} claims, {run} in the @run "
               "reading (best epoch × 0.98892, compression by values, as the thesis counts), "
               f"{published} in the published reading (last epoch, all test images, compression by masks).")
    if frame.loc[frame["done"].astype(bool), "seed"].nunique() > 1:
        caption += (" Decided by the means of those seeds that have all the cells of a claim; in brackets how many these "
                    "are and, where they differ, how many agree alone.")
    if facts := reduced(frame):
        caption += f" In this store: {', '.join(facts)}."
    if stand_ins:
        names = ", ".join(map(label, stand_ins))
        caption += f" Decided on stand-in data, {names}: a rehearsal, not evidence."
    return Table(caption, found)
