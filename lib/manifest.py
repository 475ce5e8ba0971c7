"""The manifest of a profile: what was run, with what, what became of it, and so which notebooks are still up to date."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable
from pathlib import Path

from lib import execution, profile, tables
from lib.execution import Outcome
from lib.profile import ROOT, Profile
from lib.store import Store


def read(folder: Path) -> dict:
    """A profile's manifest as the last run left it; nothing where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return found if isinstance(found.get("notebooks"), dict) else {}
    return {}


def current(chosen: Profile, names: Iterable[str]) -> list[str]:
    """The notebooks that would come out as they lie there: nothing that goes into them has changed since, and nothing
    that the run made was altered or removed."""
    folder = profile.outputs(chosen.profile)
    known = read(folder)
    if known.get("made") != made(folder):
        return []
    entries = {name: known["notebooks"].get(name, {}) for name in names}
    return [name for name, entry in entries.items()
            if entry.get("status") == "executed" and entry.get("source") == source(chosen, name)]


def source(chosen: Profile, name: str) -> str:
    """The digest of what a notebook is made of: itself, its parameters, the stores, lib and the installed versions."""
    stores = [profile.outputs(chosen.profile) / f"{kind}.jsonl" for kind in ("results", "audit", "precision", "earlier")]
    stores.append(profile.outputs("paper") / "results.jsonl")    # 06_results asks it for ResNet-56 at two learning rates
    files = [execution.FOLDER / f"{name}.ipynb", *stores,
             *sorted((ROOT / "lib").rglob("*.py")), *sorted((ROOT / "published").iterdir())]
    return _digest(files, chosen.model_dump_json() + json.dumps(versions()))


def made(folder: Path) -> str:
    """The digest of what a run leaves in a profile's folder: tables, figures, notebooks and pages."""
    return _digest(sorted(path for part in ("tables", "figures", "notebooks", "html")
                          for path in (folder / part).glob("*") if path.is_file()))


def _digest(files: Iterable[Path], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for path in files:
        if path.is_file():
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def write(chosen: Profile, outcomes: list[Outcome], sources: dict[tuple[str, str], str]) -> None:
    """Writes manifest.json; notebooks of earlier runs stay listed. Raises `UserError` where it cannot be written.

    sources: (profile, notebook) -> its `source`, taken before it was executed: a cell stored meanwhile counts as new.
    """
    folder = profile.outputs(chosen.profile)
    cells, store = chosen.cells(), Store(folder / "results.jsonl")
    entries = read(folder).get("notebooks", {})
    for outcome in outcomes:
        entries[outcome.name] = {"status": outcome.status, "seconds": round(outcome.seconds, 1),
                                 "problem": outcome.problem, "source": sources[chosen.profile, outcome.name]}
    tables.write(folder / "manifest.json", json.dumps({
        "profile": chosen.model_dump(),
        "commit": tables.git("rev-parse", "HEAD"),
        "changed_since_commit": bool(tables.git("status", "--porcelain")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "cells": {"grid": len(cells), "done": sum(cell in store for cell in cells), "store": len(store)},
        "notebooks": dict(sorted(entries.items())),
        "made": made(folder),
    }, indent=1, ensure_ascii=False) + "\n")


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
