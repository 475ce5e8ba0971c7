"""Profiles: what a run covers. One YAML file of params/ each; its keys are the parameters of every notebook."""

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from lib import UserError, data, methods, models, pruning
from lib.experiment import SCORE_IMAGES, Cell

ROOT = Path(__file__).resolve().parents[1]

# Notebook -> the methods that it covers, each in all its readings; None: all that there are.
NOTEBOOKS: dict[str, tuple[str, ...] | None] = {
    "01_baselines": ("Random", "GlobalMag", "LayerMag", "GlobalGrad", "LayerGrad", "GlobalAct", "LayerAct"),
    "02_obd": ("OBD",),
    "03_lap_lamp": ("GlobalLAP", "LayerLAP", "LAMP"),
    "04_snip_grasp": ("SNIP", "GraSP"),
    "05_synflow": ("SynFlow",),
}
# These draw whatever the stores hold, of every method; they compute nothing.
RESULTS, AUDIT = DRAWN = "06_results", "07_audit"
NOTEBOOKS |= dict.fromkeys(DRAWN)

# These decide which learning rate the thesis's numbers were made with: its corrected top-1 are known.
PILOT = {("resnet56", "cifar10", "Dense", 1),
         *(("resnet56", "cifar10", method, 32) for method in ("Random@run", "SNIP@run", "GlobalMag@run"))}


Images = Annotated[int, Field(gt=0)] | None
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Profile(BaseModel, extra="forbid", frozen=True):
    """What a run covers: a grid of cells. Every field must be given; an unknown one is an error."""

    profile: str                                         # names the folder under outputs/
    pairs: dict[str, int] = Field(min_length=1)          # "dataset/model" -> epochs; 0: masks only
    compressions: list[float] = Field(min_length=1)      # r, each at least 1; 1 is the unpruned network
    further_compressions: list[float]                    # published readings also at these, where the network reaches them
    seeds: list[int] = Field(min_length=1)
    learning_rate: Positive
    text_learning_rate: Positive | None                  # `@run` readings, first seed, also at this rate; null: not
    width: Positive                                      # channel multiplier; 1 is the real network
    train_images: int | None = Field(gt=0)               # the first so many training images; null: all
    obd_images: Images | dict[str, Images]               # images for OBD's curvature, or one number per data set; null: all
    audit: list[str]                                     # pairs whose masks 07_audit takes apart, at the first seed

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: object) -> object:
        """YAML reads `yes`, `on` and `true` as a bool, and pydantic a bool as 1."""
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,):
            if isinstance(each, bool):
                raise UserError(f"{str(each).lower()} is neither a number nor a name")
        return value

    @field_validator("profile")
    @classmethod
    def _named(cls, name: str) -> str:
        if not re.fullmatch(NAME, name):
            raise UserError(f"{name!r} cannot name a folder: take letters, digits and, not in front, any of _ . -")
        return name

    @field_validator("obd_images")
    @classmethod
    def _of_sets(cls, images: Images | dict[str, Images]) -> Images | dict[str, Images]:
        for dataset in images if isinstance(images, dict) else ():
            if dataset not in data.NAMES:
                raise UserError(f"{dataset!r} is not a data set: choose among {', '.join(data.NAMES)}")
        return images

    @field_validator("pairs")
    @classmethod
    def _known(cls, pairs: dict[str, int]) -> dict[str, int]:
        for pair, epochs in pairs.items():
            dataset, _, model = pair.partition("/")
            if dataset not in data.NAMES or model not in models.NAMES:
                raise UserError(f"{pair!r} is not a pair: write dataset/model, one of {', '.join(data.NAMES)} "
                                f"and one of {', '.join(models.NAMES)}")
            if epochs < 0:
                raise UserError(f"{pair!r} cannot train for {epochs} epochs: write 0 (masks only) or more")
        return pairs

    @field_validator("audit")
    @classmethod
    def _audited(cls, audit: list[str], given: ValidationInfo) -> list[str]:
        for pair in audit:
            if pair not in given.data.get("pairs", audit):
                raise UserError(f"{pair!r} is not among the pairs of this profile")
        return audit

    @field_validator("compressions", "further_compressions")
    @classmethod
    def _reachable(cls, compressions: list[float]) -> list[float]:
        for ratio in compressions:
            _check_ratio(ratio)
        return compressions

    def cells(self, methods: list[str] | None = None, pairs: list[str] | None = None,
              ratios: list[float] | None = None) -> list[Cell]:
        """The grid, or the part of it that belongs to some methods (see `select`), pairs and compressions.

        r = 1 becomes the unpruned network, once per initialisation. Seed by seed, the unpruned cells come first, then pair
        by pair; the ratios of one method are neighbours, because they share one score, and where nothing is trained so are
        the readings of a method, because OBD's share their curvature. Where the profile trains, what answers most comes
        first: see `_stage`. No cell comes twice. Raises `UserError` for a method that is not in the table, and for a pair
        or a ratio that is not in the profile.
        """
        chosen = select(methods)
        pairs = self._among(pairs, list(self.pairs), "pair")
        for ratio in ratios or ():
            _check_ratio(ratio)
        ratios = self._among(ratios, self.compressions + self.further_compressions, "compression")
        together = sorted(chosen, key=lambda name: name.split("@")[0])
        grid = [self._cell(pair, method, ratio, seed, rate)
                for seed in self.seeds for pair in pairs for rate in self._rates(seed)
                for method in (chosen if self.pairs[pair] else together)
                if rate == self.learning_rate or method.endswith("@run")
                for ratio in ratios if ratio in self.compressions or self._goes_further(pair, method, ratio)]
        return sorted(dict.fromkeys(grid), key=self._stage)

    def _stage(self, cell: Cell) -> tuple:
        """Of the first seed: the cells that tell the thesis's learning rate, the other unpruned networks; its tables as run,
        VGG-16 before ResNet-56; the same as published; all else. Then the other seeds."""
        dense, later = cell.compression == 1, self.seeds.index(cell.seed)
        if not cell.epochs:
            return (not dense,)
        if dense or (cell.model, cell.dataset, cell.method, cell.compression) in PILOT:
            return (later, 0, (cell.model, cell.dataset, cell.method, cell.compression) not in PILOT)
        reading = methods.get(cell.method).reading
        tabled = cell.compression in (32, 64) and cell.learning_rate == self.learning_rate and reading != "written"
        return (later, ("run", "published").index(reading) + 1 if tabled else 3, cell.model.startswith("resnet"))

    def cut(self, epochs: int | None = None, train_images: int | None = None) -> "Profile":
        """The same profile with fewer epochs or training images, under a name that says so: its results are kept apart.

        OBD's images are cut too. Raises `UserError` for fewer than one of either, and for more epochs than it has.
        """
        changed, name = {}, self.profile
        for value, what in ((epochs, "epochs"), (train_images, "images")):
            if value is not None and value < 1:
                raise UserError(f"A profile cannot be cut down to {value} {what}: at least 1 is needed.")
            name += f"-{value}{what}" if value else ""
        if epochs and 0 < (most := max(self.pairs.values())) < epochs:
            raise UserError(f"A profile that trains for at most {most} epochs cannot be cut down to {epochs}: "
                            "write a profile of your own, a YAML file.")
        if epochs:
            changed["pairs"] = {pair: min(epochs, whole) for pair, whole in self.pairs.items()}
        if train_images:
            obd = self.obd_images
            if not isinstance(obd, dict):
                obd = {pair.split("/")[0]: self.obd_images for pair in self.pairs}
            fewer = {dataset: min(images or train_images, train_images) for dataset, images in obd.items()}
            changed |= {"train_images": train_images, "obd_images": fewer}
        return self.model_copy(update=changed | {"profile": name})

    def _among(self, wanted: list | None, known: list, what: str) -> list:
        for item in wanted or ():
            if item not in known:
                listed = ", ".join(f"{k:g}" if isinstance(k, float) else k for k in known)
                raise UserError(f"Profile {self.profile!r} has no {what} {item!r}: it has {listed}.")
        return known if wanted is None else [item for item in known if item in wanted]

    def _rates(self, seed: int) -> list[float]:
        also = self.text_learning_rate is not None and seed == self.seeds[0]
        return [self.learning_rate, self.text_learning_rate] if also else [self.learning_rate]

    def _goes_further(self, pair: str, method: str, ratio: float) -> bool:
        dataset, model = pair.split("/")
        largest = _largest_compression(model, data.classes(dataset), self.width)
        return methods.get(method).reading == "published" and ratio <= largest

    def _cell(self, pair: str, method: str, ratio: float, seed: int, rate: float) -> Cell:
        dataset, model = pair.split("/")
        if ratio == 1:
            method = methods.dense(method)
        return Cell(dataset, model, method, float(ratio), seed, self.pairs[pair], float(rate), width=float(self.width),
                    score_images=self.images_of(methods.get(method).base, dataset), train_images=self.train_images)

    def obd_images_of(self, dataset: str) -> int | None:
        """How many images OBD's curvature takes on this data set; None: the whole training set."""
        return self.obd_images.get(dataset) if isinstance(self.obd_images, dict) else self.obd_images

    def images_of(self, base: str, dataset: str) -> int:
        """How many images the method's score sees."""
        return (self.obd_images_of(dataset) or self._training_images(dataset)) if base == "OBD" else SCORE_IMAGES

    def _training_images(self, dataset: str) -> int:
        return self.train_images or data.sizes(dataset)[0]


@cache
def _largest_compression(model: str, classes: int, width: float) -> float:
    return pruning.largest_compression(models.build(model, classes, width))


def _check_ratio(ratio: float) -> None:
    if not 1 <= ratio < float("inf"):
        raise UserError(f"The compression {ratio:g} is not one: r is the network's size over the pruned network's, "
                        "a number of at least 1.")


def select(names: list[str] | None = None) -> list[str]:
    """Rows of the table of methods, in its order: `SNIP` stands for all its readings, `SNIP@run` for that one.

    `SNIP@published` is the published reading alone. Raises `UserError` for a name that fits no row.
    """
    if names is None:
        return list(methods.METHODS)
    answers = {name: [row for row, method in methods.METHODS.items()
                      if name in (row, method.base, f"{method.base}@{method.reading}")] for name in names}
    for name, rows in answers.items():
        if not rows:
            bases = dict.fromkeys(method.base for method in methods.METHODS.values())
            raise UserError(f"Unknown method {name!r}: choose among {', '.join(bases)}, or one reading of them, "
                            "as in SNIP@published, SNIP@written, SNIP@run.")
    wanted = set().union(*answers.values())
    return [row for row in methods.METHODS if row in wanted]


def load(name: str | Path) -> Profile:
    """The profile of params/<name>.yaml, or of a YAML file given by its path.

    Raises `UserError`, in one sentence, for a file that is missing or malformed, and for a key that is unknown,
    missing or of a wrong type. A number that YAML reads as a string (`1e-3`) is accepted as the number it is.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = ROOT / "params" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"Unknown profile {str(name)!r}: choose one of {', '.join(names())}, or give a YAML file.")
    try:
        text = path.read_text(encoding="utf-8")
        twice, fields = _twice(yaml.compose(text, yaml.SafeLoader)), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:   # the last of an alias that stands in itself
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if twice:
        raise UserError(f"{path} gives {' and '.join(f'`{key}`' for key in twice)} more than once: keep one line of each.")
    if not isinstance(fields, dict):
        raise UserError(f"{path} must be a list of `key: value` lines with the keys {', '.join(Profile.model_fields)}.")
    try:
        profile = Profile.model_validate(fields)
    except ValidationError as error:
        raise UserError(f"{path.name}: {_sentence(error)}") from error
    owner = ROOT / "params" / f"{profile.profile}.yaml"
    if owner.is_file() and not owner.samefile(path):
        raise UserError(f"{path} calls itself `{profile.profile}`, as does {owner}, among whose results its own would go: "
                        "give it a name of its own (key `profile`).")
    return profile


def _twice(node: yaml.Node | None) -> list[str]:
    """The keys that come more than once, at any depth, of which YAML would take the last and say nothing."""
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    return [key for key in dict.fromkeys(keys) if keys.count(key) > 1] + [
        key for _, value in node.value for key in _twice(value)]


def _sentence(error: ValidationError) -> str:
    """Everything that is wrong with a profile, in one line."""
    faults = {}
    for fault in error.errors():
        key, message = fault["loc"][0], fault["msg"].removeprefix("Value error, ").rstrip(".")
        if fault["type"] != "value_error":    # ours name the value themselves
            message += f", not {repr(fault['input'])[:60]}"
        if fault["type"] == "extra_forbidden":
            message = f"unknown key; the keys are {', '.join(Profile.model_fields)}"
        faults.setdefault(key, f"`{key}`: {message[:1].lower()}{message[1:]}" if fault["type"] != "missing"
                          else f"`{key}` is missing")
    return "; ".join(faults.values()) + "."


def names() -> list[str]:
    """The profiles of params/, `quick` first."""
    found = sorted(path.stem for path in (ROOT / "params").glob("*.yaml"))
    return sorted(found, key=lambda name: name != "quick")


def outputs(name: str) -> Path:
    """The folder of a profile's results: outputs/<name>, or $FORESIGHT_OUTPUTS/<name>."""
    return Path(os.environ.get("FORESIGHT_OUTPUTS") or ROOT / "outputs") / name
