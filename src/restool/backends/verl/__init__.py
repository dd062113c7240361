"""Training with stock verl 0.9.1 and vLLM on Ray, in an environment of its own: the scalable backend.

The same path on a CPU and on a cluster. `configuration` says what the settings of a run are to verl, `recipe` and
`folding` what the registry's methods are to its loss; `launch` runs it; `inside` is what runs there, `cpu_only` what is
different without a GPU. What comes out is the run directory of every backend.

Supervised runs go through verl's supervised trainer (`supervised`), on the devices of one node, without Ray. verl has
no part in untrained models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from restool import algorithms
from restool.backends import local
from restool.backends.verl import configuration
from restool.runs import RunDirectory
from restool.settings import RunSettings

__all__ = ["check", "offers", "train"]


def train(
    run: RunDirectory, settings: RunSettings, prepared: Path, start: str | Path, *, report: Callable[[str], None]
) -> None:
    """As `backends.local.train`; training happens in the environment that ``backend.verl`` names."""
    check(settings)
    if algorithms.get(settings.method.algorithm).kind == "none":
        on_a_cpu = settings.backend.model_copy(update={"device": "cpu"})  # copied, and its job has no GPU
        local.train(run, settings.model_copy(update={"backend": on_a_cpu}), prepared, start, report=report)
        return
    from restool.backends.verl import launch

    launch.train(run, settings, prepared, start, report)


def check(settings: RunSettings) -> None:
    """ConfigurationError if the method needs what verl does not offer, or a setting is one that it does not have."""
    algorithms.check(settings.method.algorithm, offers(settings), settings.method.weights)
    configuration.check(settings)


def offers(settings: RunSettings) -> set[str]:
    """What verl provides to methods: all that the local backend does; beta only as given values."""
    found = local.offers(settings)
    return found if settings.method.weights.get("beta") else found - {"beta"}
