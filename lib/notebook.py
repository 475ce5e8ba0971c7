"""What the method notebooks share: the cells of their methods, networks to look at, and comparisons of masks."""

import copy
import dataclasses
import math
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Image
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lib import UserError, audit, data, experiment, figures, methods, profile, pruning, sweep, tables
from lib.audit import RATIOS
from lib.experiment import SCORE_IMAGES, Cell, Record
from lib.profile import NOTEBOOKS, Profile
from lib.pruning import Masks
from lib.scorers.common import Scores, call, leaves, weights
from lib.store import Store
from lib.study import Answer

# At most so many images for OBD's curvature in the pictures: the whole of MNIST would take minutes.
OBD_IMAGES = 256
Kept = dict[float, Masks]   # compression -> masks


class Chapter:
    """One notebook under one profile: the cells that it needs, what it makes of them, and where that goes.

    parameters: a mapping that holds the fields of a profile, such as the notebook's `globals()`. Raises pydantic's
    `ValidationError`, which names the field, for a value that does not fit.
    """

    def __init__(self, name: str, parameters: dict):
        torch.set_num_threads(1)   # notebooks run side by side, and bits must not depend on the number of cores
        self.name, self.bases = name, NOTEBOOKS[name]
        self.grid = Profile(**{field: parameters[field] for field in Profile.model_fields})
        self.folder = profile.outputs(self.grid.profile)
        self.store = Store(self.folder / "results.jsonl")

    @cached_property
    def examples(self) -> list["Example"]:
        """One network per pair of the profile. The CNN is small enough to be shown as it is, at full width."""
        return [Example(self.grid, pair, 1.0 if pair.endswith("/cnn") else self.grid.width) for pair in self.grid.pairs]

    @cached_property
    def cells(self) -> list[Cell]:
        """The profile's cells of this notebook's methods, in all their readings, with their unpruned networks."""
        return self.grid.cells(self.bases)

    @cached_property
    def records(self) -> list[Record]:
        """The records that the store has of these cells."""
        return [self.store.get(cell) for cell in self.cells if cell in self.store]

    @cached_property
    def answers(self) -> list[Answer]:
        """The answers that there are to the profile's studies; it says how many are missing."""
        asked, store = audit.studies(self.grid), audit.store_of(self.grid)
        print(f"{len(asked) - len(sweep.missing(asked, store))} of {len(asked)} studies are in the store.")
        return [store.get(study) for study in asked if study in store]

    def results(self) -> pd.DataFrame:
        """Computes the cells that the store lacks, one line each, then hands back the frame of all of them.

        Compressions out of a network's reach are left out and said. The rows are those of the main learning rate.
        """
        workers = int(os.environ.get("FORESIGHT_WORKERS", "0")) or None
        for failure in sweep.run(self._within_reach(), self.store, workers=workers):
            print(f"FAILED {failure}")
        done = len(self.cells) - len(sweep.missing(self.cells, self.store))
        print(f"{done} of {len(self.cells)} cells are in the store.")
        return tables.at_rate(tables.frame(self.store.records.values(), self.cells), self.grid.learning_rate)

    def _within_reach(self) -> list[Cell]:
        """The cells less those whose compression their network cannot reach, with one sentence for each such ratio."""
        found, said = [], {}
        for cell in sweep.missing(self.cells, self.store):
            case = f"{cell.dataset}/{cell.model}", cell.compression
            if case not in said:
                said[case] = _objection(Example(self.grid, case[0], cell.width).network(), cell.compression)
                if said[case]:
                    print(f"{case[0]}: {said[case]} Left out.")
            if not said[case]:
                found.append(cell)
        return found

    def show(self, figure: Figure, stem: str) -> Image:
        """Saves a figure as PDF, SVG and PNG, with its numbers as CSV, and returns the PNG to be shown."""
        return figures.save(figure, self._stem("figures", stem))

    def table(self, caption: str, rows: Iterable[dict] | pd.DataFrame, stem: str) -> tables.Table:
        """Saves rows as CSV, Markdown and LaTeX, and hands the table back to be shown."""
        return self.keep(tables.Table(caption, pd.DataFrame(rows).map(_text).astype(str)), stem)

    def keep(self, table: tables.Table, stem: str) -> tables.Table:
        """Saves a table as CSV, Markdown and LaTeX, and hands it back to be shown."""
        return tables.save(table, self._stem("tables", stem))

    def _stem(self, kind: str, stem: str) -> Path:
        return self.folder / kind / f"{self.name[:2]}-{stem}"

    def audit(self, results: pd.DataFrame, *bases: str) -> tables.Table:
        """The compression that the store's masks reach, counted by masks, and the layers that they leave empty.

        One row per network and ratio, one column per method and reading: the mean compression over the seeds, and in how
        many of them a layer is empty and no path is left.
        """
        pruned = results[results["compression"] > 1]
        names, columns = profile.select(list(bases)), ["dataset", "model", "width", "compression"]
        rows = [{"network": _name(*network), "r": ratio}
                | {name: _audited(group[group["method"] == name]) for name in names}
                for (*network, ratio), group in pruned.groupby(columns, sort=False)]
        return self.table(f"Compression reached by the masks of {', '.join(bases)}, where r was asked for, mean over seeds; "
                          "in how many of them a layer is “empty” and “no path” is left.", rows, f"audit-{bases[0].lower()}")

    def cost(self) -> tables.Table:
        """What this notebook's cells cost, profile by profile, by the seconds that the stores have measured."""
        known = {name: profile.load(name) for name in profile.names()} | {self.grid.profile: self.grid}
        rows = [{"profile": name} | _cost(grid.cells(self.bases), self._store(name))
                for name, grid in known.items()]
        return self.table("Cost of this notebook's cells, unpruned networks included. A dash: a pair of the profile has "
                          "no measured cell yet.", rows, "cost")

    def _store(self, name: str) -> Store:
        return self.store if name == self.grid.profile else Store(profile.outputs(name) / "results.jsonl")

    def provenance(self) -> tables.Table:
        """The store, the code and the versions that this notebook was made of."""
        return tables.provenance(tables.frame(self.store.records.values(), self.cells), self.store.path)


class Example:
    """A network at initialisation and what it is scored on, both exactly as the cells of its pair have them.

    width 1.0 shows the real network where a profile trains a narrow one. The first of the profile's seeds counts.
    """

    def __init__(self, grid: Profile, pair: str, width: float):
        self.grid, self.pair, self.width = grid, pair, width
        self.dataset, self.model = pair.split("/")
        self._rounds: dict[tuple[str, float], Masks] = {}

    @cached_property
    def images(self) -> data.Data:
        return data.load(self.dataset).first(self.grid.train_images)

    @property
    def name(self) -> str:
        return _name(self.dataset, self.model, self.width)

    @cached_property
    def ratios(self) -> list[float]:
        """Those of `RATIOS` that the network can reach; it says which it cannot."""
        objections = {ratio: _objection(self.network(), ratio) for ratio in RATIOS}
        for objection in filter(None, objections.values()):
            print(f"{self.name}: {objection} Left out.")
        return [ratio for ratio, objection in objections.items() if not objection]

    def describe(self) -> dict:
        """A row for a table: what this network is, and how far it can be pruned."""
        model = self.network()
        total, layers, fixed = pruning.totals(model)
        return {"network": self.name, "N: parameters": total, "F: not prunable": fixed,
                "prunable layers": layers, "largest r": pruning.largest_compression(model),
                "stand-in data": self.images.stand_in}

    def cell(self, method: str) -> Cell:
        """The cell that this network begins; only how it is initialised and scored matters here."""
        images = SCORE_IMAGES
        if methods.get(method).base == "OBD":
            images = min(self.grid.obd_images_of(self.dataset) or OBD_IMAGES, OBD_IMAGES, len(self.images.train_labels))
        return Cell(self.dataset, self.model, method, 1, self.grid.seeds[0], self.grid.pairs[self.pair],
                    self.grid.learning_rate, width=self.width, score_images=images, train_images=self.grid.train_images)

    def network(self, method: str = "Dense") -> nn.Module:
        """The network with the initial weights that the method starts from, float32."""
        return experiment.network(self.cell(method), self.images)

    def setting(self, method: str) -> tuple[nn.Module, Tensor, Tensor]:
        """Model, inputs and targets to call the method's scorer with: in the mode and the precision that `pruning.score`
        takes."""
        inputs, targets = experiment.scoring_batch(self.cell(method), self.images)
        model = pruning.as_scored(self.network(method), methods.get(method), inputs)
        return model, inputs.to(next(model.parameters()).dtype), targets

    def scores(self, method: str) -> Scores:
        """The method's scores of the prunable weights."""
        return experiment.scores(self.cell(method), self.network(method), self.images)

    def masks(self, method: str, ratios: Iterable[float] | None = None) -> Kept:
        """Compression -> the method's masks, the same as those of the cells."""
        return {ratio: self._masks(method, ratio) for ratio in ratios or self.ratios}

    def _masks(self, method: str, ratio: float) -> Masks:
        if (method, ratio) in self._rounds:
            return self._rounds[method, ratio]
        cell = dataclasses.replace(self.cell(method), compression=ratio)
        found = experiment.masks_of(cell, self.network(method), self.images)
        if methods.get(method).rounds > 1:   # a hundred scores: worth remembering
            self._rounds[method, ratio] = found
        return found

    def readings(self, base: str) -> dict[str, Kept]:
        """Name -> masks, for all readings of a method."""
        return {name: self.masks(name) for name in profile.select([base])}

    def best(self, scores: Scores, ratios: Iterable[float] | None = None) -> Kept:
        """Compression -> the masks that keep the K best of any scores, all layers competing."""
        model = self.network()
        scores = {name: scores[name] for name in pruning.prunable(model)}
        return {ratio: pruning.select(model, methods.get("GlobalMag"), scores, ratio, torch.Generator())
                for ratio in ratios or self.ratios}

    def some(self, scores: Scores) -> Scores:
        """The scores of the first, the middle and the last prunable layer: enough for a picture."""
        names = list(pruning.prunable(self.network()))
        chosen = dict.fromkeys((names[0], names[len(names) // 2], names[-1]))
        return {name: scores[name] for name in chosen}

    def overlaps(self, kept: dict[str, Kept]) -> list[dict]:
        """One row per compression: how many weights each of these keeps, and the share that it has in common with the
        first: kept by both / kept by either (Jaccard). Beside it what two random sets of the same sizes would share.
        Of sets that differ in size it cannot reach 100 %."""
        (first, reference), *others = kept.items()
        total, _, fixed = pruning.totals(self.network())
        rows = []
        for ratio, masks in reference.items():
            row = {"network": self.name, "r": ratio, f"{first} keeps": count(masks)}
            for name, other in others:
                packed = pruning.pack(masks), pruning.pack(other[ratio])
                row |= {f"{name} keeps": count(other[ratio]),
                        f"{name}: in common": f"{percent(audit.jaccard(*packed))} "
                                              f"(by chance {percent(audit.by_chance(*packed, total - fixed))})"}
            rows.append(row)
        return rows

    def tails(self, method: str) -> list[dict]:
        """One row per compression: what is kept of the scores above, below and exactly at 0, and what is reached."""
        scores, rows = self.scores(method), []
        for ratio, masks in self.masks(method).items():
            chosen = {name: scores[name][mask] for name, mask in masks.items()}
            rows.append({
                "network": self.name, "r": ratio, "reached": pruning.report(self.network(method), masks).compression,
                "kept above 0": percent(share(chosen, lambda score: score > 0)),
                "kept below 0": percent(share(chosen, lambda score: score < 0)),
                "kept at 0": percent(share(chosen, lambda score: score == 0)),
                "all scores above 0": percent(share(scores, lambda score: score > 0)),
                "all scores exactly 0": percent(share(scores, lambda score: score == 0)),
            })
        return rows

    def layers(self, kept: dict[str, Masks]) -> list[dict]:
        """One row per prunable layer: its size, and the share of it that each of these masks keeps."""
        sizes = {name: weight.numel() for name, weight in pruning.prunable(self.network()).items()}
        return [{"layer": layer.removesuffix(".weight"), "weights": size}
                | {name: percent(int(masks[layer].sum()) / size) for name, masks in kept.items()}
                for layer, size in sizes.items()]


def cuts(scores: Scores, kept: Kept, two_sided: bool = False) -> dict[str, dict[float, float]]:
    """Layer -> compression -> where the masks of one threshold for all layers cut: at the lowest score kept.

    Of a two-sided mask the smallest magnitude kept: it cuts there and at minus that.
    """
    found = {}
    for compression, masks in kept.items():
        chosen = torch.cat([scores[name][mask] for name, mask in masks.items()])
        found[compression] = float((chosen.abs() if two_sided else chosen).min())
    return {name: found for name in scores}


def by_sign(score: Tensor) -> dict[str, Tensor]:
    """A signed score as two that are positive: those above 0, and the magnitudes of those below."""
    return {"above 0": score[score > 0], "below 0, magnitude": -score[score < 0]}


def count(masks: Masks) -> int:
    """How many weights are kept."""
    return sum(int(mask.sum()) for mask in masks.values())


def share(scores: Scores, condition) -> float:
    """The share of all scores that a condition (tensor -> bool tensor) holds for."""
    found = sum(int(condition(score).sum()) for score in scores.values())
    return found / max(1, sum(score.numel() for score in scores.values()))


def percent(value: float) -> str:
    """A share as a percentage with one decimal, below a tenth of a percent with two digits."""
    percents = 100 * float(value)
    return f"{percents:.2g} %" if 0 < percents < 0.1 else f"{percents:.1f} %"


def hessian_diagonal(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Diagonal of the explicit Hessian of the mean cross-entropy over all Conv2d and Linear weights.

    It makes the whole matrix: for tiny networks only. The model is scored in the mode that it is in.
    """
    chosen = weights(model)
    sizes = [weight.numel() for weight in chosen.values()]
    fixed = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(vector: Tensor) -> Tensor:
        moved = {name: part.view_as(weight) for (name, weight), part in zip(chosen.items(), vector.split(sizes))}
        return cross_entropy(call(model, inputs, fixed | moved), targets)

    flat = torch.cat([weight.detach().flatten() for weight in chosen.values()])
    diagonal = torch.func.hessian(loss)(flat).diagonal()
    return {name: part.view_as(weight) for (name, weight), part in zip(chosen.items(), diagonal.split(sizes))}


def gradient_flow(model: nn.Module, inputs: Tensor, targets: Tensor, temperature: float = 200) -> float:
    """Squared norm of the loss's gradient over all Conv2d and Linear weights, logits divided by `temperature`."""
    parameters = leaves(model)
    loss = cross_entropy(call(model, inputs, parameters) / temperature, targets)
    gradients = torch.autograd.grad(loss, [parameters[name] for name in weights(model)])
    return sum(float(gradient.square().sum()) for gradient in gradients)


def scaled(model: nn.Module, masks: Masks, factor: float) -> nn.Module:
    """A copy of the model in which the weights that the masks drop are multiplied by `factor`: 0 removes them."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in pruning.prunable(model).items():
            weight[~masks[name]] *= factor
    return model


def _objection(model: nn.Module, ratio: float) -> str:
    """Why a network cannot be pruned to this compression, or an empty string."""
    try:
        pruning.kept_count(model, ratio)
    except UserError as error:
        return str(error)
    return ""


def _name(dataset: str, model: str, width: float) -> str:
    return tables.network_label(dataset, model) + (f", width {width:g}" if width != 1 else "")


def _audited(rows: pd.DataFrame) -> str:
    rows = rows[rows["done"]]
    if rows.empty:
        return tables.DASH
    counts = {"empty": int((rows["empty_layers"] > 0).sum()), "no path": int(rows["collapsed"].sum())}
    told = [f"{name} {count}/{len(rows)}" for name, count in counts.items() if count]
    return "; ".join([f"{rows['compression_achieved'].mean():.2f}", *told])


def _cost(cells: list[Cell], store: Store) -> dict:
    """How many cells there are, how many are measured, their seconds, and an estimate for all of them."""
    pairs = [f"{cell.dataset}/{cell.model}" for cell in cells]
    runs = [store.get(cell).run if cell in store else {} for cell in cells]
    seconds = pd.Series([run.get("seconds") for run in runs], pairs, dtype=float)
    each = seconds.groupby(level=0)
    return {
        "cells": len(cells), "measured": int(seconds.count()), "hours measured": seconds.sum() / 3600,
        "hours for all, estimated": (each.mean() * each.size()).sum(skipna=False) / 3600,
        "device": ", ".join(sorted({run["device"] for run in runs if run})) or tables.DASH,
    }


def _text(value) -> str:
    """A value as a table prints it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return tables.DASH if math.isnan(value) else f"{value:.4g}"
    return str(value)
