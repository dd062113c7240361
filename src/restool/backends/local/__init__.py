"""Training in plain torch, one process, on a CPU or one GPU: the readable backend.

`rl` is the algorithm from sampled answer to weight update; `sft` imitates demonstrations; `packing` computes a
prompt once for all its answers; `critic` is PPO's; `signals` measures what derived weights read; `optimisation`,
`checkpoints`, `memory` and `session` are what both trainers share.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from restool import algorithms, costs
from restool.algorithms import Algorithm
from restool.core.errors import ConfigurationError
from restool.runs import RunDirectory
from restool.settings import RunSettings

__all__ = ["check", "offers", "train"]


def train(
    run: RunDirectory,
    settings: RunSettings,
    prepared: Path,
    start: str | Path,
    *,
    report: Callable[[str], None],
) -> None:
    """Do what ``settings.method`` says, from the model folder (or Hugging Face id) ``start``; resumes if interrupted.

    Leaves metrics.jsonl, rollouts.jsonl (RL), model/ and, last, done.json in the run directory. Raises a RestoolError
    for a method whose needs are not met, a broken start model, missing data or a full disk.
    """
    check(settings)
    record = algorithms.get(settings.method.algorithm)
    if run.is_done:
        report(f"{run.id} is finished already")
        return
    from restool.backends.local import memory, rl, sft
    from restool.backends.local.session import Session

    if record.kind != "none":
        memory.check(settings, record, state(settings, record))

    session = Session.open(run, settings, start, report)
    if record.kind == "none":
        session.finish([])
    elif record.kind == "sft":
        sft.train(session, record, prepared)
    else:
        rl.train(session, record, prepared)


def check(settings: RunSettings) -> None:
    """ConfigurationError if the method needs what this backend does not offer, more memory than a GPU has included."""
    algorithms.check(settings.method.algorithm, offers(settings), settings.method.weights)
    record = algorithms.get(settings.method.algorithm)
    needed = sum(state(settings, record).values()) / 1e9
    if record.kind != "none" and settings.backend.device != "cpu" and needed > costs.GPU_GB:
        raise ConfigurationError(
            f"{record.id} on {settings.model.name} needs {needed:.0f} GB for weights and optimiser states alone, and "
            f"backend=local has one GPU ({costs.GPU_GB:.0f} GB): backend=verl shares them among the GPUs of a node"
        )


def state(settings: RunSettings, record: Algorithm) -> dict[str, float]:
    """Bytes of what must be in memory, part by part (`costs.training_state`)."""
    model = settings.model
    has_critic, has_reference = record.advantage == "gae", settings.method.kl_coefficient > 0
    return costs.training_state(model.parameters, model.dtype, critic=has_critic, reference=has_reference)


def offers(settings: RunSettings) -> set[str]:
    """What this backend provides to methods under these settings and with this data (`algorithms.NEEDS`)."""
    found = {"offsets", "entropy", "reference", "binary"}
    if settings.training.rl.samples > 1:
        found.add("groups")
    if settings.data.kind == "synthetic" or "sft" in settings.data.splits:
        found.add("demonstrations")
    if settings.method.weights.get("beta") or settings.method.beta_prompts:
        found.add("beta")
    if settings.training.rl.critic_learning_rate is not None:
        found.add("critic")
    return found
