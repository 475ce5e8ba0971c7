"""What was found, for the README: computed from the committed stores.

`python -m lib.readme` writes it there, and the claims, each with what decides it, to outputs/claims.md.
"""

import argparse
import re
import sys

import pandas as pd

from lib import UserError, atlas, claims, earlier, methods, precision, profile, rates, shift, significance, tables, training
from lib.profile import ROOT
from lib.store import Store
from lib.study import Answer

README = ROOT / "README.md"
CLAIMS = "outputs/claims.md"
ANSWER, END_ANSWER = "<!-- answer: written by python -m lib.readme -->\n", "<!-- end of the answer -->\n"
BEGIN, END = "<!-- found: written by python -m lib.readme -->\n", "<!-- end of what was found -->\n"
TRAINED, END_TRAINED = "<!-- epochs: written by python -m lib.readme -->\n", "<!-- end of epochs -->\n"
HOURS = re.compile(r"(<!-- hours: (\w+) -->)[^|;,]*?( ?[|;,])")   # in a table, up to the end of its cell or part


def answer() -> str:
    """The block at the head of the README: the answer in short, and one figure."""
    mnist, masks, paper = map(_frame, ("mnist", "masks", "paper"))
    return "\n".join([
        *_short(mnist, masks, paper), "",
        "![Top-1 accuracy over compression of every method on MNIST](outputs/mnist/figures/figure-4.11.png)", "",
        f"*Left as released, right as published. {_under_pruned(mnist)}*", ""])


def found() -> str:
    """The block of the results: what the stores say, and how far they are."""
    mnist, masks, paper = map(_frame, ("mnist", "masks", "paper"))
    return "\n".join([
        "### The CNN on MNIST", "", f"{_done(mnist)}; {_seeds(mnist)}; all 14 methods.", "",
        *map(_ranking, ("published", "run"), (mnist, mnist)),
        *(f"- {_capital(significance.survives(significance.compare(mnist, 'mnist', 'cnn', reading)))}"
          for reading in ("published", "run")), "",
        "### Masks of the real networks, without training", "", f"{_done(masks)}; {_seeds(masks)}.", "",
        *_masks(masks), "",
        "### CIFAR", "",
        f"{_done(paper)}{_reduced(paper)}. Where cells are missing, tables and figures say \"k of n cells\".", "",
        *_cifar(), "",
        "### The thesis's claims", "", f"{_claims().caption} [All of them, with what was found]({CLAIMS}).", "",
        "Tables and figures: " + "; ".join(_links(name) for name in ("mnist", "masks", "paper")) + ".", ""])


def _short(mnist: pd.DataFrame, masks: pd.DataFrame, paper: pd.DataFrame) -> list[str]:
    """The answer in six lines."""
    undecided, (counted, above) = _verdicts(_claims().body, "not").all(axis=1), _above("published", mnist)
    lost, verdict = _asked(mnist, "Magnitude-based methods do worse")
    elsewhere = _asked(paper, "rarely beat random pruning")[1]
    return [
        "1. **As released, GraSP and OBD prune less than they are asked to.** Their scores are signed, and a mask made for "
        "unsigned scores keeps both tails. Compression error of GraSP for VGG-16 on CIFAR-10: "
        f"{_obtained(masks, 'GraSP nearly always under-prunes')}; of OBD on the CNN: "
        f"{_obtained(masks, 'OBD under-prunes by 20-50 %')}.",
        "2. **As released, SynFlow runs one round in place of a hundred, in float32.** That cuts all paths of VGG-16 early "
        f"({_obtained(masks, 'SynFlow is sometimes among the first')}). On ResNet-56 it overflows and prunes nothing "
        f"({_obtained(masks, 'SynFlow hardly prunes')}): its numbers there are an unpruned network's.",
        f"3. **As published, at the exact compression, on MNIST at r = {mnist['compression'].max():g}: {counted}**"
        f"{', first ' * bool(above)}{'; '.join(above[:2])}.",
        "4. **Are magnitude-based methods worse than random pruning \"in a large percentage of test cases\", as the "
        f"abstract says?** MNIST {verdict} (as run, {lost}); CIFAR: {elsewhere}.",
        "5. **On VGG-16, dropout blurs what a test says of a mask.** BatchNorm's running statistics are gathered with "
        f"dropout and used in tests, without it. {shift.told(_records('paper'), profile.load('paper').learning_rate)}",
        f"6. **{_done(paper).replace('cells', 'cells of CIFAR are')}**, so {int(undecided.sum())} of the {len(undecided)} "
        "claims of the thesis that are asked here are open."]


def _under_pruned(mnist: pd.DataFrame) -> str:
    """Which methods stand in the figure at a ratio that they did not reach."""
    view, ratio = claims.View(mnist, "run"), mnist["compression"].max()
    reached = view.compression("cnn", 10, claims.HESSIAN)[ratio]
    told = " and ".join(f"{base} {value:.1f}" for base, value in reached.items())
    return f"On the left GraSP and OBD are plotted at the ratio asked for but reached less: for {ratio:g}, {told}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def caveat() -> str:
    """Whether the recipe's epochs are enough, as far as MNIST says it."""
    grid = profile.load("mnist")
    history = training.histories(_records("mnist"), grid.cells())
    return training.sentence(history, "mnist", "cnn", (grid.learning_rate, grid.text_learning_rate)) + "\n"


def _records(name: str, kind: str = "results") -> list:
    """What a committed store holds, wherever a run may put its own."""
    return list(Store(ROOT / "outputs" / name / f"{kind}.jsonl").records.values())


def _at_both_rates(name: str) -> tuple[pd.DataFrame, tuple[float | None, ...]]:
    grid = profile.load(name)
    return tables.frame(_records(name), grid.cells()), (grid.learning_rate, grid.text_learning_rate)


def _frame(name: str) -> pd.DataFrame:
    """A profile's cells at its main learning rate."""
    frame, (rate, _) = _at_both_rates(name)
    return tables.at_rate(frame, rate)


def _seeds(frame: pd.DataFrame) -> str:
    """The seeds that have pruned cells: those of the unpruned networks alone say nothing of a method."""
    seeds = frame.loc[frame["done"] & (frame["base"] != "Dense"), "seed"].unique()
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds)) or 'none yet'}"


def _done(frame: pd.DataFrame) -> str:
    return f"{int(frame['done'].sum())} of {len(frame)} cells computed"


def _reduced(frame: pd.DataFrame) -> str:
    return "".join(f", {fact}" for fact in tables.reduced(frame))


def _ranking(reading: str, frame: pd.DataFrame) -> str:
    """A line: what is above chance at the largest ratio, in order, with what `@run` really compressed."""
    title = ("**Published**, at the exact compression" if reading == "published" else
             "**As run**, at the compression that was really reached")
    counted, told = _above(reading, frame)
    return f"- {title}: asked for r = {frame['compression'].max():g}, {counted}{': ' * bool(told)}{'; '.join(told)}."


def _above(reading: str, frame: pd.DataFrame) -> tuple[str, list[str]]:
    """Of the methods on MNIST at the largest ratio, how many are above chance, and their accuracies."""
    view, ratio = claims.View(frame, reading), frame["compression"].max()
    found = view.summary(f"top1{tables.ACCOUNTING[reading]}", "cnn", 10, ratio, tables.ORDER)
    k, n = next(iter(view.asked.values()))
    if k < n:
        return f"{k} of {n} cells are computed", []
    above = found[~view.at_chance(found["mean"], "cnn", 10)].sort_values("mean", ascending=False, kind="stable")
    return (f"{len(above)} of {n} methods are above chance on the mean over seeds",
            [_told(base, line, view, ratio) for base, line in above.iterrows()])


def _told(base: str, line: pd.Series, view: claims.View, ratio: float) -> str:
    """A method's mean and interval, or the range of its seeds where one of them is at chance."""
    dead = bool(view.at_chance(line["least"], "cnn", 10))
    reached = f" at {view.compression('cnn', 10, [base]).loc[base, ratio]:.1f}" if view.reading == "run" else ""
    return f"{base} {line['mean']:.1f}{tables.spread(line, digits=1, ranged=dead)}{reached}"


def _masks(frame: pd.DataFrame) -> list[str]:
    """What was compressed less than asked, what masks say of the entries at chance, and how far the methods prune."""
    folder = ROOT / "outputs" / "masks"
    masks = atlas.masks(Store(folder / "results.jsonl").records.values())
    critical = atlas.answers(Store(folder / "audit.jsonl", Answer).records.values(), "critical")
    errors = "; ".join(f"{whose}: {_obtained(frame, text)}" for whose, text in (
        ("GraSP on VGG-16 and CIFAR-10", "GraSP nearly always under-prunes"),
        ("on ResNet-56 and CIFAR-10", "GraSP compresses at half the rate"), ("on the CNN", "GraSP under-prunes by 30-50 %"),
        ("OBD on the CNN", "OBD under-prunes by 20-50 %")))
    return [
        f"- Error of the compression as run, counted as the thesis counts: {errors}. Published masks are exact.",
        f"- {atlas.chance_table(masks).caption}",
        f"- How far do the published methods (SynFlow in {methods.get('SynFlow').rounds} rounds) prune before no path is "
        "left? ρ = n / kept, of the n prunable weights; ρ_cr is the largest at and below which a path is left. The limit is "
        "ρ_max = n/L, one weight in each of L layers. On the scale log ρ / log ρ_max it is 1, the unpruned network 0 "
        "(first seed; [all](outputs/masks/tables/07-critical.md)).",
        *(f"  - {line}" for line in atlas.maximal(critical, 3))]


def _obtained(frame: pd.DataFrame, text: str) -> str:
    """What the one claim of these words finds in the `@run` reading."""
    obtained, verdict = _asked(frame, text)
    return verdict if obtained == tables.DASH else obtained


def _asked(frame: pd.DataFrame, text: str) -> tuple[str, str]:
    """The same, and the verdict."""
    [claim] = [claim for claim in claims.CLAIMS if text in claim.text]
    return claims.judge(claim, frame, "run")


def _cifar() -> list[str]:
    """What the trained CIFAR cells say so far: of the learning rate, of the tables, of their precision and tests."""
    (frame, both), mnist = _at_both_rates("paper"), _at_both_rates("mnist")
    return [tables.Table(
                "`@run`, counted as the thesis counts, beside its printed top-1 accuracies, over the entries that are "
                "computed (each the mean of its seeds). “Both at chance”: of the entries at chance in either.",
                _agreement(tables.at_rate(frame, both[0]))).markdown(),
            f"- The learning rate: the thesis's text says {both[1]:g}, its code's default is {both[0]:g}. "
            f"{rates.resnet(frame, both).caption} [Number by number](outputs/paper/tables/resnet-rates.md). "
            f"{_capital(rates.deciding(*mnist))}.",
            f"- {precision.comparison([*_records('paper'), *_records('paper', 'precision')]).caption}",
            f"- {shift.silent(_records('paper'), both[0]).caption} [Method by method](outputs/paper/tables/retested.md).",
            "- Which state of the released code made the thesis's numbers of SNIP and GraSP on VGG-16? "
            f"{earlier.comparison([*_records('paper'), *_records('paper', 'earlier')]).caption} "
            "[Beside the printed numbers](outputs/paper/tables/earlier.md)."]


def _agreement(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each printed table that has a cell: how far the numbers of top-1 agree."""
    found = tables.agreement(frame).body
    found = found[~found["cells"].str.startswith("0 of")]
    link = found["table"].map(lambda number: f"[{number}](outputs/paper/tables/table-{number}.md)")
    names = {"network": "network", "r": "r", "cells": "entries", "top-1: median difference": "median difference",
             "top-1: largest": "largest", "top-1: rank correlation": "rank correlation",
             "top-1: chance coincides": "both at chance"}
    return found[list(names)].rename(columns=names).assign(table=link)[["table", *names.values()]]


def _claims() -> tables.Table:
    """Every claim, asked in both readings of the first store that decides it."""
    frames, lines = {name: _frame(name) for name in ("mnist", "masks", "paper")}, []
    for claim in claims.CLAIMS:
        line = {"section": claim.section, "the thesis says": claim.text, "agrees if": claim.expected}
        for reading, name in (("run", "@run"), ("published", "published")):
            answers = {store: claims.weighed(claim, frame, reading) for store, frame in frames.items()}
            store = next((store for store, (obtained, _) in answers.items() if obtained != tables.DASH), None)
            line[f"{name}: verdict"], line[f"{name}: found"] = (
                (answers[store][1], f"{answers[store][0]} [{store}]") if store else ("not decidable yet", tables.DASH))
        lines.append(line)
    body = pd.DataFrame(lines)
    told = "; ".join(f"{name}: {claims.counted(body[f'{name}: verdict'])}" for name in ("@run", "published"))
    return tables.Table(f"Of {len(body)}, {told}.", body)


def claims_page() -> str:
    """outputs/claims.md: what is contradicted first, then what is borne out, and what is open as a list."""
    paper, claimed, columns = _frame("paper"), _claims(), ["section", "the thesis says", "agrees if", "@run", "published"]
    body = claimed.body
    against, undecided = _verdicts(body, "disagrees").any(axis=1), _verdicts(body, "not").all(axis=1)
    body = body.assign(**{name: body[f"{name}: verdict"] + (": " + body[f"{name}: found"]).replace(f": {tables.DASH}", "")
                          for name in ("@run", "published")})
    return "\n".join([
        "# What the thesis claims, and what the cells say", "",
        "Written by `python -m lib.readme` from the stores; in square brackets the store that decides. Accuracies: top-1 in "
        "percent, for `@run` as the thesis counts. With several seeds a verdict is on their means; where seeds taken "
        "alone differ, it is said how many agree. “Apart”: left out of the ranking. “Does not arise”: published masks are "
        "exact by definition, so a claim about compression errors is moot there, as is one about the numbers that the "
        "released code gave. A network has collapsed if its mask lets nothing pass (of several seeds: in most); it is "
        "at chance up to a twentieth above what one constant answer reaches. "
        f"The paper store: {_done(paper)}{_reduced(paper)}; a verdict that says bf16 rests on trainings in bf16 (“in part”: "
        "in float32 too); the README says what that changes.", "",
        claimed.caption, "",
        tables.Table("## Contradicted in at least one reading", body.loc[against, columns]).markdown(),
        tables.Table("## Contradicted in neither reading", body.loc[~(against | undecided), columns]).markdown(),
        "## Not decidable yet", "", "These ask for cells that are not computed.", "",
        *(f"- {line['section']}: {line['the thesis says']}. Agrees if: {line['agrees if']}."
          for _, line in body[undecided].iterrows()), ""])


def _verdicts(claimed: pd.DataFrame, begin: str) -> pd.DataFrame:
    """Of each claim, in both readings: does the verdict begin so?"""
    return claimed[["@run: verdict", "published: verdict"]].map(lambda verdict: verdict.startswith(begin))


def _links(name: str) -> str:
    return f"{name} ([tables](outputs/{name}/tables), [figures](outputs/{name}/figures))"


def hours(whose: str) -> str:
    """What cells cost, by the seconds that the stores have measured on processors: all of a profile (`mnist`, `masks`), the
    studies of 07_audit (`studies`), or one seed of a notebook's methods on MNIST at its main rate."""
    if whose == "studies":
        seconds = [answer.run["seconds"] for answer in Store(ROOT / "outputs/masks/audit.jsonl", Answer).records.values()]
        return f"{sum(seconds) / 3600:.0f} core hours"
    name = whose if whose in profile.names() else "mnist"
    grid = profile.load(name)
    cells = {cell for cell in grid.cells() if name == whose or (
        cell.learning_rate == grid.learning_rate and methods.get(cell.method).base in profile.NOTEBOOKS[whose])}
    seconds = [each.run["seconds"] for each in _records(name) if each.cell in cells and each.run["device"] == "cpu"]
    count, suffix = (len(cells), "") if name == whose else (len(cells) / len(grid.seeds), " a seed")
    return f"{sum(seconds) / len(seconds) * count / 3600:.{0 if name == whose else 1}f} core hours{suffix}"


def replaced(text: str) -> str:
    """The README's text with its blocks and its hours as the stores have them now."""
    for begin, write, end in ((ANSWER, answer, END_ANSWER), (BEGIN, found, END), (TRAINED, caveat, END_TRAINED)):
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: begin + write() + end, text, flags=re.DOTALL)
    return HOURS.sub(lambda found: found[1] + hours(found[2]) + found[3], text)


def main() -> int:
    """The command line, which takes no argument; returns the exit code."""
    argparse.ArgumentParser(prog="python -m lib.readme", description=__doc__).parse_args()
    try:
        tables.write(README, replaced(README.read_text(encoding="utf-8")))
        tables.write(ROOT / CLAIMS, claims_page())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
