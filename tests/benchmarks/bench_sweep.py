"""Sweeps: what one costs for each cell, and how near two workers come to twice the throughput of one.

    python -m tests.benchmarks.bench_sweep
    python -m tests.benchmarks.bench_sweep --workers 4 --rounds 5

Two ways to compute: the pool of processes that `sweep.run` starts itself, and a Dask cluster of processes on this
machine, over TCP, reached as `--scheduler` reaches one. The cost is measured with cells that do nothing; it includes
the record's way to the disk, which is measured alone as well. Efficiency is measured with small real cells: the
throughput of all workers, over their number times the throughput of one. Only the second half of a sweep counts, when
all workers have started.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dask.distributed import Client, LocalCluster

from lib import UserError, sweep
from lib.experiment import VERSION, Cell, Record
from lib.store import Store
from tests.benchmarks import measure


def cells(count: int) -> list[Cell]:
    """Small ones; each is a task of its own, because it is trained."""
    return [Cell("digits", "cnn", "GlobalMag", 4, seed, 1, 0.01, width=0.2, train_images=256) for seed in range(count)]


def nothing(cell: Cell, data_root: str | None) -> Record:
    """The work of a cell that does nothing."""
    return Record(cell.key, VERSION, cell, {"compression": 4.0, "collapsed": False}, [], 0, {"precision": "float32"})


@contextmanager
def executor(kind: str, workers: int) -> Iterator[Executor | None]:
    """Dask's; None, so that each `sweep.run` starts its pool."""
    if kind == "pool":
        yield None
        return
    with (TemporaryDirectory() as folder,
          LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, protocol="tcp", dashboard_address=":0",
                       local_directory=folder, silence_logs=logging.CRITICAL) as cluster,
          Client(cluster.scheduler_address) as client):
        yield client.get_executor()


def rate(given: Executor | None, workers: int, count: int, work: Callable | None = None) -> float:
    """Cells per second in the second half of a sweep."""
    ends = []
    with TemporaryDirectory() as folder:
        failures = sweep.run(cells(count), Store(Path(folder) / "results.jsonl"), given, workers, work=work,
                             say=lambda line: ends.append(time.perf_counter()))
    if failures:
        raise UserError(f"A cell failed: {failures[0]}")
    half = count // 2
    return (count - half) / (ends[-1] - ends[half - 1])


def added(count: int) -> float:
    """Records per second that the store takes, of cells that do nothing."""
    some = [nothing(cell, None) for cell in cells(count)]
    with TemporaryDirectory() as folder, Store(Path(folder) / "results.jsonl").writing() as writer:
        began = time.perf_counter()
        for record in some:
            writer.add(record)
        return count / (time.perf_counter() - began)


def cost(options) -> None:
    with executor("Dask", options.workers) as dask:
        turns, others = measure.by_turns({
            "pool": lambda: rate(None, options.workers, options.idle, nothing),
            "Dask": lambda: rate(dask, options.workers, options.idle, nothing),
            "store": lambda: added(options.idle),
        }, options.rounds)
    for name, each in turns.items():
        what = "adding its record" if name == "store" else "a cell that does nothing"
        print(f"{name}: {what} takes {measure.middle([1e3 / turn.value for turn in each])} ms")
    print(f"other programs took {100 * others:.0f} % of the processor", flush=True)


def efficiency(kind: str, options) -> None:
    with executor(kind, 1) as single, executor(kind, options.workers) as several:
        turns, others = measure.by_turns({
            "one": lambda: rate(single, 1, options.cells),
            "all": lambda: rate(several, options.workers, options.cells),
        }, options.rounds)
    one, together = ([turn.value for turn in each] for each in turns.values())
    ratios = [b / (options.workers * a) for a, b in zip(one, together)]
    print(f"{kind}: one worker computes {measure.middle(one)} cells per second, {options.workers} workers "
          f"{measure.middle(together)}: efficiency {measure.middle(ratios)}")
    print(f"other programs took {100 * others:.0f} % of the processor", flush=True)


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--workers", type=int, default=2, help="workers of each side (2)")
    parser.add_argument("--idle", type=int, default=2000, help="cells that do nothing, of each turn (2000)")
    parser.add_argument("--cells", type=int, default=100, help="real cells of each turn (100)")
    options = parser.parse_args()
    if min(options.workers, options.idle, options.cells) < 2:
        raise UserError("At least two workers and two cells, please.")
    print(f"{measure.machine()}; {options.workers} workers", flush=True)
    cost(options)
    for kind in ("pool", "Dask"):
        efficiency(kind, options)


if __name__ == "__main__":
    measure.guarded(main)
