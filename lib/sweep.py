"""Computes the cells that a store lacks, on any `concurrent.futures.Executor`, and says how far it is."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, ProcessPoolExecutor, wait
from functools import partial
from itertools import groupby

import torch

from lib import UserError, experiment
from lib.experiment import Cell, Record
from lib.store import Store


def missing(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """The cells, in order and each once, that the store does not hold."""
    return [cell for cell in dict.fromkeys(cells) if cell not in store]


def run(cells: Iterable[Cell], store: Store, executor: Executor | None = None, workers: int | None = None,
        data_root: str | None = None, budget: float | None = None, say: Callable[[str], None] = print,
        work: Callable | None = None, wait: bool = False) -> list[str]:
    """Computes the cells that are missing and adds each to the store as it finishes.

    wait: for another run that writes to the store, instead of refusing.
    work: (cell, data_root) -> record, `experiment.run` by default; `audit.run` for studies, which go the same way.
    executor: where; by default a pool of `workers` processes on this machine (default: one per core), one thread
    each, so that results do not depend on their number. budget: seconds after which no further cell is started.
    Returns one line for each cell that failed; the others go on. On an interruption (Ctrl-C) the workers are stopped
    and the cells in flight, and only those, are lost; on this machine they go on from their last checkpoint.
    """
    cells = list(cells)
    if not missing(cells, store):
        return []
    own = executor is None
    workers = workers or os.cpu_count() or 1
    executor = executor or ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare)
    if own and work is None:   # elsewhere there may be no such folder
        work = partial(experiment.run, checkpoints=store.path.parent / "checkpoints")
    try:
        with store.writing(wait):  # reads again what another run has written since
            return _drain(missing(cells, store), store, executor, workers if own else 64, data_root, budget, say, work)
    except BrokenExecutor as error:
        raise UserError("A worker process was killed, most likely for want of memory: run again with fewer workers. "
                        "No finished cell is lost.") from error
    except BaseException:
        if own:
            _stop(executor)
        raise
    finally:
        if own:
            executor.shutdown(cancel_futures=True)


def _drain(todo: list[Cell], store: Store, executor: Executor, at_once: int, data_root: str | None,
           budget: float | None, say: Callable[[str], None], work: Callable | None) -> list[str]:
    """Keeps `at_once` tasks in flight until none is left or the budget is spent."""
    began, queue, flying, failures, done = time.monotonic(), iter(tasks(todo)), {}, [], 0

    def launch() -> None:
        spent = time.monotonic() - began
        task = next(queue, None) if budget is None or spent < budget else None
        if task is not None:
            flying[executor.submit(compute, task, data_root, work)] = task

    for _ in range(at_once):
        launch()
    while flying:
        finished, _ = wait(flying, return_when=FIRST_COMPLETED)
        broken = None
        for future in finished:
            task = flying.pop(future)
            if isinstance(future.exception(), BrokenExecutor):
                broken = future.exception()  # raised only when what has finished beside it is stored
                continue
            for cell, outcome in zip(task, future.result(), strict=True):
                done += 1
                if isinstance(outcome, str):
                    failures.append(f"{cell}: {outcome}")
                else:
                    store.add(outcome)
                say(f"[{done}/{len(todo)}] {cell}: {summary(outcome)}{_estimate(began, done, len(todo))}")
        if broken:
            raise broken
        for _ in finished:
            launch()
    return failures


def tasks(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """What is sent to a worker at a time: one cell; of cells that train nothing, neighbours that share a score."""
    return [tuple(group) for _, group in groupby(cells, key=lambda cell: cell.task)]


def compute(cells: tuple[Cell, ...], data_root: str | None, work: Callable | None = None) -> list[Record | str]:
    """What a worker does, on one thread: each cell's record, or what went wrong with it."""
    torch.set_num_threads(1)
    outcomes = []
    for cell in cells:
        try:
            outcomes.append((work or experiment.run)(cell, data_root))
        except Exception as error:  # one cell's failure must not cost the others
            outcomes.append(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
    return outcomes


def _prepare() -> None:
    """A worker ends with its parent, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _stop(executor: Executor) -> None:
    executor.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.terminate()


def summary(outcome: Record | str) -> str:
    """What came of a cell in a few words."""
    return f"FAILED: {outcome}" if isinstance(outcome, str) else outcome.summary()


def _estimate(began: float, done: int, total: int) -> str:
    left = (time.monotonic() - began) / done * (total - done)
    return f"; {total - done} left, about {_duration(left)}" if done < total else ""


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
