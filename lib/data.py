"""Image sets as uint8 tensors: MNIST and CIFAR from one .npz each, and stand-ins that need no file at all.

Whatever a set came from, its images stand in one canonical order (by the SHA-256 of their bytes), so that
every source gives the same arrays and so the same results. Nothing ever falls back to a stand-in by itself.
"""

import hashlib
import os
import zipfile
from dataclasses import dataclass, replace
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from lib import UserError

# Per set: shape of an image, number of classes, mean and std of its pixels as the released code has them
# (noajam/sota-prune, datasets/datasets.py), and the name of torchvision's class.
PREPARED = {
    "mnist": ((28, 28), 10, (0.1307,), (0.3081,), "MNIST"),
    "cifar10": ((32, 32, 3), 10, (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), "CIFAR10"),
    "cifar100": ((32, 32, 3), 100, (0.507, 0.487, 0.441), (0.267, 0.256, 0.276), "CIFAR100"),
}
# SHA-256 of their four arrays in canonical order. The pixel means of these are MNIST's and CIFAR's to the last digit.
DIGESTS = {
    "mnist": "fc2ce3d8bcefcde059c6975361efe6d31a48850ec088d7a2b8ac87d99e6a2f0a",
    "cifar10": "a0f5a12e8a5f76fa4f8543f484aee5a6bcbd6b308a8e270128d8c371fbf05a34",
    "cifar100": "71b9297afb572816132315f4ba24856da7c81a0aaa3b4f3b7a45fb73f4b1420c",
}
STAND_INS = ("digits", "shapes10", "shapes100")
NAMES = (*PREPARED, *STAND_INS)
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")
PADDING = 4  # of a random crop, in pixels on each side


@dataclass(frozen=True, eq=False)
class Data:
    """One image set. Images are uint8 of shape (N, C, H, W), labels int64 of shape (N,)."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]    # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    augmented: bool            # are training images flipped and cropped?
    stand_in: bool             # everything made from a stand-in says so in its title

    def normalise(self, images: Tensor) -> Tensor:
        """(images / 255 - mean) / std as float32, for uint8 images (..., C, H, W), on their device."""
        mean, std = _statistics(self.mean, self.std, images.device)
        return images.to(torch.float32, copy=True).sub_(mean).div_(std)

    def to(self, device: torch.device | str) -> "Data":
        """The same set with its four tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def first(self, count: int | None) -> "Data":
        """The first `count` training images (None: all of them); the test set stays whole."""
        if count is None:
            return self
        if not 1 <= count <= len(self.train_images):
            have = len(self.train_images)
            raise UserError(f"{self.name} has {have} training images: ask for 1 to {have}, not {count}.")
        return replace(self, train_images=self.train_images[:count], train_labels=self.train_labels[:count])

    def check_genuine(self) -> None:
        """Raises `UserError` for a set that is called MNIST or CIFAR and has other images or labels than that."""
        digest = hashlib.sha256()
        for array in ARRAYS[:4]:
            digest.update(getattr(self, array).numpy())
        if digest.hexdigest() != DIGESTS.get(self.name, digest.hexdigest()):
            raise UserError(f"{self.name}.npz holds other images or labels than {self.name} ({len(self.train_labels)} to "
                            f"train, {len(self.test_labels)} to test): its results would be kept as those of {self.name}. "
                            "Make or download the file again.")

    def _each(self, change) -> "Data":
        return replace(self, **{name: change(getattr(self, name)) for name in ARRAYS[:4]})


@lru_cache  # a copy to a GPU at each batch would make it wait
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> list[Tensor]:
    """Mean and standard deviation of bytes, (C, 1, 1) each."""
    return [255 * torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std)]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """CIFAR's training augmentation: each image flipped left to right with probability 1/2, then cropped at
    random from itself with 4 pixels of zeros around it.

    uint8 (B, C, H, W) in and out. `generator` lives on the CPU, so that every device draws the same.
    """
    choice = torch.randint(2 * (2 * PADDING + 1) ** 2, (len(images),), generator=generator).to(images.device)
    place = choice // 2
    return flip_and_crop(images, choice % 2, place // (2 * PADDING + 1), place % (2 * PADDING + 1))


def flip_and_crop(images: Tensor, flips: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
    """Flips images (B, C, H, W) where `flips` is 1, pads them, cuts out H x W at `tops`, `lefts` (0 to 8)."""
    count, channels, height, width = images.shape
    padded = images.new_zeros(2, count, channels, height + 2 * PADDING, width + 2 * PADDING)
    for index, version in enumerate((images, images.flip(-1))):
        padded[index, ..., PADDING:-PADDING, PADDING:-PADDING] = version
    # One gather of rows: each row of the result is a run of `width` bytes that starts somewhere in `padded`.
    flipped, _, plane, row, _ = padded.stride()
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1) * plane
    rows = (tops[:, None] + torch.arange(height, device=images.device)) * row
    starts = planes + rows[:, None] + (flips * flipped + lefts)[:, None, None]
    return padded.view(-1).unfold(0, width, 1).index_select(0, starts.view(-1)).view(images.shape)


def classes(name: str) -> int:
    """How many classes the set of that name has, without reading it."""
    return 100 if name.endswith("100") else 10


_SIZES = {"mnist": (60_000, 10_000), "cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}


def sizes(name: str) -> tuple[int, int]:
    """How many training and how many test images the set of that name has; MNIST and CIFAR need not be there."""
    if name in _SIZES:
        return _SIZES[name]
    found = _stand_in(name)
    return len(found.train_labels), len(found.test_labels)


# Share of the test images, in percent, of the most frequent class and of the five most frequent. Elsewhere all are equal.
_UNEVEN = {"mnist": {"top1": 11.35, "top5": 52.14}, "digits": {"top1": 100 * 36 / 355, "top5": 100 * 180 / 355}}


def constant_answer(name: str, metric: str = "top1") -> float:
    """Accuracy in percent, "top1" or "top5", of one answer to every test image, the most frequent classes.

    It is all that a network can reach through which nothing passes, and what is called chance level here.
    """
    return _UNEVEN.get(name, {}).get(metric, (5 if metric == "top5" else 1) * 100 / classes(name))


def at_chance(accuracy, name: str, metric: str = "top1", factor: float = 1.0):
    """Whether an accuracy in percent, or each of an array or frame of them, is at most a constant answer's and a twentieth
    more. factor: by which an accounting that is not plain counts it too low, as the thesis's does."""
    return accuracy <= 1.05 * factor * constant_answer(name, metric)


def load(name: str, root: str | Path | None = None) -> Data:
    """The image set `name`, one of `NAMES`, in canonical order, on the CPU.

    MNIST and CIFAR come from NAME.npz in `root` or $FORESIGHT_DATA where one of them is given, else in the
    user's cache folder, where torchvision's download puts it at first. The caller owns the tensors. Raises
    `UserError` for an unknown name, a folder without the file, a damaged file, and an impossible download.
    """
    if name not in NAMES:
        raise UserError(f"Unknown data set {name!r}: choose one of {', '.join(NAMES)}.")
    if name in STAND_INS:
        return _stand_in(name)._each(Tensor.clone)  # no caller can harm the one that is remembered
    return _prepared(name, _find(name, root or os.environ.get("FORESIGHT_DATA")))


def cache_folder() -> Path:
    """Where downloaded sets are kept."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "foresight"
    if os.name == "nt" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "foresight"
    return Path.home() / ".cache" / "foresight"


def _find(name: str, root: str | Path | None) -> Path:
    """The .npz of a set; downloaded only where no folder was asked for."""
    path = (Path(root).expanduser() if root else cache_folder()).absolute() / f"{name}.npz"
    if not path.is_file():
        if root:
            raise UserError(f"There is no {path}, although --data or $FORESIGHT_DATA names its folder: put "
                            f"it there, or name no folder to take it from {cache_folder()} or the network.")
        _download(name, path)
    return path


def _prepared(name: str, path: Path) -> Data:
    """The set in a .npz."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ARRAYS if key in file}
    except Exception as error:  # a damaged archive raises nearly anything
        words = _words(error) if zipfile.is_zipfile(path) else "it is no .npz archive, or the beginning of one"
        raise UserError(f"{path} cannot be read ({words}): if it is damaged, delete it and make or "
                        "download it again.") from error
    if problem := _problem(name, arrays):
        raise UserError(f"{path} is not {name} as it should be: {problem}. Delete it and make or download it "
                        "again.")
    _, _, mean, std, _ = PREPARED[name]
    return Data(
        name, *_canonical(arrays["train_images"], arrays["train_labels"]),
        *_canonical(arrays["test_images"], arrays["test_labels"]),
        tuple(map(str, arrays["classes"].tolist())), mean, std, augmented=name != "mnist", stand_in=False,
    )


def _problem(name: str, arrays: dict[str, np.ndarray]) -> str | None:
    """What is wrong with the arrays of a set, in words."""
    if missing := [key for key in ARRAYS if key not in arrays]:
        return f"it lacks {', '.join(missing)}"
    shape, classes, *_ = PREPARED[name]
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
            wanted = f"(N, {', '.join(map(str, shape))})"
            return f"{split}_images must be uint8 {wanted}, not {images.dtype} {images.shape}"
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            return f"{split}_labels must be integers {images.shape[:1]}, not {labels.dtype} {labels.shape}"
        if labels.min() < 0 or labels.max() >= classes:
            return f"{split}_labels must lie in 0 to {classes - 1}, not in {labels.min()} to {labels.max()}"
    if arrays["classes"].shape != (classes,):
        return f"classes must be {classes} names, not an array {arrays['classes'].shape}"
    return None


def _canonical(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Images (N, H, W[, C]) as (N, C, H, W), and labels, by SHA-256 of an image's bytes, then by label."""
    digests = [hashlib.sha256(image).digest() for image in np.ascontiguousarray(images)]
    order = sorted(range(len(images)), key=lambda index: (digests[index], labels[index]))
    images = torch.from_numpy(images[order].reshape(*images.shape[:3], -1))
    return images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels[order].astype(np.int64))


def _download(name: str, path: Path) -> None:
    """Puts a set into the cache by torchvision; processes that want the same set wait for the first."""
    try:  # only here: a torchvision that does not belong to the installed torch fails at import
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise UserError(f"{name} is not in {path.parent}, and torchvision, which would download it, does not "
                        f"import ({_words(error)}): install the torchvision that belongs to torch "
                        f"{torch.__version__}, or name a folder that holds {name}.npz by --data or "
                        "$FORESIGHT_DATA.") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), TemporaryDirectory(prefix="download-", dir=path.parent) as folder:
            if not path.is_file():
                partial = Path(folder) / path.name
                with open(partial, "wb") as file:
                    np.savez(file, **_fetch(getattr(datasets, PREPARED[name][-1]), name, folder))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{name} cannot be kept in {path.parent} ({_words(error)}): make room or make the "
                        "folder writable, or let $XDG_CACHE_HOME name another.") from error


def _fetch(dataset, name: str, folder: str) -> dict[str, np.ndarray]:
    """The five arrays of a set from torchvision's `dataset` class, downloaded to `folder`."""
    try:
        splits = {"train": dataset(folder, train=True, download=True), "test": dataset(folder, train=False)}
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(f"{name} could not be downloaded ({_words(error)}): connect to the network and try "
                        f"again, or name a folder that holds {name}.npz by --data or "
                        "$FORESIGHT_DATA.") from error
    arrays = {f"{split}_images": np.asarray(images.data) for split, images in splits.items()}
    arrays |= {f"{split}_labels": np.asarray(images.targets, np.int64) for split, images in splits.items()}
    # torchvision calls MNIST's classes "0 - zero" and so on
    return arrays | {"classes": np.array([title.split(" - ")[0] for title in splits["train"].classes])}


def _words(error: Exception) -> str:
    """An exception's first line, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")


@lru_cache
def _stand_in(name: str) -> Data:
    """A stand-in: every fifth image of each class is a test image; statistics are the training images'."""
    images, labels, classes = _digits() if name == "digits" else _shapes(name)
    rank = np.zeros_like(labels)  # of an image among those of its class
    for label in range(len(classes)):
        rank[labels == label] = np.arange(np.sum(labels == label))
    test = rank % 5 == 4
    pixels = images[~test].reshape(-1, images[0, 0, 0].size) / 255
    mean, std = (tuple(np.round(values, 4).tolist()) for values in (pixels.mean(0), pixels.std(0)))
    return Data(
        name, *_canonical(images[~test], labels[~test]), *_canonical(images[test], labels[test]),
        tuple(classes), mean, std, augmented=name != "digits", stand_in=True,
    )


def _digits() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The 1797 handwritten digits that come with scikit-learn (8x8, 0 to 16), thrice as large, in 28x28."""
    from sklearn.datasets import load_digits  # takes a second to import, so only here

    digits = load_digits()
    large = np.rint(digits.images * 255 / 16).astype(np.uint8).repeat(3, axis=1).repeat(3, axis=2)
    return np.pad(large, ((0, 0), (2, 2), (2, 2))), digits.target.astype(np.int64), list("0123456789")


# Shapes on the square |u|, |v| <= 1; all look the same when flipped, because training images are.
SHAPES = {
    "disc": lambda u, v: u * u + v * v < 1,
    "ring": lambda u, v: abs(u * u + v * v - 0.65) < 0.35,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.85,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.75) < 0.2,
    "triangle": lambda u, v: (v < 0.8) & (2 * abs(u) < v + 1),
    "diamond": lambda u, v: abs(u) + abs(v) < 1.1,
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.27) & (np.maximum(abs(u), abs(v)) < 1),
    "cross": lambda u, v: (abs(abs(u) - abs(v)) < 0.35) & (np.maximum(abs(u), abs(v)) < 0.9),
    "stripes": lambda u, v: ((abs(v) * 2.5 + 0.5) % 2 < 1) & (np.maximum(abs(u), abs(v)) < 1),
    "bars": lambda u, v: ((abs(u) * 2.5 + 0.5) % 2 < 1) & (np.maximum(abs(u), abs(v)) < 1),
}
COLOURS = {
    "red": (225, 45, 45), "orange": (245, 145, 35), "yellow": (240, 230, 60), "green": (60, 175, 60),
    "cyan": (60, 220, 220), "blue": (50, 80, 225), "purple": (145, 50, 190), "pink": (250, 140, 200),
    "brown": (145, 90, 45), "white": (240, 240, 240),
}


def _shapes(name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Noisy coloured shapes, 32x32x3; a class is a shape (`shapes10`) or shape and colour (`shapes100`)."""
    count = {"shapes10": 2500, "shapes100": 5000}[name]
    draw = np.random.RandomState(42)  # unlike default_rng's, its stream never changes with NumPy's version
    both = np.arange(count) % 100
    shape, colour = both // 10, both % 10
    u, v = _coordinates(count, draw)
    inside = np.empty(u.shape, bool)
    for index, is_inside in enumerate(SHAPES.values()):
        inside[shape == index] = is_inside(u[shape == index], v[shape == index])
    ink = np.array(list(COLOURS.values()))[colour] + draw.randint(-40, 41, (count, 3))
    paper = draw.randint(0, 100, (count, 1)) + draw.randint(0, 30, (count, 3))
    ink, paper = (values[:, None, None].astype(np.int16) for values in (ink, paper))
    images = np.where(inside[..., None], ink, paper)
    noise = np.frombuffer(draw.bytes(images.size), np.uint8).reshape(images.shape) % 96
    images = np.clip(images + noise - 48, 0, 255).astype(np.uint8)
    if name == "shapes10":
        return images, shape, list(SHAPES)
    return images, both, [f"{tint} {form}" for form in SHAPES for tint in COLOURS]


def _coordinates(count: int, draw: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """(count, 32, 32) coordinates u (right), v (down), in units of half a shape of random place and size."""
    radius = draw.uniform(6, 11, (count, 1, 1))
    across, down = draw.uniform(12, 19, (2, count, 1, 1))
    pixels = np.arange(32.0)
    u, v = (pixels - across) / radius, (pixels[:, None] - down) / radius
    return np.broadcast_to(u, (count, 32, 32)), np.broadcast_to(v, (count, 32, 32))
