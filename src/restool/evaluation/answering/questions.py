"""What is asked and what comes back: the only types that benchmarks and sources of answers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from restool.settings import DecodingSettings

Message = dict[str, Any]
"""One message of a chat: ``role`` (system, user, assistant, tool), ``content``, and what its role adds (``name``,
``tool_calls``)."""


@dataclass(frozen=True)
class Prompt:
    """A chat up to the assistant's next turn.

    ``tools``: what the model's own template lists as tools; empty where the prompt's text lists them. ``schemas``:
    the same tools, in the same order, in OpenAI's form (``{"type": "function", "function": {...}}``), for servers
    that render prompts themselves; may be left out if ``tools`` has that form.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    schemas: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, system: str, user: str) -> Prompt:
        """One system and one user message; an empty system text is no message."""
        first = ({"role": "system", "content": system},) if system else ()
        return cls((*first, {"role": "user", "content": user}))

    def identity(self) -> list[Any]:
        """What tells this prompt from any other, JSON-serialisable: [system, user] where that is all there is."""
        if not self.tools and all(message.keys() == {"role", "content"} for message in self.messages):
            roles = [message["role"] for message in self.messages]
            texts = [message["content"] for message in self.messages]
            if roles == ["user"]:
                return ["", *texts]
            if roles == ["system", "user"] and texts[0]:
                return texts
        return [list(self.messages), list(self.tools), list(self.schemas)]


@dataclass(frozen=True)
class Question:
    """A prompt under an id that is unique within its benchmark."""

    id: str
    prompt: Prompt

    @classmethod
    def of(cls, name: str, system: str, user: str) -> Question:
        return cls(name, Prompt.of(system, user))


@dataclass(frozen=True)
class GeneratedAnswer:
    """``text``: what the model wrote, without the stop token and free of lone surrogates; ``tokens``: how many it
    took, stop token included; ``finished``: it stopped by itself; ``over_length``: the prompt left no room for an
    answer and was never answered; ``failure``: why there is no answer (it is then not stored, and asked for again)."""

    text: str
    tokens: int
    finished: bool
    over_length: bool = False
    failure: str | None = None


OVER_LENGTH = GeneratedAnswer("", 0, False, over_length=True)


class Answerer(Protocol):
    """Anything that answers prompts; closed when the evaluation ends.

    ``fingerprint`` differs wherever the answers of two sources could. ``description`` says in the summary what
    answered. ``batches`` yields (indices, answers) as they come: of all wanted questions, perhaps of others too.
    A division into batches depends on nothing but all ``questions``, so that an interrupted evaluation goes on to
    the same answers.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def description(self) -> dict[str, Any]: ...

    def batches(
        self, questions: Sequence[Question], decoding: DecodingSettings, seed: int, wanted: set[int]
    ) -> Iterator[tuple[list[int], list[GeneratedAnswer]]]: ...

    def close(self) -> None: ...


def clean(text: str) -> str:
    """``text`` without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
