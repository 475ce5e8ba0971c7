"""What the thesis claims, each sentence as a question to the cells, asked of the `@run` and the published reading."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable

import pandas as pd

from lib.data import at_chance
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

    def rows(self, model: str, count: int) -> pd.DataFrame:
        rows = select(self.frame, dataset_for(pairs_of(self.frame), model, count), model)
        return rows[(rows["reading"] == self.reading) & (rows["base"] != "Dense")]

    def values(self, column: str, model: str, count: int, bases=THESIS, ratios=None) -> pd.DataFrame:
        """Mean of `column`, one row per method and one column per ratio (by default all above 1).

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
        ratios = list(ratios or sorted(rows["compression"].unique()) or RATIOS[1:])
        names = [base if self.reading == "published" else f"{base}@{self.reading}" for base in bases]
        counts = {seed: coverage(part, names, ratios, column) for seed, part in rows.groupby("seed")}
        whole = [seed for seed, (k, n) in counts.items() if k == n]
        best = max(counts.values(), default=(0, len(names) * len(ratios)))
        case = (model, count, *names, *ratios)     # a cell is counted once, whatever is asked of it
        self.asked[case] = min(best, self.asked.get(case, best))
        chosen = rows["seed"].isin(whole) & rows["base"].isin(list(bases)) & rows["compression"].isin(ratios)
        return rows[chosen].astype({column: float}), ratios

    def top1(self, model: str, count: int, bases=THESIS, ratios=None) -> pd.DataFrame:
        return self.values(f"top1{ACCOUNTING[self.reading]}", model, count, bases, ratios)

    def compression(self, model: str, count: int, base: str) -> pd.Series:
        column = "compression_released" if self.reading == "run" else "compression_achieved"
        return self.values(column, model, count, [base]).loc[base]

    def error(self, model: str, count: int, base: str) -> pd.Series:
        """(r_e − r) / r in percent, by ratio."""
        achieved = self.compression(model, count, base)
        return 100 * (achieved / achieved.index - 1)

    def at_chance(self, top1: pd.DataFrame, model: str, count: int) -> pd.DataFrame:
        """Whether an accuracy, in the reading's accounting, is what one constant answer reaches (`data.at_chance`)."""
        dataset = dataset_for(pairs_of(self.frame), model, count)
        return at_chance(top1, dataset, factor=factor_of(self.rows(model, count), self.reading))


Answer = tuple[str, bool]
EXACT = "exact at every r"


def _ranking(values: pd.Series, count: int = 3) -> str:
    best = values.sort_values(ascending=False, kind="stable").head(count)
    return ", ".join(f"{name} {value:.2f}" for name, value in best.items())


def place(view: View, model: str, count: int, ratio: float, base: str, apart: tuple, rank: int = 1) -> Answer:
    """Is `base` at this rank, methods `apart` left out?"""
    top1 = view.top1(model, count, [name for name in THESIS if name not in apart], [ratio])[ratio]
    # Strict: among methods that are all at chance level, none is first.
    return _ranking(top1), bool((top1 >= top1[base]).sum() == rank)


def snip_first_on_resnet(view: View) -> Answer:
    """On ResNet-56 at r = 32 and 64, is SNIP first on both data sets, GraSP and SynFlow apart?"""
    answers = [place(view, "resnet56", count, ratio, "SNIP", ("GraSP", "SynFlow"))
               for count in (10, 100) for ratio in (32, 64)]
    first = sum(answer for _, answer in answers)
    return f"first in {first} of {len(answers)}", first >= 3


def layers_survive(view: View) -> Answer:
    """On VGG-16 at r = 64, are some global methods at chance level, and no layer-wise one?"""
    failed = set()
    for count in (10, 100):
        top1 = view.top1("vgg16", count, ratios=[64])
        at_chance = view.at_chance(top1, "vgg16", count)[64]
        failed |= set(at_chance.index[at_chance])
    failed = [base for base in THESIS if base in failed]
    answer = bool(failed) and not any(base.startswith("Layer") for base in failed)
    return f"at chance level: {', '.join(failed) or 'none'}", answer


def lamp_keeps_more(view: View) -> Answer:
    """From r = 32 to 64 on VGG-16, does LAMP keep a larger share of its top-1 than most others?"""
    shares = []
    for count in (10, 100):
        top1 = view.top1("vgg16", count, [base for base in THESIS if base != "GraSP"], [32, 64])
        alive = ~view.at_chance(top1, "vgg16", count)[32]
        shares.append(100 * (top1[64] / top1[32])[alive])
    kept = pd.concat(shares, axis=1).dropna().mean(axis=1)
    lamp = kept.get("LAMP", 0.0)
    fewer = int((kept < lamp).sum())
    return f"LAMP keeps {lamp:.0f} %, {fewer} of {len(kept) - 1} others less", 2 * fewer > len(kept) - 1


def snip_most_consistent(view: View) -> Answer:
    """Does SNIP have the best mean rank over data sets and ratios on VGG-16?"""
    mean = _mean_ranks(view, [base for base in THESIS if base != "GraSP"], _CIFAR[:2])
    return f"mean rank: {_ranked(mean, 3)}", mean.index[0] == "SNIP"


def order_of_the_abstract(view: View) -> Answer:
    """Have SNIP, GraSP, LAMP and a gradient baseline, in this order, the best mean ranks on VGG-16 and ResNet-56?"""
    mean = _mean_ranks(view, THESIS, _CIFAR)
    order = [base.removeprefix("Global").removeprefix("Layer") for base in mean.index[:4]]
    return f"mean rank: {_ranked(mean, 4)}", order == ["SNIP", "GraSP", "LAMP", "Grad"]


def gradient_leads(view: View) -> Answer:
    """On VGG-16 and ResNet-56, have GlobalGrad and LayerGrad the best mean rank among Mag, Grad, Act, LAP of their scope?"""
    kinds = ("Mag", "Grad", "Act", "LAP")
    means = [_mean_ranks(view, [scope + kind for kind in kinds], _CIFAR) for scope in ("Global", "Layer")]
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
    obtained = f"median {_percent(error.median())}, from {_percent(error.min())} to {_percent(error.max())}"
    return EXACT if _exact(error) else obtained, -most <= round(error.median()) <= -least


def _exact(error: pd.Series) -> bool:
    return bool(error.abs().max() < 0.5)


def _percent(value: float) -> str:
    return f"{round(value)} %".replace("-", "−")


def recovers(view: View) -> Answer:
    """Is the error of GraSP and OBD at the largest ratio at least 5 points nearer to 0 than at its worst?"""
    errors = {base: view.error("cnn", 10, base) for base in ("GraSP", "OBD")}
    texts = [f"{base} at worst {_percent(error.min())}, at r = {error.index[-1]:g} {_percent(error.iloc[-1])}"
             for base, error in errors.items()]
    told = EXACT if all(map(_exact, errors.values())) else "; ".join(texts)
    return told, all(-error.min() - abs(error.iloc[-1]) >= 5 for error in errors.values())


def errors_alike(view: View, model: str) -> Answer:
    """Do the compression errors on the two data sets differ by at most 5 points, method by method, ratio by ratio?"""
    apart = pd.Series({base: (view.error(model, 10, base) - view.error(model, 100, base)).abs().max() for base in THESIS})
    told = f"up to {apart.max():.0f} points apart ({apart.idxmax()})" if apart.max() >= 0.5 else "alike"
    return told, bool(apart.max() <= 5)


def _excess(view: View) -> int:
    """How many times the weights asked for GraSP keeps, so that a rival is asked at its real compression: as released
    about twice, by the exact count once."""
    return 2 if view.reading == "run" else 1


def grasp_matches_snip(view: View) -> Answer:
    """On VGG-16 and CIFAR-10, is GraSP at r = 64 within 5 points of SNIP at GraSP's real compression, both above chance?"""
    ratio = 64 // _excess(view)
    top1 = view.top1("vgg16", 10, ["SNIP", "GraSP"], sorted({ratio, 64}))
    grasp, snip, dead = top1.loc["GraSP", 64], top1.loc["SNIP", ratio], view.at_chance(top1, "vgg16", 10)
    alive = not (dead.loc["GraSP", 64] or dead.loc["SNIP", ratio])
    return f"GraSP at 64 {grasp:.2f}, SNIP at {ratio} {snip:.2f}", bool(alive and abs(grasp - snip) <= 5)


def grasp_collapses_early(view: View) -> Answer:
    """On VGG-16 and CIFAR-100, is GraSP at chance level by r = 8?"""
    top1 = view.top1("vgg16", 100, ["GraSP"])
    at_chance = view.at_chance(top1, "vgg16", 100).loc["GraSP"]
    first = min(at_chance.index[at_chance], default=math.inf)
    return "never at chance level" if math.isinf(first) else f"at chance level from r = {first:g}", first <= 8


def grasp_loses(view: View, rival: str, share: float) -> Answer:
    """On ResNet-56, does GraSP lose to `rival` at its real compression in more than this share of the cases?"""
    losses = []
    for count in (10, 100):
        top1 = view.top1("resnet56", count, [rival, "GraSP"])
        ratios = [ratio for ratio in top1.columns if ratio / _excess(view) in top1.columns]
        losses += [top1.loc["GraSP", ratio] < top1.loc[rival, ratio / _excess(view)] for ratio in ratios]
    return f"loses in {sum(losses)} of {len(losses)}", sum(losses) > share * len(losses)


def only_these_collapse(view: View) -> Answer:
    """On ResNet-56, are GlobalAct and Random the methods at chance level at some r, and no other?"""
    failed = set()
    for count in (10, 100):
        at_chance = view.at_chance(view.top1("resnet56", count), "resnet56", count).any(axis=1)
        failed |= set(at_chance.index[at_chance])
    names = ", ".join(base for base in THESIS if base in failed)
    return f"at chance level at some r: {names or 'none'}", failed == {"GlobalAct", "Random"}


def resnet_is_smoother(view: View) -> Answer:
    """From one r to the next, do live networks keep a larger share of their top-1 on ResNet-56 than on VGG-16?"""
    kept = {}
    for model in ("vgg16", "resnet56"):
        shares = []
        for count in (10, 100):
            top1 = view.top1(model, count)
            alive = ~view.at_chance(top1, model, count)
            shares.append((top1.shift(-1, axis=1) / top1).where(alive).stack())
        kept[model] = 100 * pd.concat(shares).mean()
    return (f"kept from one r to the next: {kept['resnet56']:.0f} % on ResNet-56, {kept['vgg16']:.0f} % on VGG-16",
            bool(kept["resnet56"] > kept["vgg16"]))


def synflow_collapses_first(view: View) -> Answer:
    """On VGG-16, is SynFlow among the methods whose masks are the first, as r grows, to let nothing pass?"""
    told, found = [], False
    for count in (10, 100):
        closed = view.values("collapsed", "vgg16", count) > 0.5
        ratio = min(closed.columns[closed.any()], default=None)
        first = [base for base in THESIS if ratio is not None and closed.loc[base, ratio]]
        found |= "SynFlow" in first
        told.append(f"{count} classes: {', '.join(first)} at r = {ratio:g}" if first else f"{count} classes: none")
    return f"first to let nothing pass, {'; '.join(told)}", found


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
    achieved = view.compression("resnet56", 10, "SynFlow")
    return f"{achieved.iloc[-1]:.2f} where {achieved.index[-1]:g} was asked", achieved.iloc[-1] < 2


def _against_random(view: View, bases: Iterable[str], pairs: Iterable[tuple[str, int]]) -> tuple[int, int]:
    """(comparisons that Random wins, all comparisons), one for each pair, method and ratio."""
    won, total = 0, 0
    for model, count in pairs:
        top1 = view.top1(model, count)
        lost = top1.loc[list(bases)].lt(top1.loc["Random"], axis=1)
        won, total = won + int(lost.to_numpy().sum()), total + lost.size
    return won, total


_CIFAR = (("vgg16", 10), ("vgg16", 100), ("resnet56", 10), ("resnet56", 100))


def most_lose_to_random(view: View) -> Answer:
    """Does Random win more than half of its comparisons with every method?"""
    won, total = _against_random(view, THESIS[:-1], _CIFAR)
    return f"Random wins {won} of {total} comparisons", 2 * won > total


def magnitude_loses_to_random(view: View) -> Answer:
    """Does Random win more than two thirds of its comparisons with the magnitude-based methods?"""
    won, total = _against_random(view, ("GlobalMag", "GlobalLAP", "LayerMag", "LayerLAP"), _CIFAR)
    return f"Random wins {won} of {total} comparisons", 3 * won > 2 * total


def snip_surpassed_by_random(view: View) -> Answer:
    """On CIFAR-100, does Random beat SNIP at least once?"""
    won, total = _against_random(view, ["SNIP"], (("vgg16", 100), ("resnet56", 100)))
    return f"Random wins {won} of {total} comparisons", won > 0


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
_REAL = "GraSP at r below {} at r/2 (published: at r, its compression is exact) {}"
CLAIMS = (
    Claim("abstract", "VGG-16 and ResNet-56: SNIP is the most consistent, then GraSP, LAMP and the gradient baselines",
          "the best four mean ranks, in this order", order_of_the_abstract),
    Claim("4.2.1", "VGG-16: compression errors on CIFAR-100 differ negligibly from those on CIFAR-10",
          "at most 5 points, for each method and r", functools.partial(errors_alike, model="vgg16")),
    Claim("4.2.2", "ResNet-56: compression errors on CIFAR-100 differ negligibly from those on CIFAR-10",
          "at most 5 points, for each method and r", functools.partial(errors_alike, model="resnet56")),
    Claim("4.3", "VGG-16 on CIFAR-10 at r = 32: SNIP is best", "SNIP first, GraSP (starred) apart",
          functools.partial(_VGG, count=10, ratio=32, base="SNIP", apart=("GraSP",))),
    Claim("4.3", "VGG-16 on CIFAR-10 at r = 64: LAMP is best", "LAMP first, GraSP (starred) apart",
          functools.partial(_VGG, count=10, ratio=64, base="LAMP", apart=("GraSP",))),
    Claim("4.3", "VGG-16 on CIFAR-100 at r = 32: GlobalGrad is best", "GlobalGrad first",
          functools.partial(_VGG, count=100, ratio=32, base="GlobalGrad", apart=())),
    Claim("4.3", "VGG-16 on CIFAR-100 at r = 64: LAMP is best", "LAMP first",
          functools.partial(_VGG, count=100, ratio=64, base="LAMP", apart=())),
    Claim("4.3", "VGG-16 on CIFAR-100 at r = 64: only LayerGrad comes near", "LayerGrad second",
          functools.partial(_VGG, count=100, ratio=64, base="LayerGrad", apart=(), rank=2)),
    Claim("4.3", "VGG-16: global methods collapse where layer-wise ones survive",
          "some global and no layer-wise method at chance level at r = 64", layers_survive),
    Claim("4.3", "VGG-16: layer-wise pruning empties no layer while r is below the size of the smallest",
          "no layer-wise mask with an empty layer", layers_stay),
    Claim("4.3", "VGG-16: LAMP is more consistent at high sparsity",
          "LAMP keeps a larger share of its top-1 from r = 32 to 64 than most", lamp_keeps_more),
    Claim("4.3", "VGG-16: SNIP is the most consistent over all ratios",
          "SNIP has the best mean rank, GraSP apart", snip_most_consistent),
    Claim("4.3", "VGG-16 on CIFAR-10: GraSP nearly always under-prunes by 50 %", "median error −45 to −55 %",
          functools.partial(_HALF, model="vgg16", count=10)),
    Claim("4.3", "VGG-16 on CIFAR-10: at its real compression GraSP is about as good as SNIP",
          "GraSP at r = 64 within 5 points of SNIP at r = 32 (published: at r = 64), both above chance", grasp_matches_snip),
    Claim("4.3", "VGG-16 on CIFAR-100: GraSP collapses almost at once", "chance level by r = 8",
          grasp_collapses_early),
    Claim("4.3", "ResNet-56: only GlobalAct and Random collapse", "these two at chance level, no other",
          only_these_collapse),
    Claim("4.3", "ResNet-56: SNIP is best where compression errors are small",
          "SNIP first in at least 3 of 4 columns of top-1, GraSP and SynFlow apart", snip_first_on_resnet),
    Claim("4.3", "ResNet-56 on CIFAR-10: SynFlow hardly prunes", "compression below 2 at the largest r", hardly_prunes),
    Claim("4.3", "ResNet-56 on CIFAR-10: GraSP compresses at half the rate", "median error −45 to −55 %",
          functools.partial(_HALF, model="resnet56", count=10)),
    Claim("4.3", "ResNet-56: at its real compression GraSP loses to SNIP in most cases",
          _REAL.format("SNIP", "in more than half"), functools.partial(grasp_loses, rival="SNIP", share=0.5)),
    Claim("4.3", "ResNet-56: at its real compression GraSP sometimes loses to random pruning",
          _REAL.format("Random", "at least once"), functools.partial(grasp_loses, rival="Random", share=0)),
    Claim("4.3", "Most methods lose to random pruning on VGG-16 and ResNet-56", "Random wins more than half",
          most_lose_to_random),
    Claim("4.3", "Magnitude-based methods apart from LAMP rarely beat random pruning",
          "Random wins more than two thirds", magnitude_loses_to_random),
    Claim("4.3", "On CIFAR-100 even SNIP is surpassed by random pruning at some ratios",
          "Random wins at least once", snip_surpassed_by_random),
    Claim("4.3", "VGG-16 and ResNet-56: of the methods that use magnitudes those that multiply by the gradient are best",
          "GlobalGrad and LayerGrad have the best mean ranks among Mag, Grad, Act and LAP of their scope", gradient_leads),
    Claim("5", "ResNet-56 gives less volatile results than VGG-16",
          "from one r to the next, networks above chance keep a larger share of their top-1", resnet_is_smoother),
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
          "the other ten at chance level at r = 64", others_collapsed),
)


def claims(frame: pd.DataFrame) -> pd.DataFrame:
    """The thesis's claims, asked of the `@run` reading (in the thesis's accounting) and the published.

    Columns: section, claim, expected, and for both readings what was obtained and the verdict: agrees or disagrees, with
    the seeds that bear it out where there are several, or not decidable with k of n cells.
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
    view = View(frame, reading)
    obtained, answer = claim.decide(view)
    k, n = map(sum, zip(*view.asked.values(), strict=True))
    if k < n:
        return DASH, f"not decidable ({k} of {n} cells)"
    return obtained, "agrees" if answer else "disagrees"


def by_seed(claim: Claim, frame: pd.DataFrame, reading: str) -> list[bool]:
    """Whether each seed alone, of those that decide a claim, agrees with it."""
    verdicts = [judge(claim, part, reading)[1] for _, part in frame.groupby("seed")]
    return [verdict == "agrees" for verdict in verdicts if verdict in ("agrees", "disagrees")]


def weighed(claim: Claim, frame: pd.DataFrame, reading: str) -> tuple[str, str]:
    """What `judge` says, and of how many seeds, with those that agree where not all say the same."""
    obtained, verdict = judge(claim, frame, reading)
    if obtained == DASH:
        return obtained, verdict
    seeds = by_seed(claim, frame, reading)
    told = (f"{sum(seeds)} of {len(seeds)} seeds agree" if len(set(seeds)) > 1 else
            f"{len(seeds)} seed{'s' * (len(seeds) != 1)}")
    return obtained, f"{verdict} ({told})"


def claims_table(frame: pd.DataFrame) -> Table:
    """`claims` under a caption that says how accuracies and compressions were counted, and on which data."""
    found = claims(frame)
    counts = [found[f"{name}: verdict"].str.split(" ").str[0].value_counts() for name in ("@run", "published")]
    run, published = (f"{count.get('agrees', 0)} agree, {count.get('disagrees', 0)} disagree and "
                      f"{len(found) - count.get('agrees', 0) - count.get('disagrees', 0)} are not decidable yet"
                      for count in counts)
    stand_ins = sorted(set(frame["dataset"]) & set(STAND_INS.values()))
    caption = (f"What the thesis claims, and what these cells say. Of {len(found)} claims, {run} in the @run "
               "reading (best epoch × 0.98892, compression by values, as the thesis counts), "
               f"{published} in the published reading (last epoch, all test images, compression by masks).")
    if frame.loc[frame["done"].astype(bool), "seed"].nunique() > 1:
        caption += " Decided by the means of those seeds that have all the cells of a claim; in brackets how many these are."
    trained = frame["precision"].where(frame["top1"].notna())
    if (reduced := trained.notna() & (trained != "float32")).any():
        caption += f" Of {int(trained.notna().sum())} trained cells {int(reduced.sum())} are in {trained[reduced].iloc[0]}."
    if stand_ins:
        names = ", ".join(map(label, stand_ins))
        caption += f" Decided on stand-in data, {names}: a rehearsal, not evidence."
    return Table(caption, found)
