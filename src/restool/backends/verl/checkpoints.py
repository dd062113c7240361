"""verl's checkpoints as files: which of them is whole.

verl writes a checkpoint's parts one by one and notes its step last; but a disk that was full, or a file that was lost,
leaves a note of something that cannot be loaded, and verl would fail over it again and again.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from restool import files

NOTE = "latest_checkpointed_iteration.txt"  # verl's, of the step that it goes on from
STATE = "restool.json"  # what our trainer adds
_PARTS = ("model", "optim", "extra_state")


def of_rl(world: int, models: tuple[str, ...]) -> list[str]:
    """What a whole checkpoint of a run with reinforcement holds.

    ``world``: number of verl's workers, each of which has its part of every model. ``models``: "actor", "critic".
    """
    return [STATE] + [f"{model}/{part}" for model in models for part in _parts(world)]


def of_sft(world: int) -> list[str]:
    """What a whole checkpoint of a supervised run holds, the place in the data among it."""
    return _parts(world) + [f"data_{rank}.pt" for rank in range(world)]


def settle(folder: Path, parts: Sequence[str]) -> int:
    """The step of the last whole checkpoint, 0 without one; verl's note says the same afterwards.

    ``parts``: see `of_rl`, `of_sft`. Damaged ones and those behind it are removed.
    """
    note = folder / NOTE
    noted = note.read_text().strip() if note.exists() else ""
    last = int(noted) if noted.isdigit() else 0
    found = {int(path.name.rpartition("_")[2]): path for path in folder.glob("global_step_*") if _is_step(path)}
    for step in sorted(found, reverse=True):
        if step <= last and _is_whole(found[step], parts):
            if step != last:
                files.write_text(note, str(step))
            return step
        shutil.rmtree(found[step])
    note.unlink(missing_ok=True)
    return 0


def _is_step(path: Path) -> bool:
    return re.fullmatch(r"global_step_\d+", path.name) is not None


def _parts(world: int) -> list[str]:
    return [f"{part}_world_size_{world}_rank_{rank}.pt" for part in _PARTS for rank in range(world)]


def _is_whole(checkpoint: Path, parts: Sequence[str]) -> bool:
    """Whether every part is there to its end: torch writes zip files, whose directory comes last."""
    found = [checkpoint / part for part in parts]
    return all(zipfile.is_zipfile(path) if path.suffix == ".pt" else path.exists() for path in found)
