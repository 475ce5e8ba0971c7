"""Computes the cells that a store lacks, on any `concurrent.futures.Executor`, and says how far it is."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures import wait as first_of
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from lib import UserError, experiment
from lib.experiment import Cell, Record
from lib.store import Store


class _Lost(BrokenExecutor):
    """An executor that breaks in a way of its own, as a cluster does: says how."""


def missing(cells: Iterable[Cell], store: Store) -> list[Cell]:
    """The cells, in order and each once, that the store does not hold."""
    return [cell for cell in dict.fromkeys(cells) if cell not in store]


def run(cells: Iterable[Cell], store: Store, executor: Executor | None = None, workers: int | None = None,
        data_root: str | None = None, budget: float | None = None, say: Callable[[str], None] = print,
        work: Callable | None = None, wait: bool = False, device: str = "cpu", stack: int = 1,
        precision: str = "float32") -> list[str]:
    """Computes the cells that are missing and adds each to the store as it finishes.

    wait: for another run that writes to the store, instead of refusing.
    work: (cell, data_root) -> record, `experiment.run` by default; `audit.run` for studies, which go the same way.
    executor: where; by default a pool of `workers` processes on this machine (default: one per core), one thread
    each, so that results do not depend on their number. budget: seconds after which no further cell is started, nor before
    it one that would not end in time, by those of its kind that the store holds or that were computed in this run. device,
    precision: where and in what cells train. stack: how many trained cells that differ in method, compression and learning
    rate only train in lock-step (`lib.stack`).
    A cell that has a twin (`experiment.twin`), missing too or in the store, comes after it and shows its training where
    `experiment.served` allows that and the precision is the one asked for: so the number of workers and the order of
    the cells do not matter.
    Returns one line for each cell that failed; the others go on. On an interruption (Ctrl-C) the workers are stopped
    and the cells in flight, and only those, are lost; those that train alone on this machine go on from their last
    checkpoint.
    """
    cells = list(cells)
    if not missing(cells, store):
        return []
    own, others = executor is None, set(multiprocessing.active_children())
    workers = workers or os.cpu_count() or 1
    executor = executor or ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare)

    def submit(task: tuple) -> Future:
        known = _known(task, twins, store, precision)
        try:
            with _deaf_to_interruption():   # a first task starts a worker
                return executor.submit(compute, task, data_root, work, together, known)
        except Exception as error:
            raise _broken(error) from error

    twin = experiment.twin if work is None else lambda cell: None
    if work is None:
        checkpoints = store.path.parent / "checkpoints" if own else None   # elsewhere there may be no such folder
        work = partial(experiment.run, device=device, precision=precision, checkpoints=checkpoints)
    together = partial(experiment.run_together, device=device, precision=precision)
    with _ending(executor, own, others), store.writing(wait):  # reads again what another run has written since
        todo, at_once = missing(cells, store), workers if own else 64
        asked = set(todo)
        twins = {cell: its for cell in todo if (its := twin(cell)) and (its in asked or its in store)}
        return _drain(tasks(todo, stack, twins), len(todo), store, at_once, budget, say, twins=twins, submit=submit,
                      longest={} if budget is None else _seen(store, device))


@contextmanager
def _ending(executor: Executor, own: bool, others: set[multiprocessing.Process]) -> Iterator[None]:
    """Tells in a sentence of an executor that computes no more, and leaves none of this run's `own` workers behind.

    others: the child processes that were there before it, which are none of its business.
    """
    try:
        yield
    except _Lost as error:
        raise UserError(f"The cluster does not compute any more ({error}): see that its scheduler and its workers run, and "
                        "in an environment with this project, and start again. No finished cell is lost.") from error
    except BrokenExecutor as error:
        raise UserError("A worker process was killed, most likely for want of memory: run again with fewer workers. "
                        "No finished cell is lost.") from error
    except BaseException:
        if own:
            with _deaf_to_interruption():   # a second Ctrl-C would leave workers that go on to the end of their cells
                _stop(executor, others)
        raise
    finally:
        if own:
            executor.shutdown(cancel_futures=True)


def _known(task: tuple, twins: dict[Cell, Cell], store: Store, precision: str) -> dict[Cell, Record]:
    """For the cells of a task, the records of their twins, as far as there are any of this precision."""
    found = {cell: store.get(twins[cell]) for cell in task if cell in twins}
    return {cell: record for cell, record in found.items() if record and record.run.get("precision") == precision}


def _seen(store: Store, device: str) -> dict[tuple, float]:
    """The most seconds that a cell of each kind, trained alone on such a device, took."""
    longest: dict[tuple, float] = {}
    here = experiment.device_name(device)
    for record in store.records.values():
        run = record.run
        if run.get("device", "cpu") == here and not {"trained_as", "stacked"} & run.keys():
            kind = _kind((record.made_of,))
            longest[kind] = max(longest.get(kind, 0), run.get("seconds", 0))
    return longest


def _drain(queue: list[tuple], total: int, store: Store, at_once: int, budget: float | None, say: Callable[[str], None],
           submit: Callable[[tuple], Future], twins: dict[Cell, Cell] | None = None,
           longest: dict[tuple, float] | None = None) -> list[str]:
    """Keeps `at_once` tasks in flight until none is left or the budget is spent; a cell is not started before its twin,
    where that is in the queue too, has ended. longest: seconds of a task of each kind, as far as any was seen."""
    began, queue, flying, failures, done, twins = time.monotonic(), deque(queue), {}, [], 0, twins or {}
    longest = longest or {}
    awaited = {cell for task in queue for cell in task} & set(twins.values())

    def launch() -> None:
        while len(flying) < at_once:
            spent = time.monotonic() - began
            fits = lambda task: budget is None or spent < budget and spent + longest.get(_kind(task), 0) <= budget
            ready = lambda task: not any(twins.get(cell) in awaited for cell in task)
            task = next((task for task in queue if fits(task) and ready(task)), None)
            if not task:
                return
            queue.remove(task)
            flying[submit(task)] = task, spent

    try:
        launch()
        while flying:
            finished, _ = first_of(flying, return_when=FIRST_COMPLETED)
            broken = None
            for future in finished:
                task, started = flying.pop(future)
                if fault := _fault(future):
                    broken = fault  # raised only when what has finished beside it is stored
                    continue
                longest[_kind(task)] = max(longest.get(_kind(task), 0), time.monotonic() - began - started)
                for cell, outcome in zip(task, _outcomes(future, task), strict=True):
                    done += 1
                    awaited.discard(cell)
                    if isinstance(outcome, str):
                        failures.append(f"{cell}: {outcome}")
                    else:
                        store.add(outcome)
                    say(f"[{done}/{total}] {cell}: {summary(outcome)}{_estimate(began, done, total)}")
            if broken:
                raise broken
            launch()
    except BaseException:   # a caller's executor would go on with what it has been given
        for future in flying:
            future.cancel()
        raise
    return failures


def _fault(future: Future) -> BrokenExecutor | None:
    """Why an executor cannot compute any more: `compute` itself raises nothing."""
    try:
        error = future.exception()
    except CancelledError as cancelled:
        error = cancelled
    return None if error is None or _deadly(error) else _broken(error)


def _outcomes(future: Future, task: tuple) -> list[Record | str]:
    error = future.exception()
    return [str(error).split(". ")[0]] * len(task) if error else future.result()


def _deadly(error: BaseException) -> bool:
    """Whether it is a task that a cluster has given up, after several workers died of it: the others go on. (By name,
    because where no cluster is asked for there may be no Dask.)"""
    return type(error).__name__ == "KilledWorker"


def _broken(error: BaseException) -> BrokenExecutor:
    if isinstance(error, BrokenExecutor):
        return error
    return _Lost((str(error).strip() or type(error).__name__).splitlines()[0])


def tasks(cells: Iterable[Cell], stack: int = 1, waiting: Container[Cell] = ()) -> list[tuple[Cell, ...]]:
    """What is sent to a worker at a time: one cell, or `stack` neighbours that can be trained together, those that are
    `waiting` for a twin apart; of cells that train nothing, neighbours that share a score."""
    trained = lambda cell: stack > 1 and getattr(cell, "epochs", 0) > 0
    groups = [tuple(group) for _, group in groupby(cells, key=lambda cell: cell.stack_key if trained(cell) else cell.task)]
    groups = [part for group in groups for late in (False, True)
              if (part := tuple(cell for cell in group if (cell in waiting) == late))]
    sizes = [stack if trained(group[0]) else len(group) for group in groups]
    return [group[start:start + size] for group, size in zip(groups, sizes) for start in range(0, len(group), size)]


def _kind(task: tuple) -> tuple:
    """Tasks of one kind take about as long: as many cells on the same network and recipe; masks alone, of one method."""
    cell = task[0]
    return (len(task), cell.dataset, cell.model, getattr(cell, "epochs", cell) or cell.method)


def compute(cells: tuple[Cell, ...], data_root: str | None, work: Callable = experiment.run,
            together: Callable = experiment.run_together,
            known: dict[Cell, Record] | None = None) -> list[Record | str]:
    """What a worker does, on one thread: each cell's record, or what went wrong with it. known: cell -> record of its
    twin."""
    torch.set_num_threads(1)
    # Scores on a card: not rounded to ten bits, and summed in an order that does not change.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    found = {cell: _tried(lambda: experiment.served(cell, record, data_root)) for cell, record in (known or {}).items()}
    rest = [cell for cell in cells if found.get(cell) is None]
    if len(rest) > 1 and getattr(rest[0], "epochs", 0):
        try:
            found |= zip(rest, together(rest, data_root), strict=True)
        except UserError:   # of one of them, such as a compression out of reach: computed alone, it costs no other
            found |= {cell: _tried(lambda: work(cell, data_root)) for cell in rest}
        except Exception as error:
            found |= dict.fromkeys(rest, _words(error))
    else:
        found |= {cell: _tried(lambda: work(cell, data_root)) for cell in rest}
    return [found[cell] for cell in cells]


def _tried(compute: Callable):
    """What it returns, or what went wrong, in words: one failure must not cost the others."""
    try:
        return compute()
    except Exception as error:
        return _words(error)


def _words(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def _prepare() -> None:
    """A worker ends with its parent, however that ends, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def _deaf_to_interruption() -> Iterator[None]:
    """Blocks SIGINT: a process that is started here inherits that, or Ctrl-C would interrupt its imports before it comes
    to `_prepare`. This process gets at the end what came meanwhile. (Windows has no such mask.)"""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop(executor: Executor, others: set[multiprocessing.Process]) -> None:
    executor.shutdown(wait=False, cancel_futures=True)
    for process in set(multiprocessing.active_children()) - others:
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
