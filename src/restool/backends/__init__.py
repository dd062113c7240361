"""Training backends. `train` picks the one that the settings name and imports nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from restool.runs import RunDirectory
from restool.settings import RunSettings


def train(
    run: RunDirectory, settings: RunSettings, prepared: Path, start: Path, *, report: Callable[[str], None]
) -> None:
    """Train one run, or resume it, from the model ``start`` on the data in ``prepared``; `run` is done afterwards."""
    _chosen(settings).train(run, settings, prepared, start, report=report)


def check(settings: RunSettings) -> None:
    """ConfigurationError if the backend cannot do what the settings say; costs nothing, launches nothing."""
    _chosen(settings).check(settings)


def _chosen(settings: RunSettings) -> ModuleType:
    if settings.backend.name == "verl":
        from restool.backends import verl

        return verl
    from restool.backends import local

    return local
