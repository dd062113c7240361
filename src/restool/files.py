"""Files that are either whole or absent.

Whole files are written to a temporary neighbour, flushed to disk and renamed; logs are append-only JSON lines
whose torn last line (a process killed in mid-write) is dropped on reading and cut off before the next append.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from restool.core.errors import RestoolError


class FileError(RestoolError):
    """A file could not be written or read."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` if the block succeeds, else remove it.

    Works for a file or a directory. An existing target file is replaced; an existing target directory is an
    error, because no rename can replace a filled directory atomically.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        if temporary.is_file():
            _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        _remove(temporary)
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        _remove(temporary)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write ``content`` as UTF-8; lone surrogates, which model output can hold, become ``?``."""
    write_bytes(path, content.encode("utf-8", "replace"))


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: str | Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Parse ``path``; a missing or malformed file is a :class:`FileError` that names it.

    ``object_hook``: what to take in the place of each object, as in :func:`json.loads`.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_hook=object_hook)
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not valid JSON ({error}); delete it to have it made again") from error


def read_json_lines(path: str | Path) -> list[Any]:
    """All whole rows of a JSON-lines file ([] if it does not exist); a torn last line is ignored."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline behind it: the writer was killed in mid-line
                break
            raise FileError(f"{path}, line {number}: not valid JSON ({error})") from error
    return rows


class JsonLinesWriter:
    """Append rows to a JSON-lines file, each in one flushed write; ``with``-able."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(self.path)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, *rows: Any) -> None:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        try:
            written = self._file.write(content)
        except OSError as error:
            raise FileError(f"cannot append to {self.path}: {error.strerror or error}") from error
        if written != len(content):
            raise FileError(f"cannot append to {self.path}: the disk is full")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_id(content: bytes) -> str:
    """The id that git gives to a file of this content: sha1 of ``blob <size>\\0<content>``."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def content_hash(value: Any, length: int = 12) -> str:
    """Short hash of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)
