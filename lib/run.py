"""Runs a profile: computes what its store lacks, executes the notebooks, renders them as HTML, writes a manifest.

`python -m lib.run [PROFILE] [options]`; `./run_all.sh` is the same in an environment that it makes.
"""

import argparse
import asyncio
import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":   # Ctrl-C while the rest is imported: an end without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch
from filelock import FileLock

from lib import UserError, audit, data, experiment, methods, profile, pruning, sweep, trainer
from lib.experiment import Cell
from lib.profile import AUDIT, DRAWN, NOTEBOOKS, ROOT, Profile
from lib.store import Store
from lib.study import Study

# Workers import this module too: execution, manifest, pages and tables, slow to import, are imported only where they serve.

MISTAKE, INTERRUPTED = 2, 130   # exit codes; 1: a notebook or a cell failed
# What the place that is written to may be at fault for; any other OSError is a fault of this code.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO)
SECONDS_TO_ANSWER = 10   # for a scheduler
COPIES = 8               # side by side in a card's calibration: from there on it has no room to be faster


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one sentence, without the usage of every option before it."""

    def error(self, message: str):
        self.exit(MISTAKE, f"error: {message}; --help explains every option.\n")


def _seconds(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise ValueError
    return value


_seconds.__name__ = "number of seconds"   # argparse: "invalid ... value"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    known = ", ".join(profile.names())
    result = _Parser(prog="run_all.sh", description=__doc__.split("\n")[0], epilog=(
        "Finished cells are kept in outputs/PROFILE/results.jsonl as they come: whatever stops a run, the same "
        "command goes on from there. Exit code: 0 all well; 1 a notebook or a cell failed (named at the end); "
        "2 a mistake in what was asked for; 130 stopped by Ctrl-C."))
    result.add_argument("profile", nargs="?", metavar="PROFILE", help=(
        f"a profile ({known}), a YAML file with the same keys, or `test`, which runs the tests. Without it: every "
        f"notebook in the quick profile, then {' and '.join(DRAWN)} from every other store that is there"))
    add = result.add_argument
    add("--data", metavar="DIR", help="folder with mnist.npz, cifar10.npz, cifar100.npz; else $FORESIGHT_DATA, the "
                                      "user's cache folder, and last a download through torchvision")
    add("--outputs", metavar="DIR", help="where the results go, a folder per profile; else $FORESIGHT_OUTPUTS, "
                                         "or outputs/ in the project")
    add("--workers", type=int, metavar="N", help="cells and notebooks that run at a time, one CPU thread each "
                                                 "(default: one per core); results do not depend on it")
    add("--scheduler", metavar="ADDRESS", help="compute the cells on the Dask cluster of this scheduler, "
                                               "such as tcp://host:8786, instead of here")
    add("--only", nargs="+", metavar="NOTEBOOK", help=f"only these notebooks and the cells they need: "
                                                      f"{', '.join(NOTEBOOKS)}")
    add("--methods", nargs="+", metavar="NAME", help="compute only the cells of these methods: SNIP is all its "
                                                     "readings, SNIP@run (@written, @published) one of them")
    add("--pairs", nargs="+", metavar="DATASET/MODEL", help="compute only the cells of these pairs, "
                                                            "such as mnist/cnn")
    add("--ratios", nargs="+", type=float, metavar="R", help="compute only the cells of these compressions; "
                                                             "1 is the unpruned network")
    add("--epochs", type=int, metavar="N", help="cut the profile down: train no pair for more than N epochs; the results go "
                                                "to a folder of their own, never among the profile's")
    add("--subset", type=int, metavar="N", help="cut the profile down: only the first N training images, likewise")
    add("--wait", action="store_true", help="where another run is writing to the same store, wait for its end "
                                            "(default: refuse)")
    add("--device", metavar="NAME", help="where cells train, such as cuda or cuda:1 "
                                         "(default: cuda where there is one, else cpu); "
                                         "one worker for a device unless --workers says more")
    add("--stack", type=int, metavar="K", help="how many cells that differ in method, compression and "
                                               "learning rate only train in lock-step (default: 16 on cuda, 1 on cpu); "
                                               "halved where memory runs out")
    add("--precision", choices=trainer.PRECISIONS, default="float32",
        help="of what layers compute while they train (default: float32). "
             "Each record says which; a finished cell is not computed again in the other, "
             "and of two records of a cell the one in float32 counts")
    add("--budget", type=_seconds, metavar="SECONDS", help="start no new cell after so many seconds of computing")
    add("--dry-run", action="store_true", help="say how many cells each pair has left, what they cost in "
                                               "floating-point operations and, by a calibration of ten seconds "
                                               "on the device, in time, and stop")
    add("--list", action="store_true", help="list profiles, notebooks and how many cells each has left, and stop")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code. Mistakes are told in one sentence on stderr."""
    options = parser().parse_args(argv)
    try:
        warnings.showwarning = _warn
        set_environment(options)
        if options.list:
            return show_profiles()
        if options.profile == "test":
            return subprocess.call([sys.executable, "-m", "pytest", str(ROOT / "tests")], cwd=ROOT)
        chosen = profile.load("quick" if options.profile is None else options.profile).cut(options.epochs, options.subset)
        return show_cells(chosen, options) if options.dry_run else run(chosen, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")   # else what is left of its last line would be written at the end, in vain
        print("error: Nobody reads what this run says any more, so it stopped: finished cells are kept.", file=sys.stderr)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"error: Cannot write {error.filename or 'to the outputs folder'}: {error.strerror}. Mend that, or "
              "choose another folder with --outputs, and run again: finished cells are kept.", file=sys.stderr)
    except KeyboardInterrupt:
        say("\nStopped. Every finished cell is kept; the same command goes on from there.")
        return INTERRUPTED
    return MISTAKE


def _warn(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning as a sentence, without the place in the code that gave it."""
    print(f"warning: {message}", file=sys.stderr)


def say(line: str) -> None:
    """One line of progress, at once, also through a pipe."""
    print(line, flush=True)


def set_environment(options: argparse.Namespace) -> None:
    """What notebooks and workers inherit. Hash seed and date are fixed so that a second run writes the same bytes."""
    for name in ("data", "outputs", "scheduler", "device"):
        if getattr(options, name) == "":   # as a shell makes it of a variable that is not set
            raise UserError(f"--{name} is given, but empty: name one, or leave --{name} out.")
    for option, variable in ((options.data, "FORESIGHT_DATA"), (options.outputs, "FORESIGHT_OUTPUTS")):
        if folder := option or os.environ.get(variable):
            os.environ[variable] = str(Path(folder).resolve())   # notebooks are executed in another folder
    if options.data and not Path(options.data).is_dir():
        raise UserError(f"--data {options.data}: there is no such folder.")
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_card = kind_of(options.device, there=not options.scheduler) != "cpu"
    options.workers = (1 if on_card else os.cpu_count() or 1) if options.workers is None else options.workers
    options.stack = (16 if on_card else 1) if options.stack is None else options.stack
    for name in ("workers", "stack"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: at least 1 is needed.")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    os.environ["FORESIGHT_WORKERS"] = str(options.workers)
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"   # the kernel of this Python, not one that the user once registered
    os.environ.pop("MPLBACKEND", None)            # else a backend set for scripts keeps figures out of the notebooks


def kind_of(name: str, there: bool) -> str:
    """The kind of a device, such as `cuda` of `cuda:1`. Raises `UserError` for what is no device and, where it must be
    `there` (the workers of a cluster have devices of their own), for one that computes nothing here."""
    try:
        device = torch.device(name)
        if there:
            torch.zeros(1, device=device).item()
        return device.type
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name}: there is no such device here ({reason}). Leave it out, or "
                        "name cpu, or cuda where PyTorch finds one.") from error


def run(chosen: Profile, options: argparse.Namespace) -> int:
    """One profile; and where no profile is named, the results of every other store that is there."""
    from lib import execution

    began, names = time.monotonic(), drawable(chosen, execution.select(options.only))
    if not names:
        raise UserError(f"The profile {chosen.profile!r} audits no pairs (its key `audit`), so {AUDIT} has nothing to draw.")
    wanted = [(chosen, names)]
    if options.profile is None and chosen.profile == "quick":
        among = [name for name in names if name in DRAWN]
        drawn = [(other, drawable(other, among)) for other in other_stores(chosen.profile)]
        wanted += [(other, its_names) for other, its_names in drawn if its_names]
    for one, its_names in wanted:
        check(one, its_names)
    problems = fill(chosen, names, options)
    problems += render(wanted, options.workers)
    say(f"\n{'Done, with failures,' if problems else 'Done'} in {time.monotonic() - began:.0f} s. Look at")
    for one, _ in wanted:
        folder = profile.outputs(one.profile)
        say(f"  {folder / 'html' / 'index.html'}   tables: {folder / 'tables'}   figures: {folder / 'figures'}")
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def drawable(chosen: Profile, names: list[str]) -> list[str]:
    """These notebooks, without the audit where the profile audits nothing."""
    return [name for name in names if name != AUDIT or chosen.audit]


def other_stores(name: str) -> list[Profile]:
    """The profiles of params/ other than `name` of which there is a store."""
    return [profile.load(other) for other in profile.names()
            if other != name and (profile.outputs(other) / "results.jsonl").exists()]


def check(chosen: Profile, names: list[str]) -> None:
    """Raises `UserError` for a notebook that would not get the profile's parameters, or a folder without access."""
    from lib import execution

    for name in names:
        execution.check(name)
    check_writable(profile.outputs(chosen.profile))


def render(wanted: list[tuple[Profile, list[str]]], workers: int) -> list[str]:
    """Executes the notebooks of each profile, all side by side, and makes their pages; returns one line per failure.

    A notebook that would come out as it lies there is not executed again.
    """
    with contextlib.ExitStack() as held:   # another run that renders the same comes first, and often leaves nothing to do
        for chosen, _ in wanted:
            held.enter_context(FileLock(profile.outputs(chosen.profile) / "render.lock"))
        return _render(wanted, workers)


def _render(wanted: list[tuple[Profile, list[str]]], workers: int) -> list[str]:
    """`render`, where no other run does."""
    from lib import execution, manifest, pages, tables

    outcomes, sources, jobs, there = [], {}, [], {}

    def finished(outcome: execution.Outcome) -> None:
        outcomes.append(outcome)
        executed = sum(each.status != "left out" for each in outcomes)
        say((f"[{executed}/{len(jobs)}] " if outcome.status != "left out" else "")
            + f"{outcome.profile}: {outcome.name}: {outcome.status}"
            + (f" in {outcome.seconds:.0f} s" if outcome.seconds else "")
            + (f": {outcome.problem}" if outcome.problem else ""))
        if outcome.status == "executed":
            folder = profile.outputs(outcome.profile)
            page = pages.page(folder / "notebooks" / f"{outcome.name}.ipynb", there[outcome.profile])
            tables.write(folder / "html" / f"{outcome.name}.html", page)

    for chosen, names in wanted:
        absent, current = lacking(chosen, names), manifest.current(chosen, names)
        made = {page.stem for page in (profile.outputs(chosen.profile) / "html").glob("*.html")}
        there[chosen.profile] = made | {name for name in names if name not in absent}
        for name in names:
            sources[chosen.profile, name] = manifest.source(chosen, name)
            if name in absent:
                finished(execution.Outcome(chosen.profile, name, "left out", problem=absent[name]))
            elif name in current:
                say(f"{chosen.profile}: {name}: nothing has changed since it was executed")
            else:
                jobs.append((name, chosen))
    execution.execute_all(jobs, workers, finished)
    for chosen, _ in wanted:
        folder = profile.outputs(chosen.profile)
        tables.write(folder / "html" / "index.html", pages.index(chosen.profile, folder))
        manifest.write(chosen, [outcome for outcome in outcomes if outcome.profile == chosen.profile], sources)
    return [f"{outcome.profile}: {outcome.name}: {outcome.problem}"
            for outcome in outcomes if outcome.status == "failed"]


def check_writable(folder: Path) -> None:
    """Makes the folder and raises `UserError` if nothing can be written to it."""
    try:
        (folder / "notebooks").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror}. Choose another folder with --outputs.") from error


# ---- the cells

def needed(chosen: Profile, names: list[str], options: argparse.Namespace | None = None) -> list[Cell]:
    """The profile's cells that the notebooks need, as far as the options ask for them; raises `UserError` where that is none
    of them."""
    asked = chosen.cells(options.methods, options.pairs, options.ratios) if options else chosen.cells()
    if set(DRAWN) & set(names):
        return asked
    wanted = set(chosen.cells([method for name in names for method in NOTEBOOKS[name]]))
    if wanted.isdisjoint(asked) and wanted:
        raise UserError(f"--methods, --pairs and --ratios leave no cell that {', '.join(names)} needs: leave one of them or "
                        "--only out.")
    return [cell for cell in asked if cell in wanted]


def store_of(chosen: Profile) -> Store:
    """The profile's store."""
    return Store(profile.outputs(chosen.profile) / "results.jsonl")


def fill(chosen: Profile, names: list[str], options: argparse.Namespace) -> list[str]:
    """Computes the cells that the store lacks; returns one line per failed cell."""
    began, cells, store = time.monotonic(), needed(chosen, names, options), store_of(chosen)
    missing = sweep.missing(cells, store)
    say(f"{chosen.profile}: {len(cells) - len(missing)} of {len(cells)} cells are in the store.")
    failures = compute(missing, store, options, options.budget)
    if AUDIT in names:
        questions, answers = asked_studies(chosen, options), audit.store_of(chosen)
        unanswered = sweep.missing(questions, answers)
        say(f"{chosen.profile}: {len(questions) - len(unanswered)} of {len(questions)} studies are in the store.")
        left = options.budget and max(0, options.budget - (time.monotonic() - began))
        failures += compute(unanswered, answers, options, left, audit.run)
    return failures


def compute(missing: list, store: Store, options: argparse.Namespace, budget: float | None,
            work: Callable | None = None) -> list[str]:
    """Computes cells or studies where the options say; returns one line for each that failed."""
    if not missing or budget == 0:   # to render what is there takes no data
        return []
    check_cells([each if isinstance(each, Cell) else each.cell("Dense") for each in missing], options.data)
    executor = cluster(options.scheduler) if options.scheduler else None
    return sweep.run(missing, store, executor=executor, workers=options.workers, data_root=options.data,
                     budget=budget, say=say, work=work, wait=options.wait,
                     device=options.device, stack=options.stack, precision=options.precision)


def asked_studies(chosen: Profile, options: argparse.Namespace) -> list[Study]:
    """The profile's studies, as far as the options ask for them: those of one compression do not exist."""
    methods = profile.select(options.methods) if options.methods else None
    return [] if options.ratios else [
        study for study in audit.studies(chosen)
        if (not options.pairs or f"{study.dataset}/{study.model}" in options.pairs)
        and (methods is None or study.method in methods)]


def lacking(chosen: Profile, names: list[str]) -> dict[str, str]:
    """The notebooks that are not executed, and why: they would compute what a filter, budget or failure left out."""
    store = store_of(chosen)
    left = {name: len(sweep.missing(needed(chosen, [name]), store)) for name in names if name not in DRAWN}
    return {name: f"{count} of its cells are not in the store; a run without filters and budget computes them"
            for name, count in left.items() if count}


def check_cells(cells: list[Cell], root: str | None) -> None:
    """Raises `UserError` for a data set that is not there, is another than its name says or does not fit its network,
    for a compression out of reach, for a number of images that OBD cannot be scored on, and for a recipe by which nothing
    can be trained, before anything is computed.

    A download, too, happens once, here, and not in every worker.
    """
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        images, largest, curved = data.load(dataset, root), {}, {}
        images.check_genuine()
        for cell in (cell for cell in cells if cell.dataset == dataset):
            images.first(cell.train_images)
            network = cell.model, cell.width
            if methods.get(cell.method).mode == "calibrated":
                curved[network, cell.score_images, cell.train_images] = cell
            largest[network] = max(cell, largest.get(network, cell), key=lambda cell: cell.compression)
        for cell in largest.values():
            network, used = experiment.architecture(cell, images), images.first(cell.train_images)
            pruning.kept_count(network, cell.compression)
            trainer.check(network, used, cell.epochs, cell.learning_rate, cell.batch_size, "float32")
        for cell in curved.values():
            experiment.check_score_images(cell, images.first(cell.train_images))


def cluster(address: str):
    """The `concurrent.futures.Executor` of a Dask cluster."""
    try:
        from dask.distributed import Client
        from distributed.comm import connect
    except ImportError as error:
        raise UserError("--scheduler needs Dask: pip install dask distributed.") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)   # its tracebacks: `sweep.run` says what has failed
    try:
        asyncio.run(_answers(connect, address))
        client = Client(address, timeout=SECONDS_TO_ANSWER)
    except (OSError, ValueError, TypeError) as error:   # the last of a protocol that needs more than an address
        raise UserError(f"No Dask scheduler answers at {address!r}: {str(error) or 'what is there is none'}. Start one with "
                        "`dask scheduler`, or leave --scheduler out.") from error
    if not client.scheduler_info()["workers"]:
        say(f"The scheduler at {address} has no workers yet: the cells wait for them.")
    return client.get_executor()


async def _answers(connect: Callable, address: str) -> None:
    """Raises OSError for a server of another kind, such as the scheduler's own dashboard: `Client` waits for it for ever."""
    (await asyncio.wait_for(connect(address, timeout=SECONDS_TO_ANSWER), SECONDS_TO_ANSWER + 1)).abort()


def show_cells(chosen: Profile, options: argparse.Namespace) -> int:
    """--dry-run: the cells that are left, pair by pair."""
    from lib import estimate, execution

    cells = needed(chosen, execution.select(options.only), options)
    left = sweep.missing(cells, store_of(chosen))
    say(f"{chosen.profile}: {len(left)} of {len(cells)} cells left")
    here = ("cpu", 1) if options.scheduler else (options.device, min(options.stack, COPIES))
    costs = estimate.of(left, *here, options.precision)
    for pair in chosen.pairs:
        missing, total = (sum(f"{cell.dataset}/{cell.model}" == pair for cell in group) for group in (left, cells))
        if total:
            say(f"  {pair:20} {missing:5} of {total:4}" + _told(costs.get(pair), options.workers, here[0]))
    if AUDIT in execution.select(options.only) and chosen.audit:
        say(_studies_left(chosen, asked_studies(chosen, options)))
    return 0


def _studies_left(chosen: Profile, studies: list[Study]) -> str:
    return f"  {'studies':14} {len(sweep.missing(studies, audit.store_of(chosen))):5} of {len(studies):4} left"


def _told(cost, workers: int, device: str) -> str:
    """An estimate in words."""
    if cost is None:
        return ""
    hours = cost.seconds / 3600 / workers
    return f"   {cost.flops / 1e15:9.3f} PFLOP, about {hours:.1f} h with {workers} worker{'s' * (workers > 1)} on {device}"


def show_profiles() -> int:
    """--list: profiles, notebooks, and how many cells each has left."""
    for name in profile.names():
        chosen = profile.load(name)
        store = store_of(chosen)
        say(f"{name:14}{', '.join(chosen.pairs)}; r = {', '.join(f'{ratio:g}' for ratio in chosen.compressions)}")
        for notebook in drawable(chosen, list(NOTEBOOKS)):
            cells = needed(chosen, [notebook])
            say(f"  {notebook:14} {len(sweep.missing(cells, store)):5} of {len(cells):4} cells left")
        if chosen.audit:
            say(_studies_left(chosen, audit.studies(chosen)))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:   # once more, while the first was being told
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for worker in multiprocessing.active_children():   # none is left but of an interrupted run
        worker.terminate()
    if any(thread.name.startswith("notebook") for thread in threading.enumerate()):
        # After Ctrl-C: a notebook that still runs is not waited for; its kernel ends with this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
