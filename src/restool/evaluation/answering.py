"""Answers of a model to many prompts: batched, resumable, never taken from another checkpoint.

`collect` is what benchmarks call. It appends to ``answers.jsonl`` after every batch and generates only what is
missing there. A stored answer counts only if its key fits: the model's fingerprint, the decoding settings and
the prompt; answers of anything else are thrown away and said so.

torch is imported only when something has to be generated.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from restool import files
from restool.core.errors import ModelError
from restool.settings import DecodingSettings, RunSettings

_WHOLE = 64 << 20
_BLOCK = 1 << 20
_PROGRESS_SECONDS = 10.0
_UNDIVIDED = 1 << 40
"""Batches are made here; dividing them again would leave a slow remainder of one or two rows each."""


@dataclass(frozen=True)
class Question:
    """One prompt: a system text and one user text, under an id that is unique within the benchmark."""

    id: str
    system: str
    user: str


@dataclass(frozen=True)
class GeneratedAnswer:
    """``text``: what the model wrote, without the stop token and free of lone surrogates; ``tokens``: how many it
    took, stop token included; ``finished``: it stopped by itself; ``over_length``: the prompt left no room for an
    answer and was never sent."""

    text: str
    tokens: int
    finished: bool
    over_length: bool = False


class Answerer(Protocol):
    """Anything that answers prompts. ``batches`` divides all questions in a way that depends on nothing but them."""

    fingerprint: str

    def batches(
        self, questions: Sequence[Question], decoding: DecodingSettings, seed: int, wanted: set[int]
    ) -> Iterator[tuple[list[int], list[GeneratedAnswer]]]: ...


class LocalModel:
    """A model folder (or Hugging Face id) answered with by this process; the weights load at the first question."""

    def __init__(self, path: str | Path, device: str, dtype: str, thinking: bool | None = None):
        self.path = Path(path)
        self.device = device
        self.dtype = dtype
        self.thinking = thinking
        self.fingerprint = files.content_hash([model_fingerprint(path), dtype, thinking], length=16)
        self._loaded: tuple[Any, Any, Any] | None = None

    @classmethod
    def of(cls, path: str | Path, settings: RunSettings) -> LocalModel:
        return cls(path, settings.backend.device, settings.model.dtype, settings.model.thinking)

    def answer(
        self, prompts: Sequence[tuple[str, str]], decoding: DecodingSettings, seed: int
    ) -> list[GeneratedAnswer]:
        """One answer to each (system, user), in order."""
        questions = [Question(str(i), system, user) for i, (system, user) in enumerate(prompts)]
        found: dict[int, GeneratedAnswer] = {}
        for indices, answers in self.batches(questions, decoding, seed, set(range(len(questions)))):
            found.update(zip(indices, answers, strict=True))
        return [found[i] for i in range(len(questions))]

    def batches(
        self, questions: Sequence[Question], decoding: DecodingSettings, seed: int, wanted: set[int]
    ) -> Iterator[tuple[list[int], list[GeneratedAnswer]]]:
        """Yield (indices, answers) for every batch that holds a wanted question.

        The division into batches and each batch's seed depend on all ``questions`` and not on ``wanted``, so that
        sampled answers are the same after an interruption, and use common random numbers across models that share
        a tokenizer.
        """
        from restool.models import chat

        _, tokenizer, _ = self._load()
        ids = [chat.prompt_ids(tokenizer, q.system, q.user, thinking=self.thinking) for q in questions]
        fitting = [i for i, prompt in enumerate(ids) if len(prompt) < decoding.max_model_tokens]
        too_long = sorted(set(range(len(ids))) - set(fitting))
        if wanted & set(too_long):
            yield too_long, [GeneratedAnswer("", 0, False, over_length=True) for _ in too_long]
        for number, batch in enumerate(plan_batches([len(ids[i]) for i in fitting], decoding.batch_tokens)):
            indices = [fitting[i] for i in batch]
            if wanted & set(indices):
                yield indices, self._generate([ids[i] for i in indices], decoding, _batch_seed(seed, number))

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
        return [GeneratedAnswer(_clean(t), len(r), f) for t, r, f in zip(texts, ids, whole, strict=True)]

    def _load(self) -> tuple[Any, Any, Any]:
        """(sampler, tokenizer, decoder), made once."""
        if self._loaded is None:
            from restool.models import chat, loading
            from restool.models.offsets import Decoder
            from restool.models.sampling import make_sampler

            device = loading.resolve_device(self.device)
            model, tokenizer = loading.load(self.path, dtype=self.dtype, device=device)
            stop = chat.stop_ids(tokenizer)
            self._loaded = (make_sampler(model.eval(), tokenizer, stop), tokenizer, Decoder(tokenizer, stop))
        return self._loaded


def collect(
    model: Answerer,
    questions: Sequence[Question],
    decoding: DecodingSettings,
    seed: int,
    path: Path,
    *,
    report: Callable[[str], None],
) -> dict[str, GeneratedAnswer]:
    """The answer to every question, by id; ``path`` (answers.jsonl) holds those that exist and gets the new ones.

    Several sets of questions may share one file. An answer that exists is never sampled again.
    """
    keys = answer_keys(model.fingerprint, questions, decoding, seed)
    found = _stored(path, keys, report)
    missing = {i for i, question in enumerate(questions) if question.id not in found}
    if not missing:
        return found
    if found:
        report(f"{len(found)} of {len(questions)} answers are there already; generating the other {len(missing)}")
    progress = _Progress(len(missing), report)
    with files.JsonLinesWriter(path) as writer:
        for indices, answers in model.batches(questions, decoding, seed, missing):
            new = [(questions[i].id, a) for i, a in zip(indices, answers, strict=True) if i in missing]
            writer.append(*({"id": name, "key": keys[name], **vars(answer)} for name, answer in new))
            found.update(new)
            progress.add(len(new), sum(answer.tokens for _, answer in new))
    return found


def answer_keys(
    fingerprint: str, questions: Sequence[Question], decoding: DecodingSettings, seed: int
) -> dict[str, str]:
    """What an answer depends on, hashed, by question id.

    Greedy: model, decoding, prompt. Sampled: also the seed and the whole set of questions, because the random
    numbers of a row depend on its place in its batch.
    """
    settings = decoding.model_dump(exclude={"batch_tokens"})
    shared: list[Any] = [fingerprint, settings]
    if decoding.temperature > 0:
        everything = hashlib.sha256()
        for question in questions:
            everything.update(f"{question.id}\0{question.system}\0{question.user}\0".encode("utf-8", "replace"))
        shared += [seed, decoding.batch_tokens, everything.hexdigest()]
    return {q.id: files.content_hash([*shared, q.system, q.user], length=16) for q in questions}


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
    return files.content_hash([[file.name, file.stat().st_size, _sampled_hash(file)] for file in relevant], length=16)


def _sampled_hash(path: Path) -> str:
    size = path.stat().st_size
    if size <= _WHOLE:
        return files.sha256(path)
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for k in range(66):
            file.seek((size - _BLOCK) * k // 65)
            total.update(file.read(_BLOCK))
    return total.hexdigest()


def _stored(path: Path, keys: dict[str, str], report: Callable[[str], None]) -> dict[str, GeneratedAnswer]:
    """Answers in ``path`` whose keys fit; rows that answer one of these questions under another key are removed."""
    rows = files.read_json_lines(path)
    kept = [row for row in rows if row.get("id") not in keys or row.get("key") == keys[row["id"]]]
    if len(kept) < len(rows):
        report(f"{path}: dropping {len(rows) - len(kept)} answers of another model, prompt or decoding")
        files.write_json_lines(path, kept)
    fields = ("text", "tokens", "finished", "over_length")
    return {row["id"]: GeneratedAnswer(**{name: row[name] for name in fields}) for row in kept if row.get("id") in keys}


class _Progress:
    """A line now and then: how many, how fast, how long still."""

    def __init__(self, total: int, report: Callable[[str], None]):
        self._total, self._report = total, report
        self._done = self._tokens = 0
        self._start = self._last = time.monotonic()

    def add(self, answers: int, tokens: int) -> None:
        self._done += answers
        self._tokens += tokens
        now = time.monotonic()
        if now - self._last < _PROGRESS_SECONDS and self._done < self._total:
            return
        self._last = now
        spent = max(now - self._start, 1e-9)
        left = spent / self._done * (self._total - self._done)
        rate = self._tokens / spent
        self._report(f"answers {self._done}/{self._total}, {rate:.0f} tokens/s, {left:.0f} s left")


def _batch_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:6], "big")


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
