"""From what a person names (a checkpoint, a server, a file of answers) to what answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from restool.core.errors import ConfigurationError
from restool.evaluation.answering.local import LocalModel
from restool.evaluation.answering.questions import Answerer
from restool.settings import RunSettings

Report = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """One of ``checkpoint`` (a model folder or Hugging Face id), ``endpoint`` (an OpenAI-compatible server) and
    ``answers`` (what exists already), with what belongs to it.

    ``engine`` for a checkpoint: ``auto`` takes vLLM wherever it is there for the device (in this interpreter or in an
    environment of its own), else our own sampler on transformers. ``planned``: an evaluation of the workflow, where
    ``auto`` on a CPU always takes our sampler, so that no result of a pipeline depends on which tool environments
    happen to be built. ``tokenizer`` for an endpoint: prompts are rendered here and go out as raw completions;
    without it they go out as chats. ``limits``: fields of `Endpoint`.
    """

    checkpoint: str | None = None
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    endpoint: str | None = None
    model: str | None = None
    key_variable: str | None = None
    tokenizer: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    answers: Path | None = None
    allow_missing: bool = False
    planned: bool = False

    def check(self, benchmark: str, kinds: tuple[str, ...]) -> None:
        """Exactly one source, of ``kinds``, and nothing that belongs to another; `ConfigurationError` else."""
        given = [name for name in ("checkpoint", "endpoint", "answers") if getattr(self, name) is not None]
        if len(given) != bool(kinds) or not set(given) <= set(kinds):
            listed = " or ".join(f"--{name}" for name in kinds)
            raise ConfigurationError(f"{benchmark} takes {f'one of {listed}' if kinds else 'the held-out answers'}")
        if self.endpoint is None and (self.model or self.tokenizer or self.key_variable):
            raise ConfigurationError("--model, --tokenizer and --api-key-env belong to --endpoint")

    def open(self, settings: RunSettings, log: Path, report: Report) -> Answerer | None:
        """What answers, or None where answers exist. Nothing is loaded, started or asked yet."""
        if self.checkpoint is not None:
            return self._local(self.checkpoint, settings, log, report)
        return self._remote(self.endpoint, settings, report) if self.endpoint is not None else None

    def _local(self, path: str, settings: RunSettings, log: Path, report: Report) -> Answerer:
        if self.engine == "transformers":
            return LocalModel.of(path, settings)
        from restool.evaluation.answering import vllm
        from restool.models import loading

        device = loading.resolve_device(settings.backend.device).type
        if self.engine == "auto" and ((self.planned and device == "cpu") or vllm.find(device) is None):
            return LocalModel.of(path, settings)
        found = vllm.required(device)
        return vllm.VllmModel(path, found, settings.model.dtype, settings.model.thinking, log, report)

    def _remote(self, url: str, settings: RunSettings, report: Report) -> Answerer:
        from restool.evaluation.answering.client import Endpoint
        from restool.evaluation.answering.endpoint import EndpointModel
        from restool.evaluation.answering.payloads import Chat, Completions

        access = Endpoint.of(url, self.model, self.key_variable, **self.limits)
        thinking = settings.model.thinking
        if self.tokenizer is None:
            return EndpointModel(access, Chat(thinking), report)
        from restool.models import loading

        return EndpointModel(access, Completions(loading.load_tokenizer(self.tokenizer), thinking), report)
