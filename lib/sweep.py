"""Computes the cells that a store lacks, on any `concurrent.futures.Executor`, and says how far it is."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait

import torch

from lib import experiment, methods
from lib.experiment import Cell, Record
from lib.store import Store


def missing(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """The cells, in order and each once, that the store does not hold."""
    return [cell for cell in dict.fromkeys(cells) if cell not in store]


def run(cells: Iterable[Cell], store: Store, executor: Executor | None = None, workers: int | None = None,
        data_root: str | None = None, budget: float | None = None,
        say: Callable[[str], None] = print) -> list[str]:
    """Computes the cells that are missing and adds each to the store as it finishes.

    executor: where; by default a pool of `workers` processes on this machine (default: one per core), one thread
    each, so that results do not depend on their number. budget: seconds after which no further cell is started.
    Returns one line for each cell that failed; the others go on. On an interruption (Ctrl-C) the workers are stopped
    and the cells in flight, and only those, are lost.
    """
    todo = missing(cells, store)
    if not todo:
        return []
    own = executor is None
    workers = min(workers or os.cpu_count() or 1, len(todo))
    executor = executor or ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare)
    try:
        with store.writing():
            return _drain(todo, store, executor, workers if own else 64, data_root, budget, say)
    except BaseException:
        if own:
            _stop(executor)
        raise
    finally:
        if own:
            executor.shutdown(cancel_futures=True)


def _drain(todo: list[Cell], store: Store, executor: Executor, at_once: int, data_root: str | None,
           budget: float | None, say: Callable[[str], None]) -> list[str]:
    """Keeps `at_once` cells in flight until none is left or the budget is spent."""
    began, queue, flying, failures, done = time.monotonic(), iter(todo), {}, [], 0

    def launch() -> None:
        spent = time.monotonic() - began
        cell = next(queue, None) if budget is None or spent < budget else None
        if cell is not None:
            flying[executor.submit(compute, cell, data_root)] = cell

    for _ in range(at_once):
        launch()
    while flying:
        finished, _ = wait(flying, return_when=FIRST_COMPLETED)
        for future in finished:
            cell = flying.pop(future)
            outcome = _collect(future, cell, store, failures)
            done += 1
            say(f"[{done}/{len(todo)}] {describe(cell)}: {outcome}{_estimate(began, done, len(todo))}")
            launch()
    return failures


def _collect(future: Future, cell: Cell, store: Store, failures: list[str]) -> str:
    """Stores a finished cell; returns what to say of it."""
    error = future.exception()
    if error is not None:
        failures.append(f"{describe(cell)}: {type(error).__name__}: {error}")
        return f"FAILED: {error}"
    record = future.result()
    store.add(record)
    return summary(record)


def compute(cell: Cell, data_root: str | None) -> Record:
    """What a worker does: one cell, on one thread."""
    torch.set_num_threads(1)
    return experiment.run(cell, data_root)


def _prepare() -> None:
    """A worker ends with its parent, however that ends, and leaves Ctrl-C to it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _stop(executor: Executor) -> None:
    executor.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.terminate()


def describe(cell: Cell) -> str:
    """A cell in a few words."""
    return f"{cell.dataset}/{cell.model} {cell.method} r={cell.compression:g} seed {cell.seed}"


def summary(record: Record) -> str:
    """What came of a cell in a few words."""
    collapsed = ", collapsed" if record.report["collapsed"] else ""
    compression = f"compression {record.report['compression']:.4g}{collapsed}"
    if not record.history:
        return compression
    return f"top-1 {100 * record.history[-1]['top1'] / record.test_images:.2f} %, {compression}"


def _estimate(began: float, done: int, total: int) -> str:
    left = (time.monotonic() - began) / done * (total - done)
    return f"; {total - done} left, about {_duration(left)}" if done < total else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
