"""Training backends. `train` picks the one that the settings name and imports nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from restool.core.errors import ConfigurationError
from restool.runs import RunDirectory
from restool.settings import RunSettings


def train(
    run: RunDirectory, settings: RunSettings, prepared: Path, start: Path, *, report: Callable[[str], None]
) -> None:
    """Train one run, or resume it, from the model ``start`` on the data in ``prepared``; `run` is done afterwards."""
    if settings.backend.name != "local":
        raise ConfigurationError(f"backend '{settings.backend.name}' cannot train yet; use backend=local")
    from restool.backends import local

    local.train(run, settings, prepared, start, report=report)
