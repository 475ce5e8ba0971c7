"""What was found, for the README: computed from the committed stores. `python -m lib.readme` writes it there."""

import re
import sys

import pandas as pd

from lib import atlas, audit, claims, profile, tables
from lib.profile import ROOT
from lib.store import Store

README = ROOT / "README.md"
BEGIN, END = "<!-- found: written by python -m lib.readme -->\n", "<!-- end of what was found -->\n"


def found() -> str:
    """The block of the README: one figure, what the store of MNIST says, and how far the other stores are."""
    mnist, masks = _frame("mnist"), _frame("masks")
    return "\n".join([
        "![Top-1 accuracy over compression of every method on MNIST](outputs/mnist/figures/figure-4.11.png)", "",
        f"**The CNN on MNIST** ({_done(mnist)}; seed {_listed(mnist['seed'].unique())}; top-1 in percent; always "
        f"answering the most frequent class gives {claims.constant_answer('mnist'):g}):", "",
        *map(_ranking, ("published", "run"), (mnist, mnist)), "",
        "| the thesis says | `@run`, as its code computed it | published, as the methods are defined |",
        "|---|---|---|", *_verdicts(mnist, "CNN"), "",
        f"**Masks of the real networks, without training** ({_done(masks)}; seeds {_listed(masks[masks['done'] & (masks['base'] != 'Dense')]['seed'].unique())}):", "",
        *_collapse(), "",
        "| the thesis says | `@run`, as its code computed it | published, as the methods are defined |",
        "|---|---|---|", *_verdicts(masks, "VGG-16", "ResNet-56"), "",
        f"**CIFAR** ({_done(_frame('paper'))}): " + _undecided(masks, _frame("paper")), ""])


def _frame(name: str) -> pd.DataFrame:
    """A profile's cells at its main learning rate, from the committed store, wherever a run may put its own."""
    grid = profile.load(name)
    frame = tables.frame(Store(ROOT / "outputs" / name / "results.jsonl").records.values(), grid.cells())
    return tables.at_rate(frame, grid.learning_rate)


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
    names = [f"{base} {value:.1f}"
             + (f" (at {view.compression('cnn', 10, base)[ratio]:.1f})" if reading == "run" else "")
             for base, value in above.items()]
    return f"- {title}: of {n} methods asked for r = {ratio:g}, {len(above)} train to more than chance: {_listed(names)}."


def _collapse() -> list[str]:
    """What the masks say of the entries at chance level, and how far the methods prune before collapse."""
    folder = ROOT / "outputs" / "masks"
    masks = atlas.masks(Store(folder / "results.jsonl").records.values())
    critical = atlas.answers(Store(folder / "audit.jsonl", audit.Answer).records.values(), "critical")
    return [f"- {line}" for line in (atlas.chance_table(masks).caption, *atlas.maximal(critical))]


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


def replaced(text: str) -> str:
    """The README's text with the block as the stores have it now."""
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: BEGIN + found() + END, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
