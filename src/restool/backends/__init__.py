"""Training backends. `train` picks the one that the settings name and imports nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from restool import algorithms
from restool.core.errors import ConfigurationError
from restool.runs import RunDirectory
from restool.settings import RunSettings


def train(
    run: RunDirectory, settings: RunSettings, prepared: Path, start: Path, *, report: Callable[[str], None]
) -> None:
    """Train one run, or resume it, from the model ``start`` on the data in ``prepared``; `run` is done afterwards."""
    _chosen(settings).train(run, settings, prepared, start, report=report)


def check(settings: RunSettings) -> None:
    """ConfigurationError if the backend does not offer what the method needs; costs nothing, launches nothing."""
    offered = _chosen(settings).offers(settings)
    algorithms.check(settings.method.algorithm, offered, settings.method.weights)


def _chosen(settings: RunSettings) -> ModuleType:
    if settings.backend.name != "local":
        raise ConfigurationError(f"backend '{settings.backend.name}' cannot train yet; use backend=local")
    from restool.backends import local

    return local
