"""Checks and executes the notebooks, with papermill, so that none can fail or stop half-way unnoticed."""

import ast
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import nbformat
import papermill
from nbformat import NotebookNode

from lib import UserError
from lib.profile import NOTEBOOKS, ROOT, Profile, outputs

FOLDER = ROOT / "notebooks"


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook of a profile in this run."""

    profile: str
    name: str
    status: str                   # "executed" | "failed" | "left out"
    seconds: float = 0.0
    problem: str | None = None    # why it failed or was left out


def select(wanted: list[str] | None) -> list[str]:
    """The notebooks asked for, in order; raises `UserError` for one that is not there."""
    if wanted is None:
        return list(NOTEBOOKS)
    stems = [Path(name).name.removesuffix(".ipynb") for name in wanted]
    for stem in stems:
        if stem not in NOTEBOOKS:
            raise UserError(f"Unknown notebook {stem!r}: choose among {', '.join(NOTEBOOKS)}.")
    return [name for name in NOTEBOOKS if name in stems]


def check(name: str) -> None:
    """Raises `UserError` unless papermill will really hand the profile to this notebook.

    Without the tag, or with a misspelt name, it would run to its end with its own values and exit code 0.
    """
    path = FOLDER / f"{name}.ipynb"
    notebook = _read(path)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        raise UserError(f"{path.name} needs one code cell with the tag `parameters`, and {len(tagged)} cells have it: "
                        "set the tag in JupyterLab's property inspector.")
    assigned, fields = _assigned(path, tagged[0].source), set(Profile.model_fields)
    for names, fault in ((fields - assigned, "does not set"), (assigned - fields, "sets, misspelt or too much,")):
        if names:
            raise UserError(f"The parameters cell of {path.name} {fault} {', '.join(sorted(names))}: it must set the "
                            f"keys of a profile and nothing else: {', '.join(Profile.model_fields)}.")
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        raise UserError(f"{path.name} asks for the kernel {kernel!r}: it must be `python3`, which every Jupyter has.")


def _read(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise UserError(f"There is no notebook {path}.") from error
    except (ValueError, AttributeError) as error:   # no JSON; JSON of something else
        raise UserError(f"{path} is not a notebook: its JSON is damaged. Restore it with git.") from error


def _assigned(path: Path, source: str) -> set[str]:
    """The names that a cell assigns."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise UserError(f"The parameters cell of {path.name} is not Python: {error}.") from error
    targets = [target for statement in statements if isinstance(statement, (ast.Assign, ast.AnnAssign))
               for target in getattr(statement, "targets", None) or [statement.target]]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def execute_all(jobs: list[tuple[str, Profile]], workers: int, finished: Callable[[Outcome], None]) -> None:
    """Executes notebooks with a profile each, `workers` at a time, in a kernel of their own.

    A failure stops none of the others. finished: called, in this thread, with each outcome as it comes.
    """
    # Threads, because nbclient takes SIGINT from the main thread; no `with`, because that would wait after Ctrl-C.
    pool = ThreadPoolExecutor(workers, thread_name_prefix="notebook")
    try:
        with contextlib.chdir(FOLDER):
            for future in as_completed([pool.submit(execute, name, profile) for name, profile in jobs]):
                finished(future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def execute(name: str, profile: Profile) -> Outcome:
    """Executes a notebook, in the current directory, into the profile's folder of notebooks.

    On failure NAME.partial.ipynb shows how far it came, and NAME.ipynb stays as it was. A full disk raises OSError.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)   # it warns of parameters that it cannot parse; `check` can
    folder = outputs(profile.profile) / "notebooks"
    began, partial = time.monotonic(), folder / f"{name}.partial.ipynb"
    try:
        notebook = papermill.execute_notebook(
            FOLDER / f"{name}.ipynb", partial, profile.model_dump(), kernel_name="python3", language="python",
            progress_bar=False, coalesce_streams=True, extra_arguments=["--IPKernelApp.log_level=50"])
        problem = unfinished(notebook)
    except OSError:
        raise
    except Exception as error:   # whatever papermill, nbclient or the kernel made of it: the notebook has failed
        problem = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
    seconds = time.monotonic() - began
    if problem:
        return Outcome(profile.profile, name, "failed", seconds, f"{' '.join(problem.split())} (see {partial})")
    nbformat.write(tidy(notebook), partial)
    partial.replace(folder / f"{name}.ipynb")
    return Outcome(profile.profile, name, "executed", seconds)


def unfinished(notebook: NotebookNode) -> str | None:
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


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Removes what differs from run to run: times, paths, and the random name of the cell that papermill adds."""
    notebook.metadata["papermill"] = {"parameters": notebook.metadata.papermill.parameters}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    return notebook
