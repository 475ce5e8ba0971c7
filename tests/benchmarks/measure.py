"""What the benchmarks share: options, images, processes of their own, turns, and words about the machine."""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median

import psutil
import torch

from lib import UserError, data


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    result.add_argument("--data", help="folder of mnist.npz, cifar10.npz ($FORESIGHT_DATA, else the cache or a download)")
    result.add_argument("--digits", action="store_true",
                        help="stand-ins, repeated: scikit-learn's digits for MNIST, shapes10 for CIFAR-10")
    result.add_argument("--rounds", type=int, default=5, help="how often each side takes its turn (5)")
    return result


def guarded(main: Callable[[], None]) -> None:
    """Runs a script; a user's mistake is a sentence on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def images(options: argparse.Namespace, train: int, test: int = 1, name: str = "mnist") -> data.Data:
    """The first `train` and `test` images of a set; of a stand-in, which has fewer, again and again."""
    source = _load({"mnist": "digits", "cifar10": "shapes10"}[name] if options.digits else name, options.data)
    pick = {}
    for split, count in (("train", train), ("test", test)):
        index = torch.arange(count) % len(getattr(source, f"{split}_labels"))
        for array in (f"{split}_images", f"{split}_labels"):
            pick[array] = getattr(source, array)[index]
    return replace(source, **pick)


_load = lru_cache(data.load)


def process(count: int = 1, prepare: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Fresh processes, so that a side's threads, memory and caches are its own."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), prepare)


@dataclass
class Turn:
    """What a side returned, and the processor seconds that it took, those of its processes included."""

    value: object
    processor: float


def by_turns(sides: dict[str, Callable], rounds: int) -> tuple[dict[str, list[Turn]], float]:
    """Each side's turns, A B A B ..., after one of each that does not count; and the share of the machine's
    processor that other programs took. Above a few percent, trust processor seconds more than time."""
    turns, share = {name: [] for name in sides}, 0.0
    for number in range(rounds + 1):
        for name, side in sides.items():
            busy, own, began = _busy(), _own(), time.perf_counter()
            value = side()
            own = _own() - own
            if number:
                turns[name].append(Turn(value, own))
                share += (_busy() - busy - own) / (time.perf_counter() - began) / os.cpu_count()
    return turns, max(0.0, share / rounds / len(sides))


def _busy() -> float:
    """Seconds that all processors together have worked."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)


def _own() -> float:
    """Of these, seconds for this process and those that it started."""
    me = psutil.Process()
    return sum(sum(each.cpu_times()[:4]) for each in (me, *me.children(recursive=True)))


def middle(values: list[float]) -> str:
    """Median and range."""
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def machine() -> str:
    """Where this runs: ratios travel, but not everywhere."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    capability = torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {name} ({capability}), {versions}"
