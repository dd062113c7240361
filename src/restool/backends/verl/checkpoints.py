"""verl's checkpoints as files: which of them is whole.

verl writes a checkpoint's parts one by one and notes its step last; but a disk that was full, or a file that was lost,
leaves a note of something that cannot be loaded, and verl would fail over it again and again.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

from restool import files

NOTE = "latest_checkpointed_iteration.txt"  # verl's, of the step that it goes on from
STATE = "restool.json"  # what our trainer adds
_PARTS = ("model", "optim", "extra_state")


def settle(folder: Path, world: int, models: tuple[str, ...]) -> int:
    """The step of the last whole checkpoint, 0 without one; verl's note says the same afterwards.

    ``world``: number of verl's workers, each of which has its part of every model. ``models``: "actor", "critic".
    Damaged ones and those behind it are removed.
    """
    note = folder / NOTE
    noted = note.read_text().strip() if note.exists() else ""
    last = int(noted) if noted.isdigit() else 0
    found = {int(path.name.rpartition("_")[2]): path for path in folder.glob("global_step_*") if _is_step(path)}
    for step in sorted(found, reverse=True):
        if step <= last and _is_whole(found[step], world, models):
            if step != last:
                files.write_text(note, str(step))
            return step
        shutil.rmtree(found[step])
    note.unlink(missing_ok=True)
    return 0


def _is_step(path: Path) -> bool:
    return re.fullmatch(r"global_step_\d+", path.name) is not None


def _is_whole(checkpoint: Path, world: int, models: tuple[str, ...]) -> bool:
    """Whether every part is there to its end: torch writes zip files, whose directory comes last."""
    names = [f"{part}_world_size_{world}_rank_{rank}.pt" for part in _PARTS for rank in range(world)]
    parts = [checkpoint / model / name for model in models for name in names]
    return (checkpoint / STATE).exists() and all(zipfile.is_zipfile(part) for part in parts)
