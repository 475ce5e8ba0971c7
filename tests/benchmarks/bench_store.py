"""The store: loading and merging many records, against `json.loads` over the same lines; and adding records.

    python -m tests.benchmarks.bench_store                          # 100,000 records, 2 KB each: half a minute a round
    python -m tests.benchmarks.bench_store --records 10000 --rounds 5
    python -m tests.benchmarks.bench_store --folder DIR             # on the disk that results are written to

The records are those of the committed stores `mnist` and `masks`, again and again with other seeds, so that all keys
differ. Each turn runs in a fresh process; memory is the most that it takes on top of what its imports did. `json.loads`
keeps nothing of what it reads: that is the least that any reader takes who checks that every line is whole. `add` is
compared with a bare write and fsync of the same line, which is what the disk can do.
"""

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from lib import UserError, store
from lib.experiment import Record
from lib.profile import ROOT
from lib.store import Store
from tests.benchmarks import measure

SOURCES = [ROOT / "outputs" / name / "results.jsonl" for name in ("mnist", "masks")]
AGAIN = 10**6    # what is added to the seeds each time round


def records() -> Iterator[Record]:
    """Records without end, each of another key."""
    known = list(store.read(SOURCES).values())
    if not known:
        raise UserError(f"There are no records in {' and '.join(map(str, SOURCES))}: check out the committed ones.")
    for turn in count(1):
        for record in known:
            cell = replace(record.cell, seed=record.cell.seed + turn * AGAIN)
            yield replace(record, key=cell.key, cell=cell)


# --- reading

def loads(path: Path) -> None:
    with open(path, "rb") as lines:
        for line in lines:
            json.loads(line)


def merge(path: Path) -> None:
    merged = path.with_name("merged.jsonl")
    store.merge(merged, [path])
    merged.unlink()


SIDES = {"json.loads": loads, "load": Store, "merge": merge}


@dataclass
class Result:
    """Seconds, processor seconds, and the memory in MB that it took at most."""

    seconds: float
    processor: float
    peak: float


def timed(side: Callable[[Path], object], path: Path) -> Result:
    """In a process of its own."""
    before = psutil.Process().memory_info().rss
    began, processor = time.perf_counter(), time.process_time()
    side(path)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return Result(seconds, processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before / 2**20)


def alone(side: Callable[[Path], object], path: Path) -> Result:
    with measure.process() as fresh:
        return fresh.submit(timed, side, path).result()


def reading(folder: Path, options) -> None:
    path = folder / "results.jsonl"
    with open(path, "w") as file:
        file.writelines(record.to_json() + "\n" for record in islice(records(), options.records))
    print(f"{options.records:,} records, {path.stat().st_size / 2**20:.0f} MB")
    sides = {name: lambda side=side: alone(side, path) for name, side in SIDES.items()}
    turns, others = measure.by_turns(sides, options.rounds)
    results = {name: [turn.value for turn in each] for name, each in turns.items()}
    for name, each in results.items():
        ratios = [result.processor / plain.processor for result, plain in zip(each, results["json.loads"])]
        print(f"{name:10}: {measure.middle([result.seconds for result in each])} s, by processor seconds "
              f"{measure.middle([result.processor for result in each])}, {measure.middle(ratios)} times json.loads; "
              f"memory {median(result.peak for result in each):.0f} MB")
    print(f"other programs took {100 * others:.0f} % of the processor", flush=True)


# --- adding

def add(folder: Path, some: list[Record]) -> float:
    """Records per second."""
    path = folder / "added.jsonl"
    with Store(path).writing() as writer:
        began = time.perf_counter()
        for record in some:
            writer.add(record)
        seconds = time.perf_counter() - began
    path.unlink()
    return len(some) / seconds


def bare(folder: Path, some: list[Record]) -> float:
    """The same lines, ready made, with nothing but a write and an fsync each."""
    path, lines = folder / "bare.jsonl", [(record.to_json() + "\n").encode() for record in some]
    with open(path, "wb", buffering=0) as file:
        began = time.perf_counter()
        for line in lines:
            file.write(line)
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
    path.unlink()
    return len(some) / seconds


def adding(folder: Path, options) -> None:
    some = list(islice(records(), options.adds))
    turns, others = measure.by_turns({"add": lambda: add(folder, some), "bare": lambda: bare(folder, some)}, options.rounds)
    values = {name: [turn.value for turn in each] for name, each in turns.items()}
    ratios = [plain / ours for ours, plain in zip(*values.values())]
    print(f"add: {measure.middle(values['add'])} records per second, {measure.middle(ratios)} times as long as a bare write "
          f"and fsync ({measure.middle(values['bare'])} per second)")
    print(f"other programs took {100 * others:.0f} % of the processor", flush=True)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--records", type=int, default=100_000, help="records that are read (100000)")
    parser.add_argument("--adds", type=int, default=1000, help="records that are added in a turn (1000)")
    parser.add_argument("--folder", help="where the stores are written (a temporary folder)")
    options = parser.parse_args()
    print(measure.machine(), flush=True)
    with TemporaryDirectory(dir=options.folder) as folder:
        reading(Path(folder), options)
        adding(Path(folder), options)


if __name__ == "__main__":
    measure.guarded(main)
