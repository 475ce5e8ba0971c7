"""Sweeps: the same store however many work at it; failures, budgets and kills lose nothing that was finished."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from distributed.scheduler import KilledWorker

from lib import UserError, experiment, stack, sweep, trainer
from lib.experiment import Cell
from lib.store import Store

ROOT = Path(__file__).parents[1]
CELL = Cell("mnist", "cnn", "GlobalMag", 4, 1, 1, 0.01, width=0.2)  # of noise: see `root`
SHORT = [replace(CELL, method=method, compression=r)
         for method in ("GlobalGrad", "GraSP@run", "Random@run") for r in (2, 8)]
MASKS = [replace(cell, epochs=0) for cell in SHORT]
LONG = [replace(CELL, seed=seed, epochs=10**6) for seed in (1, 2)]
BAD = replace(CELL, compression=1000)


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory):
    """A folder with an MNIST of noise: workers read it faster than they import what the stand-ins need."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    arrays = {f"{split}_images": draw.integers(256, size=(count, 28, 28), dtype=np.uint8)
              for split, count in [("train", 256), ("test", 200)]}
    arrays |= {f"{split}_labels": np.arange(count) % 10 for split, count in [("train", 256), ("test", 200)]}
    np.savez(folder / "mnist.npz", **arrays, classes=np.array(list("0123456789")))
    return str(folder)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results.jsonl")


@pytest.fixture
def fill(root):
    """`sweep.run` in this process, on that data, silently."""
    def fill(store, cells, **options):
        return sweep.run(cells, store, **{"executor": Inline(), "data_root": root, "say": lambda line: None} | options)

    return fill


class Inline(Executor):
    """Computes at once, in this process; `clock` advances by 10 with every task."""

    def __init__(self):
        self.clock, self.tasks = 0, []

    def submit(self, function, *arguments):
        self.clock += 10
        self.tasks.append(arguments[0])
        future = Future()
        future.set_result(function(*arguments))
        return future


class First(Future):
    """Comes first in a set of futures."""

    def __hash__(self):
        return 0


class Broken(Inline):
    """Loses its worker at the second task; the news of it arrive before the other tasks' results."""

    def submit(self, function, *arguments):
        future = super().submit(function, *arguments)
        if len(self.tasks) == 2:
            future = First()
            future.set_exception(BrokenExecutor("killed"))
        return future


def lasting(store):
    """The store's records by key, without the times."""
    untimed = lambda run: {name: value for name, value in run.items() if "seconds" not in name}
    return {key: replace(record, run=untimed(record.run)).to_json() for key, record in store.records.items()}


# --- results

def test_one_worker_two_workers_and_this_process_make_the_same_store(tmp_path, fill):
    cells, found = [*SHORT, *MASKS], []
    for index, options in enumerate([{"executor": None, "workers": 1}, {"executor": None, "workers": 2}, {}]):
        path = tmp_path / str(index) / "results.jsonl"
        assert fill(Store(path), cells[::-1] if index == 1 else cells, **options) == []
        found.append(lasting(Store(path)))
    assert set(found[0]) == {cell.key for cell in cells} and found[0] == found[1] == found[2]


def test_missing_is_what_the_store_lacks_in_order_and_once(store, fill):
    fill(store, MASKS[:2])
    assert sweep.missing([*MASKS, *MASKS], store) == MASKS[2:]
    assert sweep.missing(MASKS[:2], Store(store.path)) == []


def test_only_missing_cells_are_computed(store, fill):
    fill(store, MASKS[1:3])
    before, executor = store.path.read_bytes(), Inline()
    fill(store, MASKS[:4], executor=executor)
    assert executor.tasks == [(MASKS[0],), (MASKS[3],)] and store.path.read_bytes().startswith(before)
    fill(store, MASKS[:4], executor=executor)
    assert len(executor.tasks) == 2 and len(Store(store.path)) == 4


def test_what_another_run_has_written_since_is_not_computed_again(store, fill):
    rival, executor = Store(store.path), Inline()
    fill(rival, MASKS[:2])
    fill(store, MASKS[:3], executor=executor)
    assert executor.tasks == [(MASKS[2],)] and len(store) == 3


def test_nothing_missing_needs_no_worker_and_no_lock(store, fill):
    fill(store, MASKS[:1])
    with store.writing():
        assert sweep.run(MASKS[:1], Store(store.path)) == []


def test_masks_that_share_a_score_go_to_one_worker_and_trained_cells_each_to_one():
    assert sweep.tasks(MASKS) == [tuple(MASKS[:2]), tuple(MASKS[2:4]), tuple(MASKS[4:])]
    assert sweep.tasks(SHORT) == [(cell,) for cell in SHORT]
    assert sweep.tasks([MASKS[0], replace(MASKS[1], seed=2)]) == [(MASKS[0],), (replace(MASKS[1], seed=2),)]
    curvature = [replace(MASKS[0], method=method) for method in ("OBD", "OBD@run", "SNIP")]
    assert sweep.tasks(curvature) == [tuple(curvature[:2]), tuple(curvature[2:])]


# --- trained once, shown twice

ONCE = [replace(CELL, dataset="shapes10", model="resnet20", method=method, compression=r, width=0.125, train_images=256)
        for method, r in (("GlobalMag", 2), ("LAMP", 8), ("LayerMag", 8))]   # LayerMag's two masks differ in 3 %
TWINS = [experiment.twin(cell) for cell in ONCE]


@pytest.fixture
def trainings(monkeypatch):
    """How many networks each training in this process had."""
    counted = []
    alone, stacked = trainer.train, stack.train
    monkeypatch.setattr(trainer, "train", lambda *given, **rest: counted.append(1) or alone(*given, **rest))
    monkeypatch.setattr(stack, "train", lambda *given, **rest: counted.append(len(given[0])) or stacked(*given, **rest))
    return counted


def shown(store):
    """Cell -> the method whose training it shows, where that is another's."""
    return {record.cell: record.run["trained_as"] for record in store.records.values() if "trained_as" in record.run}


def test_the_order_of_cells_and_the_number_of_workers_do_not_change_what_is_trained_once(tmp_path, fill):
    found, orders = [], [[*ONCE, *TWINS], [*TWINS[::-1], *ONCE], [TWINS[2], ONCE[1], ONCE[2], TWINS[1], TWINS[0], ONCE[0]]]
    for index, options in enumerate([{"executor": None, "workers": 1}, {"executor": None, "workers": 2}, {}]):
        store = Store(tmp_path / str(index) / "results.jsonl")
        assert fill(store, orders[index], **options) == []
        found.append(lasting(store))
    assert found[0] == found[1] == found[2] and len(found[0]) == 6
    assert shown(store) == dict(zip(ONCE[:2], ("GlobalMag@run", "LAMP@run")))
    assert [store.get(cell).history == store.get(its).history for cell, its in zip(ONCE, TWINS)] == [True, True, False]


@pytest.mark.parametrize("size, expected", [(1, [1] * 4), (4, [3, 1])])
def test_nothing_is_trained_twice(store, fill, trainings, size, expected):
    said = []
    assert fill(store, [*ONCE, *TWINS], stack=size, say=said.append) == []
    assert trainings == expected and len(shown(store)) == 2
    assert [line.split()[0] for line in said] == [f"[{number}/6]" for number in range(1, 7)]
    assert sum("trained as" in line for line in said) == 2
    assert sweep.tasks([*ONCE, *TWINS], 4, ONCE) == [tuple(TWINS), tuple(ONCE)]


def test_a_cell_whose_twin_is_not_asked_for_is_trained(store, fill, trainings):
    assert fill(store, ONCE[:1]) == [] and trainings == [1] and not shown(store)
    assert fill(store, TWINS[:1]) == [] and trainings == [1, 1] and not shown(store)


def test_a_twin_in_the_store_serves_its_own_precision(store, fill, trainings):
    assert fill(store, TWINS[:2]) == [] and trainings == [1, 1]
    assert fill(store, ONCE[:1]) == [] and trainings == [1, 1]
    assert fill(store, ONCE[1:2], precision="bf16") == [] and trainings == [1, 1, 1]
    assert list(shown(store)) == ONCE[:1] and store.get(ONCE[1]).run["precision"] == "bf16"


def test_no_cell_is_started_before_its_twin_has_ended(store, fill, monkeypatch):
    """The last of the tasks in flight ends first; there are as many workers as tasks."""
    flying, started = {}, []

    class Waiting(Inline):
        def submit(self, function, *arguments):
            future = Future()
            flying[future] = function, arguments
            started.append((set(arguments[0]), {cell for _, (cells, *_) in flying.values() for cell in cells}))
            return future

    def first_of(futures, return_when):
        future = list(futures)[-1]
        function, arguments = flying.pop(future)
        future.set_result(function(*arguments))
        return {future}, None

    monkeypatch.setattr(sweep, "first_of", first_of)
    assert fill(store, [*ONCE, *TWINS, *SHORT[:2]], executor=Waiting()) == []
    assert [cell for cells, _ in started[:5] for cell in cells] == [*TWINS, *SHORT[:2]]
    assert all(experiment.twin(cell) not in others for cells, others in started for cell in cells)
    assert len(store) == 8 and len(shown(store)) == 2


def test_a_twin_that_fails_costs_nobody_else(store, fill, monkeypatch):
    def run(cell, root=None, **rest):
        if cell == TWINS[0]:
            raise RuntimeError("lost")
        return plain(cell, root, **rest)

    plain = experiment.run
    monkeypatch.setattr(experiment, "run", run)
    failures = fill(store, [ONCE[0], TWINS[0]])
    assert len(failures) == 1 and re.search(r"RuntimeError: lost \(test_sweep.py, line \d+\)", failures[0])
    assert list(store.records) == [ONCE[0].key] and not shown(store) and len(store.get(ONCE[0]).history) == 2


def test_what_the_budget_leaves_out_is_shown_by_the_next_run(store, fill, monkeypatch, trainings):
    executor = Inline()
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: executor.clock))
    assert fill(store, [ONCE[0], TWINS[0]], executor=executor, budget=5) == []
    assert executor.tasks == [(TWINS[0],)]
    assert fill(store, [ONCE[0], TWINS[0]], executor=executor) == []
    assert trainings == [1] and list(shown(store)) == ONCE[:1]


# --- failures and budgets

def test_a_failing_cell_is_reported_and_the_others_go_on(store, fill):
    said = []
    failures = fill(store, [MASKS[0], BAD, MASKS[2]], say=said.append)
    assert len(failures) == 1 and "r=1000" in failures[0] and "out of reach" in failures[0]
    assert set(store.records) == {MASKS[0].key, MASKS[2].key}
    assert len(said) == 3 and ["r=1000 seed 1: FAILED" in line for line in said].count(True) == 1


def test_an_unforeseen_failure_is_reported_too_also_among_masks(store, monkeypatch, fill):
    def run(cell, root=None, **rest):
        if cell == MASKS[0]:
            raise KeyError("conv7")
        return plain(cell, root, **rest)

    plain = experiment.run
    monkeypatch.setattr(experiment, "run", run)
    failures = fill(store, MASKS[:2])
    assert len(failures) == 1 and "KeyError: 'conv7'" in failures[0] and list(store.records) == [MASKS[1].key]


def test_a_spent_budget_starts_no_further_cell(store, monkeypatch, fill):
    executor = Inline()
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: executor.clock))
    assert fill(store, SHORT, executor=executor, budget=25) == []
    assert executor.tasks == [(cell,) for cell in SHORT[:3]] and len(store) == 3
    fill(store, SHORT, executor=executor)
    assert len(store) == len(SHORT)


def test_what_would_not_end_within_the_budget_is_not_started(store, monkeypatch, root):
    executor = Inline()
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: executor.clock))
    with store.writing():
        sweep._drain(sweep.tasks(SHORT), len(SHORT), store, 1, 25, lambda line: None,
                     submit=lambda task: executor.submit(sweep.compute, task, root))
    assert executor.tasks == [(cell,) for cell in SHORT[:2]]   # a third, of 10 seconds as the others, would end at 30


def test_what_the_store_says_would_not_end_within_the_budget_is_not_started(store, fill, monkeypatch):
    fill(store, SHORT[:1])
    record = next(iter(store.records.values()))
    record.run["seconds"] = 1000
    assert fill(store, SHORT, budget=100) == [] and len(store) == 1
    monkeypatch.setattr(experiment, "device_name", {"cpu": "cpu", "cuda": "a card"}.get)
    record.run["device"] = "a card"     # says nothing of a processor
    assert sweep._seen(store, "cpu") == {} and list(sweep._seen(store, "cuda").values()) == [1000]
    fill(store, SHORT, budget=100)
    assert len(store) == len(SHORT)


def test_what_is_too_long_does_not_hold_up_what_would_end(store, fill):
    fill(store, [LONGER := replace(CELL, epochs=2)])
    next(iter(store.records.values())).run["seconds"] = 1000
    assert fill(store, [replace(LONGER, seed=2), *SHORT], budget=100) == []
    assert {record.cell for record in store.records.values()} == {LONGER, *SHORT}


def test_masks_of_two_methods_are_of_two_kinds():
    dear, cheap, same = (replace(MASKS[0], method=method, seed=seed) for method, seed in
                         (("OBD", 1), ("GlobalMag", 1), ("GlobalMag", 2)))
    assert len({sweep._kind((cell,)) for cell in (dear, cheap, same)}) == 2


def test_cells_that_differ_in_method_and_compression_only_train_together(store, fill):
    other = replace(SHORT[0], seed=2)
    assert sweep.tasks([*SHORT, other], 4) == [tuple(SHORT[:4]), tuple(SHORT[4:]), (other,)]
    assert sweep.tasks(MASKS, 4) == sweep.tasks(MASKS)
    assert fill(store, SHORT, stack=4) == []
    assert {record.run["stacked"] for record in store.records.values()} == {4, 2}
    assert all(len(record.history) == 2 for record in store.records.values())


@pytest.mark.parametrize("stack", [1, 2])
def test_the_records_say_in_what_precision_they_trained(store, fill, stack):
    assert fill(store, SHORT[:2], stack=stack, precision="bf16") == []
    assert [record.run["precision"] for record in store.records.values()] == ["bf16"] * 2


def test_a_group_that_fails_costs_itself_and_nothing_else(store, monkeypatch, fill):
    plain = experiment.run_together

    def lost(cells, root, **rest):
        if SHORT[0] in cells:
            raise RuntimeError("the device is gone")
        return plain(cells, root, **rest)

    monkeypatch.setattr(experiment, "run_together", lost)
    failures = fill(store, SHORT, stack=2)
    assert len(failures) == 2 and all("the device is gone" in line for line in failures)
    assert set(store.records) == {cell.key for cell in SHORT[2:]}


def test_a_cell_at_fault_costs_its_group_nothing(store, fill):
    bad = replace(SHORT[0], compression=1000)
    [failure] = fill(store, [*SHORT[:3], bad], stack=4)
    assert failure.startswith(f"{bad}: Compression 1000 is out of reach")
    assert set(store.records) == {cell.key for cell in SHORT[:3]}


def test_a_killed_worker_is_a_sentence_and_loses_no_finished_cell(store, fill):
    with pytest.raises(UserError, match="worker process was killed"):
        fill(store, SHORT, executor=Broken())
    assert set(Store(store.path).records) == {cell.key for cell in SHORT[:1] + SHORT[2:]}


class Deadly(Inline):
    """A cluster whose workers, one after the other, die of the second task."""

    def submit(self, function, *arguments):
        future = super().submit(function, *arguments)
        if len(self.tasks) == 2:
            future = Future()
            future.set_exception(KilledWorker("a task", SimpleNamespace(address="tcp://127.0.0.1:1"), 3))
        return future


def test_a_cell_of_which_workers_die_fails_and_the_others_go_on(store, fill):
    [failure] = fill(store, SHORT, executor=Deadly())
    assert failure.startswith(f"{SHORT[1]}: ") and "4 different workers, but all those workers died" in failure
    assert set(store.records) == {cell.key for cell in SHORT[:1] + SHORT[2:]}


class Gone(Broken):
    """A cluster whose scheduler ends: a task is cancelled, or was never understood; then nothing can be sent any more."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def submit(self, function, *arguments):
        if len(self.tasks) == 4:
            raise RuntimeError("the client is closed")
        future = super().submit(function, *arguments)
        if len(self.tasks) == 2:
            future = First()
            future.set_exception(self.error) if self.error else future.cancel() and future.set_running_or_notify_cancel()
        return future


@pytest.mark.parametrize("error, told", [(RuntimeError("no lib\nmore"), r"\(no lib\)"), (None, r"\(CancelledError\)")])
def test_a_cluster_that_ends_is_a_sentence_and_loses_no_finished_cell(store, fill, error, told):
    with pytest.raises(UserError, match=f"cluster does not compute any more {told}"):
        fill(store, SHORT[:4], executor=Gone(error))
    assert set(Store(store.path).records) == {cell.key for cell in (SHORT[0], *SHORT[2:4])}


def test_a_cluster_that_takes_nothing_any_more_is_a_sentence(store, fill):
    executor = Gone(None)
    executor.tasks = [()] * 4
    with pytest.raises(UserError, match="the client is closed"):
        fill(store, SHORT[:1], executor=executor)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interruption_while_a_worker_is_started_comes_when_it_is_and_the_worker_does_not_get_it():
    asked, reached = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))", []
    with pytest.raises(KeyboardInterrupt):
        with sweep._deaf_to_interruption():
            signal.raise_signal(signal.SIGINT)
            reached.append(subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout.strip())
    assert reached == ["True"] and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_store_that_another_run_writes_is_refused(store, fill):
    with store.writing(), pytest.raises(UserError, match="another run"):
        fill(Store(store.path), MASKS[:1])


def test_progress_is_one_line_for_each_cell(store, fill):
    said = []
    fill(store, [SHORT[1], *MASKS[:2]], say=said.append)
    assert [line.split()[0] for line in said] == ["[1/3]", "[2/3]", "[3/3]"]
    assert sorted(line.split(":")[0][6:] for line in said) == sorted(
        f"mnist/cnn GlobalGrad r={r} seed 1" for r in (8, 2, 8))
    assert "2 left, about" in said[0] and "1 left, about" in said[1] and "left" not in said[2]
    assert sum("top-1" in line for line in said) == 1 and sum("compression 8" in line for line in said) == 2


# --- kills

SCRIPT = """
from lib import sweep
from lib.experiment import Cell
from lib.store import Store
if __name__ == "__main__":
    sweep.run({cells!r}, Store({path!r}), workers=2, data_root={root!r}, say=lambda line: print(line, flush=True))
"""


@pytest.fixture
def started(store, tmp_path, root):
    """A sweep in a process group of its own: two cells done, then two in flight that would take hours.

    Its workers hold its standard output: that ends when the last of them does.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(cells=[*SHORT[:2], *LONG, *SHORT[2:]], path=str(store.path), root=root))
    process = subprocess.Popen(
        [sys.executable, script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    lines = [process.stdout.readline() for _ in range(2)]
    assert all(line.startswith("[") for line in lines), process.stderr.read()
    time.sleep(0.5)
    yield process
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()


def ends(process):
    """Waits for the process and all its workers; how many further cells it finished."""
    began = time.monotonic()
    rest, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 8
    return len(rest.splitlines())


class Waiting(Executor):
    """A caller's executor: the first task is interrupted, the others wait."""

    def __init__(self):
        self.futures = []

    def submit(self, function, *arguments):
        future = Future()
        if not self.futures:
            future.set_result(function(*arguments))
        self.futures.append(future)
        return future


def test_an_interruption_recalls_what_a_callers_executor_has_not_begun(store, fill):
    def say(line):
        raise KeyboardInterrupt

    executor = Waiting()
    with pytest.raises(KeyboardInterrupt):
        fill(store, SHORT, executor=executor, say=say)
    assert [future.cancelled() for future in executor.futures] == [False] + [True] * (len(SHORT) - 1)


def test_an_interruption_stops_no_process_that_is_none_of_the_sweeps(store, root):
    def say(line):
        raise KeyboardInterrupt

    mine = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    mine.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep.run(MASKS[:1] + LONG, store, workers=2, data_root=root, say=say)
        deadline = time.monotonic() + 60
        while multiprocessing.active_children() != [mine] and time.monotonic() < deadline:   # they take a moment to end
            time.sleep(0.1)
        assert multiprocessing.active_children() == [mine] and mine.is_alive()
    finally:
        mine.kill()
        mine.join()


def interrupt(process):
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: all processes of the group get it


def kill(process):
    process.kill()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stop", [interrupt, kill])
def test_a_stopped_sweep_ends_within_seconds_loses_no_finished_cell_and_resumes(started, store, stop, fill):
    stop(started)
    assert ends(started) == 0 and started.returncode != 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a torn line would warn
        left = Store(store.path)
    assert set(left.records) == {cell.key for cell in SHORT[:2]}
    executor = Inline()
    assert fill(left, SHORT, executor=executor) == []
    assert executor.tasks == [(cell,) for cell in SHORT[2:]] and len(Store(store.path)) == len(SHORT)


# --- a cluster



@pytest.fixture
def cluster(tmp_path):
    """A real Dask scheduler and two worker processes, which meet over TCP."""
    pytest.importorskip("distributed")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "True"}
    start = lambda *command: subprocess.Popen([sys.executable, "-m", "distributed.cli." + command[0], *command[1:]],
                                              cwd=tmp_path, env=environment, text=True, stdout=subprocess.DEVNULL,
                                              stderr=subprocess.PIPE)
    scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                      "--scheduler-file", str(tmp_path / "scheduler.json"))
    workers = [start("dask_worker", "--scheduler-file", str(tmp_path / "scheduler.json"), "--nworkers", "1",
                     "--nthreads", "1", "--no-dashboard", "--no-nanny", "--name", str(number)) for number in range(2)]
    import json
    deadline = time.monotonic() + 60
    while not (tmp_path / "scheduler.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    yield json.loads((tmp_path / "scheduler.json").read_text())["address"], workers
    for process in (*workers, scheduler):
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_cluster_that_loses_a_worker_computes_every_cell_once(cluster, store, root):
    address, workers = cluster
    from lib import run
    executor = run.cluster(address)
    cells = [replace(CELL, method=method, compression=r, seed=seed, epochs=2)
             for seed in (1, 2) for method in ("GlobalMag", "Random@run") for r in (2, 4, 8)] + [*ONCE, *TWINS]
    said = []

    def say(line):
        said.append(line)
        if len(said) == 3:
            workers[0].send_signal(signal.SIGKILL)   # with a cell in its hands

    try:
        assert sweep.run(cells, store, executor=executor, data_root=root, say=say) == []
    finally:
        executor.shutdown()
    assert workers[0].wait(10) == -signal.SIGKILL
    assert len(said) == len(cells) and len(store.path.read_text().splitlines()) == len(cells)
    here = experiment.run(cells[0], root)
    assert (store.get(cells[0]).report, store.get(cells[0]).history) == (here.report, here.history)
    assert set(shown(store)) == set(ONCE[:2]) and store.get(ONCE[0]).history == store.get(TWINS[0]).history


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tls://127.0.0.1:1"])   # one needs certificates
def test_no_scheduler_at_that_address_is_told(address):
    from lib import run
    with pytest.raises(UserError, match=f"No Dask scheduler answers at '{address}'"):
        run.cluster(address)


def test_a_server_that_is_no_scheduler_is_told_and_not_waited_for(monkeypatch):
    from lib import run
    monkeypatch.setattr(run, "SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="No Dask scheduler answers"):
        run.cluster(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
