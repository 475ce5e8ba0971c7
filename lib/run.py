"""Runs a profile: computes what its store lacks, executes the notebooks, renders them as HTML, writes a manifest.

`python -m lib.run [PROFILE] [options]`; `./run_all.sh` is the same in an environment that it makes.
"""

import argparse
import ast
import contextlib
import errno
import html
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import nbformat

from lib import UserError, data, models, profile, pruning, sweep
from lib.experiment import Cell
from lib.profile import NOTEBOOKS, RESULTS, ROOT, Profile
from lib.store import Store
from lib.tables import write

FOLDER = ROOT / "notebooks"
MISTAKE, INTERRUPTED = 2, 130   # exit codes; 1: a notebook or a cell failed


@dataclass(frozen=True)
class Notebook:
    """What became of one notebook in this run."""

    name: str
    status: str                   # "executed" | "failed" | "left out"
    seconds: float = 0.0
    problem: str | None = None    # why it failed or was left out


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
        if options.dry_run:
            return show_cells(chosen, options)
        return run(chosen, options)
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
    """One profile; and with no profile named, the results of every other store that is there."""
    names = select_notebooks(options.only)
    started = time.monotonic()
    problems = run_profile(chosen, names, options)
    rendered = [chosen.profile]
    if options.profile is None and RESULTS in names:
        for other in other_stores(chosen.profile):
            problems += run_profile(other, [RESULTS], options, compute=False)
            rendered.append(other.profile)
    say(f"\n{'Done' if not problems else 'Done, with failures,'} in {time.monotonic() - started:.0f} s. Look at")
    for name in rendered:
        folder = profile.outputs(name)
        say(f"  {folder / 'html' / 'index.html'}   tables in {folder / 'tables'}, figures in {folder / 'figures'}")
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def other_stores(name: str) -> list[Profile]:
    """The profiles of params/ other than `name` of which there is a store."""
    return [profile.load(other) for other in profile.names()
            if other != name and (profile.outputs(other) / "results.jsonl").exists()]


def run_profile(chosen: Profile, names: list[str], options: argparse.Namespace, compute: bool = True) -> list[str]:
    """Checks, computes, executes, renders; returns one line per failure. `compute` off: the store as it is."""
    folder = profile.outputs(chosen.profile)
    say(f"\n== {chosen.profile}: {', '.join(names)} → {folder}")
    for name in names:
        check_notebook(FOLDER / f"{name}.ipynb")
    check_writable(folder)
    problems = fill(chosen, names, options) if compute else []
    notebooks = execute_all(chosen, names, folder, options.workers)
    for notebook in notebooks:
        if notebook.status == "executed":
            render(folder / "notebooks" / f"{notebook.name}.ipynb", folder / "html" / f"{notebook.name}.html")
    write(folder / "html" / "index.html", index(chosen.profile, folder))
    write(folder / "manifest.json", manifest(chosen, folder, notebooks))
    return problems + [f"{chosen.profile}: {notebook.name}: {notebook.problem}"
                       for notebook in notebooks if notebook.status == "failed"]


# ---- the cells

def needed(chosen: Profile, names: list[str], options: argparse.Namespace | None = None) -> list[Cell]:
    """The profile's cells that the notebooks need, as far as the options ask for them."""
    filters = (options.methods, options.pairs, options.ratios) if options else (None, None, None)
    asked = chosen.cells(*filters)
    if RESULTS in names:
        return asked
    wanted = set(chosen.cells([method for name in names for method in NOTEBOOKS[name]]))
    return [cell for cell in asked if cell in wanted]


def store_of(chosen: Profile) -> Store:
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


def check_cells(cells: list[Cell], root: str | None) -> None:
    """Raises `UserError` for a data set that is not there or a compression out of reach, before anything is computed.

    It also means that a download happens once, here, and not in every worker.
    """
    largest = {}
    for cell in cells:
        pair = cell.dataset, cell.model, cell.width
        largest[pair] = max(cell.compression, largest.get(pair, 1))
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        classes = len(data.load(dataset, root).classes)
        for (other, model, width), ratio in largest.items():
            if other == dataset and ratio > 1:
                pruning.kept_count(models.build(model, classes, width), ratio)


def cluster(address: str):
    """The `concurrent.futures.Executor` of a Dask cluster."""
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise UserError("--scheduler needs Dask: pip install dask distributed.") from error
    try:
        return Client(address, timeout=10).get_executor()
    except (OSError, ValueError) as error:
        raise UserError(f"No Dask scheduler answers at {address!r}: {error}. Start one with `dask scheduler`.") from error


def show_cells(chosen: Profile, options: argparse.Namespace) -> int:
    """--dry-run: the cells that are left, pair by pair."""
    cells, store = needed(chosen, select_notebooks(options.only), options), store_of(chosen)
    left = sweep.missing(cells, store)
    say(f"{chosen.profile}: {len(left)} of {len(cells)} cells left")
    for pair in chosen.pairs:
        of_pair = [sum(f"{cell.dataset}/{cell.model}" == pair for cell in group) for group in (left, cells)]
        if of_pair[1]:
            say(f"  {pair:20} {of_pair[0]:5} of {of_pair[1]}")
    return 0


def show_profiles() -> int:
    """--list: profiles, notebooks, and how many cells each has left."""
    for name in profile.names():
        chosen = profile.load(name)
        store = store_of(chosen)
        say(f"{name:16} {', '.join(chosen.pairs)}; r = {', '.join(f'{ratio:g}' for ratio in chosen.compressions)}")
        for notebook in NOTEBOOKS:
            cells = needed(chosen, [notebook])
            say(f"  {notebook:14} {len(sweep.missing(cells, store)):5} of {len(cells):4} cells left")
    return 0


# ---- the notebooks

def select_notebooks(wanted: list[str] | None) -> list[str]:
    """The notebooks asked for, in order; raises `UserError` for one that is not there."""
    if wanted is None:
        return list(NOTEBOOKS)
    stems = [Path(name).name.removesuffix(".ipynb") for name in wanted]
    for stem in stems:
        if stem not in NOTEBOOKS:
            raise UserError(f"Unknown notebook {stem!r}: choose among {', '.join(NOTEBOOKS)}.")
    return [name for name in NOTEBOOKS if name in stems]


def check_notebook(path: Path) -> None:
    """Raises `UserError` unless papermill will really hand the profile to this notebook.

    Without the tag, or with a misspelt name, it would run to exit code 0 with the notebook's own values.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise UserError(f"There is no notebook {path}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not a notebook: its JSON is damaged. Restore it with git.") from error
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        raise UserError(f"{path.name} needs one code cell with the tag `parameters`, and has {len(tagged)} tagged "
                        "cells: set the tag in JupyterLab's property inspector.")
    assigned, fields = assigned_names(path, tagged[0].source), set(Profile.model_fields)
    for names, fault in ((fields - assigned, "does not set"), (assigned - fields, "sets, misspelt or too much,")):
        if names:
            raise UserError(f"The parameters cell of {path.name} {fault} {', '.join(sorted(names))}: it must set the "
                            f"keys of a profile and nothing else: {', '.join(Profile.model_fields)}.")
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        raise UserError(f"{path.name} asks for the kernel {kernel!r}: it must be `python3`, which every Jupyter has.")


def assigned_names(path: Path, source: str) -> set[str]:
    """The names that a cell assigns."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise UserError(f"The parameters cell of {path.name} is not Python: {error}.") from error
    targets = [target for statement in statements if isinstance(statement, (ast.Assign, ast.AnnAssign))
               for target in getattr(statement, "targets", None) or [statement.target]]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def check_writable(folder: Path) -> None:
    """Makes the folder and raises `UserError` if nothing can be written to it."""
    try:
        for part in ("notebooks", "html"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror}. Choose another folder with --outputs.") from error


def execute_all(chosen: Profile, names: list[str], folder: Path, workers: int) -> list[Notebook]:
    """Executes the notebooks, `workers` at a time, each in a kernel of its own; a failure stops none of the others."""
    store = store_of(chosen)
    results = [Notebook(name, "left out", problem=reason) for name in names
               if (reason := lacking(chosen, name, store))]
    ready = [name for name in names if name not in [result.name for result in results]]
    for result in results:
        say(f"{result.name}: left out: {result.problem}")
    # Threads, because nbclient takes SIGINT away from the main thread; not a `with`, which would wait on Ctrl-C.
    pool = ThreadPoolExecutor(workers)
    try:
        with contextlib.chdir(FOLDER):
            for future in as_completed([pool.submit(execute, name, chosen, folder / "notebooks") for name in ready]):
                result = future.result()
                results.append(result)
                say(f"{result.name}: {result.status} in {result.seconds:.0f} s"
                    + (f": {result.problem}" if result.problem else ""))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return sorted(results, key=lambda result: names.index(result.name))


def lacking(chosen: Profile, name: str, store: Store) -> str | None:
    """Why a notebook is not executed: it would compute what a filter, a budget or a failure left out here."""
    left = 0 if name == RESULTS else len(sweep.missing(needed(chosen, [name]), store))
    return f"{left} of its cells are not in the store; without filters and budget they are computed" if left else None


def execute(name: str, chosen: Profile, folder: Path) -> Notebook:
    """Executes one notebook with the profile's parameters; on failure X.partial.ipynb stays, and X.ipynb as it was."""
    import papermill

    started = time.monotonic()
    partial = folder / f"{name}.partial.ipynb"
    try:
        notebook = papermill.execute_notebook(
            FOLDER / f"{name}.ipynb", partial, chosen.model_dump(), kernel_name="python3", language="python", progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=40"], coalesce_streams=True)
        problem = unfinished(notebook)
    except OSError:
        raise
    except Exception as error:   # whatever papermill, nbclient or the kernel made of it: the notebook has failed
        problem = getattr(error, "ename", type(error).__name__) + ": " + str(getattr(error, "evalue", error))
    seconds = time.monotonic() - started
    if problem:
        return Notebook(name, "failed", seconds, f"{' '.join(problem.split())} (see {partial})")
    nbformat.write(tidy(notebook), partial)
    partial.replace(folder / f"{name}.ipynb")
    return Notebook(name, "executed", seconds)


def unfinished(notebook: nbformat.NotebookNode) -> str | None:
    """Why an executed notebook did not run to its end, or None.

    papermill calls it a success when a cell says `sys.exit(0)`, and every cell "completed" when the kernel has died:
    only the execution counts, 1, 2, 3 and so on without a gap, tell.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for count, cell in enumerate(code, start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                return f"code cell {count} raised {output.ename}: {output.evalue}"
        if cell.execution_count != count:
            return f"code cell {count} of {len(code)} did not run"
    return None


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Removes what differs from run to run: times, paths, and the random name of papermill's own cell."""
    notebook.metadata["papermill"] = {"parameters": notebook.metadata.papermill.parameters}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    return notebook


# ---- HTML, without a script and without a network

# nbconvert's page less the scripts that it fetches, with the fonts, letters and columns that MathML Core leaves to CSS.
TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mathjax %}<style>
math { font: 110% "Latin Modern Math", "STIX Two Math", "Cambria Math", "DejaVu Math TeX Gyre", math }
math[display=block] { margin: 0.8em 0 }
mtd[columnalign=left] { text-align: left } mtd[columnalign=right] { text-align: right }
[mathvariant^=bold] { font-weight: bold } [mathvariant=monospace] { font-family: monospace; text-transform: none }
</style>{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block data_latex %}{{ output.data['text/latex'] | markdown2html }}{% endblock %}"""


def render(source: Path, target: Path) -> None:
    """An executed notebook as one HTML file that needs nothing else: figures inside, equations as MathML."""
    from jinja2 import pass_context
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    class Exporter(HTMLExporter):
        @pass_context
        def markdown2html(self, context, text: str) -> str:
            attachments = context.get("cell", {}).get("attachments", {})
            return MarkdownWithMath(Renderer(escape=False, attachments=attachments)).render(text)

    page, _ = Exporter(raw_template=TEMPLATE).from_filename(str(source))
    write(target, page)


def mathml(latex: str, display: str) -> str:
    """LaTeX as MathML; what cannot be converted stands as LaTeX, in code, rather than wrong."""
    from latex2mathml.converter import convert

    try:
        latex = latex.replace("{aligned}", "{align*}").replace(r"\mathbb{1}", "𝟙")
        converted = convert(latex, display=display)
    except Exception:   # the converter has no common base for what it raises
        converted = "\\"
    if re.search(r">\s*(\\|&<)", converted):   # an unknown command or a loose column mark is passed on as it is
        return f"<code>{html.escape(latex)}</code>"
    return converted


def index(name: str, folder: Path) -> str:
    """The page that leads to a profile's notebooks, tables and figures."""
    def links(part: str, *suffixes: str) -> str:
        files = [path for path in sorted((folder / part).glob("*")) if path.suffix in suffixes]
        pages = [path for path in files if path.name != "index.html"]
        return "\n".join(f'<li><a href="../{part}/{html.escape(path.name)}">{html.escape(path.name)}</a></li>'
                         for path in pages)

    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Foresight pruning: {html.escape(name)}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em }}</style></head>
<body><h1>Foresight pruning, profile {html.escape(name)}</h1>
<h2>Notebooks</h2><ul>
{links("html", ".html")}
</ul><h2>Tables</h2><ul>
{links("tables", ".md", ".csv", ".tex")}
</ul><h2>Figures</h2><ul>
{links("figures", ".svg", ".png", ".pdf", ".csv")}
</ul></body></html>
"""


# ---- the manifest

def manifest(chosen: Profile, folder: Path, notebooks: list[Notebook]) -> str:
    """What was run, with what, and what became of it, as JSON; notebooks of earlier runs stay listed."""
    cells, store = chosen.cells(), store_of(chosen)
    earlier = {}
    with contextlib.suppress(OSError, ValueError):
        earlier = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["notebooks"]
    entries = {notebook.name: {"status": notebook.status, "seconds": round(notebook.seconds, 1),
                               "problem": notebook.problem} for notebook in notebooks}
    return json.dumps({
        "profile": chosen.model_dump(),
        "commit": git("rev-parse", "HEAD"),
        "changed_since_commit": bool(git("status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in requirements()},
        "cells": {"grid": len(cells), "done": len(cells) - len(sweep.missing(cells, store)), "store": len(store)},
        "notebooks": {name: (earlier | entries)[name] for name in NOTEBOOKS if name in earlier | entries},
    }, indent=1, ensure_ascii=False) + "\n"


def git(*command: str) -> str | None:
    """What git answers about the project, or None where there is no git or no repository."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def requirements() -> list[str]:
    """The packages of requirements.txt that are installed."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("==")[0].strip() for line in lines if "==" in line.split("#")[0]]
    installed = {dist.name.lower() for dist in importlib.metadata.distributions() if dist.name}
    return [name for name in names if name.lower() in installed]



if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)   # at once, also while notebooks still run: a kernel ends with its parent
