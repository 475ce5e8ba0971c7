"""Runs a profile: computes what its store lacks, executes the notebooks, renders them as HTML, writes a manifest.

`python -m lib.run [PROFILE] [options]`; `./run_all.sh` is the same in an environment that it makes.
"""

import argparse
import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from lib import UserError, data, models, profile, pruning, sweep
from lib.experiment import Cell
from lib.profile import NOTEBOOKS, RESULTS, ROOT, Profile
from lib.store import Store

# Workers import this module too: execution, pages and tables, slow to import, are imported only where they serve.

MISTAKE, INTERRUPTED = 2, 130   # exit codes; 1: a notebook or a cell failed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    known = ", ".join(profile.names())
    result = argparse.ArgumentParser(prog="run_all.sh", description=__doc__.split("\n")[0], epilog=(
        "Finished cells are kept in outputs/PROFILE/results.jsonl as they come: whatever stops a run, the same "
        "command goes on from there. Exit code: 0 all well; 1 a notebook or a cell failed (named at the end); "
        "2 a mistake in what was asked for; 130 stopped by Ctrl-C."))
    result.add_argument("profile", nargs="?", metavar="PROFILE", help=(
        f"a profile ({known}), a YAML file with the same keys, or `test`, which runs the tests. Without it: every "
        f"notebook in the quick profile, then {RESULTS} from every other store that is there"))
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
    add("--budget", type=float, metavar="SECONDS", help="start no new cell after so many seconds of computing")
    add("--dry-run", action="store_true", help="say how many cells each pair has left, and stop")
    add("--list", action="store_true", help="list profiles, notebooks and how many cells each has left, and stop")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code. Mistakes are told in one sentence on stderr."""
    options = parser().parse_args(argv)
    try:
        set_environment(options)
        if options.list:
            return show_profiles()
        if options.profile == "test":
            return subprocess.call([sys.executable, "-m", "pytest", str(ROOT / "tests")], cwd=ROOT)
        chosen = profile.load(options.profile or "quick")
        return show_cells(chosen, options) if options.dry_run else run(chosen, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        print(f"error: Cannot write {error.filename or 'to the outputs folder'}: {error.strerror}. Mend that, or "
              "choose another folder with --outputs, and run again: finished cells are kept.", file=sys.stderr)
    except KeyboardInterrupt:
        say("\nStopped. Every finished cell is kept; the same command goes on from there.")
        return INTERRUPTED
    return MISTAKE


def say(line: str) -> None:
    """One line of progress, at once, also through a pipe."""
    print(line, flush=True)


def set_environment(options: argparse.Namespace) -> None:
    """What notebooks and workers inherit. Hash seed and date are fixed so that a second run writes the same bytes."""
    for option, variable in ((options.data, "FORESIGHT_DATA"), (options.outputs, "FORESIGHT_OUTPUTS")):
        if option:
            os.environ[variable] = str(Path(option).resolve())
    if options.data and not Path(options.data).is_dir():
        raise UserError(f"--data {options.data}: there is no such folder.")
    if options.workers is None:
        options.workers = os.cpu_count() or 1
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: at least 1 is needed.")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    os.environ["FORESIGHT_WORKERS"] = str(options.workers)
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"   # the kernel of this Python, not one that the user once registered
    os.environ.pop("MPLBACKEND", None)            # else a backend set for scripts keeps figures out of the notebooks


def run(chosen: Profile, options: argparse.Namespace) -> int:
    """One profile; and where no profile is named, the results of every other store that is there."""
    from lib import execution

    began, names = time.monotonic(), execution.select(options.only)
    problems, rendered = run_profile(chosen, names, options), [chosen]
    if options.profile is None and RESULTS in names:
        for other in other_stores(chosen.profile):
            problems += run_profile(other, [RESULTS], options, compute=False)
            rendered.append(other)
    say(f"\n{'Done, with failures,' if problems else 'Done'} in {time.monotonic() - began:.0f} s. Look at")
    for one in rendered:
        folder = profile.outputs(one.profile)
        say(f"  {folder / 'html' / 'index.html'}   tables: {folder / 'tables'}   figures: {folder / 'figures'}")
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def other_stores(name: str) -> list[Profile]:
    """The profiles of params/ other than `name` of which there is a store."""
    return [profile.load(other) for other in profile.names()
            if other != name and (profile.outputs(other) / "results.jsonl").exists()]


def run_profile(chosen: Profile, names: list[str], options: argparse.Namespace, compute: bool = True) -> list[str]:
    """Checks, computes, executes, renders; returns one line per failure. Without `compute`: the store as it is."""
    from lib import execution, pages, tables

    folder = profile.outputs(chosen.profile)
    say(f"\n== {chosen.profile}: {', '.join(names)} → {folder}")
    for name in names:
        execution.check(name)
    check_writable(folder)
    problems = fill(chosen, names, options) if compute else []
    left_out = [execution.Outcome(name, "left out", problem=reason)
                for name, reason in lacking(chosen, names).items()]
    for outcome in left_out:
        say(f"{outcome.name}: left out: {outcome.problem}")
    ready = [name for name in names if name not in {outcome.name for outcome in left_out}]
    outcomes = left_out + execution.execute_all(ready, chosen.model_dump(), folder / "notebooks", options.workers, say)
    for outcome in outcomes:
        if outcome.status == "executed":
            page = pages.page(folder / "notebooks" / f"{outcome.name}.ipynb")
            tables.write(folder / "html" / f"{outcome.name}.html", page)
    tables.write(folder / "html" / "index.html", pages.index(chosen.profile, folder))
    tables.write(folder / "manifest.json", manifest(chosen, folder, outcomes))
    return problems + [f"{chosen.profile}: {outcome.name}: {outcome.problem}"
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
    """The profile's cells that the notebooks need, as far as the options ask for them."""
    asked = chosen.cells(options.methods, options.pairs, options.ratios) if options else chosen.cells()
    if RESULTS in names:
        return asked
    wanted = set(chosen.cells([method for name in names for method in NOTEBOOKS[name]]))
    return [cell for cell in asked if cell in wanted]


def store_of(chosen: Profile) -> Store:
    """The profile's store."""
    return Store(profile.outputs(chosen.profile) / "results.jsonl")


def fill(chosen: Profile, names: list[str], options: argparse.Namespace) -> list[str]:
    """Computes the cells that the store lacks; returns one line per failed cell."""
    cells, store = needed(chosen, names, options), store_of(chosen)
    missing = sweep.missing(cells, store)
    say(f"{len(cells) - len(missing)} of {len(cells)} cells are in the store.")
    if not missing:
        return []
    check_cells(missing, options.data)
    executor = cluster(options.scheduler) if options.scheduler else None
    return sweep.run(missing, store, executor=executor, workers=options.workers, data_root=options.data,
                     budget=options.budget, say=say)


def lacking(chosen: Profile, names: list[str]) -> dict[str, str]:
    """The notebooks that are not executed, and why: they would compute what a filter, budget or failure left out."""
    store = store_of(chosen)
    left = {name: len(sweep.missing(needed(chosen, [name]), store)) for name in names if name != RESULTS}
    return {name: f"{count} of its cells are not in the store; a run without filters and budget computes them"
            for name, count in left.items() if count}


def check_cells(cells: list[Cell], root: str | None) -> None:
    """Raises `UserError` for a data set that is not there or a compression out of reach, before anything is computed.

    A download, too, happens once, here, and not in every worker.
    """
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        images = data.load(dataset, root)
        largest = {}
        for cell in (cell for cell in cells if cell.dataset == dataset):
            images.first(cell.train_images)
            network = cell.model, len(images.classes), cell.width
            largest[network] = max(cell.compression, largest.get(network, 1))
        for network, ratio in largest.items():
            if ratio > 1:
                pruning.kept_count(models.build(*network), ratio)


def cluster(address: str):
    """The `concurrent.futures.Executor` of a Dask cluster."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise UserError("--scheduler needs Dask: pip install dask distributed.") from error
    try:
        return Client(address, timeout=10).get_executor()
    except (OSError, ValueError) as error:
        raise UserError(f"No Dask scheduler answers at {address!r}: {error}. Start one with `dask scheduler`, or "
                        "leave --scheduler out.") from error


def show_cells(chosen: Profile, options: argparse.Namespace) -> int:
    """--dry-run: the cells that are left, pair by pair."""
    from lib import execution

    cells = needed(chosen, execution.select(options.only), options)
    left = sweep.missing(cells, store_of(chosen))
    say(f"{chosen.profile}: {len(left)} of {len(cells)} cells left")
    for pair in chosen.pairs:
        missing, total = (sum(f"{cell.dataset}/{cell.model}" == pair for cell in group) for group in (left, cells))
        if total:
            say(f"  {pair:20} {missing:5} of {total:4}")
    return 0


def show_profiles() -> int:
    """--list: profiles, notebooks, and how many cells each has left."""
    for name in profile.names():
        chosen = profile.load(name)
        store = store_of(chosen)
        say(f"{name:14}{', '.join(chosen.pairs)}; r = {', '.join(f'{ratio:g}' for ratio in chosen.compressions)}")
        for notebook in NOTEBOOKS:
            cells = needed(chosen, [notebook])
            say(f"  {notebook:14} {len(sweep.missing(cells, store)):5} of {len(cells):4} cells left")
    return 0


# ---- the manifest

def manifest(chosen: Profile, folder: Path, outcomes: list) -> str:
    """What was run, with what, and what became of it, as JSON; notebooks of earlier runs stay listed."""
    cells, store = chosen.cells(), store_of(chosen)
    entries = {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["notebooks"]
    for outcome in outcomes:
        entries[outcome.name] = {"status": outcome.status, "seconds": round(outcome.seconds, 1),
                                 "problem": outcome.problem}
    return json.dumps({
        "profile": chosen.model_dump(),
        "commit": git("rev-parse", "HEAD"),
        "changed_since_commit": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "cells": {"grid": len(cells), "done": len(cells) - len(sweep.missing(cells, store)), "store": len(store)},
        "notebooks": dict(sorted(entries.items())),
    }, indent=1, ensure_ascii=False) + "\n"


def git(*command: str) -> str | None:
    """What git answers about the project, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str | None]:
    """The installed versions of the packages of requirements.txt; None for one that is not installed."""
    installed = {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        name, pin, _ = line.split("#")[0].partition("==")
        if pin:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                installed[name] = None
                installed[name] = importlib.metadata.version(name)
    return installed


if __name__ == "__main__":
    code = main()
    if any(thread.name.startswith("notebook") for thread in threading.enumerate()):
        # After Ctrl-C: a notebook that still runs is not waited for; its kernel ends with this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
