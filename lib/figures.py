"""The figures of the paper, and the pictures that explain a method, drawn from frames, scores or masks.

Every drawing function returns a matplotlib figure whose `data` attribute is the frame behind it. A method has
the same colour, marker and line everywhere: colours by family (after Paul Tol's "muted" scheme, made for
colour-blind readers), full markers for global scope, dashed lines and open markers for layer-wise.
"""

import functools
import hashlib
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image
from matplotlib.figure import Figure
from torch import Tensor

from lib import methods, tables
from lib.data import constant_answer

COLUMN, PAGE = 3.4, 7.0     # widths in inches: one column of a paper, both columns

# Method -> colour, marker.
LOOKS = {
    "Random": ("#000000", "x"),
    "GlobalMag": ("#332288", "o"), "LayerMag": ("#332288", "o"),
    "GlobalGrad": ("#999933", "s"), "LayerGrad": ("#999933", "s"),
    "GlobalAct": ("#DDAA33", "^"), "LayerAct": ("#DDAA33", "^"),
    "GlobalLAP": ("#66BBEE", "D"), "LayerLAP": ("#66BBEE", "D"),
    "LAMP": ("#44AA99", "v"), "OBD": ("#117733", "P"), "SNIP": ("#CC6677", "*"), "GraSP": ("#882255", "X"),
    "SynFlow": ("#AA4499", "p"),
}
# Method -> line, where colours come near one another to an eye that lacks red or green.
_LINES = {"SNIP": "-.", "GraSP": "-.", "OBD": (0, (1, 1)), "SynFlow": (0, (1, 1))}
CELL = ["method", "compression", "seed", "learning_rate"]   # what tells the cells of one network apart
BAR = "#CCCCCC"     # of histograms: no method has it
PANELS = {"run": "@run: as released", "written": "@written: as the thesis says", "published": "published"}


# For methods of one's own, in the table's order.
_SPARE = (("#CC3311", "h"), ("#009988", "<"), ("#EE3377", ">"), ("#777777", "d"))


def look(base: str) -> tuple[str, str]:
    """The colour and the marker of a method."""
    own = [each for each in tables.bases() if each not in LOOKS]
    return LOOKS.get(base) or _SPARE[own.index(base) % len(_SPARE)]


def line_of(base: str) -> str | tuple:
    """The line of a method, as matplotlib takes it."""
    return "--" if base.startswith("Layer") else _LINES.get(base, "-")


def style():
    """The house style, as a context: 8 pt type, thin lines, no frame above and on the right, real text."""
    return mpl.rc_context({
        "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 8, "figure.titlesize": 9,
        "xtick.labelsize": 7.5, "ytick.labelsize": 7.5, "lines.linewidth": 1.1, "lines.markersize": 4,
        "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.linewidth": 0.4, "grid.color": "#dddddd", "axes.axisbelow": True, "legend.frameon": False,
        "figure.dpi": 110, "figure.constrained_layout.use": True, "figure.constrained_layout.w_pad": 0.03,
        "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "foresight",
    })


def drawing(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in the house style and closes the figure: a notebook then shows it once, as its cell's value."""
    @functools.wraps(draw)
    def drawn(*arguments, **options) -> Figure:
        with style():
            figure = draw(*arguments, **options)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")    # laid out once, not again for each format
            plt.close(figure)
            return figure
    return drawn


def save(figure: Figure, stem: Path | str) -> Image:
    """Writes `stem`.pdf, .svg, .png (200 dpi) and .csv, each whole or not at all; returns the PNG, to be shown.

    The same figure gives the same bytes: no dates, fixed identifiers. The CSV is the figure's `data`; the
    others hold its title, and name the store that lies beside their folder and its SHA-256. Of a network that the
    profile has no cells of (`asked` is False) nothing is written.
    """
    written = getattr(figure, "asked", True)
    title = "; ".join((figure.get_suptitle() or figure.axes[0].get_title()).splitlines())
    origin = _origin(Path(stem).parent.parent / "results.jsonl")
    facts = {"pdf": {"CreationDate": None, "Subject": origin}, "svg": {"Date": None, "Source": origin},
             "png": {"Source": origin}}
    for suffix, metadata in facts.items():
        content = io.BytesIO()
        with style():
            figure.savefig(content, format=suffix, metadata=metadata | {"Title": title}, dpi=200)
        if written:
            tables.write(f"{stem}.{suffix}", content.getvalue())
    if written:
        tables.write(f"{stem}.csv", figure.data.to_csv(index=False, lineterminator="\n"))
    return Image(content.getvalue(), width=round(110 * figure.get_figwidth()), alt=title)


def _origin(store: Path) -> str | None:
    """A store's name and hash: what a figure is made of."""
    if not store.is_file():
        return None
    return f"{store.parent.name}/{store.name}, SHA-256 {hashlib.sha256(store.read_bytes()).hexdigest()}"


# ---- Figures 4.1-4.13 --------------------------------------------------------------------------------------

@drawing
def accuracy_curves(frame: pd.DataFrame, dataset: str, model: str, metric: str = "top1",
                    readings: Iterable[str] = ("run", "published"),
                    bases: Iterable[str] | None = None) -> Figure:
    """Accuracy over compression, a panel per reading, a line per method (Figures 4.1-4.4, 4.6-4.9, 4.11-12).

    metric: "top1" or "top5". bases: only these methods, named without a reading; by default all there are.
    `@run` counts as the thesis does (best epoch × 0.98892), the other readings plainly. The line of chance (one
    constant answer to all) is dotted, that of the unpruned network dashed; bands: see `draw_lines`. Raises `UserError`
    where the frame mixes recipes.
    """
    rows, readings = _chosen(frame, dataset, model, bases), list(readings)
    rows = rows[rows["epochs"] > 0]    # a profile of masks trains none
    figure, axes = panels(len(readings))
    parts, counted = [], []
    for reading, axis in zip(readings, axes, strict=True):
        accounting = tables.ACCOUNTING[reading]
        column = f"{metric}{accounting}"
        part, cells = draw_reading(axis, rows, reading, column)
        parts.append(part)
        counted.append(cells)
        factor = tables.factor_of(rows, reading)
        chance = factor * constant_answer(dataset, metric)
        draw_levels(axis, chance, rows.loc[rows["method"] == "Dense", column].astype(float).mean())
        axis.set_title(f"{PANELS[reading]}\n({f'best epoch × {factor:.5f}' if accounting else 'last epoch'})")
    axes[0].set_ylabel(f"{metric.replace('top', 'top-')} accuracy (%)")
    # Nothing lies much below chance; where that is high, the space under it would be empty.
    highest = axes[0].get_ylim()[1] if any(map(len, parts)) else 100
    axes[0].set_ylim(40 if chance > 40 else 0, max(highest, 1.3 * chance))
    figure.data = pd.concat(parts, ignore_index=True)
    finish(figure, axes, rows, dataset, model, f"{metric.replace('top', 'top-')} accuracy", counted, tables.reduced(rows))
    return figure


@drawing
def compression_error(frame: pd.DataFrame, dataset: str, model: str,
                      bases: Iterable[str] | None = None) -> Figure:
    """(r_e − r) / r (%), Figures 4.5, 4.10, 4.13. `@run` counts values, as released; published, masks."""
    rows = _chosen(frame, dataset, model, bases)
    figure, axes = panels(2)
    parts, counted = [], []
    for axis, reading, column in zip(axes, ("run", "published"), ("released", "achieved"), strict=True):
        found = rows[f"compression_{column}"].astype(float)
        chosen = rows.assign(error=100 * (found / rows["compression"] - 1))
        part, cells = draw_reading(axis, chosen, reading, "error")
        parts.append(part)
        counted.append(cells)
        axis.axhline(0, color="#555555", linewidth=0.7, zorder=1)
        axis.set_title(f"{PANELS[reading]}\n(counts {'values' if column == 'released' else 'masks'})")
    axes[0].set_ylabel("compression error $(r_e - r)/r$ (%)")
    figure.data = pd.concat(parts, ignore_index=True)
    finish(figure, axes, rows, dataset, model, "compression error", counted)
    return figure


def _chosen(frame: pd.DataFrame, dataset: str, model: str, bases: Iterable[str] | None) -> pd.DataFrame:
    """The rows of a figure: of these methods, and of the unpruned networks."""
    rows = tables.select(frame, dataset, model)
    return rows if bases is None else rows[rows["base"].isin([*bases, "Dense"])]


def panels(count: int) -> tuple[Figure, np.ndarray]:
    """A figure of so many panels side by side, on one axis of values, and its panels."""
    size = (PAGE if count > 1 else 4.6, 3.1)
    figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False)
    return figure, axes[0]


def draw_reading(axis: plt.Axes, rows: pd.DataFrame, reading: str, column: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lines of one reading's methods (see `draw_lines`). Returns the numbers drawn, and the cells that they need, those
    of the unpruned networks among them, each with whether it is `there`."""
    names = set(rows.loc[(rows["reading"] == reading) & (rows["base"] != "Dense"), "method"])
    asked = rows[rows["method"].isin(names | set(map(methods.dense, names)))]
    return draw_lines(axis, asked, column), asked[CELL].assign(there=asked[column].notna())


def ratios_of(rows: pd.DataFrame) -> list[float]:
    """The compressions of `rows`, in order."""
    return sorted(rows["compression"].unique())


def draw_lines(axis: plt.Axes, rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """One line per method, broken where a ratio is missing, with its band over seeds: the mean's 95 % interval or, where
    an accuracy's would go beyond what is possible, the range of the seeds. Returns the numbers drawn."""
    points = tables.expand(rows).astype({column: float})
    found = tables.summary(points, column)
    found = found[found.groupby("base")["compression"].transform("max") > 1]    # a method is its pruned networks
    order = tables.bases()
    found = found.sort_values(["base", "compression"], key=lambda values: values.map(order.index)
                              if values.name == "base" else values, kind="stable")
    found["ranged"] &= column.startswith("top")
    found["lower"] = (found["mean"] - found["half"]).mask(found["ranged"], found["least"])
    found["upper"] = (found["mean"] + found["half"]).mask(found["ranged"], found["most"])
    for base, line in found.groupby("base", sort=False):
        colour, marker = look(base)
        layerwise = base.startswith("Layer")
        line = line.set_index("compression").reindex(ratios_of(points[points["base"] == base]))
        axis.plot(line.index, line["mean"], color=colour, marker=marker, label=base,
                  linestyle=line_of(base), markerfacecolor="white" if layerwise else colour,
                  markeredgewidth=0.8, markersize=6.5 if marker == "*" else 4, zorder=3)
        _draw_band(axis, line, colour)
    columns = ["base", "method", "reading", "compression", "value", "mean", "half", "least", "most", "ranged", "seeds"]
    return found.assign(value=column)[columns]


def _draw_band(axis: plt.Axes, line: pd.DataFrame, colour: str) -> None:
    """A band between `lower` and `upper`; a bar where the neighbours have none."""
    axis.fill_between(line.index, line["lower"], line["upper"], color=colour, alpha=0.1, linewidth=0)
    there = line["lower"].notna()
    alone = line[there & ~there.shift(fill_value=False) & ~there.shift(-1, fill_value=False)]
    if len(alone):
        axis.vlines(alone.index, alone["lower"], alone["upper"], color=colour, linewidth=0.8, alpha=0.6)


def draw_levels(axis: plt.Axes, chance: float, dense: float) -> None:
    """Chance level, dotted, and the unpruned network of the architecture's own initialisation, dashed."""
    # Each label at the end where no line of a method comes near.
    for level, name, linestyle, end in ((chance, "chance", ":", 0), (dense, "unpruned", (0, (5, 3)), 1)):
        if not math.isnan(level):
            axis.axhline(level, color="#555555", linestyle=linestyle, linewidth=0.9, zorder=1)
            axis.annotate(name, (end, level), xycoords=("axes fraction", "data"), xytext=(3 - 6 * end, 1.5),
                          textcoords="offset points", ha=("left", "right")[end], va="bottom", fontsize=7,
                          color="#555555")


def finish(figure: Figure, axes: np.ndarray, rows: pd.DataFrame, dataset: str, model: str, what: str,
            counted: list[pd.DataFrame], trained: Iterable[str] = ()) -> None:
    """The axis of ratios, one legend outside, and a title that says what is missing, how cells were trained and what a band
    is."""
    ratios = ratios_of(rows) or list(tables.RATIOS)
    for axis in axes:
        axis.set_xlabel("compression ratio r asked for")
        axis.set_xscale("log", base=2)
        axis.set_xlim(min(ratios) / 1.25, max(ratios) * 1.25)
        axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axis.minorticks_off()
    handles = {line.get_label(): line for axis in axes for line in axis.get_lines()}
    names = [base for base in tables.bases() if base in handles]
    if names:
        figure.legend([handles[name] for name in names], names, loc="outside right center", handlelength=3)
    cells = pd.concat(counted).drop_duplicates(CELL)    # panels share the unpruned networks
    k, n = int(cells["there"].sum()), len(cells)
    figure.asked = n > 0
    missing = "no such cells in this profile" if n == 0 else f"{k} of {n} cells" if k < n else ""
    seeds = rows.loc[rows["done"].astype(bool), "seed"].unique()
    parts = [f"{tables.network_label(dataset, model)}: {what}", f"seed {seeds[0]}" if len(seeds) == 1 else "", missing]
    title = "\n".join(filter(None, (" · ".join(filter(None, parts)), ", ".join(trained), _band_of(figure.data))))
    if k:
        figure.suptitle(title)
    else:
        one_line(figure, title)


def one_line(figure: Figure, title: str) -> None:
    """Leaves of a figure a title alone: empty axes would tell no more."""
    figure.clear()
    figure.set_size_inches(PAGE, 0.35)
    figure.suptitle(title)


def _band_of(drawn: pd.DataFrame) -> str:
    """What the bands of a figure are, as a line of its title."""
    if drawn.empty or drawn["seeds"].max() < 2:
        return ""
    told = ", or their range where that is impossible" if drawn["ranged"].any() else ""
    return f"mean; band: 95 % interval (Student's t) over {tables.over(drawn['seeds'])}{told}"


# ---- Pictures of scores and masks --------------------------------------------------------------------------

@drawing
def score_distribution(scores: dict[str, Tensor], thresholds: dict[str, dict[float, float]] | None = None,
                       title: str = "") -> Figure:
    """Histograms of scores, one panel per entry of `scores` (a layer's, a reading's; any shape).

    Scores without a sign are drawn on a logarithmic axis, signed ones on a linear axis with logarithmic
    counts. What neither can show is counted in the panel's title: zeros, values that are not finite.
    thresholds: entry -> compression -> where its mask cuts, drawn dashed.
    """
    size = (max(COLUMN, min(PAGE, 2.4 * len(scores))), 2.3)
    figure, axes = plt.subplots(1, len(scores), figsize=size, squeeze=False)
    parts, thresholds = [], thresholds or {}
    colours = _shades(ratio for cuts in thresholds.values() for ratio in cuts)
    for (name, values), axis in zip(scores.items(), axes[0], strict=True):
        values = values.detach().double().flatten().cpu().numpy()
        counts, edges = _histogram(axis, values[np.isfinite(values)])
        for ratio, cut in thresholds.get(name, {}).items():
            axis.axvline(cut, color=colours[ratio], linestyle="--", linewidth=1)
        shares = {"exactly 0": np.mean(values == 0), "not finite": np.mean(~np.isfinite(values))}
        told = ", ".join(f"{100 * share:.1f} % {what}" for what, share in shares.items() if share)
        axis.set_title(f"{name}\n{told}".strip())
        axis.set_xlabel("score")
        parts.append(pd.DataFrame({"scores": name, "from": edges[:-1], "to": edges[1:], "weights": counts}))
    axes[0, 0].set_ylabel("number of weights")
    if colours:
        lines = [plt.Line2D([], [], color=colour, linestyle="--", linewidth=1) for colour in colours.values()]
        figure.legend(lines, [f"r = {ratio:g}" for ratio in colours], title="threshold", loc="outside right center")
    if title:
        figure.suptitle(title)
    figure.data = pd.concat(parts, ignore_index=True)
    return figure


def _histogram(axis: plt.Axes, values: np.ndarray, bins: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Draws 60 bars; equal ratios for scores without a sign, equal widths for signed ones."""
    positive = values[values > 0]
    if (values < 0).any() or len(positive) == 0:
        edges = np.histogram_bin_edges(values, bins)
        axis.set_yscale("log")
    else:
        # The tail of tiny scores would squeeze the rest: the lowest bar takes in the smallest thousandth.
        low, high = np.quantile(positive, 0.001), positive.max()
        edges = np.geomspace(low, max(high, low * 1.001), bins + 1)
        values = positive.clip(edges[0], edges[-1])
        axis.set_xscale("log")
    counts, edges = np.histogram(values, edges)
    axis.stairs(counts, edges, fill=True, color=BAR, edgecolor="#777777", linewidth=0.4)
    return counts, edges


@drawing
def layer_density(masks: dict[float, dict[str, Tensor]], title: str = "") -> Figure:
    """Share of weights kept in each layer, one line per ratio; an empty layer is a cross at the bottom.

    masks: compression asked for -> layer name -> bool mask, True = kept, layers in definition order.
    """
    data = pd.DataFrame([
        {"compression": ratio, "layer": name, "position": position, "kept": int(mask.sum()),
         "size": mask.numel()}
        for ratio, layers in masks.items() for position, (name, mask) in enumerate(layers.items(), start=1)
    ])
    data["density"] = data["kept"] / data["size"]
    figure, axis = plt.subplots(figsize=(PAGE if data["position"].max() > 8 else 4.6, 2.6))
    floor = data.loc[data["kept"] > 0, "density"].min() / 2 if data["kept"].any() else 0.1
    for (ratio, line), colour in zip(data.groupby("compression"), _shades(masks).values(), strict=True):
        alive = line["kept"] > 0
        axis.plot(line["position"], line["density"].where(alive), "o-", color=colour, label=f"r = {ratio:g}")
        empty = line["position"][~alive]
        axis.plot(empty, [floor] * len(empty), "x", color=colour, markersize=6, clip_on=False)
    axis.set_yscale("log")
    axis.set_ylim(floor, 1.3)
    axis.set_ylabel("density (× = empty layer)")
    _layer_ticks(axis, data.loc[data["compression"] == data["compression"].iloc[0], "layer"].tolist())
    figure.legend(loc="outside right center")
    axis.set_title(title)
    figure.data = data
    return figure


def _shades(ratios: Iterable[float]) -> dict[float, tuple]:
    """A colour for each compression, darker with it."""
    ratios = sorted(set(ratios))
    return dict(zip(ratios, plt.get_cmap("viridis_r")(np.linspace(0.25, 0.95, len(ratios)))))


def _layer_ticks(axis: plt.Axes, layers: list[str]) -> None:
    """Names where they fit, numbers where they do not."""
    if len(layers) <= 16:
        names = [name.removesuffix(".weight") for name in layers]
        turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(layers) > 8 else {}
        axis.set_xticks(range(1, len(layers) + 1), names, **turned)
    else:
        axis.set_xlabel("layer, in definition order")


@drawing
def first_layer(masks: dict[float, dict[str, Tensor]], title: str = "") -> Figure:
    """Kept weights of the first convolution, one panel per compression ratio, one tile per filter.

    masks as for `layer_density`. Dark = kept; in between: some input channels keep the weight, others do not.
    """
    first = {ratio: next((name, mask) for name, mask in layers.items() if mask.dim() == 4)
             for ratio, layers in masks.items()}
    images = [_tiles(mask) for _, mask in first.values()]
    width = PAGE if len(masks) > 1 else COLUMN
    height = width / len(masks) * images[0].shape[0] / images[0].shape[1] + 0.5
    figure, axes = plt.subplots(1, len(masks), figsize=(width, height), squeeze=False)
    parts = []
    for (ratio, (name, mask)), image, axis in zip(first.items(), images, axes[0], strict=True):
        axis.imshow(image, cmap="Blues", vmin=-0.15, vmax=1, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(f"r = {ratio:g}: {int(mask.sum())} of {mask.numel()} kept")
        kept = mask.flatten(1).sum(1).tolist()
        filters = range(len(kept))
        parts.append(pd.DataFrame({"compression": ratio, "layer": name, "filter": filters, "kept": kept}))
    figure.get_layout_engine().set(w_pad=0.12)
    figure.suptitle(title or f"Kept weights of {name.removesuffix('.weight')}")
    figure.data = pd.concat(parts, ignore_index=True)
    return figure


def _tiles(mask: Tensor) -> np.ndarray:
    """A mask (filters, channels, height, width) as one image: filters side by side, NaN between them."""
    shares = mask.double().mean(1).cpu().numpy()
    count, height, width = shares.shape
    across = math.ceil(math.sqrt(count))
    image = np.full((math.ceil(count / across) * (height + 1) - 1, across * (width + 1) - 1), np.nan)
    for index, tile in enumerate(shares):
        top, left = index // across * (height + 1), index % across * (width + 1)
        image[top:top + height, left:left + width] = tile
    return image
