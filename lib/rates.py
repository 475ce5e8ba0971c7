"""Which learning rate made the thesis's numbers: the one of its text or the default of its released code?

Both are run in the `@run` reading and asked the same questions: what the thesis says of the CNN on MNIST and, where
a store holds it, what its tables print for ResNet-56 on CIFAR-10.
"""

from collections.abc import Iterable
from statistics import median

import pandas as pd
from matplotlib.figure import Figure

from lib import claims, figures, tables
from lib.data import constant_answer
from lib.profile import PILOT
from lib.tables import ACCOUNTING, DASH, ORDER, Table, at_rate, dataset_for, pairs_of

STATEMENTS = tuple(claim for claim in claims.CLAIMS if claim.text.startswith("CNN on MNIST: "))
NOT_RUN = "not run yet"


def _asked(rates: Iterable[float | None]) -> list[float]:
    """The rates that there are, once each: a profile may have no second one."""
    return list(dict.fromkeys(rate for rate in rates if rate is not None))


def _paired(frame: pd.DataFrame, rate: float, rates: list[float]) -> pd.DataFrame:
    """The cells of a rate whose seeds every rate has: so the rates differ by nothing else."""
    seeds = set.intersection(*(set(at_rate(frame, each)["seed"]) for each in rates))
    rows = at_rate(frame, rate)
    return rows[rows["seed"].isin(seeds)]


def among_first(frame: pd.DataFrame) -> int | None:
    """How many of the thesis's top four are among the first four at r = 64 and above chance; None: not run.

    Places, not points: a rate that trains everything less brings all accuracies together, which is no agreement.
    """
    view = claims.View(frame, "run")
    top1 = view.top1("cnn", 10, ORDER, [64])[64]
    first = (top1.rank(ascending=False) <= 4) & ~view.at_chance(top1, "cnn", 10)
    return int(first[list(claims.TOP_FOUR)].sum()) if all(k == n for k, n in view.asked.values()) else None


def closed(frame: pd.DataFrame) -> dict[str, list[int]]:
    """Of the thesis's top four, those whose `@run` masks let nothing pass at r = 64, with the seeds of which it is known."""
    rows = claims.View(frame, "run").rows("cnn", 10)
    rows = rows[(rows["compression"] == 64) & rows["collapsed"].eq(True) & rows["base"].isin(claims.TOP_FOUR)]
    return {base: sorted(part["seed"].unique().tolist()) for base, part in rows.groupby("base")}


def statements(frame: pd.DataFrame, rates: Iterable[float | None]) -> Table:
    """What the thesis says of MNIST, asked of `@run` at each rate: first the seeds that all rates have, then each seed."""
    rates, lines = _asked(rates), []
    if not frame["model"].eq("cnn").any():
        return Table("The CNN on MNIST: no such cells in this profile.", pd.DataFrame())
    for claim in STATEMENTS:
        line = {"the thesis says": claim.text.removeprefix("CNN on MNIST: ")}
        for rate in rates:
            obtained, verdict = claims.judge(claim, _paired(frame, rate, rates), "run")
            missing = verdict.replace("not decidable", NOT_RUN)
            line[f"at {rate:g}"] = missing if obtained == DASH else f"{verdict}: {obtained}"
            line[f"at {rate:g}, seeds that agree"] = _by_seed(at_rate(frame, rate), claim)
        lines.append(line)
    places = {"the thesis says": "(how many of its top four are among the first four at r = 64, above chance)"}
    for rate in rates:
        places[f"at {rate:g}"] = _count(among_first(_paired(frame, rate, rates)))
        seeds = [among_first(rows) for _, rows in at_rate(frame, rate).groupby("seed")]
        places[f"at {rate:g}, seeds that agree"] = ", ".join(_count(seed) for seed in seeds if seed is not None) or NOT_RUN
    return Table(verdict_on(frame, rates), pd.DataFrame([*lines, places]))


def _count(value: int | None) -> str:
    return NOT_RUN if value is None else f"{value} of 4"


def _by_seed(rows: pd.DataFrame, claim: claims.Claim) -> str:
    found = claims.by_seed(claim, rows, "run")
    return f"{sum(found)} of {len(found)}" if found else NOT_RUN


def verdict_on(frame: pd.DataFrame, rates: Iterable[float | None]) -> str:
    """Which rates are compatible with what the thesis says of MNIST, which are not, and how sure that is."""
    rates = _asked(rates)
    head = (f"What the thesis says of the CNN on MNIST, at learning rate{'s' if len(rates) > 1 else ''} "
            f"{_and(f'{rate:g}' for rate in rates)}{_by_seeds(frame, rates)}.")
    if len(rates) < 2:
        return f"{head} This profile has no second learning rate."
    answers = {rate: [claims.judge(claim, _paired(frame, rate, rates), "run") for claim in STATEMENTS] for rate in rates}
    decided = {rate: all(obtained != DASH for obtained, _ in found) for rate, found in answers.items()}
    told = [_compatible(rate, found) if decided[rate] else f"{rate:g}: not decided yet ({_there(at_rate(frame, rate))})."
            for rate, found in answers.items()]
    told += [f"Whatever the rate, {base} cannot train at r = 64: its @run mask lets nothing pass "
             f"(seeds {', '.join(map(str, seeds))})."
             for base, seeds in closed(at_rate(frame, rates[0])).items()]
    if not all(decided.values()):
        return " ".join([head, *told, "So the two cannot be compared yet."])
    return " ".join([head, *told, _which(frame, answers), *(_how_sure(frame, rate) for rate in rates)])


def _by_seeds(frame: pd.DataFrame, rates: list[float]) -> str:
    """By which seeds rates are compared, where there is more than one rate."""
    seeds = sorted(_paired(frame, rates[0], rates)["seed"].unique()) if len(rates) > 1 else []
    return f", compared by seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" if seeds else ""


def _compatible(rate: float, found: list[tuple[str, str]]) -> str:
    against = [claim.text.removeprefix("CNN on MNIST: ") for claim, (_, verdict) in zip(STATEMENTS, found, strict=True)
               if verdict == "disagrees"]
    if not against:
        return f"{rate:g} is compatible with all {len(found)} statements."
    return (f"{rate:g} agrees with {len(found) - len(against)} of {len(found)} statements and is not compatible with "
            + " nor with ".join(f"“{text}”" for text in against) + ".")


def _there(rows: pd.DataFrame) -> str:
    return f"{int(rows['done'].sum())} of {len(rows)} cells"


def deciding(frame: pd.DataFrame, rates: Iterable[float | None]) -> str:
    """Of how many statements on MNIST the verdict depends on the rate, in a few words."""
    answers = [[claims.judge(claim, _paired(frame, rate, _asked(rates)), "run") for claim in STATEMENTS]
               for rate in _asked(rates)]
    same = sum(len(set(found)) == 1 for found in zip(*answers, strict=True))
    differ = sum(len({verdict for _, verdict in found}) > 1 for found in zip(*answers, strict=True))
    return (f"on MNIST both rates give the same verdict on {len(STATEMENTS) - differ} of {len(STATEMENTS)} statements"
            f"{_by_seeds(frame, _asked(rates))}; {same} come out alike to the digit, as those on masks must")


def _which(frame: pd.DataFrame, answers: dict[float, list[tuple[str, str]]]) -> str:
    """What separates the rates. A statement on masks cannot: they are made before any training."""
    first, second = answers.values()
    same = sum(one == other for one, other in zip(first, second, strict=True))
    differ = sum(one[1] != other[1] for one, other in zip(first, second, strict=True))
    places = {rate: among_first(_paired(frame, rate, list(answers))) for rate in answers}
    both = _and(f"{_count(count)} of the thesis at {rate:g}" for rate, count in places.items())
    return (f"{same} of the statements come out alike to the digit, as all must that ask for masks, which no learning rate "
            "moves. " + (f"On {differ} the verdict differs." if differ else
                         "On none does the verdict differ, so they do not tell the rates apart.")
            + f" Among the first four at r = 64, and above chance, are {both}.")


def _how_sure(frame: pd.DataFrame, rate: float) -> str:
    """How many seeds a rate's verdicts rest on, and whether any depends on the seed."""
    rows = at_rate(frame, rate)
    found = [claims.by_seed(claim, rows, "run") for claim in STATEMENTS]
    seeds, wavering = min(map(len, found)), sum(len(set(verdicts)) > 1 for verdicts in found)
    if seeds < 2:
        return f"What is said of {rate:g} rests on one seed."
    return f"What is said of {rate:g} holds for each of {seeds} seeds." if not wavering else (
        f"At {rate:g} {wavering} of {len(found)} verdicts depend on the seed ({seeds} seeds).")


def _and(items: Iterable[str]) -> str:
    return " and ".join(items)


# ---- ResNet-56, whose numbers the thesis prints

def resnet(frame: pd.DataFrame, rates: Iterable[float | None]) -> Table:
    """The thesis's printed top-1 of ResNet-56 on CIFAR-10 beside the cells of both rates that tell them apart.

    Its SynFlow rows are an unpruned network's (released-code reading: NaN drops nothing), so the dense cell stands for them.
    """
    rates, lines, distances = _asked(rates), [], []
    printed = tables.thesis().query("model == 'resnet56' and dataset == 'cifar10'")
    printed = printed.set_index(["method", "compression"])["top1"]
    for (base, ratio), method, compression in _known():
        line = {"printed for": f"{base}, r = {ratio:g}", "cell": f"{method}, r = {compression:g}",
                "printed": f"{printed[base, ratio]:.2f}"}
        ours = {rate: _top1(at_rate(frame, rate), method, compression) for rate in rates}
        lines.append(line | {f"at {rate:g}": NOT_RUN if value is None else f"{value:.2f}" for rate, value in ours.items()})
        if len(rates) > 1 and None not in ours.values():
            distances.append({rate: abs(ours[rate] - printed[base, ratio]) for rate in rates})
    nearer = [min(each, key=each.get) for each in distances]
    counts = _and(f"{rate:g} in {nearer.count(rate)} (median distance "
                  f"{median(each[rate] for each in distances):.2f} points)" for rate in rates) if nearer else NOT_RUN
    return Table(f"ResNet-56 on CIFAR-10, top-1 as the thesis counts (best epoch × {tables.thesis_factor(10_000):.5f})."
                 " The thesis's two SynFlow numbers are an unpruned network's: one cell here serves both. "
                 f"{len(nearer)} of {len(lines)} numbers have cells at both rates; the rate nearer to the printed one: "
                 f"{counts}.{_made(frame)}", pd.DataFrame(lines))


def _made(frame: pd.DataFrame) -> str:
    """The seeds and the precision of the cells that `resnet` shows."""
    cells = pd.DataFrame({(method, float(ratio)) for _, method, ratio in _known()}, columns=["method", "compression"])
    rows = frame[(frame["model"] == "resnet56") & (frame["dataset"] == "cifar10") & frame["top1"].notna()].merge(cells)
    seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
    return f" Seed{'s' * (rows['seed'].nunique() > 1)} {', '.join([seeds, *tables.reduced(rows)])}." if seeds else ""


def _known() -> list[tuple[tuple[str, int], str, int]]:
    """(method and ratio printed, the method and ratio of the cell that it is compared with)."""
    pruned = sorted((method, ratio) for *_, method, ratio in PILOT if ratio > 1)
    return [(("SynFlow", ratio), "Dense", 1) for ratio in (32, 64)] + [
        ((method.removesuffix("@run"), ratio), method, ratio) for method, ratio in pruned]


def _top1(rows: pd.DataFrame, method: str, ratio: float) -> float | None:
    found = rows.loc[(rows["model"] == "resnet56") & (rows["dataset"] == "cifar10") & (rows["method"] == method)
                     & (rows["compression"] == ratio), f"top1{ACCOUNTING['run']}"].dropna()
    return float(found.mean()) if len(found) else None


# ---- The picture

@figures.drawing
def diagram(frame: pd.DataFrame, rates: Iterable[float | None]) -> Figure:
    """`@run` on MNIST, a panel per rate: the thesis's top four as they look everywhere, all other methods faint."""
    rates = _asked(rates)
    dataset = dataset_for(pairs_of(frame), "cnn")
    figure, axes = figures.panels(len(rates))
    parts, counted, column = [], [], f"top1{ACCOUNTING['run']}"
    for rate, axis in zip(rates, axes, strict=True):
        rows = tables.select(_paired(frame, rate, rates), dataset, "cnn")
        rows = rows[rows["epochs"] > 0]
        part, cells = figures.draw_reading(axis, rows, "run", column)
        parts.append(part.assign(learning_rate=rate))
        counted.append(cells)
        for line in axis.get_lines():
            if line.get_label() not in claims.TOP_FOUR:
                line.set_alpha(0.3)
        figures.draw_levels(axis, tables.factor_of(rows, "run") * constant_answer(dataset),
                        rows.loc[rows["method"] == "Dense", column].astype(float).mean())
        by = _by_seeds(frame, rates).replace("compared by ", "")
        axis.set_title(f"learning rate {rate:g}{by}\n({_agreeing(rows)})")
    axes[0].set_ylabel(f"top-1 accuracy (%), best epoch × {tables.factor_of(rows, 'run'):.5f}")
    axes[0].set_ylim(0, 105)
    figure.data = pd.concat(parts, ignore_index=True)
    figures.finish(figure, axes, rows, dataset, "cnn", "@run, the thesis's top four against the rest", counted)
    return figure


def _agreeing(rows: pd.DataFrame) -> str:
    verdicts = [claims.judge(claim, rows, "run")[1] for claim in STATEMENTS]
    if not rows["done"].any():
        return f"{NOT_RUN}: {_there(rows)}"
    return f"bears out {verdicts.count('agrees')} of the thesis's {len(verdicts)} statements"
