"""What a finished piece of work consists of, written down, so that a file that is cut or lost later is noticed.

A seal names files below a folder with their sizes: looking at it costs one `stat` a file, so every call of the
workflow can afford it. Contents are fingerprinted only where somebody is about to rely on them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from restool import files

_WHOLE = 64 << 20
_BLOCK = 1 << 20
_PLACES = 66


def sizes(root: Path, paths: Iterable[Path]) -> dict[str, int]:
    """Path below ``root`` → bytes, of those that exist."""
    return {path.relative_to(root).as_posix(): path.stat().st_size for path in sorted(paths) if path.is_file()}


def damage(root: Path, sealed: dict[str, int]) -> list[str]:
    """One clause a file that is gone or has another size than when ``sealed`` was written."""
    found = []
    for name, size in sealed.items():
        try:
            now = (root / name).stat().st_size
        except FileNotFoundError:
            found.append(f"{root / name} is gone")
            continue
        if now != size:
            found.append(f"{root / name} has {now} bytes and had {size}")
    return found


def fingerprint(root: Path, paths: Iterable[Path], length: int = 16) -> str:
    """Hash of the names, sizes and contents of files below ``root``.

    Files above 64 MiB are read at their start, end and 64 places between: another checkpoint differs everywhere.
    """
    rows = [[path.relative_to(root).as_posix(), path.stat().st_size, _sampled_hash(path)] for path in sorted(paths)]
    return files.content_hash(rows, length=length)


def _sampled_hash(path: Path) -> str:
    size = path.stat().st_size
    if size <= _WHOLE:
        return files.sha256(path)
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for place in range(_PLACES):
            file.seek((size - _BLOCK) * place // (_PLACES - 1))
            total.update(file.read(_BLOCK))
    return total.hexdigest()
