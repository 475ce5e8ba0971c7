"""Are a recipe's few epochs enough? Test accuracy epoch by epoch, and what the last epoch still brought."""

import math
from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lib import figures, methods, tables
from lib.data import at_chance, constant_answer
from lib.tables import network_label

RATIOS = (1.0, 8.0, 64.0)
GREY = "#555555"
_COLUMNS = ["dataset", "model", "method", "base", "reading", "compression", "seed", "learning_rate", "epochs", "epoch",
            "top1"]


def histories(records: Iterable, cells: Iterable) -> pd.DataFrame:
    """One row per epoch of each of these cells that has a record: top-1 in percent of all test images, plainly."""
    found = {record.key: record for record in records}
    rows = [{"dataset": cell.dataset, "model": cell.model, "method": cell.method, "base": methods.get(cell.method).base,
             "reading": methods.get(cell.method).reading, "compression": cell.compression, "seed": cell.seed,
             "learning_rate": cell.learning_rate, "epochs": cell.epochs, "epoch": epoch["epoch"],
             "top1": 100 * epoch["top1"] / found[cell.key].test_images}
            for cell in cells if cell.key in found for epoch in found[cell.key].history]
    return pd.DataFrame(rows, columns=_COLUMNS)


def of(history: pd.DataFrame, dataset: str, model: str) -> pd.DataFrame:
    """The unpruned networks and the `@run` readings of one network: what both learning rates have."""
    run = (history["reading"] == "run") | (history["base"] == "Dense")
    return history[(history["dataset"] == dataset) & (history["model"] == model) & run]


def last(history: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: `top1` after its last epoch, `gain` over the epoch before, `alive`: above one constant answer."""
    ended = history[history["epoch"] == history["epochs"]]
    before = history[history["epoch"] == history["epochs"] - 1]
    keys = ["dataset", "model", "method", "compression", "seed", "learning_rate"]
    both = ended.merge(before[[*keys, "top1"]], on=keys, suffixes=("", "_before"))
    alive = [not at_chance(top1, dataset) for top1, dataset in zip(both["top1"], both["dataset"], strict=True)]
    return both.assign(gain=both["top1"] - both["top1_before"], alive=pd.Series(alive, both.index, dtype=bool))


# ---- In words

def sentence(history: pd.DataFrame, dataset: str, model: str, rates: Iterable[float | None]) -> str:
    """What the last epoch brought at each rate, against what a seed alone moves. The first rate is the main one."""
    rates = [rate for rate in rates if rate is not None]
    ends = last(of(history, dataset, model))
    moved = spread(tables.at_rate(ends, rates[0]))
    epochs = f"{int(ends['epochs'].max())} epochs" if len(ends) else "the epochs"
    told = "; ".join(_told(tables.at_rate(ends, rate), rate, moved) for rate in rates)
    seed = ("what a seed alone moves is not known yet (fewer than two seeds)" if math.isnan(moved) else
            f"of pruned networks above chance, a seed alone moves the accuracy by {moved:.2f} points "
            f"(median standard deviation at {rates[0]:g})")
    return f"Are {epochs} enough for the {network_label(dataset, model)}? {told[:1].upper()}{told[1:]}; {seed}."


def spread(ends: pd.DataFrame) -> float:
    """Median over the live pruned cells of the standard deviation over seeds of their last accuracy; NaN for one seed."""
    groups = ends[ends["alive"] & (ends["base"] != "Dense")].groupby(["method", "compression"])["top1"]
    return float(groups.std(ddof=1).median()) if len(ends) else math.nan


def _told(ends: pd.DataFrame, rate: float, moved: float) -> str:
    if ends.empty:
        return f"at {rate:g}: not run yet"
    dense = ends.loc[ends["method"] == "Dense", "gain"].mean()
    alive = ends[ends["alive"] & (ends["base"] != "Dense")]
    told = [f"the unpruned network {_points(dense)}"] if not math.isnan(dense) else []
    told += ([f"pruned @run networks that are above chance a median of {_points(alive['gain'].median())}"] if len(alive)
             else [])
    high = alive[alive["compression"] == ends["compression"].max()]
    told += [f"those at r = {ends['compression'].max():g} {_points(high['gain'].median())}"] if len(high) else []
    brings = f"at {rate:g} the last epoch still brought {', '.join(told) or 'no network anything that is above chance'}"
    if math.isnan(moved) or alive.empty:
        return brings
    return f"{brings}, more than a seed moves, so not enough" if alive["gain"].median() > moved else (
        f"{brings}, no more than a seed moves, so enough by that measure")


def _points(value: float) -> str:
    return f"{value:+.2f} points".replace("-", "−")


# ---- In a picture

@figures.drawing
def diagram(history: pd.DataFrame, dataset: str, model: str, rates: Iterable[float | None]) -> Figure:
    """Top-1 over the epochs: a row per learning rate, a column per ratio, the unpruned network in all of them.

    Above r = 1 the best and the worst method of the `@run` reading after the last epoch; thick their mean, thin each seed.
    """
    rates, rows = [rate for rate in rates if rate is not None], of(history, dataset, model)
    ratios = _ratios(rows)
    size = (figures.PAGE, 0.6 + 2.1 * len(rates))
    figure, axes = plt.subplots(len(rates), len(ratios), figsize=size, sharex=True, sharey=True, squeeze=False)
    parts = [_panel(axes[line, column], tables.at_rate(rows, rate), ratio, rate, dataset)
             for line, rate in enumerate(rates) for column, ratio in enumerate(ratios)]
    for axis in axes[:, 0]:
        axis.set_ylabel("top-1 accuracy (%), plain")
    for axis in axes[-1]:
        axis.set_xlabel("epoch")
    axes[0, 0].set_ylim(0, 105)
    axes[0, 0].xaxis.get_major_locator().set_params(integer=True)
    figure.data = pd.concat(parts, ignore_index=True)
    figure.asked, network = len(figure.data) > 0, network_label(dataset, model)
    if figure.asked:
        figure.suptitle(f"{network}: @run over the epochs; thin: each seed; in brackets: points gained in the last")
    else:
        figures.one_line(figure, f"{network}: @run over the epochs · no such cells yet")
    return figure


def _ratios(rows: pd.DataFrame) -> list[float]:
    """1, 8 and 64, or 1, the middle and the largest ratio of a profile that lacks one of these."""
    there = sorted({1.0, *rows["compression"]})
    return list(RATIOS) if set(RATIOS) <= set(there) or len(there) < 3 else [1.0, there[len(there) // 2], there[-1]]


def _panel(axis: plt.Axes, rows: pd.DataFrame, ratio: float, rate: float, dataset: str) -> pd.DataFrame:
    chosen = _best_and_worst(rows, ratio)
    title = f"learning rate {rate:g}, r = {ratio:g}"
    axis.axhline(constant_answer(dataset), color=GREY, linestyle=":", linewidth=0.9, zorder=1)
    axis.annotate("chance", (1, constant_answer(dataset)), xycoords=("axes fraction", "data"), xytext=(-2, -2),
                  textcoords="offset points", ha="right", va="top", fontsize=6.5, color=GREY)
    parts = [rows.iloc[:0]]
    for name, method, at, colour, line in chosen:
        cell = rows[(rows["method"] == method) & (rows["compression"] == at)]
        ends = last(cell)
        mean = cell.groupby("epoch")["top1"].mean()
        axis.plot(mean.index, mean, color=colour, linestyle=line, marker="o", markersize=2.5,
                  label=f"{name} ({_points(ends['gain'].mean()).removesuffix(' points')})", zorder=3)
        for _, seed in cell.groupby("seed"):
            axis.plot(seed["epoch"], seed["top1"], color=colour, linestyle=line, linewidth=0.5, alpha=0.5)
        parts.append(cell)
    if chosen:    # above the panel: inside it lies on the lines
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), title=title, title_fontsize=8, fontsize=7, handlelength=3)
    else:
        axis.set_title(f"{title}\nnot run yet")
    return pd.concat(parts, ignore_index=True).assign(panel=title)


def _best_and_worst(rows: pd.DataFrame, ratio: float) -> list[tuple]:
    """(name, method, ratio, colour, line) of what a panel shows."""
    dense = [("unpruned", "Dense", 1.0, GREY, (0, (5, 3)))] if (rows["method"] == "Dense").any() else []
    if ratio == 1:    # the one other initialisation of the `@run` readings
        other = "Dense@xavier_normal"
        return dense + [("unpruned, Xavier", other, 1.0, "#999999", "-")] * bool((rows["method"] == other).any())
    ends = last(rows[rows["compression"] == ratio]).groupby(["method", "base"])["top1"].mean()
    ends = ends.sort_values(ascending=False, kind="stable")
    if ends.empty:
        return []
    alike = int((ends <= ends.iloc[-1] + 1e-9).sum()) - 1    # networks that let nothing pass all end at the same number
    shown = [(ends.index[0], "best: "), *([(ends.index[-1], "worst: ")] if len(ends) > 1 else [])]
    return dense + [(f"{word}{base}" + (f" and {alike} more" if word == "worst: " and alike else ""), method, ratio,
                     figures.look(base)[0], figures.line_of(base))
                    for (method, base), word in shown]
