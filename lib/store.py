"""The records of finished cells: append-only JSON lines, safe against crashes, rivals and full disks.

`python -m lib.store merge OUT IN [IN ...]` merges stores by key: `results.jsonl`, or `audit.jsonl`.
"""

import argparse
import gc
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from filelock import FileLock, Timeout

from lib import UserError
from lib.experiment import VERSION, Cell, Record
from lib.methods import UnknownMethod
from lib.study import Answer

OLDER = object()    # stands for a record of an older version
FOREIGN = object()  # stands for a record of a method that is not in the table: another checkout's, or one since removed
ADVICE = "delete that line, or bring the file back from a copy."


class Store:
    """One `results.jsonl`, or another file of JSON lines with keys; a missing file is an empty store.

    kind: what a line holds, by default a `Record`: a class with `key`, `version`, `run`, `to_json` and `from_json`.

    Reading drops a torn last line with a warning (a run was killed while it wrote it) and skips records of an
    older version and of methods that are not in the table, with a warning too; they stay in the file. A corrupt
    line anywhere else, or a record of a newer version, raises `UserError`. Where a key has several records,
    float32 beats other precisions, then the first counts.
    """

    def __init__(self, path: str | Path, kind: type = Record):
        self.path, self.kind = Path(path), kind
        self._file = None
        self._read()

    def __len__(self) -> int:
        return len(self.records)

    def __contains__(self, cell: Cell) -> bool:
        return cell.key in self.records

    def get(self, cell: Cell) -> Record | None:
        """The record of a cell, or None."""
        return self.records.get(cell.key)

    @contextmanager
    def writing(self, wait: bool = False) -> Iterator["Store"]:
        """Opens the store for `add`. There is one writer at a time: a second waits, or raises `UserError`."""
        with _locked(self.path, wait):
            if self._size_now() != self._size:  # another run wrote since we read
                self._read()
            try:
                self._file = open(self.path, "ab", buffering=0)
            except OSError as error:
                raise UserError(f"{self.path} cannot be written ({error}): make it writable.") from error
            with self._file:
                try:
                    yield self
                finally:
                    self._file = None

    def add(self, record: Record) -> None:
        """Appends a record and counts it once it is on the disk. Only inside `with store.writing():`.

        Raises `UserError` where it cannot be written; the file then is what it was before.
        """
        if self._file is None:
            raise RuntimeError("Store.add works inside `with store.writing():` only.")
        line = (record.to_json() + "\n").encode()
        try:
            self._file.truncate(self._end)  # a torn line of an earlier run would glue itself to this one
            _write(self._file, line)
        except OSError as error:
            self._cut()
            raise UserError(f"{self.path} cannot be written ({error}): make room on the disk, or make the "
                            "file writable, and start again; no cell that had finished is lost.") from error
        except BaseException:  # Ctrl-C in the middle of a line
            self._cut()
            raise
        self._end += len(line)
        self._size = self._end
        _keep(self.records, record)

    def _cut(self) -> None:
        """Takes a half-written line off the file; where even that fails, the next `add` does it."""
        with suppress(OSError):
            self._file.truncate(self._end)

    def _size_now(self) -> int:
        with suppress(OSError):  # a missing file is empty; what is wrong with another, reading it says
            return self.path.stat().st_size
        return 0

    def _read(self) -> None:
        """Reads the whole file: `records`, the `_end` of its last whole line, and the `_size` of the file."""
        self.records: dict[str, Record] = {}
        self._end = 0
        self._size = self._size_now()
        with _uncollected():
            for record, line in _scan(self.path, self.kind):
                self._end += len(line)
                if isinstance(record, self.kind):
                    _keep(self.records, record)


def merge(out: str | Path, inputs: Iterable[str | Path]) -> int:
    """Writes the records of `inputs`, or the answers, to `out`, all at once, and returns how many `out` now has.

    What `out` held already stays and comes first; torn lines and records of an older version do not go along.
    Raises `UserError` where a store is missing or cannot be used, for an `out` that is something else than a store, and for
    records beside answers.
    """
    out, inputs = Path(out).resolve(), [Path(path) for path in inputs]
    for path in inputs:
        if not path.is_file():
            raise UserError(f"There is no store {path} to merge: check the name.")
    if out.exists() and not out.is_file():
        raise UserError(f"{out} is no file that could be a store: check the name.")
    with _locked(out), _uncollected():
        kind, runs = _kind([out, *inputs]), {}
        lines: dict[str | bytes, bytes] = {}  # as they stand in their stores, to the byte
        held = list(_scan(out, kind))
        if not held and out.exists() and out.stat().st_size:
            raise UserError(f"{out} is no store, for none of it is a record: name another file to write.")
        for record, line in chain(held, chain.from_iterable(_scan(path, kind) for path in inputs)):
            if isinstance(record, kind) and _wins(record.run, runs.get(record.key)):
                lines[record.key], runs[record.key] = line, record.run
            elif record is FOREIGN:
                lines[line] = line
        _replace(out, b"".join(lines.values()))
    return len(lines)


def _kind(paths: list[Path]) -> type:
    """What the first lines of some stores hold: `Record`, or `Answer`, which has a study. Raises `UserError` for both."""
    answers = set()
    for path in paths:
        with suppress(OSError), open(path, "rb") as file:  # what is wrong with it, reading it says
            if (first := file.readline()).endswith(b"\n"):
                answers.add(b'"study":' in first)
    if len(answers) > 1:
        raise UserError("Records (results.jsonl) and answers (audit.jsonl) do not go into one store: merge them apart.")
    return Answer if True in answers else Record


def _scan(path: Path, kind: type) -> Iterator[tuple[Record | object, bytes]]:
    """The whole lines of a store, each with its record, OLDER or FOREIGN."""
    older = foreign = 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                found = _judge(line, kind, not line.endswith(b"\n") or not file.peek(1), f"{path}, line {number}")
                if found is None:
                    break
                older += found is OLDER
                foreign += found is FOREIGN
                yield found, line
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): make it readable or move it away.") from error
    if older:
        warnings.warn(f"{path}: {older} records were made by an older version of these computations and are "
                      "not used; their cells count as missing.", stacklevel=2)
    if foreign:
        warnings.warn(f"{path}: {foreign} records are of methods that are not in the table of lib/methods.py and are "
                      "left aside.", stacklevel=2)


def _judge(line: bytes, kind: type, last: bool, where: str) -> Record | object | None:
    """The record of a line, OLDER or FOREIGN; None for a torn last line, with a warning."""
    try:
        if not line.endswith(b"\n"):
            raise ValueError("it has no end")
        version, record = _parse(line, kind)
    except UserError as error:
        raise UserError(f"{where} cannot be used: {error}") from error
    except ValueError as error:
        if last:
            warnings.warn(f"{where}: this last line is torn, as a killed run leaves it. It is dropped, and "
                          "its cell counts as missing.", stacklevel=3)
            return None
        raise UserError(f"{where} is corrupt ({error}): {ADVICE}") from error
    if version > VERSION:
        raise UserError(f"{where} is of a newer version of this code ({version}, this is {VERSION}): "
                        "update the code, or name another store.")
    return record if version == VERSION else OLDER


def _parse(line: bytes, kind: type) -> tuple[int, Record | object | None]:
    """The version that wrote a line, and its record, or FOREIGN, where that version is ours.

    Raises `UserError` for JSON that is no record, another `ValueError` for what is no JSON.
    """
    text = line.decode()
    try:
        record = kind.from_json(text)
        if record.version == VERSION and record.key == record.made_of.key and isinstance(record.run, dict):
            return VERSION, record
        reason = "it is no record (version or run), or its key is not that of what it says it is of"
    except UnknownMethod:
        if json.loads(text)["version"] == VERSION:
            return VERSION, FOREIGN
        reason = "it is of a method that is not in the table"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, UserError) else f"it is no record ({error!r})"
    fields = json.loads(text)  # another version may have other fields
    version = fields.get("version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version != VERSION:
        return version, None
    raise UserError(f"{reason}: {ADVICE}")


def _keep(records: dict[str, Record], record: Record) -> None:
    """Adds a record where it wins over the one of its key that is there."""
    known = records.get(record.key)
    if _wins(record.run, known and known.run):
        records[record.key] = record


def _wins(run: dict, known: dict | None) -> bool:
    """Does a record of this `run` count? Where its key has none yet, or where it has float32 and the one there has not."""
    return known is None or (run.get("precision") == "float32" and known.get("precision") != "float32")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses the garbage collector: while records come, it would go over all of them again and again, and free nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _write(file, data: bytes) -> None:
    """Writes all of `data` to an unbuffered file, and on to the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest):]  # a disk that fills up takes a part, and raises at the next try
    os.fsync(file.fileno())


def _replace(path: Path, data: bytes) -> None:
    """Gives a file new contents, all at once: it never is half written."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb", buffering=0) as file:
            _write(file, data)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}): make room on the disk, or make its folder "
                        "writable; the stores are as they were.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a store: the kernel frees it when this process ends, however it ends."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise UserError(f"{path} is being written by another run (which holds {path}.lock): wait for its "
                        "end, or stop it.") from None
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({error}): make it writable, or choose another "
                        "folder.") from error
    try:
        yield
    finally:
        lock.release()


def main(arguments: list[str] | None = None) -> int:
    """The command line: `merge OUT IN [IN ...]`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.store", description="Stores of finished cells.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("merge", help="merge stores by key; what OUT holds already stays")
    command.add_argument("out", metavar="OUT", help="the results.jsonl, or audit.jsonl, to write")
    command.add_argument("inputs", metavar="IN", nargs="+", help="the files of the same kind to read")
    options = parser.parse_args(arguments)
    try:
        print(f"{options.out}: {merge(options.out, options.inputs)} records")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
