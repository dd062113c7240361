"""Does a run fit this machine? Asked before a model is loaded: a lower bound that holds whatever the batch.

Weights, gradients and optimiser states of everything that learns (PPO: policy and critic), and the weights of a frozen
reference. Activations and the sampler's cache come on top, so a run that passes may still run out of memory; one that
does not pass certainly would.
"""

from __future__ import annotations

import torch

from restool.algorithms import Algorithm
from restool.core.errors import ConfigurationError
from restool.models import loading
from restool.settings import RunSettings

_GB = 1e9


def check(settings: RunSettings, record: Algorithm, parts: dict[str, float]) -> None:
    """ConfigurationError saying what needs how much, what there is, and what to do. ``parts``: bytes, see
    `costs.training_state`."""
    device = loading.resolve_device(settings.backend.device)
    there = _total_bytes(device)
    if sum(parts.values()) <= there:
        return
    listed = ", ".join(f"{name} {size / _GB:.1f} GB" for name, size in parts.items())
    fewer = "" if len(parts) == 1 else ", a method without a " + " and ".join(list(parts)[1:])
    raise ConfigurationError(
        f"{record.id} on {settings.model.name} needs {sum(parts.values()) / _GB:.1f} GB for weights and optimiser "
        f"states alone ({listed}), and {device.type} memory here is {there / _GB:.1f} GB: use a smaller model{fewer}, "
        "a machine with more memory, or backend=verl, which shares them among GPUs"
    )


def _total_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().total
