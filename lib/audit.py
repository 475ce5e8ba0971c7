"""What a mask of a single cell cannot tell: how far a method prunes before collapse, and how much two masks share.

Here the questions of `QUESTIONS`, which a `lib.study.Study` asks of a network at initialisation, are answered.
"""

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lib import collapse, data, experiment, methods, models, pruning, trainer
from lib.experiment import VERSION, Cell
from lib.profile import Profile, outputs
from lib.scorers import needs_data, obd
from lib.scorers.common import call, leaves
from lib.scorers.synflow import flow, synflow, synflow_run
from lib.store import Store
from lib.study import Answer, Rows, Study

# Compressions at which kept sets are compared, here and in the notebooks, as far as a network can be pruned.
RATIOS = (4, 16, 64)
# Numbers of images that OBD's kept sets are compared for, as far as the training set goes.
IMAGES = (128, 512, 2048)
DEPTHS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
# Methods whose scores have, or as released had, a sign.
SIGNED = ("GraSP", "GraSP@written", "GraSP@run", "OBD", "OBD@run")


def studies(grid: Profile) -> list[Study]:
    """The studies of a profile: of the pairs that it audits, at its first seed (the depths at all of them)."""
    return [study for pair in grid.audit for study in _studies(grid, *pair.split("/"))]


def _studies(grid: Profile, dataset: str, model: str) -> Iterator[Study]:
    images = grid.images_of("OBD", dataset)

    def ask(question: str, method: str = "", seed: int = grid.seeds[0]) -> Study:
        return Study(question, dataset, model, method, seed, grid.width, images, grid.train_images)

    if model.startswith("resnet"):
        yield from (ask("depth", seed=seed) for seed in grid.seeds)
    else:
        yield ask("rounds")
    for name, method in sorted(methods.METHODS.items(), key=lambda row: row[1].base):
        if name in SIGNED:
            yield ask("signed", name)
        if method.reading == "published":
            yield ask("critical", name)
            yield ask("variation", name)
    yield ask("exactness", "OBD")
    yield ask("overlap")
    yield ask("images", "OBD")


def store_of(grid: Profile) -> Store:
    """The answers of a profile."""
    return Store(outputs(grid.profile) / "audit.jsonl", Answer)


def run(study: Study, data_root: str | None = None) -> Answer:
    """Answers a study; the same study gives the same rows. Raises `UserError` as `experiment.run` does."""
    began = time.perf_counter()
    rows = QUESTIONS[study.question](study, experiment.images_of(study.cell("Dense"), data_root))
    return Answer(study.key, VERSION, study, rows, experiment.circumstances("cpu")
                  | {"seconds": round(time.perf_counter() - began, 3)})


# ---- Kept sets

def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Weights kept by both, over weights kept by either, of two packed masks."""
    either = int(np.bitwise_count(first | second).sum())
    return int(np.bitwise_count(first & second).sum()) / max(1, either)


def by_chance(first: np.ndarray, second: np.ndarray, weights: int) -> float:
    """The Jaccard index that two random sets of the same sizes are expected to have, to first order."""
    a, b = (int(np.bitwise_count(packed).sum()) for packed in (first, second))
    both = a * b / weights
    return both / max(1, a + b - both)


def _kept(cell: Cell, images: data.Data, batch_of: Cell | None = None) -> dict[float, np.ndarray]:
    """Compression -> the packed mask of a cell, at those of RATIOS that its network can reach.

    batch_of: a cell whose scoring batch is used in place of the cell's own.
    """
    model = experiment.network(cell, images)
    ratios = [ratio for ratio in RATIOS if ratio <= pruning.largest_compression(model)]
    cells = [dataclasses.replace(cell, compression=ratio) for ratio in ratios]
    return {each.compression: pruning.pack(experiment.masks_of(each, model, images, batch_of)) for each in cells}


def _overlap(study: Study, images: data.Data) -> Rows:
    """All methods in all readings against each other."""
    kept = {name: _kept(study.cell(name), images) for name in methods.METHODS}
    ratios = next(iter(kept.values()))
    return [{"ratio": ratio, "first": first, "second": second, "jaccard": jaccard(kept[first][ratio], kept[second][ratio])}
            for ratio in ratios for first, second in itertools.combinations(kept, 2)]


def _variation(study: Study, images: data.Data) -> Rows:
    """The mask of this seed against that of the next seed, and against that of another scoring batch alone."""
    other = study.cell(seed=study.seed + 1)
    own = _kept(study.cell(), images)
    rows = _compare(study, images, "another seed", own, _kept(other, images))
    if _takes_a_batch(study.method):
        rows += _compare(study, images, "another batch", own, _kept(study.cell(), images, batch_of=other))
    return rows


def _takes_a_batch(method: str) -> bool:
    """OBD sees the first images of the training set, so no other batch."""
    return needs_data(methods.get(method).score) and methods.get(method).mode != "calibrated"


def _images(study: Study, images: data.Data) -> Rows:
    """OBD's mask from fewer images against that from the most."""
    counts = sorted({count for count in (*IMAGES, study.score_images) if count <= len(images.train_labels)})
    *fewer, most = [(count, _kept(study.cell(score_images=count), images)) for count in counts]
    return [{"images": count} | row for count, kept in fewer
            for row in _compare(study, images, f"{most[0]} images", kept, most[1])]


def _compare(study: Study, images: data.Data, what: str, own: dict, other: dict) -> Rows:
    total, _, fixed = pruning.totals(experiment.network(study.cell(), images))
    return [{"against": what, "ratio": ratio, "jaccard": jaccard(own[ratio], other[ratio]),
             "by_chance": by_chance(own[ratio], other[ratio], total - fixed)} for ratio in own]


# ---- Collapse

def _critical(study: Study, images: data.Data) -> Rows:
    """The critical compression, by the path that is left and, which on residual networks is more, by empty layers."""
    cell, method = study.cell(), methods.get(study.method)
    model = experiment.network(cell, images)
    scores = experiment.scores(cell, model, images) if method.rounds == 1 else None
    batch = experiment.scoring_batch(cell, images) if method.rounds > 1 else (None, None)
    total, layers, fixed = pruning.totals(model)
    weights = total - fixed
    seen: dict[int, dict[str, bool]] = {}

    def whole(kept: int, by: str) -> bool:
        if kept not in seen:
            seen[kept] = collapse.whole(model, collapse.masks_keeping(model, method, scores, kept, batch))
        return seen[kept][by]

    per_octave = collapse.PER_OCTAVE if method.rounds == 1 else 1   # a point costs as much as all of its rounds
    found = {by: collapse.critical(lambda kept: whole(kept, by), weights, layers, per_octave)
             for by in ("path", "layers")}
    return [{"by": by, "weights": weights, "layers": layers} | asdict(each) | {"whole_again": list(each.whole_again)}
            for by, each in found.items()]


def _rounds(study: Study, images: data.Data) -> Rows:
    """What one round of SynFlow and what a hundred keep in each layer."""
    model, rows = experiment.network(study.cell("SynFlow"), images), []
    for ratio in (ratio for ratio in RATIOS if ratio <= pruning.largest_compression(model)):
        for rounds in (1, 100):
            method = dataclasses.replace(methods.get("SynFlow"), rounds=rounds)
            masks = pruning.masks(model, method, None, None, ratio)
            rows += [{"ratio": ratio, "rounds": rounds, "layer": name, "kept": int(mask.sum()), "size": mask.numel()}
                     for name, mask in masks.items()]
    return rows


def _depth(study: Study, images: data.Data) -> Rows:
    """SynFlow's R and largest score over the depth of a residual network; null: not finite."""
    rows = []
    for name in DEPTHS:
        model = models.build(name, len(images.classes), study.width)
        cell = dataclasses.replace(study.cell("Dense"), model=name)
        models.initialise(model, "own", experiment.generator(cell, "weights"))
        for dtype, score in ((torch.float32, synflow_run), (torch.float64, synflow)):
            largest = max(s.max() for s in score(model, None, None).values())
            rows.append({"network": name, "precision": str(dtype).removeprefix("torch."),
                         "flow": _finite(flow(model, None, dtype)[0].detach()), "largest": _finite(largest)})
    return rows


def _finite(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


# ---- Second derivatives

def _exactness(study: Study, images: data.Data, count: int = 12, seen: int = 16) -> Rows:
    """OBD's h of a few weights drawn by chance, by first derivatives alone and by double backward, float64;
    and float32's."""
    cell = study.cell()
    model, draw = experiment.network(cell, images).double(), experiment.generator(cell, "exactness")
    inputs = trainer.batch(images, torch.arange(min(seen, len(images.train_labels))), None)[0].double()
    pruning.calibrate(model.train(), inputs)
    model.eval()
    diagonal, single = obd.diagonal(model, inputs), obd.diagonal(copy.deepcopy(model).float(), inputs.float())
    parameters = leaves(model)
    loss = cross_entropy(call(model, inputs, parameters), images.train_labels[:len(inputs)])
    chosen = {name: parameters[name] for name in pruning.prunable(model)}
    slopes = dict(zip(chosen, torch.autograd.grad(loss, list(chosen.values()), create_graph=True)))
    rows = []
    for _ in range(count):
        name = list(chosen)[int(torch.randint(len(chosen), (), generator=draw))]
        index = int(torch.randint(chosen[name].numel(), (), generator=draw))
        twice, = torch.autograd.grad(slopes[name].flatten()[index], chosen[name], retain_graph=True)
        rows.append({"layer": name, "index": index, "diagonal": float(diagonal[name].flatten()[index]),
                     "float32": float(single[name].flatten()[index]), "double_backward": float(twice.flatten()[index])})
    return rows


# ---- Signs

def _signed(study: Study, images: data.Data) -> Rows:
    """The distribution of a signed score, its zeros, and what two hypotheses make of it at each compression.

    ties: the thesis's (section 4.3): a mask that drops what is below the threshold and keeps all that is equal to it.
    two_sided: the released mask, which drops what lies between the threshold and its negative.
    """
    cell = study.cell()
    model = experiment.network(cell, images)
    scores = {name: score.double() for name, score in experiment.scores(cell, model, images).items()}
    flat = torch.cat([score.flatten() for score in scores.values()])
    total, _, fixed = pruning.totals(model)
    rows = [{"what": "layer", "layer": name, "weights": score.numel(), "zeros": int((score == 0).sum()),
             "negative": int((score < 0).sum())} for name, score in scores.items()]
    rows += [{"what": "bar", "sign": sign, "from": low, "to": high, "weights": count}
             for sign in (1, -1) for low, high, count in _bars(sign * flat)]
    for ratio in (2.0**k for k in range(1, 7)):
        if ratio <= pruning.largest_compression(model):
            cut = float(np.quantile(flat.numpy(), 1 - pruning.released_density(model, ratio)))
            lowest = float(flat.kthvalue(len(flat) - pruning.kept_count(model, ratio) + 1).values)
            rows.append({"what": "ratio", "ratio": ratio, "released": cut, "exact": lowest,
                         "ties": total / (fixed + int((flat >= cut).sum())),
                         "two_sided": total / (fixed + len(flat) - int(((flat > -cut) & (flat < cut)).sum()))})
    return rows


def _bars(values: Tensor, bars: int = 60, decades: int = 15) -> list[tuple[float, float, int]]:
    """A histogram of the positive ones, in equal ratios from the largest downwards; the lowest bar takes in the rest."""
    positive = values[values > 0].numpy()
    if len(positive) == 0:
        return []
    edges = np.geomspace(positive.max() / 10.0**decades, positive.max(), bars + 1)
    counts, _ = np.histogram(positive.clip(edges[0], edges[-1]), edges)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist()))


QUESTIONS: dict[str, Callable[[Study, data.Data], Rows]] = {
    "critical": _critical, "overlap": _overlap, "variation": _variation, "images": _images, "rounds": _rounds,
    "depth": _depth, "exactness": _exactness, "signed": _signed,
}
