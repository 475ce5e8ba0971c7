"""From records to the numbers of the paper: one frame, then tables beside the thesis's own, then its claims.

Everything here reads records or a frame made of them and computes no cell. Two accountings of an accuracy
stand side by side: *plain*, correct / all test images after the last epoch, and *the thesis's*, the best
epoch's (the untrained network included, top-1 and top-5 each on its own) times 0.98892.
"""

import dataclasses
import functools
import hashlib
import html
import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
from scipy import stats

from lib import UserError, methods

# The thesis's order of methods in Tables 4.2-4.5; OBD, which it ran on the CNN only, comes last.
THESIS = ("GlobalMag", "GlobalGrad", "GlobalAct", "GlobalLAP", "LayerMag", "LayerGrad", "LayerAct",
          "LayerLAP", "LAMP", "SNIP", "GraSP", "SynFlow", "Random")
ORDER = (*THESIS, "OBD")
RATIOS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
READINGS = ("run", "written", "published")
STAND_INS = {"mnist": "digits", "cifar10": "shapes10", "cifar100": "shapes100"}
LABELS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100",
          "cnn": "CNN", "vgg16": "VGG-16", "resnet56": "ResNet-56"}
# How a reading's accuracies are counted: `run` as the thesis counts, with whose numbers it is compared.
ACCOUNTING = {"run": "_thesis", "written": "", "published": ""}
DASH = "–"

_RECIPE = ["epochs", "learning_rate", "batch_size", "width", "train_images"]
_COLUMNS = ["dataset", "model", "method", "base", "reading", "compression", "seed", *_RECIPE, "score_images",
            "done", "top1", "top5", "top1_thesis", "top5_thesis", "compression_achieved",
            "compression_released", "collapsed", "empty_layers", "effective_compression", "diverged",
            "precision", "seconds", "test_images"]


# ---- Records to a frame ------------------------------------------------------------------------------------

def thesis_factor(test_images: int) -> float:
    """What the released code multiplies an accuracy with: it divides the short last batch by 128 as well.

    10000 / (79 * 128) = 0.98892 for 10,000 test images (`shrinkbench/experiment/train.py`:185-200).
    """
    return test_images / (math.ceil(test_images / 128) * 128)


def factor_of(rows: pd.DataFrame, reading: str) -> float:
    """The factor in a reading's accuracies: the thesis's for `run`, 1 for the others.

    Where there is no record yet, that of the thesis's own 10,000 test images.
    """
    if not ACCOUNTING[reading]:
        return 1.0
    images = rows["test_images"].astype(float).max()
    return thesis_factor(int(images) if images > 0 else 10_000)


def frame(records: Iterable, cells: Iterable | None = None) -> pd.DataFrame:
    """One row for each record or, with `cells`, for each of these: `done` says whether its record is there.

    Accuracies in percent of the test images: `top1`, `top5` after the last epoch, `top1_thesis` and
    `top5_thesis` by the thesis's accounting. `compression` is the ratio asked for, `compression_achieved`
    counts masks, `compression_released` values, as the released code does. Without a record a row holds NaN.
    """
    if cells is None:
        rows = [_row(record.cell, record) for record in records]
    else:
        found = {record.key: record for record in records}
        rows = [_row(cell, found.get(cell.key)) for cell in cells]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _row(cell, record) -> dict:
    base, _, suffix = cell.method.partition("@")
    row = dataclasses.asdict(cell) | {"base": base, "reading": suffix if suffix in READINGS else "published"}
    if record is None:
        return row | {"done": False}
    report, run = record.report, record.run
    return row | _accuracies(record) | {
        "done": True, "compression_achieved": report["compression"], "collapsed": report["collapsed"],
        "compression_released": report["compression_released"], "empty_layers": len(report["empty_layers"]),
        "effective_compression": report["effective_compression"], "diverged": run.get("diverged"),
        "precision": run.get("precision"), "seconds": run.get("seconds"), "test_images": record.test_images,
    }


def _accuracies(record) -> dict[str, float]:
    """Both accountings of both metrics, in percent; nothing for a record of masks only."""
    accuracies = {}
    for metric in ("top1", "top5") if record.history else ():
        percent = [100 * epoch[metric] / record.test_images for epoch in record.history]
        accuracies[metric] = percent[-1]
        accuracies[f"{metric}_thesis"] = max(percent) * thesis_factor(record.test_images)
    return accuracies


def bases() -> list[str]:
    """Every method of the table, without its reading: in the thesis's order, then OBD, then any other."""
    return list(dict.fromkeys([*ORDER, *(method.base for method in methods.METHODS.values())]))


def classes(dataset: str) -> int:
    """How many classes a data set of the thesis, or its stand-in, has."""
    return 100 if dataset.endswith("100") else 10


def label(name: str) -> str:
    """A data set's or model's name as the thesis prints it; a stand-in says what it stands in for."""
    for real, stand_in in STAND_INS.items():
        if name == stand_in:
            return f"{name} (stand-in for {LABELS[real]})"
    return LABELS.get(name, name)


def dataset_for(pairs: Iterable[str], model: str, count: int = 10) -> str:
    """Which data set of the pairs "dataset/model" plays the thesis's part for `model` with `count` classes.

    The real set if it is there or if nothing is; its stand-in if only that is.
    """
    real = "mnist" if model == "cnn" else f"cifar{count}"
    pairs = set(pairs)
    only_stand_in = f"{real}/{model}" not in pairs and f"{STAND_INS[real]}/{model}" in pairs
    return STAND_INS[real] if only_stand_in else real


def high_ratios(compressions: Iterable[float]) -> tuple[float, float]:
    """The two ratios of the tables: 32 and 64, or a profile's own two largest where it lacks one of these."""
    above = sorted({1.0, *map(float, compressions)})
    return (32.0, 64.0) if {32.0, 64.0} <= set(above) or len(above) < 3 else tuple(above[-2:])


def _pairs(frame: pd.DataFrame) -> list[str]:
    return list((frame["dataset"] + "/" + frame["model"]).unique()) if len(frame) else []


def select(frame: pd.DataFrame, dataset: str, model: str) -> pd.DataFrame:
    """The rows of one data set and model. Raises `UserError` where they mix recipes: no mean would hold."""
    rows = frame[(frame["dataset"] == dataset) & (frame["model"] == model)]
    for column in _RECIPE:
        if rows[column].nunique(dropna=False) > 1:
            found = ", ".join(map(str, rows[column].unique()))
            raise UserError(f"The rows of {model} on {dataset} mix several values of {column} ({found}): "
                            f"choose one first, as in results[results.{column} == {rows[column].iloc[0]}].")
    return rows


def expand(frame: pd.DataFrame) -> pd.DataFrame:
    """Gives every method its point at r = 1, the dense network of its initialisation; the dense rows go."""
    dense, pruned = frame[frame["base"] == "Dense"], frame[frame["base"] != "Dense"]
    if dense.empty or pruned.empty:
        return pruned
    shared = ["dataset", "model", "seed", *_RECIPE]
    wanted = pruned[[*shared, "method", "base", "reading"]].drop_duplicates()
    wanted["dense"] = [methods.dense(method) for method in wanted["method"]]
    dense = dense.drop(columns=["base", "reading"]).rename(columns={"method": "dense"})
    points = wanted.merge(dense, on=[*shared, "dense"])[list(frame.columns)]
    return pd.concat([points, pruned], ignore_index=True)


def coverage(rows: pd.DataFrame, names: Iterable[str], ratios: Iterable[float],
             column: str) -> tuple[int, int]:
    """(k, n): n cells make up these methods and ratios for every seed of `rows`; k of them have a `column`.

    The dense cell of an initialisation counts once, however many methods it serves at r = 1.
    """
    wanted = {(methods.dense(name) if ratio == 1 else name, float(ratio))
              for name in names for ratio in ratios}
    there = rows.dropna(subset=[column])
    keys = set(zip(there["method"], there["compression"].astype(float), there["seed"], strict=True))
    return sum(key[:2] in wanted for key in keys), len(wanted) * max(1, rows["seed"].nunique())


def summary(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """`mean`, `half` (the mean's 95 % interval over seeds by Student's t; NaN for one seed) and `seeds`.

    One row per method and compression asked for; rows without a value are left out.
    """
    groups = rows.dropna(subset=[column]).groupby(["method", "base", "reading", "compression"])[column]
    found = groups.agg(mean="mean", deviation="std", seeds="count").reset_index()
    quantile = stats.t.ppf(0.975, found["seeds"] - 1)
    found["half"] = quantile * found.pop("deviation") / found["seeds"] ** 0.5
    return found


# ---- Tables 4.2-4.5 ----------------------------------------------------------------------------------------

def thesis() -> pd.DataFrame:
    """Tables 4.2-4.5 as printed (`published/thesis.csv`): percent, the thesis's accounting."""
    return _thesis().copy()


@functools.cache
def _thesis() -> pd.DataFrame:
    return pd.read_csv(Path(__file__).parent.parent / "published" / "thesis.csv", dtype={"table": str})


@dataclasses.dataclass(frozen=True)
class Table:
    """A caption and a body of text cells. Columns may have two levels: a group and a name."""

    caption: str
    body: pd.DataFrame

    @property
    def header(self) -> list[str]:
        return [name if isinstance(name, str) else " ".join(filter(None, name)) for name in self.body.columns]

    def csv(self) -> str:
        body = self.body.replace(DASH, "")
        return body.set_axis(self.header, axis=1).to_csv(index=False, lineterminator="\n")

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.body.to_numpy().tolist()]
        cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
        return f"{self.caption}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in cells)

    def latex(self) -> str:
        """A booktabs table; columns of long text become paragraphs."""
        body = self.body.map(_escape)
        long = [any(len(cell) > 36 for cell in body.iloc[:, column]) for column in range(body.shape[1])]
        layout = "".join("p{0.17\\textwidth}" if paragraph else "l" for paragraph in long)
        lines = ["\\begin{table*}", "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
                 f"\\caption{{{_escape(self.caption)}}}",
                 f"\\begin{{tabular}}{{{layout}}}",
                 "\\toprule", *_latex_header(self.body.columns), "\\midrule",
                 *(" & ".join(line) + " \\\\" for line in body.to_numpy().tolist()),
                 "\\bottomrule", "\\end{tabular}", "\\end{table*}", ""]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.caption)}</p>" + self.body.to_html(index=False, border=0)


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", DASH: "--",
               "·": r"$\cdot$", "⌈": r"$\lceil$", "⌉": r"$\rceil$", "±": r"$\pm$", "−": "$-$",
               "÷": r"$\div$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "“": "``", "”": "''",
               **{character: f"\\{character}" for character in "&%$#_{}"}}
    return "".join(special.get(character, character) for character in str(text))


def _latex_header(columns: pd.Index) -> list[str]:
    """One line of column names, under a line of their groups where there are any."""
    names = " & ".join(_escape(column) for column in columns.get_level_values(-1)) + " \\\\"
    if columns.nlevels == 1:
        return [names]
    groups = columns.get_level_values(0)
    spans, rules, start = [], [], 1
    for group in groups.unique():
        width = int((groups == group).sum())
        spans.append(f"\\multicolumn{{{width}}}{{c}}{{{_escape(group)}}}")
        rules += [f"\\cmidrule(lr){{{start}-{start + width - 1}}}"] if group else []
        start += width
    return [" & ".join(spans) + " \\\\", "".join(rules), names]


def write(path: Path | str, content: str | bytes) -> None:
    """Writes a whole file or nothing: to a partial file beside it, then renamed. Raises `UserError`."""
    path = Path(path)
    partial_path = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial_path, path)
    except OSError as error:
        if partial_path.parent.is_dir():
            partial_path.unlink(missing_ok=True)
        raise UserError(f"Cannot write {path}: {error.strerror}. Nothing was left half written; "
                        "make room or choose another outputs folder, and run again.") from error


def save(table: Table, stem: Path | str) -> Table:
    """Writes `stem`.csv, .md and .tex, each whole or not at all, and hands the table back to be shown."""
    for suffix, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
        write(f"{stem}.{suffix}", text)
    return table


def accuracy_table(frame: pd.DataFrame, model: str, *ratios: float) -> Table:
    """Tables 4.2-4.5 and the table of MNIST: the thesis's numbers beside ours, by data set, ratio and method.

    For both metrics: the thesis as printed and divided by 0.98892; `@run` by the thesis's accounting (to be
    compared with what is printed) and plain; `@written` where it exists; published. Then the compression of
    the masks. An en dash marks a cell that is not there, an empty field a number that does not exist.
    """
    sets = [dataset_for(_pairs(frame), model, count) for count in ((10,) if model == "cnn" else (10, 100))]
    parts, blocks = [select(frame, dataset, model) for dataset in sets], []
    for dataset, rows in zip(sets, parts, strict=True):
        blocks += [_block(rows, dataset, model, ratio) for ratio in ratios]
    body = pd.concat(blocks, ignore_index=True)
    if model == "cnn":     # the thesis prints no numbers for MNIST
        body = body.drop(columns=["printed", "corrected"], level=1)
    if len(ratios) == 1:
        body = body.drop(columns="r", level=1)
    at = " and ".join(f"r = {ratio:g}" for ratio in ratios)
    head = f"{label(model)} on {' and '.join(map(label, sets))} at {at}, accuracy in percent."
    notes = [_notes(part, dataset, ratios) for dataset, part in zip(sets, parts, strict=True)]
    if model != "cnn" and not set(ratios) <= set(_thesis()["compression"]):
        head += " The thesis prints r = 32 and 64 only."
    sentences = dict.fromkeys([head, *(note for several in notes for note in several), *_legend(model)])
    return Table(" ".join(sentences), body)


def _block(rows: pd.DataFrame, dataset: str, model: str, ratio: float) -> pd.DataFrame:
    """The rows of one data set and ratio."""
    rows, lines = rows[rows["compression"] == ratio], []
    columns = ("top5", "top5_thesis", "top1", "top1_thesis", "compression_achieved")
    found = {column: summary(rows, column).set_index("method") for column in columns}
    for base in bases():
        run, written = f"{base}@run", f"{base}@written"
        line = {("", "Data set"): LABELS.get(dataset, dataset), ("", "r"): f"{ratio:g}", ("", "Method"): base}
        for metric, group in (("top5", "Top-5"), ("top1", "Top-1")):
            printed, corrected = _printed(dataset, model, ratio, base, metric)
            line |= {(group, "printed"): printed, (group, "corrected"): corrected,
                     (group, "@run as printed"): _cell(found[f"{metric}_thesis"], run),
                     (group, "@run"): _cell(found[metric], run),
                     (group, "@written"): _cell(found[metric], written),
                     (group, "published"): _cell(found[metric], base)}
        for reading, method in (("@run", run), ("published", base)):
            line["Compression", reading] = _cell(found["compression_achieved"], method, interval=False)
        lines.append(line)
    return pd.DataFrame(lines, columns=pd.MultiIndex.from_tuples(lines[0]))


def _printed(dataset: str, model: str, ratio: float, base: str, metric: str) -> tuple[str, str]:
    """The thesis's number, with its asterisk, and the same divided by the factor; empty where it has none."""
    real = {stand_in: real for real, stand_in in STAND_INS.items()}.get(dataset, dataset)
    table = _thesis().set_index(["dataset", "model", "compression", "method"])
    if (real, model, ratio, base) not in table.index:
        return "", ""
    number = table.loc[(real, model, ratio, base)]
    star = "*" if number["starred"] else ""
    return f"{number[metric]:.2f}{star}", f"{number[metric] / thesis_factor(10_000):.2f}"


def _cell(found: pd.DataFrame, method: str, interval: bool = True) -> str:
    """Mean and interval of a method; a dash where it has no cell, nothing where there is no such reading."""
    if method not in methods.METHODS:
        return ""
    if method not in found.index:
        return DASH
    mean, half = found.loc[method, ["mean", "half"]]
    return f"{mean:.2f}" + (f" ± {half:.2f}" if interval and pd.notna(half) else "")


def _notes(rows: pd.DataFrame, dataset: str, ratios: Iterable[float]) -> list[str]:
    """What a reader must know of these rows: how many there are, how trained, with which seeds."""
    k, n = coverage(rows, methods.METHODS, ratios, "top1")
    there = rows[rows["compression"].isin(ratios)].dropna(subset=["top1"])
    facts = ([f"{k} of {n} cells"] if k < n else []) + _recipe(there)
    return [f"{LABELS.get(dataset, dataset)}: {', '.join(facts)}."] + _seeds(there)


def _recipe(there: pd.DataFrame) -> list[str]:
    """How the rows were trained, and what is to be known of it."""
    if there.empty:
        return []
    first = there.iloc[0]
    facts = [f"{first['epochs']} epoch{'s' if first['epochs'] > 1 else ''}",
             f"learning rate {first['learning_rate']:g}"]
    facts += [f"width {first['width']:g}"] if first["width"] != 1 else []
    facts += [f"{first['train_images']:.0f} training images"] if pd.notna(first["train_images"]) else []
    diverged, reduced = int(there["diverged"].notna().sum()), int((there["precision"] != "float32").sum())
    facts += [f"{diverged} cells diverged"] if diverged else []
    return facts + ([f"{reduced} cells not in float32"] if reduced else [])


def _seeds(there: pd.DataFrame) -> list[str]:
    seeds = ", ".join(map(str, sorted(there["seed"].unique())))
    if there["seed"].nunique() < 2:
        return [f"Seed {seeds}."] if seeds else []
    return [f"Mean ± 95 % interval of Student's t over up to {there['seed'].nunique()} seeds ({seeds})."]


def _legend(model: str) -> list[str]:
    """What the columns count, and what the thesis did not do."""
    counted = "the best epoch's accuracy × n/(128·⌈n/128⌉) for n test images, as the thesis counts"
    if model == "cnn":
        return [f"“@run as printed”: {counted}."]
    factor = thesis_factor(10_000)
    return [f"“printed” and “@run as printed”: {counted}; “corrected”: printed ÷ {factor:.5f}.",
            "* starred in the thesis for its compression error.",
            "OBD is not in the thesis's table: OBD@run is what its code would have done."]


# ---- What the thesis claims --------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class View:
    """A frame in one reading, as the claims ask it: means over the seeds that have all the cells asked for.

    `run` counts as the thesis does (best epoch × 0.98892, compression by values), `published` plainly.
    """

    frame: pd.DataFrame
    reading: str
    asked: dict[tuple, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def rows(self, model: str, count: int) -> pd.DataFrame:
        rows = select(self.frame, dataset_for(_pairs(self.frame), model, count), model)
        return rows[(rows["reading"] == self.reading) & (rows["base"] != "Dense")]

    def values(self, column: str, model: str, count: int, bases=THESIS, ratios=None) -> pd.DataFrame:
        """Mean of `column`, one row per method and one column per ratio (by default all above 1).

        Zeros where cells are missing: `asked` then says how many, and no answer made of them counts.
        """
        rows = self.rows(model, count)
        ratios = list(ratios or sorted(rows["compression"].unique()) or RATIOS[1:])
        names = [base if self.reading == "published" else f"{base}@{self.reading}" for base in bases]
        counts = {seed: coverage(part, names, ratios, column) for seed, part in rows.groupby("seed")}
        whole = [seed for seed, (k, n) in counts.items() if k == n]
        best = max(counts.values(), default=(0, len(names) * len(ratios)))
        self.asked[model, count, *names, *ratios] = best
        if not whole:
            return pd.DataFrame(0.0, list(bases), ratios)
        rows = rows[rows["seed"].isin(whole)].astype({column: float})
        return rows.pivot_table(index="base", columns="compression", values=column).loc[list(bases), ratios]

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
        """Whether an accuracy is what one constant answer reaches, give or take 5 % of it."""
        dataset = dataset_for(_pairs(self.frame), model, count)
        return top1 <= 1.05 * constant_answer(dataset) * factor_of(self.rows(model, count), self.reading)


def constant_answer(dataset: str) -> float:
    """Top-1 in percent of always naming the most frequent class: all that a collapsed network can reach."""
    # 1,135 of MNIST's 10,000 test images are ones; the other test sets are balanced.
    return 11.35 if dataset == "mnist" else 100 / classes(dataset)


Answer = tuple[str, bool]


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
    bases = [base for base in THESIS if base != "GraSP"]
    ranks = pd.concat([view.top1("vgg16", count, bases).rank(ascending=False) for count in (10, 100)], axis=1)
    mean = ranks.mean(axis=1).sort_values(kind="stable")
    best = ", ".join(f"{base} {rank:.1f}" for base, rank in mean.head(3).items())
    return f"mean rank: {best}", mean.index[0] == "SNIP"


def under_prunes(view: View, model: str, count: int, base: str, least: float, most: float) -> Answer:
    """Is the median compression error over the ratios, in whole percent, between −`most` and −`least`?"""
    error = view.error(model, count, base)
    obtained = f"median {_percent(error.median())}, from {_percent(error.min())} to {_percent(error.max())}"
    return obtained, -most <= round(error.median()) <= -least


def _percent(value: float) -> str:
    return f"{round(value)} %".replace("-", "−")


def recovers(view: View) -> Answer:
    """Is the error of GraSP and OBD at the largest ratio at least 5 points nearer to 0 than at its worst?"""
    errors = {base: view.error("cnn", 10, base) for base in ("GraSP", "OBD")}
    texts = [f"{base} at worst {_percent(error.min())}, at r = {error.index[-1]:g} {_percent(error.iloc[-1])}"
             for base, error in errors.items()]
    return "; ".join(texts), all(-error.min() - abs(error.iloc[-1]) >= 5 for error in errors.values())


def grasp_matches_snip(view: View) -> Answer:
    """On VGG-16 and CIFAR-10, is GraSP at r = 64 within 5 points of SNIP at r = 32, both above chance?"""
    top1 = view.top1("vgg16", 10, ["SNIP", "GraSP"], [32, 64])
    grasp, snip = top1.loc["GraSP", 64], top1.loc["SNIP", 32]
    alive = not view.at_chance(top1, "vgg16", 10).loc[["GraSP", "SNIP"], [64, 32]].to_numpy().diagonal().any()
    return f"GraSP at 64 {grasp:.2f}, SNIP at 32 {snip:.2f}", alive and abs(grasp - snip) <= 5


def grasp_collapses_early(view: View) -> Answer:
    """On VGG-16 and CIFAR-100, is GraSP at chance level by r = 8?"""
    top1 = view.top1("vgg16", 100, ["GraSP"])
    at_chance = view.at_chance(top1, "vgg16", 100).loc["GraSP"]
    first = min(at_chance.index[at_chance], default=math.inf)
    return "never at chance level" if math.isinf(first) else f"at chance level from r = {first:g}", first <= 8


def grasp_loses_to_snip(view: View) -> Answer:
    """On ResNet-56, does GraSP at r lose to SNIP at r/2 in more than half of the cases?"""
    losses = []
    for count in (10, 100):
        top1 = view.top1("resnet56", count, ["SNIP", "GraSP"])
        ratios = [ratio for ratio in top1.columns if ratio / 2 in top1.columns]
        losses += [top1.loc["GraSP", ratio] < top1.loc["SNIP", ratio / 2] for ratio in ratios]
    return f"loses in {sum(losses)} of {len(losses)}", 2 * sum(losses) > len(losses)


def only_these_collapse(view: View) -> Answer:
    """On ResNet-56, are GlobalAct and Random the methods at chance level at some r, and no other?"""
    failed = set()
    for count in (10, 100):
        at_chance = view.at_chance(view.top1("resnet56", count), "resnet56", count).any(axis=1)
        failed |= set(at_chance.index[at_chance])
    names = ", ".join(base for base in THESIS if base in failed)
    return f"at chance level at some r: {names or 'none'}", failed == {"GlobalAct", "Random"}


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
    """Is every method but the top four at chance level at r = 64? Tells how many masks let nothing pass."""
    others = [base for base in ORDER if base not in TOP_FOUR]
    top1 = view.top1("cnn", 10, others, [64])
    at_chance = view.at_chance(top1, "cnn", 10)[64]
    closed = int((view.values("collapsed", "cnn", 10, others, [64])[64] > 0.5).sum())
    above = ", ".join(f"{base} {top1.loc[base, 64]:.2f}" for base in others if not at_chance[base])
    return (f"{int(at_chance.sum())} of {len(others)} at chance level; above it: {above or 'none'}; "
            f"masks that let nothing pass: {closed}"), bool(at_chance.all())


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the thesis, what it takes to agree with it, and the question that decides."""

    section: str
    text: str
    expected: str
    decide: Callable[[View], Answer]


_VGG = functools.partial(place, model="vgg16")
_HALF = functools.partial(under_prunes, base="GraSP", least=45, most=55)
CLAIMS = (
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
    Claim("4.3", "VGG-16: LAMP is more consistent at high sparsity",
          "LAMP keeps a larger share of its top-1 from r = 32 to 64 than most", lamp_keeps_more),
    Claim("4.3", "VGG-16: SNIP is the most consistent over all ratios",
          "SNIP has the best mean rank, GraSP apart", snip_most_consistent),
    Claim("4.3", "VGG-16: GraSP nearly always under-prunes by 50 %", "median error −45 to −55 %",
          functools.partial(_HALF, model="vgg16", count=10)),
    Claim("4.3", "VGG-16 on CIFAR-10: at its real compression GraSP is about as good as SNIP",
          "GraSP at r = 64 within 5 points of SNIP at r = 32, both above chance", grasp_matches_snip),
    Claim("4.3", "VGG-16 on CIFAR-100: GraSP collapses almost at once", "chance level by r = 8",
          grasp_collapses_early),
    Claim("4.3", "ResNet-56: only GlobalAct and Random collapse", "these two at chance level, no other",
          only_these_collapse),
    Claim("4.3", "ResNet-56: SNIP is best where compression errors are small",
          "SNIP first in at least 3 of 4 columns of top-1, GraSP and SynFlow apart", snip_first_on_resnet),
    Claim("4.3", "ResNet-56: SynFlow hardly prunes", "compression below 2 at the largest r", hardly_prunes),
    Claim("4.3", "ResNet-56: GraSP compresses at half the rate", "median error −45 to −55 %",
          functools.partial(_HALF, model="resnet56", count=10)),
    Claim("4.3", "ResNet-56: GraSP loses to SNIP at half the compression in most cases",
          "GraSP at r below SNIP at r/2 in more than half", grasp_loses_to_snip),
    Claim("4.3", "Most methods lose to random pruning on VGG-16 and ResNet-56", "Random wins more than half",
          most_lose_to_random),
    Claim("4.3", "Magnitude-based methods apart from LAMP rarely beat random pruning",
          "Random wins more than two thirds", magnitude_loses_to_random),
    Claim("4.3", "On CIFAR-100 even SNIP is surpassed by random pruning at some ratios",
          "Random wins at least once", snip_surpassed_by_random),
    Claim("4.2.3, 4.3", "CNN on MNIST: GraSP under-prunes by 30-50 %", "median error −30 to −50 %",
          functools.partial(under_prunes, model="cnn", count=10, base="GraSP", least=30, most=50)),
    Claim("4.2.3, 4.3", "CNN on MNIST: OBD under-prunes by 20-50 %", "median error −20 to −50 %",
          functools.partial(under_prunes, model="cnn", count=10, base="OBD", least=20, most=50)),
    Claim("4.3", "CNN on MNIST: both recover the right compression at higher sparsity",
          "error at the largest r at least 5 points nearer to 0 than at its worst", recovers),
    Claim("4.3", "CNN on MNIST: the top four are GraSP, OBD, GlobalGrad and SNIP",
          "these four first at r = 64", top_four),
    Claim("4.3", "CNN on MNIST: every other method has collapsed by r = 64",
          "the other ten at chance level at r = 64", others_collapsed),
)


def claims(frame: pd.DataFrame) -> pd.DataFrame:
    """The thesis's claims, asked of the `@run` reading (in the thesis's accounting) and the published.

    Columns: section, claim, expected, and for both readings what was obtained and the verdict: agrees,
    disagrees, or not decidable with k of n cells.
    """
    lines = []
    for claim in CLAIMS:
        line = {"section": claim.section, "claim": claim.text, "expected": claim.expected}
        for reading in ("run", "published"):
            name = "@run" if reading == "run" else reading
            line[f"{name}: obtained"], line[f"{name}: verdict"] = judge(claim, frame, reading)
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


def claims_table(frame: pd.DataFrame) -> Table:
    """`claims` under a caption that says how accuracies and compressions were counted, and on which data."""
    found = claims(frame)
    counts = [found[f"{name}: verdict"].value_counts() for name in ("@run", "published")]
    run, published = (f"{count.get('agrees', 0)} agree and {count.get('disagrees', 0)} disagree"
                      for count in counts)
    stand_ins = sorted(set(frame["dataset"]) & set(STAND_INS.values()))
    caption = (f"What the thesis claims, and what these cells say. Of {len(found)} claims, {run} in the @run "
               "reading (best epoch × 0.98892, compression by values, as the thesis counts), "
               f"{published} in the published reading (last epoch, all test images, compression by masks).")
    if stand_ins:
        names = ", ".join(map(label, stand_ins))
        caption += f" Decided on stand-in data, {names}: a rehearsal, not evidence."
    return Table(caption, found)


# ---- Where the numbers come from ---------------------------------------------------------------------------

def progress(frame: pd.DataFrame) -> Table:
    """How many cells of each data set and model are there, and what became of their networks."""
    groups = frame.groupby(["dataset", "model"], sort=False)
    body = pd.DataFrame([{
        "data set": label(dataset), "model": label(model),
        "cells": f"{int(rows['done'].sum())} of {len(rows)}", "trained": int(rows["top1"].notna().sum()),
        "masks that let nothing pass": int(rows["collapsed"].eq(True).sum()),
        "diverged": int(rows["diverged"].notna().sum()),
    } for (dataset, model), rows in groups])
    return Table("What the store holds of the grid", body)


def provenance(frame: pd.DataFrame, store: Path | str) -> Table:
    """What this page was made of: the store and its hash, how many cells, the code's commit, the versions."""
    store = Path(store)
    content = store.read_bytes() if store.is_file() else b""
    lines = {
        "store": f"{store.parent.name}/{store.name}",
        "SHA-256 of the store": hashlib.sha256(content).hexdigest(),
        "cells": f"{int(frame['done'].sum())} of {len(frame)}",
        "precision": ", ".join(sorted(frame["precision"].dropna().unique())) or DASH,
        "commit": _commit() or "not a git checkout",
        "Python": platform.python_version(),
        **{package: importlib.metadata.version(package)
           for package in ("torch", "numpy", "pandas", "scipy", "matplotlib")},
    }
    return Table("Provenance", pd.DataFrame(lines.items(), columns=["what", "value"]))


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
