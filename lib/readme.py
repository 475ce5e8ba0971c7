"""What was found, for the README: computed from the committed stores. `python -m lib.readme` writes it there."""

import re
import sys

import pandas as pd

from lib import atlas, claims, precision, profile, rates, shift, significance, tables, training
from lib.data import constant_answer
from lib.profile import ROOT
from lib.store import Store
from lib.study import Answer

README = ROOT / "README.md"
BEGIN, END = "<!-- found: written by python -m lib.readme -->\n", "<!-- end of what was found -->\n"
TRAINED, END_TRAINED = "<!-- trained out: written by python -m lib.readme -->\n", "<!-- end of trained out -->\n"


def found() -> str:
    """The block of the README: one figure, what the store of MNIST says, and how far the other stores are."""
    mnist, masks = _frame("mnist"), _frame("masks")
    return "\n".join([
        "![Top-1 accuracy over compression of every method on MNIST](outputs/mnist/figures/figure-4.11.png)", "",
        f"**The CNN on MNIST** ({_done(mnist)}; {_seeds(mnist)}; top-1 in percent; always "
        f"answering the most frequent class gives {constant_answer('mnist'):g}):", "",
        *map(_ranking, ("published", "run"), (mnist, mnist)),
        "- What a seed alone moves, by a paired t-test over seeds with Holm's correction:",
        *(f"  - {significance.survives(significance.compare(mnist, 'mnist', 'cnn', reading))}"
          for reading in ("published", "run")),
        f"- {rates.verdict_on(*_at_both_rates('mnist'))}", "",
        "| the thesis says | `@run`, as its code computed it | published, as the methods are defined |",
        "|---|---|---|", *_verdicts(mnist, "CNN"), "",
        f"**Masks of the real networks, without training** ({_done(masks)}; {_seeds(masks)}):", "",
        *_collapse(), "",
        "| the thesis says | `@run`, as its code computed it | published, as the methods are defined |",
        "|---|---|---|", *_verdicts(masks, "VGG-16", "ResNet-56"), "",
        f"**CIFAR** ({_done(_frame('paper'))}): " + _undecided(masks, _frame("paper")), "", *_cifar(), ""])


def caveat() -> str:
    """Whether the recipe's epochs are trained out, as far as MNIST says it."""
    grid = profile.load("mnist")
    history = training.histories(_records("mnist"), grid.cells())
    return training.sentence(history, "mnist", "cnn", (grid.learning_rate, grid.text_learning_rate)) + "\n"


def _records(name: str) -> list:
    """What the committed store holds, wherever a run may put its own."""
    return list(Store(ROOT / "outputs" / name / "results.jsonl").records.values())


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
    return f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds) or 'none yet'}"


def _done(frame: pd.DataFrame) -> str:
    return f"{int(frame['done'].sum())} of {len(frame)} cells computed"


def _listed(items) -> str:
    return ", ".join(map(str, items))


def _ranking(reading: str, frame: pd.DataFrame) -> str:
    """A line: what is above chance at the largest ratio, in order, with what `@run` really compressed."""
    view, ratio = claims.View(frame, reading), frame["compression"].max()
    title = ("As **published**, at the exact compression" if reading == "published"
             else "As the released code **ran** them (in brackets the compression that was reached)")
    top1 = view.top1("cnn", 10, tables.ORDER, [ratio])
    k, n = next(iter(view.asked.values()))
    if k < n:
        return f"- {title}, r = {ratio:g}: {k} of {n} cells."
    above = top1[~view.at_chance(top1, "cnn", 10)[ratio]][ratio].sort_values(ascending=False, kind="stable")
    halves = view.halves(f"top1{tables.ACCOUNTING[reading]}", "cnn", 10, tables.ORDER, [ratio])[ratio]
    names = [f"{base} {value:.1f}" + (f" ± {halves[base]:.1f}" if pd.notna(halves[base]) else "")
             + (f" (at {view.compression('cnn', 10, base)[ratio]:.1f})" if reading == "run" else "")
             for base, value in above.items()]
    interval = " (± 95 % interval of Student's t over seeds)" if halves.notna().any() else ""
    return (f"- {title}: of {n} methods asked for r = {ratio:g}, {len(above)} train to more than chance{interval}: "
            f"{_listed(names)}.")


def _collapse() -> list[str]:
    """What the masks say of the entries at chance level, and how far the methods prune before collapse."""
    folder = ROOT / "outputs" / "masks"
    masks = atlas.masks(Store(folder / "results.jsonl").records.values())
    critical = atlas.answers(Store(folder / "audit.jsonl", Answer).records.values(), "critical")
    meaning = ("ρ is n, the prunable weights, over those that are kept; ρ_cr the largest up to which a path from input to "
               "output is left (published methods, first seed). A chain of L layers allows at most ρ_max = n/L, one weight "
               "a layer. On the logarithmic scale below 1.00 is ρ_max, 0 the unpruned network.")
    return [f"- {line}" for line in (atlas.chance_table(masks).caption, meaning, *atlas.maximal(critical))]


def _verdicts(frame: pd.DataFrame, *networks: str) -> list[str]:
    """A line of the table for each claim about these networks that the cells decide."""
    lines = []
    for claim in claims.CLAIMS:
        answers = [claims.judge(claim, frame, reading) for reading in ("run", "published")]
        if any(name in claim.text for name in networks) and any(obtained != tables.DASH for obtained, _ in answers):
            cells = [verdict if obtained == tables.DASH else f"{verdict}: {obtained}" for obtained, verdict in answers]
            lines.append(f"| {claim.text.removeprefix('CNN on MNIST: ')} | {' | '.join(cells)} |")
    return lines


def _undecided(*frames: pd.DataFrame) -> str:
    asked = [claim for claim in claims.CLAIMS if "CNN" not in claim.text]
    open_ones = sum(all(claims.judge(claim, frame, "run")[0] == tables.DASH for frame in frames) for claim in asked)
    return (f"{open_ones} of the {len(asked)} claims about VGG-16 and ResNet-56 cannot be decided yet in the `@run` "
            "reading, and Tables 4.2-4.5 and Figures 4.1-4.10 say \"k of n cells\" where cells are missing.")


def _cifar() -> list[str]:
    """What the trained CIFAR cells say so far: of the learning rate, of the tables, of their precision and tests."""
    frame, both = _at_both_rates("paper")
    agreement = tables.agreement(tables.at_rate(frame, both[0])).body.set_index(["table", "network", "r"])
    there = agreement[~agreement["cells"].str.startswith("0 of")]
    lines = [f"- Table {table}, {network}, `@run` beside the printed numbers, {line['cells']} cells: median difference of "
             f"top-1 {line['top-1: median difference']} points, rank correlation {line['top-1: rank correlation']}; of the "
             f"entries at chance in either, {line['top-1: chance coincides']} are so in both."
             for (table, network, _), line in there.iterrows()]
    shorter = Store(ROOT / "outputs" / "paper" / "precision.jsonl").records.values()
    compared = precision.comparison([*_records("paper"), *shorter]).caption
    silent = shift.silent(_records("paper"), both[0]).caption
    return [rates.resnet(frame, both).markdown(), *lines, f"- {compared}", f"- {silent}"]


def replaced(text: str) -> str:
    """The README's text with its blocks as the stores have them now."""
    for begin, write, end in ((BEGIN, found, END), (TRAINED, caveat, END_TRAINED)):
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: begin + write() + end, text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
