"""A model behind an OpenAI-compatible server, somebody's or one that `vllm` has started.

Every answer is handed on as it arrives, in whatever order, so that a killed evaluation has lost only what was in
flight. A request that fails for good costs its own answer; a server that is gone ends the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from restool import files
from restool.core.errors import ConfigurationError, EvaluationError, nearest
from restool.evaluation.answering.client import Client, Endpoint, Passing, Refusal, is_too_long, unanswered
from restool.evaluation.answering.payloads import ADAPTATIONS, Body, Interface, Request, context_tokens, prompt_tokens
from restool.evaluation.answering.questions import OVER_LENGTH, GeneratedAnswer, Question
from restool.settings import DecodingSettings

Read = Callable[[Body], GeneratedAnswer]
_FIRST_ATTEMPTS = 3
_FAILURES_IN_A_ROW = 16
_VOLATILE = ("created", "permission")
"""What vLLM makes up anew every time it is asked for its models."""


class EndpointModel:
    """Answers with the server at ``endpoint``, by one of its two interfaces."""

    def __init__(self, endpoint: Endpoint, interface: Interface, report: Callable[[str], None]):
        self.endpoint = endpoint
        self.interface = interface
        self._report = report

    @cached_property
    def served(self) -> dict[str, Any]:
        """What the server says of the model: ``id`` and more. Asks it once; the model may be left to the server if
        it has only one."""
        return asyncio.run(self._ask_served())

    @cached_property
    def fingerprint(self) -> str:
        return files.content_hash([self.endpoint.url, self.served, self.interface.identity()], length=16)

    @property
    def description(self) -> dict[str, Any]:
        return {
            "engine": "endpoint",
            "url": self.endpoint.url,
            "model": self.served["id"],
            "interface": self.interface.name,
            "served": self.served,
            "chat_template_sha256": self.interface.template_sha256,
        }

    def batches(
        self, questions: Sequence[Question], decoding: DecodingSettings, seed: int, wanted: set[int]
    ) -> Iterator[tuple[list[int], list[GeneratedAnswer]]]:
        """Yield answers as they arrive; one that failed for good has ``failure`` set."""
        asked = ((i, questions[i]) for i in sorted(wanted))
        requests = self.interface.requests(asked, decoding, seed)
        run = _Run(self.endpoint, self.served, self.interface, requests, self._report)
        with asyncio.Runner() as runner:
            runner.run(run.start(len(wanted)))
            try:
                for _ in iter(lambda: run.pending, 0):
                    arrived = runner.run(run.arrived())
                    yield [index for index, _ in arrived], [answer for _, answer in arrived]
            finally:
                runner.run(run.stop())

    def close(self) -> None:
        """Nothing to do: connections live only while answers are asked for."""

    async def _ask_served(self) -> dict[str, Any]:
        def read(reply: Body) -> list[dict[str, Any]]:
            data = reply.get("data")
            if not isinstance(data, list) or not all(isinstance(row, dict) and row.get("id") for row in data):
                raise Passing("a list of models that is none")
            return data

        async with Client(self.endpoint, self._report) as client:
            try:
                found = await client.ask("/models", None, read, _FIRST_ATTEMPTS)
            except (Passing, Refusal) as error:
                raise unanswered(self.endpoint, error) from error
        return _chosen(found, self.endpoint)


def _chosen(found: list[dict[str, Any]], endpoint: Endpoint) -> dict[str, Any]:
    names = [str(row["id"]) for row in found]
    name = endpoint.model or (names[0] if len(names) == 1 else None)
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    if name is None:
        raise ConfigurationError(f"{endpoint.url} serves {len(names)} models; choose with --model: {listed}")
    if name not in names:
        raise ConfigurationError(f"{endpoint.url} has no model '{name}'{nearest(name, names)}; there are: {listed}")
    return {key: value for key, value in found[names.index(name)].items() if key not in _VOLATILE}


class _Run:
    """One pass over many requests: workers take them from an iterator and put answers into a queue."""

    def __init__(
        self,
        endpoint: Endpoint,
        served: dict[str, Any],
        interface: Interface,
        requests: Iterator[Request],
        report: Callable[[str], None],
    ):
        self.endpoint, self.served, self.interface, self.requests = endpoint, served, interface, requests
        self.pending = 0
        self._report = report
        self._adaptations: list[str] = []
        self._failures = 0

    async def start(self, count: int) -> None:
        self.pending = count
        self._client = await Client(self.endpoint, self._report).__aenter__()
        self._queue: asyncio.Queue[tuple[int, GeneratedAnswer] | BaseException] = asyncio.Queue()
        workers = min(self.endpoint.concurrency, count)
        self._workers = [asyncio.create_task(self._work()) for _ in range(workers)]

    async def stop(self) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        await self._client.__aexit__()

    async def arrived(self) -> list[tuple[int, GeneratedAnswer]]:
        """All answers that are there, at least one; the error that ends the run comes behind them."""
        found: list[tuple[int, GeneratedAnswer]] = []
        while not found or not self._queue.empty():
            item = await self._queue.get()
            if isinstance(item, BaseException):
                if not found:
                    raise item
                self._queue.put_nowait(item)
                break
            found.append(item)
        self.pending -= len(found)
        return found

    async def _work(self) -> None:
        try:
            for request in self.requests:
                answer = OVER_LENGTH if request.body is None else await self._answer(request)
                self._queue.put_nowait((request.index, answer))
        except Exception as error:  # a worker has no caller: its error must reach the one that waits for answers
            self._queue.put_nowait(error)

    async def _answer(self, request: Request) -> GeneratedAnswer:
        body = {"model": self.served["id"], **(request.body or {})}
        try:
            answer = await self._adapted(body, partial(self.interface.read, request=request))
        except Passing as error:
            if error.connection or error.retry_after:
                raise unanswered(self.endpoint, error) from error
            return self._failed(error)
        except Refusal as error:
            if error.status in (401, 403, 404, 405):
                raise unanswered(self.endpoint, error) from error
            return self._failed(error)
        self._failures = 0
        return answer

    async def _adapted(self, body: Body, read: Read) -> GeneratedAnswer:
        """Ask; where the server wants to be asked otherwise, ask so, now and from now on."""
        applied: list[str] = []
        while True:
            for name in self._adaptations[len(applied) :]:
                ADAPTATIONS[name](body)
                applied.append(name)
            try:
                return await self._client.ask(self.interface.route, body, read)
            except Refusal as refusal:
                if is_too_long(refusal.message, refusal.code):
                    return await self._shorter(body, read, refusal)
                new = next((n for n in ADAPTATIONS if n in refusal.message and n not in applied), None)
                if new is None:
                    raise
                if new not in self._adaptations:
                    self._adaptations.append(new)

    async def _shorter(self, body: Body, read: Read, refusal: Refusal) -> GeneratedAnswer:
        """The answer with as many tokens as the context has left, none if that is nothing.

        OpenAI and vLLM refuse a prompt that fits if the answer that it may get does not. Asked for one token, they
        say how long the prompt is.
        """
        limit = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
        context, ask, route = context_tokens(refusal, self.served), self._client.ask, self.interface.route
        if context is None:
            return OVER_LENGTH
        try:
            left = context - await ask(route, body | {limit: 1}, prompt_tokens)
            if not 0 < left < body[limit]:
                return OVER_LENGTH
            return await ask(route, body | {limit: left}, read)
        except Refusal as again:
            if is_too_long(again.message, again.code):
                return OVER_LENGTH
            raise

    def _failed(self, error: Exception) -> GeneratedAnswer:
        self._failures += 1
        if self._failures >= _FAILURES_IN_A_ROW:
            raise EvaluationError(f"{self.endpoint.url}: {self._failures} requests failed in a row, the last: {error}")
        return GeneratedAnswer("", 0, False, failure=str(error))
