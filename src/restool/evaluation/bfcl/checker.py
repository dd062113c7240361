"""The client of the fenced worker: the only way in which this package asks BFCL's code anything.

One process per `Checker`, so nothing is left over from one checkpoint to the next. An answer that hangs, crashes
or exhausts the worker costs its own score: the worker is killed, another is started, the next answer is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restool import environments
from restool.core.errors import EvaluationError
from restool.evaluation.bfcl.fenced.decoding import TEXT_CAP, clean
from restool.evaluation.bfcl.process import WorkerProcess

_BATCH = 256
"""Requests in one line: on a busy machine, most of an exchange is waiting for the other process to get its turn."""

Reply = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What one worker may use. The time of an item is processor time, so that a busy machine changes no score;
    ``wall_seconds`` is for what waits without computing."""

    item_seconds: float = 2.0
    episode_seconds: float = 10.0
    wall_seconds: float = 60.0
    start_seconds: float = 120.0
    memory_bytes: int = 1 << 30
    processor_seconds: int = 900
    file_bytes: int = 1 << 20


class Checker:
    """``with Checker(categories) as checker: checker.check(category, [(id, text), ...])``.

    ``folder``: a directory of our own files in BFCL's format (``<category>.jsonl``, ``possible_answer/``) instead
    of the package's data. ``format``: how answers write calls, ``rlla`` or ``native``. Raises
    `ToolEnvironmentError` if the ``bfcl`` environment is not built.

    Every reply has ``failure``: None, or ``time``, ``memory``, ``nesting``, ``size``, ``refused``, ``crash`` or
    ``checker_error`` where an answer broke the checker; a verdict is then wrong, and the reason is its error type.
    """

    def __init__(
        self, categories: list[str], *, folder: Path | None = None, limits: Limits | None = None, format: str = "rlla"
    ):
        self.categories = list(categories)
        self.folder, self.format = folder, format
        self.limits = limits or Limits()
        self.restarts = -1
        self._python = environments.python("bfcl")
        self._worker: WorkerProcess
        self._ran: dict[str, list[str]] = {}

    def __enter__(self) -> Checker:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    @property
    def description(self) -> dict[str, Any]:
        """Versions, sizes and hashes of the data."""
        return self._worker.description

    @property
    def pid(self) -> int:
        return self._worker.pid

    def entries(self, category: str) -> list[dict[str, Any]]:
        """The category's entries as shown to models: id, question (messages by turn), function, missed_function."""
        return self._data("entries", category)

    def expected(self, category: str) -> dict[str, Any]:
        """Entry → what would be right: accepted calls, in multi-turn calls by turn, in words where calls are not
        compared."""
        return self._data("expected", category)

    def check(self, category: str, answers: Sequence[tuple[str, str]]) -> list[Reply]:
        """Verdicts on (entry, text): ``correct``, ``error_type``, ``error``, ``calls``, ``unreadable``, ``capped``."""

        def request(entry: str, text: str) -> Callable[[], dict[str, Any]]:
            return lambda: {"op": "check", "category": category, "id": entry, "text": _cut(text)}

        replies = self._ask([request(*answer) for answer in answers])
        return [_verdict(reply, {"unreadable": True, "capped": False}) for reply in replies]

    def judge(self, category: str, episodes: Sequence[tuple[str, list[list[str]] | str]]) -> list[Reply]:
        """Verdicts on multi-turn (entry, texts by turn and step, or the text of the error that broke it off).

        ``correct``, ``error_type``, ``error``, ``turn`` (where it failed), ``calls`` (by turn and step),
        ``unreadable`` (a count), ``force_quit``.
        """

        def request(entry: str, result: list[list[str]] | str) -> Callable[[], dict[str, Any]]:
            return lambda: {"op": "judge", "category": category, "id": entry, "result": _cut_all(result)}

        replies = self._ask([request(*episode) for episode in episodes])
        return [_verdict(reply, {"unreadable": 0, "force_quit": False, "turn": None}) for reply in replies]

    def step(self, answers: Sequence[tuple[str, str, list[str]]]) -> list[Reply]:
        """Run the last text's calls for every (category, entry, texts): the answers with calls so far, and a new one.

        Replies: ``calls`` (none: the turn is over), ``results``, ``unreadable``. The tools live in the worker; after
        a restart, those of an episode are brought back by running all of its calls again.
        """

        def request(category: str, entry: str, texts: list[str]) -> Callable[[], dict[str, Any]]:
            def made() -> dict[str, Any]:
                before = len(texts) - 1 if self._ran.pop(entry, None) == texts[:-1] else 0
                told = {"op": "step", "category": category, "id": entry}
                return told | {"before": before, "texts": _cut_all(texts[before:])}

            return made

        def settle(i: int, reply: Reply) -> None:
            if "failure" not in reply:
                _, entry, texts = answers[i]
                self._ran[entry] = texts if reply["calls"] else texts[:-1]

        return [{"failure": None, **reply} for reply in self._ask([request(*a) for a in answers], settle=settle)]

    def fence(self) -> dict[str, Any]:
        """What stood between the answers and this machine, for the summary."""
        kinds = {"namespace": "own empty network namespace", "guard": "audit hook only (namespaces not permitted)"}
        limits = self.limits
        return {
            "network": kinds[self.description["network"]],
            "memory_bytes": limits.memory_bytes,
            "item_processor_seconds": limits.item_seconds,
            "episode_processor_seconds": limits.episode_seconds,
            "text_cap": TEXT_CAP,
            "restarts": self.restarts,
        }

    def _data(self, what: str, category: str) -> Any:
        (reply,) = self._ask([lambda: {"op": what, "category": category}], self.limits.start_seconds)
        if what not in reply:
            raise EvaluationError(f"bfcl: cannot read category '{category}': {reply.get('error') or reply['failure']}")
        return reply[what]

    def _ask(
        self,
        requests: Sequence[Callable[[], dict[str, Any]]],
        seconds: float | None = None,
        settle: Callable[[int, Reply], None] = lambda i, reply: None,
    ) -> list[Reply]:
        """One reply to each request; a worker that dies or hangs is replaced, and the request that it died of counts
        as failed. After a crash it gets a second chance, for it was perhaps not its doing; one that crashes does so
        again. ``settle`` sees each reply while the worker that gave it still lives."""
        replies: list[Reply] = []
        crashed_at = -1
        while len(replies) < len(requests):
            batch = [make() for make in requests[len(replies) : len(replies) + _BATCH]]
            got, end = self._worker.exchange(batch, seconds or self.limits.wall_seconds)
            for reply in got:
                settle(len(replies), reply)
                replies.append(reply)
            if end is not None:
                self._worker.kill()
                self._start()
                if end == "crash" and crashed_at != len(replies):
                    crashed_at = len(replies)
                else:
                    replies.append({"failure": end})
        return replies

    def _start(self) -> None:
        limits = self.limits
        options = {
            "categories": self.categories,
            "folder": str(self.folder.resolve()) if self.folder else None,
            "format": self.format,
            "item_seconds": limits.item_seconds,
            "episode_seconds": limits.episode_seconds,
            "memory_bytes": limits.memory_bytes,
            "processor_seconds": limits.processor_seconds,
            "file_bytes": limits.file_bytes,
        }
        self._worker = WorkerProcess(self._python, options, limits.start_seconds)
        self._ran = {}
        self.restarts += 1


def _verdict(reply: Reply, unknown: dict[str, Any]) -> Reply:
    """``reply``, or what an answer that broke the checker gets: wrong, and why."""
    if "failure" not in reply:
        return {**reply, "failure": None}
    failure = reply["failure"]
    told = {"correct": False, "error_type": f"failure:{failure}", "error": reply.get("error"), "calls": None}
    return told | unknown | {"failure": failure}


def _cut(text: str) -> str:
    """What of an answer is sent: one character more than is read, so that the worker sees that it was cut."""
    return clean(text[: TEXT_CAP + 1])


def _cut_all(texts: Any) -> Any:
    return [_cut_all(part) for part in texts] if isinstance(texts, list) else _cut(texts)
