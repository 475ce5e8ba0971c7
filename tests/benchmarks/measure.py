"""What the benchmarks share: turns, processes of their own, images, and what the machine was doing meanwhile."""

import argparse
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from statistics import median

import psutil
import torch

from lib import UserError, data


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", help="folder of mnist.npz (default: $FORESIGHT_DATA, else the cache or a download)")
    result.add_argument("--digits", action="store_true", help="scikit-learn's digits, repeated, in place of MNIST")
    result.add_argument("--rounds", type=int, default=5, help="how often each side takes its turn (default: 5)")
    return result


def guarded(main: Callable[[], None]) -> None:
    """Runs a script; a user's mistake is a sentence on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def images(options: argparse.Namespace, train: int, test: int = 1) -> data.Data:
    """The first `train` and `test` images of MNIST; digits, of which there are fewer, again and again."""
    source = _load("digits" if options.digits else "mnist", options.data)
    pick = {}
    for split, count in (("train", train), ("test", test)):
        index = torch.arange(count) % len(getattr(source, f"{split}_labels"))
        pick |= {f"{split}_{kind}": getattr(source, f"{split}_{kind}")[index] for kind in ("images", "labels")}
    return replace(source, **pick)


_load = lru_cache(data.load)


def process(count: int = 1, prepare: Callable[[], None] | None = None) -> ProcessPoolExecutor:
    """Fresh processes, so that a side's threads, memory and caches are its own."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), prepare)


def by_turns(sides: dict[str, Callable], rounds: int) -> dict[str, list]:
    """What each side returns, `rounds` times: A B A B ..., after one turn of each that does not count."""
    results = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            result = side()
            if number:
                results[name].append(result)
    return results


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
    return f"{os.cpu_count()} cores of {name} ({capability}), torch {torch.__version__}, Python {platform.python_version()}"


class Others:
    """How much of the machine's processor time other programs took inside a `with`: above a few percent, repeat."""

    def __enter__(self):
        self.before = self._busy(), self._own(), time.perf_counter()
        return self

    def __exit__(self, *_):
        busy, own, wall = (now - then for now, then in zip((self._busy(), self._own(), time.perf_counter()), self.before))
        self.share = max(0.0, busy - own) / (wall * os.cpu_count())

    def __str__(self):
        return f"other programs took {100 * self.share:.0f} % of the processor meanwhile"

    @staticmethod
    def _busy() -> float:
        times = psutil.cpu_times()
        return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)

    @staticmethod
    def _own() -> float:
        me = psutil.Process()
        return sum(sum(each.cpu_times()[:4]) for each in (me, *me.children(recursive=True)))
