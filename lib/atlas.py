"""The atlas of collapse: what masks do to networks before any training, in tables and figures of records and answers."""

import functools
from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib import methods, tables
from lib.experiment import Record
from lib.figures import PAGE, drawing, look
from lib.study import Answer
from lib.tables import DASH, Table, network_label

HYPOTHESES = {"ties": "ties at the threshold are kept", "two_sided": "two-sided mask"}
# Colours that no method has: of what is as released and what is exact, and of scores above and below 0.
RELEASED, EXACT, ABOVE, BELOW = "#EE7733", "#0077BB", "#BBBBBB", "#888888"
# What a mask says of an accuracy at chance level.
CLOSED, BYPASSED, NEITHER = "nothing passes", "an empty layer is bypassed", "neither"


# ---- Frames

MASK = ("dataset", "model", "method", "reading", "base", "ratio", "seed", "collapsed", "empty", "effective", "reached",
        "parameters", "released", "kept", "sizes")


def masks(records: Iterable[Record]) -> pd.DataFrame:
    """One row per mask that prunes: its cell, what it keeps, and whether a path and every layer is left."""
    rows = []
    for record in records:
        cell, report, method = record.cell, record.report, methods.get(record.cell.method)
        if cell.compression > 1:
            rows.append((cell.dataset, cell.model, cell.method, method.reading, method.base, cell.compression, cell.seed,
                         report["collapsed"], len(report["empty_layers"]), report["effective_compression"],
                         report["compression"], report["parameters"], report["compression_released"], report["kept"],
                         report["sizes"]))
    return pd.DataFrame(rows, columns=list(MASK))


def answers(found: Iterable[Answer], question: str) -> pd.DataFrame:
    """The rows of all answers to a question, each with its network, method and seed."""
    return pd.DataFrame([{"dataset": answer.study.dataset, "model": answer.study.model, "method": answer.study.method,
                          "seed": answer.study.seed} | row
                         for answer in found if answer.study.question == question for row in answer.rows])


def _tabled(make: Callable[..., Table]) -> Callable[..., Table]:
    """A table of what is not in the store yet says so."""
    @functools.wraps(make)
    def made(found, *rest) -> Table:
        found = found if isinstance(found, pd.DataFrame) else list(found)
        return make(found, *rest) if len(found) else Table(f"{make.__doc__.splitlines()[0]} Nothing in the store yet.",
                                                           pd.DataFrame())
    return made


def of(frame: pd.DataFrame, pair: str) -> pd.DataFrame:
    """The rows of one pair "dataset/model"."""
    dataset, model = pair.split("/")
    return frame[(frame["dataset"] == dataset) & (frame["model"] == model)] if len(frame) else frame


def _title(pair: str) -> str:
    return network_label(*pair.split("/"))


def _seed(rows: pd.DataFrame) -> str:
    """For a title: of which seed answers are."""
    return "".join(f", seed {seed}" for seed in rows["seed"].unique())


def _ordered(names: Iterable[str]) -> list[str]:
    """Methods in the order of the thesis's tables, published before `@written` before `@run`."""
    readings = tables.READINGS[::-1]
    return sorted(set(names), key=lambda name: (readings.index(methods.get(name).reading),
                                                tables.bases().index(methods.get(name).base)))


# ---- Compression

@_tabled
def error_table(frame: pd.DataFrame) -> Table:
    """Compression error by network: of the exact readings in weights, of `@run` in percent as the thesis counts."""
    lines = []
    for (dataset, model), rows in frame.groupby(["dataset", "model"], sort=False):
        line = {"network": network_label(dataset, model)}
        exact, run = rows[rows["reading"] != "run"], rows[rows["reading"] == "run"]
        # kept + F = N / compression; the count that was asked for is round(N / r) - F.
        off = (exact["parameters"] / exact["reached"]).round() - (exact["parameters"] / exact["ratio"]).round()
        most = f"{off.abs().max():.0f} in {len(exact)} masks" if len(exact) else DASH
        line["published and written: most weights off"] = most
        for base in ("GraSP", "OBD", "SynFlow"):
            its = run[run["base"] == base].groupby("ratio")[["released", "ratio"]].mean()
            error = 100 * (its["released"] / its["ratio"] - 1)
            told = DASH
            if len(error):
                # "+ 0" makes 0 of -0
                middle, low, high = (round(value) + 0 for value in (error.median(), error.min(), error.max()))
                told = f"{middle} % ({low} to {high})".replace("-", "−")
            line[f"{base}@run: median (range)"] = told
        lines.append(line)
    return Table("How far the masks are from what was asked for: published and written readings in weights "
                 "(a rounding of half to even included), @run as the thesis counts, (r_e − r)/r over the ratios, "
                 "means over seeds.", pd.DataFrame(lines))


# ---- Collapse

@drawing
def density_map(frame: pd.DataFrame, pair: str, ratio: float) -> Figure:
    """Density of each layer under each method at one compression, the first seed's; × is an empty layer.

    Beside it the compression that counts only weights on a path, or that there is no path.
    """
    rows = of(frame, pair)
    rows = rows[(rows["ratio"] == ratio) & (rows["seed"] == rows["seed"].min())].set_index("method")
    names = _ordered(rows.index)
    layers = list(rows.iloc[0]["sizes"])
    kept = np.array([[rows.loc[name, "kept"][layer] for layer in layers] for name in names], dtype=float)
    density = kept / np.array([rows.iloc[0]["sizes"][layer] for layer in layers], dtype=float)
    figure, axis = plt.subplots(figsize=(PAGE, 0.9 + 0.145 * len(names)))
    axis.grid(False)
    axis.set_facecolor("#f4f4f4")
    norm = LogNorm(1e-4, 1)    # the same in every map
    image = axis.imshow(np.where(density > 0, density, np.nan), cmap="viridis", norm=norm, aspect="auto",
                        interpolation="nearest")
    empty = np.argwhere(density == 0)
    axis.plot(empty[:, 1], empty[:, 0], "x", color="#CC3311", markersize=5 if len(layers) < 20 else 2.5, markeredgewidth=0.9)
    axis.set_yticks(range(len(names)), names, fontsize=6.5)
    if len(layers) <= 16:
        axis.set_xticks(range(len(layers)), [layer.removesuffix(".weight") for layer in layers], rotation=40, ha="right",
                        rotation_mode="anchor")
    else:
        axis.set_xticks(range(9, len(layers), 10), range(10, len(layers) + 1, 10))
        axis.set_xlabel("layer, in definition order")
    for position, name in enumerate(names):
        told = "no path" if rows.loc[name, "collapsed"] else f"{rows.loc[name, 'effective']:.1f}"
        axis.annotate(told, (1.01, position), xycoords=("axes fraction", "data"), va="center", fontsize=6.5,
                      color="#CC3311" if rows.loc[name, "collapsed"] else "black")
    axis.annotate("effective r", (1.01, -1), xycoords=("axes fraction", "data"), va="center", fontsize=6.5,
                  annotation_clip=False)
    figure.colorbar(image, ax=axis, label="density", shrink=0.6, pad=0.1, extend="min")
    axis.set_title(f"{_title(pair)}: density at r = {ratio:g}, seed {rows['seed'].iloc[0]} (× = empty layer)", pad=12)
    figure.data = pd.DataFrame(density, names, layers).rename_axis("method").reset_index().assign(
        effective=rows.loc[names, "effective"].to_numpy(), collapsed=rows.loc[names, "collapsed"].to_numpy())
    return figure


@_tabled
def collapse_table(frame: pd.DataFrame, pair: str) -> Table:
    """Per method and compression: in how many seeds no path or an empty layer is left, else what is on a path."""
    rows = of(frame, pair)
    ratios = sorted(rows["ratio"].unique())
    lines = [{"method": name} | {f"r = {ratio:g}": _fate(rows[(rows["method"] == name) & (rows["ratio"] == ratio)])
                                 for ratio in ratios} for name in _ordered(rows["method"])]
    seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
    return Table(f"{_title(pair)}: the masks of seeds {seeds}. "
                 "A number is the effective compression, all parameters over those that lie on a path; "
                 "“no path” says in how many seeds nothing passes, “empty” in how many a layer is empty, where these are "
                 "more; means are over the seeds that have a path. "
                 "A dash: not in the store, or a compression out of the network's reach.", pd.DataFrame(lines))


def _fate(rows: pd.DataFrame) -> str:
    if rows.empty:
        return DASH
    count, closed, empty = len(rows), int(rows["collapsed"].sum()), int((rows["empty"] > 0).sum())
    open_ones = rows[~rows["collapsed"].astype(bool)]["effective"]
    return "; ".join(filter(None, (f"{open_ones.mean():.2f}" if len(open_ones) else "",
                                   f"empty {empty}/{count}" if empty and empty > closed else "",
                                   f"no path {closed}/{count}" if closed else "")))


@_tabled
def critical_table(found: pd.DataFrame) -> Table:
    """How far each method prunes without collapse: rho_cr by path and by layers, of rho_max = n / L."""
    lines = []
    for (dataset, model, method), rows in found.groupby(["dataset", "model", "method"], sort=False):
        path, layers = (rows[rows["by"] == by].iloc[0] for by in ("path", "layers"))
        chain = not model.startswith("resnet")
        lines.append({
            "network": network_label(dataset, model), "method": method,
            "ρ_cr": f"{'≥ ' * _unbroken(path)}{path['rho']:.4g}",
            "weights left": f"{path['kept']}",
            "ρ_max = n/L": f"{path['weights'] / path['layers']:.4g}" if chain else DASH,
            "weights per layer at ρ_cr": f"{path['kept'] / path['layers']:.3g}" if chain else DASH,
            "largest ρ with no empty layer": f"{'≥ ' * _unbroken(layers)}{layers['rho']:.4g}",
            "whole again at": ", ".join(f"{rho:.4g}" for rho in path["whole_again"]) or DASH})
    return Table("Critical compression ρ = n / kept, of the n prunable weights alone, at the first seed: "
                 "the largest at and below which a path is left, to 1 %; and the same for “no layer is empty”. "
                 "“Whole again”: points of the grid beyond ρ_cr at which there is a path after all. "
                 "In a chain nothing can pass ρ_max; a residual network's shortcuts always pass, so ρ_max does not bound "
                 "it: “≥” where the search ended, at one weight a layer, before any collapse.", pd.DataFrame(lines))


def _unbroken(line: pd.Series) -> bool:
    """Whether the search ended before any collapse, which in a residual network is no critical compression."""
    return line["model"].startswith("resnet") and pd.isna(line["collapsed"])


@drawing
def critical_compression(found: pd.DataFrame) -> Figure:
    """rho_cr of every method, a panel per network; open marks: the largest rho with no empty layer; arrows: at least."""
    networks = tables.pairs_of(found)
    figure, axes = plt.subplots(1, len(networks), figsize=(PAGE, 2.9), sharey=True, squeeze=False)
    names = _ordered(found["method"])[::-1]
    for pair, axis in zip(networks, axes[0], strict=True):
        rows = of(found, pair)
        for by, face in (("layers", "white"), ("path", None)):
            for _, line in rows[rows["by"] == by].iterrows():
                colour = look(line["method"])[0]
                height = names.index(line["method"])
                axis.plot(line["rho"], height, ">" if _unbroken(line) else "o", color=colour,
                          markerfacecolor=face or colour, markersize=5)
        if not pair.split("/")[1].startswith("resnet"):
            bound = (rows["weights"] / rows["layers"]).iloc[0]
            axis.axvline(bound, color="#555555", linestyle=":")
            axis.annotate("ρ$_{max}$", (bound, len(names) - 0.4), ha="right", fontsize=7)
        axis.set_xscale("log")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(_title(pair).replace(" on ", "\n"))
    figure.suptitle(f"How far each method prunes before collapse{_seed(found)}")
    figure.supxlabel("critical compression ρ$_{cr}$ of the prunable weights (● path left, ○ no layer empty, ▶ at least)",
                     fontsize=8)
    figure.data = found.drop(columns="whole_again")
    return figure


def maximal(found: pd.DataFrame, first: int | None = None) -> list[str]:
    """Does each method satisfy maximal critical compression (Tanaka et al. 2020) on the chains? In sentences, of the
    `first` so many by name."""
    if found.empty:
        return []
    chains, lines = found[(found["by"] == "path") & ~found["model"].str.startswith("resnet")], []
    for (dataset, model), rows in chains.groupby(["dataset", "model"], sort=False):
        rows = rows.set_index("method")
        ranked = (np.log(rows["rho"]) / np.log(rows["weights"] / rows["layers"])).sort_values(ascending=False, kind="stable")
        whole = [name for name in ranked.index if pd.isna(rows.loc[name, "collapsed"])]
        text = f"{network_label(dataset, model)}: "
        text += f"ρ_max itself is reached by {', '.join(whole)}" if whole else "no method reaches ρ_max itself"
        listed = [f"{name} {value:.2f}" for name, value in ranked.iloc[:first].items()]
        least = f" down to {ranked.index[-1]} {ranked.iloc[-1]:.2f}" if len(listed) < len(ranked) else ""
        lines.append(f"{text}; log ρ_cr / log ρ_max: {', '.join(listed)}{least}.")
    return lines


@_tabled
def chance_table(frame: pd.DataFrame) -> Table:
    """The entries of Tables 4.2-4.5 at chance level, and what the masks of the `@run` reading say to them."""
    lines = []
    for entry in tables.printed_at_chance().itertuples():
        rows = frame[(frame["dataset"] == entry.dataset) & (frame["model"] == entry.model)
                     & (frame["method"] == f"{entry.method}@run") & (frame["ratio"] == entry.compression)]
        states = [CLOSED if row.collapsed else BYPASSED if row.empty else NEITHER for row in rows.itertuples()]
        found = states[0] if len(set(states)) == 1 else "it depends on the seed" if states else DASH
        lines.append({"table": entry.table, "network": network_label(entry.dataset, entry.model),
                      "r": f"{entry.compression:g}", "method": entry.method}
                     | {state: f"{states.count(state)}/{len(states)}" for state in (CLOSED, BYPASSED, NEITHER)}
                     | {"explained by": found})
    body = pd.DataFrame(lines)
    told = {NEITHER: "every seed has a path and no empty layer, so the cause is most likely the training or the test",
            DASH: "no mask is in the store"}
    counts = "; ".join(f"in {count} {told.get(name, name)}" for name, count in body["explained by"].value_counts().items())
    return Table(f"The {len(body)} entries that the thesis prints at chance level, "
                 f"by the @run masks of as many seeds as the store has: {counts}.", body)


# ---- Why

@drawing
def signed_scores(found: pd.DataFrame, pair: str, ratio: float = 16) -> Figure:
    """Distribution of the signed scores; dashed the threshold of the exact count, dotted plus and minus the released one."""
    rows = of(found, pair)
    names = _ordered(rows["method"])
    figure, axes = plt.subplots(1, len(names), figsize=(PAGE, 2.3), sharey=True, squeeze=False)
    for name, axis in zip(names, axes[0], strict=True):
        its = rows[rows["method"] == name]
        bars, at = its[its["what"] == "bar"], its[(its["what"] == "ratio") & (its["ratio"] == ratio)]
        low = bars["from"].min()
        for sign, colour in ((1, ABOVE), (-1, BELOW)):
            side = bars[bars["sign"] == sign]
            left, right = (sign * np.log10(side[edge] / low) for edge in ("from", "to"))
            axis.bar(left, side["weights"], right - left, align="edge", color=colour)
        for column, colour, style in (("exact", EXACT, "--"), ("released", RELEASED, ":")):
            for cut in at[column]:
                for value in (cut, -cut) if column == "released" else (cut,):
                    axis.axvline(np.sign(value) * np.log10(max(1, abs(value) / low)), color=colour, linestyle=style)
        axis.set_yscale("log")
        exponent = round(np.log10(low))
        axis.set_xticks([-10, 0, 10], [f"−1e{exponent + 10}", f"±1e{exponent}", f"1e{exponent + 10}"], fontsize=6)
        axis.set_title(f"{name}\n{_zeros(its)}")
    axes[0, 0].set_ylabel("number of weights")
    handles = [plt.Line2D([], [], color=EXACT, linestyle="--"), plt.Line2D([], [], color=RELEASED, linestyle=":")]
    figure.legend(handles, [f"at r = {ratio:g}: exact count", "released, ± t"], loc="outside lower right", ncols=2)
    figure.supxlabel("score", fontsize=8)
    figure.suptitle(f"{_title(pair)}{_seed(rows)}: signed scores, logarithmic to both sides of 0; the bars next to it hold "
                    "all that is smaller", fontsize=8)
    figure.data = rows[rows["what"] == "bar"][["method", "sign", "from", "to", "weights"]]
    return figure


def _zeros(rows: pd.DataFrame) -> str:
    layers = rows[rows["what"] == "layer"]
    return f"{100 * layers['zeros'].sum() / layers['weights'].sum():.2f} % exactly 0"


@drawing
def zeros_by_layer(found: pd.DataFrame) -> Figure:
    """Share of scores that are exactly zero in each layer, a panel per network, a line per signed method."""
    networks = tables.pairs_of(found)
    figure, axes = plt.subplots(1, len(networks), figsize=(PAGE, 2.5), sharey=True, squeeze=False)
    layers = found[found["what"] == "layer"]
    for pair, axis in zip(networks, axes[0], strict=True):
        for name, rows in of(layers, pair).groupby("method", sort=False):
            base, style = methods.get(name).base, {"published": "-", "written": "-.", "run": "--"}[methods.get(name).reading]
            percent = 100 * rows["zeros"] / rows["weights"]
            axis.plot(range(1, len(rows) + 1), percent, style, color=look(base)[0], label=name)
        axis.set_title(_title(pair).replace(" on ", "\n"))
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes[0, 0].set_ylabel("scores exactly 0 (%)")
    figure.suptitle(f"Scores that are exactly 0{_seed(layers)}")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    figure.data = layers[["dataset", "model", "method", "layer", "weights", "zeros"]]
    return figure


@drawing
def two_hypotheses(found: pd.DataFrame, frame: pd.DataFrame, pair: str) -> Figure:
    """Compression error predicted by ties at the threshold and by the two-sided mask, and observed, over r."""
    names = [name for name in ("GraSP@run", "OBD@run") if name in set(of(found, pair)["method"])]
    figure, axes = plt.subplots(1, len(names), figsize=(PAGE * 0.8, 2.9), sharey=True, squeeze=False)
    parts = []
    for name, axis in zip(names, axes[0], strict=True):
        at = of(found, pair)
        at = at[(at["method"] == name) & (at["what"] == "ratio")].set_index("ratio")
        rows = of(frame, pair)
        seen = rows[(rows["method"] == name) & rows["ratio"].isin(at.index)]
        for column, colour, style in (("ties", EXACT, "--"), ("two_sided", RELEASED, "-")):
            predicted = 100 * (at[column] / at.index - 1)
            axis.plot(at.index, predicted, style, color=colour, label=f"predicted: {HYPOTHESES[column]}")
        axis.plot(seen["ratio"], 100 * (seen["reached"] / seen["ratio"] - 1), "o", color="black", markerfacecolor="none",
                  label="observed, a mark per seed")
        axis.set_xscale("log", base=2)
        axis.set_xticks(at.index, [f"{ratio:g}" for ratio in at.index])
        axis.set_xlabel("compression r asked for")
        axis.set_title(name)
        parts.append(at[["ties", "two_sided"]].assign(method=name).join(seen.set_index("ratio")[["seed", "reached"]]))
    axes[0, 0].set_ylabel("$(r_e - r)/r$ (%), by masks")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{_title(pair)}: two hypotheses for the missing compression")
    figure.data = pd.concat(parts).reset_index()
    return figure


@drawing
def depths(found: pd.DataFrame) -> Figure:
    """SynFlow's R and largest score over depth, float32 and float64; a mark at the top edge is not finite."""
    rows = found.assign(depth=found["network"].str.removeprefix("resnet").astype(int))
    figure, axes = plt.subplots(1, 2, figsize=(PAGE, 3.0), sharey=True)
    limit = float(torch.finfo(torch.float32).max)
    ticks = sorted(rows["depth"].unique())
    for axis, column, name in zip(axes, ("flow", "largest"), ("flow R (eq. 3.7)", "largest score"), strict=True):
        for precision, marker, colour in (("float64", "o", EXACT), ("float32", "x", RELEASED)):
            its = rows[rows["precision"] == precision]
            axis.plot(its["depth"], its[column], marker, color=colour, label=precision, markerfacecolor="none")
            lost = its[its[column].isna()]["depth"].unique()
            if len(lost):
                axis.plot(lost, [1] * len(lost), "^", color=colour, label=f"{precision}: not finite", clip_on=False,
                          transform=axis.get_xaxis_transform())    # on the edge: it has no value
        axis.axhline(limit, color="#555555", linestyle=":", linewidth=0.9)
        axis.annotate("largest float32", (110, limit), fontsize=7, ha="right", va="bottom", color="#555555")
        axis.set_yscale("log")
        axis.set_xticks(ticks, list(map(str, ticks)))
        axis.set_xlabel("ResNet of depth")
        axis.set_title(name)
    handles = dict(zip(*axes[1].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    figure.suptitle("SynFlow on residual networks at initialisation, a mark per seed and number of classes")
    figure.data = rows[["dataset", "seed", "depth", "precision", "flow", "largest"]]
    return figure


@drawing
def one_round_or_many(found: pd.DataFrame, pair: str) -> Figure:
    """Density of each layer after one round of SynFlow and after a hundred."""
    rows = of(found, pair)
    ratios = sorted(rows["ratio"].unique())
    figure, axes = plt.subplots(1, len(ratios), figsize=(PAGE, 2.7), sharey=True, squeeze=False)
    floor = (rows["kept"] / rows["size"])[rows["kept"] > 0].min() / 2
    for ratio, axis in zip(ratios, axes[0], strict=True):
        colour = look("SynFlow")[0]
        for rounds, style, face in ((1, "--", "white"), (100, "-", colour)):
            its = rows[(rows["ratio"] == ratio) & (rows["rounds"] == rounds)].reset_index(drop=True)
            density = its["kept"] / its["size"]
            axis.plot(its.index + 1, density.where(density > 0), style, marker="o", markersize=3, color=colour,
                      markerfacecolor=face, label=f"{rounds} round{'s' if rounds > 1 else ''}")
            empty = its.index[density == 0] + 1
            axis.plot(empty, [floor] * len(empty), "x", color=colour)
        axis.set_yscale("log")
        axis.set_ylim(floor / 1.5, 1.3)
        axis.set_title(f"r = {ratio:g}")
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].set_ylabel("density (× = empty)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{_title(pair)}{_seed(rows)}: SynFlow, one round and a hundred")
    figure.data = rows[["ratio", "rounds", "layer", "kept", "size"]]
    return figure


# ---- Overlaps

@drawing
def overlap_map(found: pd.DataFrame, pair: str, ratio: float) -> Figure:
    """Jaccard index of the kept sets of all methods and readings at one compression."""
    rows = of(found, pair)
    rows = rows[rows["ratio"] == ratio]
    names = _ordered([*rows["first"], *rows["second"]])
    matrix = pd.DataFrame(np.eye(len(names)), names, names)
    for line in rows.itertuples():
        matrix.loc[line.first, line.second] = matrix.loc[line.second, line.first] = line.jaccard
    figure, axis = plt.subplots(figsize=(5.6, 5.0))
    axis.grid(False)
    image = axis.imshow(matrix, cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axis.set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(image, ax=axis, label="kept by both / kept by either", shrink=0.6)
    axis.set_title(f"{_title(pair)}{_seed(rows)}: overlap of kept sets, r = {ratio:g}")
    figure.data = matrix.rename_axis("method").reset_index()
    return figure


@_tabled
def readings_table(found: pd.DataFrame) -> Table:
    """How much of its kept set each method shares between its readings."""
    lines = []
    for (dataset, model), rows in found.groupby(["dataset", "model"], sort=False):
        index = rows.set_index(["first", "second", "ratio"])["jaccard"]
        index = pd.concat([index, index.swaplevel(0, 1)])
        ratios = sorted(rows["ratio"].unique())
        for base in tables.bases():
            for other in (f"{base}@written", f"{base}@run"):
                if (base, other) in set(index.index.droplevel(2)):
                    lines.append({"network": network_label(dataset, model), "kept sets": f"{base} and {other}"}
                                 | {f"r = {ratio:g}": f"{100 * index[base, other, ratio]:.1f} %"
                                    if (base, other, ratio) in index.index else DASH for ratio in ratios})
    return Table("What the readings of a method share: kept by both / kept by either. Sets of different sizes cannot reach "
                 "100 %. SNIP's readings and GraSP@run start from other initial weights than their counterparts, Random@run "
                 "draws anew: there positions are compared, not weights.", pd.DataFrame(lines).fillna(DASH))


@_tabled
def variation_table(found: pd.DataFrame) -> Table:
    """How much of a kept set survives another seed, and another scoring batch."""
    lines = []
    for (dataset, model, method), rows in found.groupby(["dataset", "model", "method"], sort=False):
        line = {"network": network_label(dataset, model), "method": method}
        for row in rows.itertuples():
            line[f"{row.against}, r = {row.ratio:g}"] = f"{100 * row.jaccard:.1f} %"
        lines.append(line | {f"by chance, r = {row.ratio:g}": f"{100 * row.by_chance:.1f} %" for row in rows.itertuples()})
    return Table("What a kept set shares with that of another seed, of another scoring batch on the same weights, "
                 "and by chance.", pd.DataFrame(lines).fillna(DASH))


@_tabled
def images_table(found: pd.DataFrame) -> Table:
    """How OBD's kept set changes with the number of images."""
    rows = [{"network": network_label(row.dataset, row.model), "images": str(row.images), "against": row.against,
             "r": f"{row.ratio:g}", "in common": f"{100 * row.jaccard:.1f} %", "by chance": f"{100 * row.by_chance:.1f} %"}
            for row in found.itertuples()]
    return Table("OBD's kept set from fewer images, against that from the most: kept by both / kept by either.",
                 pd.DataFrame(rows))


@_tabled
def exactness_table(found: pd.DataFrame) -> Table:
    """OBD's second derivatives of single weights, by the formula and by differentiating twice."""
    lines = []
    for (dataset, model), rows in found.groupby(["dataset", "model"], sort=False):
        scale = rows["double_backward"].abs().clip(lower=1e-300)
        apart = {name: ((rows[name] - rows["double_backward"]).abs() / scale).max() for name in ("diagonal", "float32")}
        lines.append({"network": network_label(dataset, model), "weights drawn": str(len(rows)),
                      "h from": f"{rows['double_backward'].min():.2e}", "to": f"{rows['double_backward'].max():.2e}",
                      "largest relative difference, float64": f"{apart['diagonal']:.1e}",
                      "the same, float32 with float64 sums": f"{apart['float32']:.1e}"})
    return Table("The exact diagonal by first derivatives alone, against double backward (autograd's, float64), "
                 "for single weights drawn by chance from all prunable layers of the real network; 16 training images.",
                 pd.DataFrame(lines))


@_tabled
def cost_table(records: Iterable[Record]) -> Table:
    """What the masks cost, method by method and network by network: seconds of one thread, one seed, all compressions."""
    frame = pd.DataFrame([{"network": network_label(r.cell.dataset, r.cell.model), "method": r.cell.method,
                           "seed": r.cell.seed, "seconds": r.run["seconds"]} for r in records])
    each = frame.groupby(["method", "network", "seed"])["seconds"].sum().groupby(["method", "network"]).mean().unstack()
    each = each.loc[each.sum(axis=1).sort_values(ascending=False, kind="stable").index, frame["network"].unique()]
    body = each.map(lambda seconds: f"{seconds:.1f}" if pd.notna(seconds) else DASH).reset_index()
    return Table(f"Seconds of one thread per seed, all compressions together, as measured (other work ran beside); in all "
                 f"{frame['seconds'].sum() / 3600:.1f} hours for {len(frame)} cells. "
                 "Where there is BatchNorm, OBD@run shares OBD's curvature.", body)
