"""The records of finished cells: one append-only file of JSON lines, safe against crashes, full disks and rivals.

`python -m lib.store merge OUT IN [IN ...]` merges stores by key.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lib import UserError
from lib.experiment import VERSION, Cell, Record


class Store:
    """One `results.jsonl`; a missing file is an empty store.

    Reading drops a torn last line with a warning (a run was killed while it wrote it) and skips records of an older
    version; a corrupt line anywhere else, or a record of a newer version, raises `UserError`. Where a key has
    several records, float32 beats other precisions, then the first counts.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
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
        """Opens the store for `add`. There is one writer at a time: a second one waits, or raises `UserError`."""
        with _locked(self.path, wait):
            if self._size_now() != self._size:    # another run wrote since we read
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
            self._file.truncate(self._end)    # a torn line of an earlier run would glue itself to this one
            _write(self._file, line)
        except BaseException as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            if isinstance(error, OSError):
                raise UserError(f"{self.path} cannot be written ({error}): make room on the disk, or make the file "
                                "writable, and start again; no cell that had finished is lost.") from error
            raise
        self._end += len(line)
        self._size = self._end
        _keep(self.records, record)

    def _size_now(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def _read(self) -> None:
        """Reads the whole file: `records`, the `_end` of its last whole line, and the `_size` of the file."""
        self.records: dict[str, Record] = {}
        self._end = self._size = older = 0
        try:
            self._size = self._size_now()
            if self._size:
                with open(self.path, "rb") as file:
                    older = self._read_lines(file)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error}): make it readable or move it away.") from error
        if older:
            warnings.warn(f"{self.path}: {older} records were made by an older version of these computations and are "
                          "not used; their cells count as missing.", stacklevel=3)

    def _read_lines(self, file) -> int:
        """Takes in the lines of an open file; returns how many an older version wrote."""
        older = 0
        for number, line in enumerate(file, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it has no end")
                found = _parse(line)
            except ValueError as error:
                if not isinstance(error, UserError) and not file.peek(1):
                    warnings.warn(f"{self.path}: the last line (line {number}) is torn, as a killed run leaves it. It "
                                  "is dropped, and its cell counts as missing.", stacklevel=4)
                    break
                raise UserError(f"{self.path}, line {number} is corrupt ({error}): delete that line, or bring the file "
                                "back from a copy.") from error
            if isinstance(found, Record):
                _keep(self.records, found)
            elif found > VERSION:
                raise UserError(f"{self.path}, line {number} was written by a newer version of this code ({found}; this "
                                f"is {VERSION}): update the code, or name another store.")
            else:
                older += 1
            self._end += len(line)
        return older


def read(paths: Iterable[str | Path]) -> dict[str, Record]:
    """The records of several stores by key, in order of first appearance."""
    merged: dict[str, Record] = {}
    for path in paths:
        for record in Store(path).records.values():
            _keep(merged, record)
    return merged


def merge(out: str | Path, inputs: Iterable[str | Path]) -> int:
    """Writes the records of `inputs` to `out`, all at once, and returns how many `out` now has.

    What `out` held already stays and comes first; torn lines and records of an older version do not go along.
    """
    out, inputs = Path(out), [Path(path) for path in inputs]
    for path in inputs:
        if not path.is_file():
            raise UserError(f"There is no store {path} to merge: check the name.")
    with _locked(out):
        merged = read([out, *inputs])
        partial = out.with_name(out.name + ".partial")
        try:
            with open(partial, "wb", buffering=0) as file:
                _write(file, "".join(record.to_json() + "\n" for record in merged.values()).encode())
            os.replace(partial, out)
        except OSError as error:
            raise UserError(f"{out} cannot be written ({error}): make room, or make its folder writable; the stores "
                            "are as they were.") from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
    return len(merged)


def _parse(line: bytes) -> Record | int:
    """The record of a line, or the number of the version that wrote it where that is another.

    Raises `UserError` for JSON that is no record, another `ValueError` for what is no JSON.
    """
    text = line.decode()
    try:
        record = Record.from_json(text)
        if record.version == VERSION:
            return record
        reason = f"version {record.version!r}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no record: {error!r}"
    fields = json.loads(text)    # another version may have other fields
    version = fields.get("version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version != VERSION:
        return version
    raise UserError(reason)


def _keep(records: dict[str, Record], record: Record) -> None:
    """Adds a record where its key has none yet, or where it has float32 and the one there has not."""
    known = records.get(record.key)
    if known is None or (_precise(record) and not _precise(known)):
        records[record.key] = record


def _precise(record: Record) -> bool:
    return record.run.get("precision") == "float32"


def _write(file, data: bytes) -> None:
    """Writes all of `data` to an unbuffered file, and on to the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest):]    # a disk that fills up takes a part, and raises at the next try
    os.fsync(file.fileno())


@contextmanager
def _locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a store: the kernel frees it when this process ends, however it ends."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise UserError(f"{path} is being written by another run (which holds {path}.lock): wait for its end, or stop "
                        "it.") from None
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({error}): make it writable, or choose another "
                        "folder.") from error
    try:
        yield
    finally:
        lock.release()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.store", description="Works on stores of finished cells.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("merge", help="merge stores by key; what OUT holds already stays")
    command.add_argument("out", metavar="OUT", help="the results.jsonl to write")
    command.add_argument("inputs", metavar="IN", nargs="+", help="the results.jsonl to read")
    options = parser.parse_args(arguments)
    try:
        print(f"{options.out}: {merge(options.out, options.inputs)} records")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
