"""A checkpoint answered with by this process, through the sampler of `restool.models`."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from restool import files, seals
from restool.core.errors import ModelError
from restool.evaluation.answering.questions import OVER_LENGTH, GeneratedAnswer, Question, clean
from restool.settings import DecodingSettings, RunSettings

_UNDIVIDED = 1 << 40
"""Batches are made here; dividing them again would leave a slow remainder of one or two rows each."""


class LocalModel:
    """A model folder (or Hugging Face id) answered with by this process; the weights load at the first question."""

    def __init__(self, path: str | Path, device: str, dtype: str, thinking: bool | None = None):
        self.path = Path(path)
        self.device = device
        self.dtype = dtype
        self.thinking = thinking
        self.fingerprint = files.content_hash([model_fingerprint(path), dtype, thinking], length=16)
        self._loaded: tuple[Any, Any, Any] | None = None
        self._positions: int | None = None

    @classmethod
    def of(cls, path: str | Path, settings: RunSettings) -> LocalModel:
        return cls(path, settings.backend.device, settings.model.dtype, settings.model.thinking)

    @property
    def description(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "checkpoint": str(self.path),
            "dtype": self.dtype,
            "thinking": self.thinking,
            "chat_template_sha256": template_hash(self.path),
        }

    def close(self) -> None:
        self._loaded = None

    def batches(
        self, questions: Sequence[Question], decoding: DecodingSettings, seed: int, wanted: set[int]
    ) -> Iterator[tuple[list[int], list[GeneratedAnswer]]]:
        """Yield (indices, answers) for every batch that holds a wanted question.

        The division into batches and each batch's seed depend on all ``questions`` and not on ``wanted``, so that
        sampled answers are the same after an interruption, and use common random numbers across models that share
        a tokenizer. The context is ``decoding``'s or the model's own, whichever is shorter, as vLLM has it.
        """
        from restool.models import chat

        _, tokenizer, _ = self._load()
        context = min(decoding.max_model_tokens, self._positions or decoding.max_model_tokens)
        decoding = decoding.model_copy(update={"max_model_tokens": context})
        dialogues = ((q.prompt.messages, q.prompt.tools) for q in questions)
        # Four bytes an id: the prompts of the whole of BFCL have millions, and lists would take ten times as much.
        ids = [array("i", prompt) for prompt in chat.each_dialogue_ids(tokenizer, dialogues, thinking=self.thinking)]
        fitting = [i for i, prompt in enumerate(ids) if len(prompt) < decoding.max_model_tokens]
        too_long = sorted(set(range(len(ids))) - set(fitting))
        if wanted & set(too_long):
            yield too_long, [OVER_LENGTH] * len(too_long)
        for number, batch in enumerate(plan_batches([len(ids[i]) for i in fitting], decoding.batch_tokens)):
            indices = [fitting[i] for i in batch]
            if wanted & set(indices):
                yield indices, self._generate([ids[i].tolist() for i in indices], decoding, _batch_seed(seed, number))

    def _generate(self, prompts: list[list[int]], decoding: DecodingSettings, seed: int) -> list[GeneratedAnswer]:
        sampler, _, decoder = self._load()
        rooms = [decoding.max_model_tokens - len(prompt) for prompt in prompts]
        answers = sampler.generate(
            prompts,
            temperature=decoding.temperature,
            max_new_tokens=min(decoding.max_new_tokens, max(rooms)),
            seed=seed,
            batch_tokens=_UNDIVIDED,
        )
        # A batch is sampled to one length; a row whose own prompt leaves less room is cut to that.
        ids = [row[:room] for row, room in zip(answers.ids, rooms, strict=True)]
        whole = [f and len(r) <= room for f, r, room in zip(answers.finished, answers.ids, rooms, strict=True)]
        texts = [decoded.completion for decoded in decoder.decode_batch(ids)]
        return [GeneratedAnswer(clean(t), len(r), f) for t, r, f in zip(texts, ids, whole, strict=True)]

    def _load(self) -> tuple[Any, Any, Any]:
        """(sampler, tokenizer, decoder), made once."""
        if self._loaded is None:
            from restool.models import chat, loading
            from restool.models.offsets import Decoder
            from restool.models.sampling import make_sampler

            device = loading.resolve_device(self.device)
            model, tokenizer = loading.load(self.path, dtype=self.dtype, device=device)
            self._positions = getattr(model.config, "max_position_embeddings", None)
            stop = chat.stop_ids(tokenizer)
            self._loaded = (make_sampler(model.eval(), tokenizer, stop), tokenizer, Decoder(tokenizer, stop))
        return self._loaded


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Divide prompts of these lengths into batches of at most ``batch_tokens`` padded tokens, longest first.

    Longest first: the largest batch, which decides whether memory suffices, comes at once.
    """
    batches: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not batches or width * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
            width = lengths[i]
        batches[-1].append(i)
    return batches


def model_fingerprint(path: str | Path) -> str:
    """Hash of what a model folder answers with: configuration, tokenizer, weights.

    Weight files above 64 MiB are hashed at their start, end and 64 places between, with their size: another
    checkpoint differs everywhere. Something that is no folder (a Hugging Face id) stands for itself.
    """
    folder = Path(path)
    if not folder.is_dir():
        return str(path)
    kinds = (".json", ".safetensors", ".bin", ".txt", ".model", ".jinja")
    relevant = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in kinds)
    if not any(file.name == "config.json" for file in relevant):
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    return seals.fingerprint(folder, relevant)


def template_hash(path: str | Path) -> str | None:
    """sha256 of a model folder's chat template; None where it has none of its own or is not at hand."""
    file, settings = Path(path) / "chat_template.jinja", Path(path) / "tokenizer_config.json"
    if file.is_file():
        return files.sha256(file)
    template = files.read_json(settings).get("chat_template") if settings.is_file() else None
    return hashlib.sha256(str(template).encode()).hexdigest() if template else None


def _batch_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:6], "big")
