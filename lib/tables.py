"""From records to the numbers of the paper: one frame, then tables beside the thesis's own.

Everything here reads records or a frame made of them and computes no cell. Two accountings of an accuracy
stand side by side: *plain*, correct / all test images after the last epoch, and *the thesis's*, the best
epoch's (the untrained network included, top-1 and top-5 each on its own) times 0.98892.
"""

import contextlib
import dataclasses
import functools
import hashlib
import html
import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from pandas.api.typing import SeriesGroupBy
from scipy import stats

from lib import UserError, methods
from lib.data import at_chance

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
SHOWN = ("† from another cell's training, in at least one seed: the masks differ in less than 0.1 % of the kept weights, so "
         "one network was trained for both (@run and published, where their score is the same; the unpruned network and "
         "SynFlow@run, where the latter drops nothing).")
RANGE = "where that would include impossible values, the range of the seeds"

_RECIPE = ["epochs", "learning_rate", "batch_size", "width", "train_images"]
_COLUMNS = ["dataset", "model", "method", "base", "reading", "compression", "seed", *_RECIPE, "score_images",
            "done", "top1", "top5", "top1_thesis", "top5_thesis", "compression_achieved",
            "compression_released", "collapsed", "empty_layers", "effective_compression", "diverged",
            "precision", "device", "trained_as", "seconds", "test_images"]


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
    counts masks, `compression_released` values, as the released code does. `trained_as` names the method whose training
    is shown, where that is another's (`experiment.served`). Without a record a row holds NaN.
    """
    if cells is None:
        rows = [_row(record.cell, record) for record in records]
    else:
        found = {record.key: record for record in records}
        rows = [_row(cell, found.get(cell.key)) for cell in cells]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _row(cell, record) -> dict:
    method = methods.get(cell.method)
    row = dataclasses.asdict(cell) | {
        "base": method.base, "reading": method.reading if method.reading in READINGS else "published"}
    if record is None:
        return row | {"done": False}
    report, run = record.report, record.run
    return row | accuracies(record) | {
        "done": True, "compression_achieved": report["compression"], "collapsed": report["collapsed"],
        "compression_released": report["compression_released"], "empty_layers": len(report["empty_layers"]),
        "effective_compression": report["effective_compression"], "diverged": run.get("diverged"),
        **{fact: run.get(fact) for fact in ("precision", "device", "trained_as", "seconds")},
        "test_images": record.test_images,
    }


def accuracies(record) -> dict[str, float]:
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


def label(name: str) -> str:
    """A data set's or model's name as the thesis prints it; a stand-in says what it stands in for."""
    for real, stand_in in STAND_INS.items():
        if name == stand_in:
            return f"{name} (stand-in for {LABELS[real]})"
    return LABELS.get(name, name)


def network_label(dataset: str, model: str) -> str:
    """A network and what it is trained on, as titles and tables have it."""
    return f"{label(model)} on {label(dataset)}"


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


def pairs_of(frame: pd.DataFrame) -> list[str]:
    """The "dataset/model" pairs of a frame, in order."""
    return list((frame["dataset"] + "/" + frame["model"]).unique()) if len(frame) else []


def at_rate(frame: pd.DataFrame, rate: float) -> pd.DataFrame:
    """The rows of one learning rate: a store may hold a second one, which no table or figure of the main one may count."""
    return frame[frame["learning_rate"] == rate]


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
    """The `intervals` over seeds: one row per method and compression asked for; rows without a value are left out."""
    groups = rows.dropna(subset=[column]).groupby(["method", "base", "reading", "compression"])[column]
    factor = factor_of(rows, "run" if column.endswith(ACCOUNTING["run"]) else "published")
    return intervals(groups, 100 * factor).reset_index()


def intervals(groups: SeriesGroupBy, ceiling: float) -> pd.DataFrame:
    """Of each group, a value per seed: `mean`, `half` (the mean's 95 % interval by Student's t; NaN for one seed), how many
    `seeds`, the `least` and `most` of a seed, and `ranged`: whether the interval leaves 0 to `ceiling`, as no accuracy can.
    It then tells nothing, and the range of the seeds is told in its place."""
    found = groups.agg(mean="mean", deviation="std", seeds="count", least="min", most="max")
    found["half"] = stats.t.ppf(0.975, found["seeds"] - 1) * found.pop("deviation") / found["seeds"] ** 0.5
    return found.assign(ranged=(found["mean"] - found["half"] < 0) | (found["mean"] + found["half"] > ceiling))


def spread(found: pd.Series, digits: int = 2, ranged: bool = False) -> str:
    """What follows the mean of accuracies in a table: ± half of the interval, or (always, if `ranged`) the range of the
    seeds in brackets, or, of one seed, nothing."""
    if pd.notna(found["half"]) and (ranged or found["ranged"]):
        return f" ({found['least']:.{digits}f} to {found['most']:.{digits}f})"
    return f" ± {found['half']:.{digits}f}" if pd.notna(found["half"]) else ""


def over(seeds: pd.Series) -> str:
    """Over how many seeds means are, some of which may be over fewer."""
    most = int(seeds.max())
    return f"{most} seeds" if (seeds == most).all() else f"up to {most} seeds"


# ---- Tables 4.2-4.5 ----------------------------------------------------------------------------------------

def thesis() -> pd.DataFrame:
    """Tables 4.2-4.5 as printed (`published/thesis.csv`): percent, the thesis's accounting."""
    return _thesis().copy()


def printed_at_chance() -> pd.DataFrame:
    """The entries of Tables 4.2-4.5 whose top-1 is at chance level in the thesis's accounting."""
    printed, factor = thesis(), thesis_factor(10_000)
    return printed[[at_chance(top1, dataset, factor=factor) for top1, dataset in zip(printed["top1"], printed["dataset"])]]


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
        """A booktabs table; columns of long text become paragraphs, and many columns are shrunk (graphicx) to the page."""
        body, wide = self.body.map(_escape), self.body.shape[1] > 10
        long = [any(len(cell) > 36 for cell in body.iloc[:, column]) for column in range(body.shape[1])]
        layout = "".join("p{0.17\\textwidth}" if paragraph else "l" for paragraph in long)
        lines = ["\\begin{table*}", "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
                 f"\\caption{{{_escape(self.caption)}}}", *["\\resizebox{\\textwidth}{!}{%"] * wide,
                 f"\\begin{{tabular}}{{{layout}}}",
                 "\\toprule", *_latex_header(self.body.columns), "\\midrule",
                 *(" & ".join(line) + " \\\\" for line in body.to_numpy().tolist()),
                 "\\bottomrule", "\\end{tabular}" + "}" * wide, "\\end{table*}", ""]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        body = "" if self.body.empty else self.body.to_html(index=False, border=0)
        return f"<p>{html.escape(self.caption)}</p>{body}"


def _escape(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", DASH: "--",
               "·": r"$\cdot$", "⌈": r"$\lceil$", "⌉": r"$\rceil$", "±": r"$\pm$", "−": "$-$",
               "÷": r"$\div$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "†": r"$\dagger$", "ρ": r"$\rho$",
               "“": "``", "”": "''", **{character: f"\\{character}" for character in "&%$#_{}"}}
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
        with contextlib.suppress(OSError):   # where the folder is no folder, or read-only
            partial_path.unlink(missing_ok=True)
        raise UserError(f"Cannot write {path}: {error.strerror}. Nothing was left half written; "
                        "make room or choose another outputs folder, and run again.") from error


def save(table: Table, stem: Path | str) -> Table:
    """Writes `stem`.csv, .md and .tex, each whole or not at all, and hands the table back to be shown. One without a line
    is not written."""
    for suffix, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())) if len(table.body) else ():
        write(f"{stem}.{suffix}", text)
    return table


def accuracy_table(frame: pd.DataFrame, model: str, *ratios: float) -> Table:
    """Tables 4.2-4.5 and the table of MNIST: the thesis's numbers beside ours, by data set, ratio and method.

    For both metrics: the thesis as printed and divided by 0.98892; `@run` by the thesis's accounting (to be
    compared with what is printed) and plain; `@written` where it exists; published. Before them the compression of
    the masks. An en dash marks a cell that is not there, an empty field a number that does not exist, † a number that
    another cell's training gave (in one seed at least).
    """
    sets = [dataset_for(pairs_of(frame), model, count) for count in ((10,) if model == "cnn" else (10, 100))]
    parts, blocks = [select(frame, dataset, model) for dataset in sets], []
    if not any(map(len, parts)):
        return Table(f"{label(model)} on {' and '.join(map(label, sets))}: no such cells in this profile.", pd.DataFrame())
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
    columns, shown = ("top5", "top5_thesis", "top1", "top1_thesis", "compression_achieved"), _shown(rows)
    found = {column: summary(rows, column).set_index("method") for column in columns}
    for base in bases():
        run, written = f"{base}@run", f"{base}@written"
        line = {("", "Data set"): LABELS.get(dataset, dataset), ("", "r"): f"{ratio:g}", ("", "Method"): base}
        for reading, method in (("@run", run), ("published", base)):
            line["Compression", reading] = _cell(found["compression_achieved"], method, interval=False)
        for metric, group in (("top5", "Top-5"), ("top1", "Top-1")):
            printed, corrected = _printed(dataset, model, ratio, base, metric)
            line |= {(group, "printed"): printed, (group, "corrected"): corrected,
                     (group, "@run as printed"): _cell(found[f"{metric}_thesis"], run) + shown.get(run, ""),
                     (group, "@run"): _cell(found[metric], run) + shown.get(run, ""),
                     (group, "@written"): _cell(found[metric], written),
                     (group, "published"): _cell(found[metric], base) + shown.get(base, "")}
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
    return f"{found.loc[method, 'mean']:.2f}" + (spread(found.loc[method]) if interval else "")


def _notes(rows: pd.DataFrame, dataset: str, ratios: Iterable[float]) -> list[str]:
    """What a reader must know of these rows: how many there are, how trained, with which seeds."""
    if len(rows) and not rows["epochs"].any():
        return [f"{LABELS.get(dataset, dataset)}: masks alone, not trained in this profile."]
    k, n = coverage(rows, methods.METHODS, ratios, "top1")
    there = rows[rows["compression"].isin(ratios)].dropna(subset=["top1"])
    facts = ([f"{k} of {n} cells"] if k < n else []) + _recipe(there)
    return [f"{LABELS.get(dataset, dataset)}: {', '.join(facts)}."] + _seeds(there) + ([SHOWN] if _shown(there) else [])


def _shown(rows: pd.DataFrame) -> dict[str, str]:
    """The mark of the methods whose accuracies are, in some seed, those of another cell's training."""
    return dict.fromkeys(rows.dropna(subset=["trained_as"])["method"], "†")


def _recipe(there: pd.DataFrame) -> list[str]:
    """How the rows were trained, and what is to be known of it."""
    if there.empty:
        return []
    first = there.iloc[0]
    facts = [f"{first['epochs']} epoch{'s' if first['epochs'] > 1 else ''}",
             f"learning rate {first['learning_rate']:g}"]
    facts += [f"width {first['width']:g}"] if first["width"] != 1 else []
    facts += [f"{first['train_images']:.0f} training images"] if pd.notna(first["train_images"]) else []
    diverged = int(there["diverged"].notna().sum())
    facts += [f"{diverged} cells diverged"] if diverged else []
    return facts + reduced(there)


def reduced(rows: pd.DataFrame) -> list[str]:
    """How many cells were trained in another precision than float32 and, where there are such, how many were not trained
    but show another's training."""
    shown = rows["trained_as"].notna()
    counts = rows.loc[rows["top1"].notna() & ~shown, "precision"].value_counts()
    facts = [f"{count} cells trained in {name}" for name, count in counts.items() if name != "float32"]
    return facts + [f"{int(shown.sum())} reuse another cell's training"] * bool(facts and shown.any())


def _seeds(there: pd.DataFrame) -> list[str]:
    seeds = ", ".join(map(str, sorted(there["seed"].unique())))
    if there["seed"].nunique() < 2:
        return [f"Seed {seeds}."] if seeds else []
    counted = there.groupby(["method", "compression"])["seed"].nunique()
    single = " A number with neither is of one seed." if counted.min() == 1 else ""
    return [f"Mean ± 95 % interval of Student's t over {over(counted)} ({seeds}); {RANGE}, in brackets.{single}"]


def _legend(model: str) -> list[str]:
    """What the columns count, and what the thesis did not do."""
    compression = ("Compression: N over what masks keep; the figures of compression error count non-zero values for @run, "
                   "as released.")
    counted = "the best epoch's accuracy × n/(128·⌈n/128⌉) for n test images, as the thesis counts"
    if model == "cnn":
        return [compression, f"“@run as printed”: {counted}."]
    factor = thesis_factor(10_000)
    return [compression, f"“printed” and “@run as printed”: {counted}; “corrected”: printed ÷ {factor:.5f}.",
            "* starred in the thesis for its compression error.",
            "OBD is not in the thesis's table: OBD@run is what its code would have done."]


def agreement(frame: pd.DataFrame) -> Table:
    """How far `@run`, counted as the thesis counts, agrees with the numbers of Tables 4.2-4.5, over the cells there are.

    Per table and data set that the frame asks for: median and largest absolute difference in points, Spearman's rank
    correlation over the methods (from three on), and of the entries that the thesis or we have at chance level, the share
    that both have there.
    """
    lines = []
    groups = _thesis().groupby(["table", "model", "dataset", "compression"], sort=False)
    for (number, model, dataset, ratio), printed in groups:
        rows = select(frame, dataset, model)
        rows = rows[(rows["compression"] == ratio) & (rows["reading"] == "run") & (rows["epochs"] > 0)]
        if rows.empty:
            continue
        line = {"table": number, "network": network_label(dataset, model), "r": f"{ratio:g}"}
        for metric in ("top5", "top1"):
            ours = rows.dropna(subset=[f"{metric}_thesis"]).groupby("base")[f"{metric}_thesis"].mean()
            both = printed.set_index("method")[[metric]].join(ours.astype(float), how="inner")
            line["cells"] = f"{len(both)} of {len(printed)}"
            line |= {f"{metric.replace('top', 'top-')}: {what}": text for what, text in
                     _agree(both, dataset, metric).items()}
        lines.append(line)
    facts = "".join(f", {fact}" for fact in reduced(frame))
    return Table("How far the @run reading, in the thesis's accounting, agrees with the thesis's numbers, over the cells "
                 f"that are there (means of the seeds that each has{facts}). At chance: at most a twentieth above what "
                 "guessing gives in that accounting.", pd.DataFrame(lines))


def _agree(both: pd.DataFrame, dataset: str, metric: str) -> dict[str, str]:
    """Three measures of agreement between two columns of numbers."""
    theirs, ours = both.iloc[:, 0], both.iloc[:, 1]
    level = at_chance(both, dataset, metric, thesis_factor(10_000))
    either, coincide = level.any(axis=1), level.all(axis=1).sum()
    ranked = len(both) > 2 and both.nunique().gt(1).all()    # where all are alike, as at chance, there are no ranks
    apart = (ours - theirs).abs()
    return {"median difference": f"{apart.median():.2f}" if len(both) else DASH,
            "largest": f"{apart.max():.2f} ({apart.idxmax()})" if len(both) else DASH,
            "rank correlation": f"{stats.spearmanr(theirs, ours).statistic:.2f}" if ranked else DASH,
            "chance coincides": f"{coincide} of {int(either.sum())}" if len(both) else DASH}


# ---- Where the numbers come from ---------------------------------------------------------------------------

def progress(frame: pd.DataFrame) -> Table:
    """How many cells of each data set and model are there, how many of them were trained and do not show another's
    training, and what became of their networks."""
    groups = frame.groupby(["dataset", "model", "learning_rate"], sort=False)
    body = pd.DataFrame([{
        "data set": label(dataset), "model": label(model), "learning rate": f"{rate:g}",
        "seeds begun": f"{rows.loc[rows['done'], 'seed'].nunique()} of {rows['seed'].nunique()}",
        "cells": f"{int(rows['done'].sum())} of {len(rows)}",
        "trained": int((rows["top1"].notna() & rows["trained_as"].isna()).sum()),
        "masks that let nothing pass": int(rows["collapsed"].eq(True).sum()),
        "diverged": int(rows["diverged"].notna().sum()),
    } for (dataset, model, rate), rows in groups])
    return Table("What the store holds of the grid", body)


def provenance(frame: pd.DataFrame, store: Path | str) -> Table:
    """What this page was made of: the store and its hash, how many cells, computed on what, the code's commit, versions."""
    store = Path(store)
    content = store.read_bytes() if store.is_file() else b""
    lines = {
        "store": f"{store.parent.name}/{store.name}",
        "SHA-256 of the store": hashlib.sha256(content).hexdigest(),
        "cells": f"{int(frame['done'].sum())} of {len(frame)}",
        "precision": ", ".join(sorted(frame["precision"].dropna().unique())) or DASH,
        "devices": ", ".join(f"{name} ({count} cells)" for name, count in frame["device"].value_counts().items()) or DASH,
        "commit": git("rev-parse", "HEAD") or "not a git checkout",
        "Python": platform.python_version(),
        **{package: importlib.metadata.version(package)
           for package in ("torch", "numpy", "pandas", "scipy", "matplotlib")},
    }
    return Table("Provenance", pd.DataFrame(lines.items(), columns=["what", "value"]))


def git(*command: str) -> str | None:
    """What git answers about the project, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(Path(__file__).parent), *command],
                              capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
