"""API-Bank in the form of ToolRL and ResT: 597 single-step samples in three levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import DataError
from restool.data.fetch import API_BANK, Fetcher, verified

COUNTS = {1: 399, 2: 67, 3: 131}


def fetch(fetcher: Fetcher, folder: Path) -> None:
    """Copy the three verified files into ``folder``."""
    contents = {level: fetcher.get(file) for level, file in API_BANK.items()}
    for level, content in contents.items():
        files.write_bytes(folder / _file_name(level), content)


def load_samples(folder: Path) -> list[dict[str, Any]]:
    """All 597 samples in the order of the files, each file verified again before it is read.

    Keys: ``id`` (``level-<level>/<position in the level's file>``), ``system``, ``user``, ``gold`` (the only right
    call: {name, parameters}) and ``other`` (where the sample comes from).
    """
    samples = []
    for level, file in API_BANK.items():
        path = Path(folder) / _file_name(level)
        if not path.is_file():
            raise DataError(f"{path} does not exist; run `restool prepare`")
        content = verified(path.read_bytes(), file, str(path), "delete the prepared data and run `restool prepare`")
        samples += [_sample(f"level-{level}/{index}", row) for index, row in enumerate(json.loads(content))]
    return samples


def _sample(identity: str, row: dict[str, Any]) -> dict[str, Any]:
    answer = row["answer"]
    gold = answer[0] if isinstance(answer, list) else answer  # level 2 holds the object itself
    return {"id": identity, "system": row["system"], "user": row["user"], "gold": gold, "other": row["other"]}


def _file_name(level: int) -> str:
    return Path(API_BANK[level].name).name
