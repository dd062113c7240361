"""One training process on one run directory: the loaded model, the log, the checkpoints, the end."""

from __future__ import annotations

import gc
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from restool import algorithms
from restool.backends.local import checkpoints
from restool.backends.progress import Progress
from restool.files import JsonLinesWriter
from restool.models import loading
from restool.runs import RunDirectory
from restool.settings import RunSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Report = Callable[[str], None]


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass
class Session:
    """What SFT and RL share. ``spent`` adds up over interruptions: what a killed process did behind its last
    checkpoint is not in it."""

    run: RunDirectory
    settings: RunSettings
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    report: Report
    spent: dict[str, float] = field(default_factory=lambda: {"cpu_seconds": 0.0, "wall_seconds": 0.0, "tokens": 0})

    @classmethod
    def open(cls, run: RunDirectory, settings: RunSettings, start: str | Path, report: Report) -> Session:
        torch.set_num_threads(settings.backend.threads_of(algorithms.get(settings.method.algorithm).kind))
        device = loading.resolve_device(settings.backend.device)
        revision = None if Path(start).is_dir() else settings.model.revision
        model, tokenizer = loading.load(start, dtype=settings.model.dtype, device=device, revision=revision)
        if device.type == "cuda" and settings.model.tiny is None:
            recompute_activations(model)
        return cls(run, settings, model, tokenizer, report)

    def steps(
        self, total: int, checkpoint_every: int, parts: dict[str, Stateful], do: Callable[[int], dict[str, float]]
    ) -> list[dict[str, Any]]:
        """Run ``do(step)`` for the steps 1 to ``total`` that no checkpoint holds, log what it returns and save.

        ``do`` returns the metrics of its step; ``tokens`` among them is added up. ``parts`` are what a checkpoint
        holds besides the model. Returns the metrics of all steps.
        """
        begin = self._restore(parts)
        progress = Progress(self.report, begin, total)
        with JsonLinesWriter(self.run.metrics_path) as log:
            for step in range(begin + 1, total + 1):
                cpu, wall = time.process_time(), time.perf_counter()
                metrics = {"step": step, "timestamp": time.time(), **do(step)}
                self.spent["tokens"] += metrics.get("tokens", 0)
                self.spent["cpu_seconds"] += time.process_time() - cpu
                self.spent["wall_seconds"] += time.perf_counter() - wall
                log.append({name: value for name, value in metrics.items() if _is_number(value)})
                if step % checkpoint_every == 0 or step == total:
                    self._save(step, parts)
                progress.show(step, metrics)
        return self.run.metrics()

    def finish(self, metrics: Sequence[dict[str, Any]]) -> None:
        """Export the model, then write done.json, then drop the checkpoints."""
        if self.run.model.exists():  # of a process that was killed between the two
            shutil.rmtree(self.run.model)
        loading.save(self.model, self.tokenizer, self.run.model)
        last = metrics[-1] if metrics else {}
        final = {name: value for name, value in last.items() if name not in ("step", "timestamp")}
        self.run.finish({"steps": len(metrics), "metrics": final, **self.spent})
        checkpoints.clear(self.run)

    def _restore(self, parts: dict[str, Stateful]) -> int:
        step, state = checkpoints.load_latest(self.run, self.report)
        if state is not None:
            self.model.load_state_dict(state["model"])
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.spent = state["spent"]
            self.report(f"{self.run.id}: resuming after step {step}")
            del state
            gc.collect()
        return step

    def _save(self, step: int, parts: dict[str, Stateful]) -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        checkpoints.save(self.run, step, {"model": self.model.state_dict(), "spent": self.spent, **state})


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only the layers' inputs for the backward pass: a third more computation, a fraction of the memory.

    Transformers does so in training mode only, which must not bring dropout with it: the policy that is updated is the
    one that sampled. `TokenScorer` puts such a model into training mode.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def _is_number(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
