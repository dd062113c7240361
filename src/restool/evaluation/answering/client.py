"""HTTP to an OpenAI-compatible server: many requests at once, patience with what may pass, one line for what won't.

aiohttp, because at a thousand short answers a second the client itself is the bottleneck: one request costs it a
quarter of a millisecond of processor time, httpx six times that (benchmarks/endpoint.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from restool.core.errors import ConfigurationError, EvaluationError

T = TypeVar("T")

KEY_VARIABLE = "OPENAI_API_KEY"
_CONNECT_SECONDS = 20.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_PATIENCE_S = 600.0
"""A server that asks to be left alone for longer (a quota of the day) ends the run instead."""
_SLOW = 3
"""Attempts at a request that times out: each of them may have taken ten minutes."""
_REPLY_BYTES = 32 << 20
_PASSING = (408, 409, 425, 429)
_ROUTES = ("/chat/completions", "/completions", "/models")


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and how hard it may be asked. The key is never shown, stored or logged."""

    url: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    concurrency: int = 64
    requests_per_minute: float | None = None
    timeout_seconds: float = 600.0
    attempts: int = 8
    first_wait_seconds: float = _FIRST_WAIT_S
    proxies: bool = True

    @classmethod
    def of(cls, url: str, model: str | None = None, key_variable: str | None = None, **options: Any) -> Endpoint:
        """``url`` as people write it: with or without ``/v1``, or copied with a route behind it.

        The key comes from the environment variable ``key_variable``, by default from OPENAI_API_KEY if that is set.
        """
        key = os.environ.get(key_variable or KEY_VARIABLE)
        if key_variable and not key:
            raise ConfigurationError(f"--api-key-env {key_variable}: no such environment variable is set")
        return cls(_base(url), model, key or None, **options)


class Passing(Exception):
    """A failure that may pass: overloaded, restarted, cut off. ``connection``: nobody was there to answer;
    ``slow``: nothing came within the time that a request may take."""

    def __init__(self, message: str, *, retry_after: float = 0.0, connection: bool = False, slow: bool = False):
        super().__init__(message)
        self.retry_after = retry_after
        self.connection = connection
        self.slow = slow


class Refusal(Exception):
    """A reply that would be the same again. ``code``: the server's own word for it, if it has one."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(f"HTTP {status}: {message}")
        self.status, self.message, self.code = status, message, code


class Client:
    """``async with Client(endpoint, report) as client``; one connection pool, shared by all requests."""

    def __init__(self, endpoint: Endpoint, report: Callable[[str], None]):
        self.endpoint = endpoint
        self._report = report
        self._reported = 0.0
        self._next_slot = 0.0

    async def __aenter__(self) -> Client:
        import aiohttp

        limits = aiohttp.ClientTimeout(total=self.endpoint.timeout_seconds, sock_connect=_CONNECT_SECONDS)
        headers = {"Content-Type": "application/json", "User-Agent": "restool"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=limits,
            connector=aiohttp.TCPConnector(limit=self.endpoint.concurrency),
        )
        self._proxy = _proxy(self.endpoint.url) if self.endpoint.proxies else None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, route: str, body: dict[str, Any] | None, read: Callable[[Any], T], attempts: int = 0) -> T:
        """``read`` of the reply to ``body`` (GET without one), after as many attempts as it takes.

        ``read`` raises `Passing` for a reply that is not what was asked for. Raises `Refusal`, or the last
        `Passing` when the attempts are used up.
        """
        from tenacity import AsyncRetrying, retry_if_exception

        most = attempts or self.endpoint.attempts
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, Passing) and error.retry_after <= _PATIENCE_S),
            stop=lambda state: state.attempt_number >= (min(most, _SLOW) if state.outcome.exception().slow else most),
            wait=self._wait,
            reraise=True,
        )
        return await retrying(self._once, route, body, read)

    async def _once(self, route: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        import aiohttp

        await self._slot()
        url, data = self.endpoint.url + route, None if body is None else json.dumps(body).encode()
        try:
            method = "GET" if body is None else "POST"
            async with self._session.request(method, url, data=data, proxy=self._proxy, allow_redirects=False) as reply:
                content = await _content(reply)
        except TimeoutError as error:
            absent = isinstance(error, aiohttp.ConnectionTimeoutError)
            seconds = _CONNECT_SECONDS if absent else self.endpoint.timeout_seconds
            raise Passing(f"no reply within {seconds:g} s", connection=absent, slow=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Passing(self._safe(str(error) or type(error).__name__), connection=True) from error
        value = _parsed(content)
        if reply.status >= 300:
            raise self._failure(reply.status, value, content, reply.headers.get("Retry-After"))
        if value is None:
            raise Passing("a reply that is no JSON object")
        return read(value)

    def _failure(self, status: int, value: Any, content: bytes, retry_after: str | None) -> Exception:
        error = value.get("error", value) if isinstance(value, dict) else None
        message, code = content.decode("utf-8", "replace"), ""
        if isinstance(error, dict):
            message = str(error.get("message") or error.get("detail") or error)
            code = str(error.get("code") or error.get("type") or "")
        elif error:
            message = str(error)
        message = self._safe(message)
        if status in _PASSING or (status >= 500 and not is_too_long(message, code)):
            return Passing(f"HTTP {status}: {message}", retry_after=_seconds(retry_after))
        return Refusal(status, message, code)

    def _wait(self, state: Any) -> float:
        """Seconds until the next attempt: doubling, jittered, and never less than the server asks for."""
        from tenacity import wait_exponential_jitter

        first = self.endpoint.first_wait_seconds
        error = state.outcome.exception()
        seconds = max(wait_exponential_jitter(first, _LONGEST_WAIT_S, jitter=first)(state), error.retry_after)
        if time.monotonic() - self._reported > 10:
            self._reported = time.monotonic()
            self._report(f"{self.endpoint.url}: {error}; asking again in {seconds:.0f} s")
        return seconds

    async def _slot(self) -> None:
        """Wait for this request's turn under the limit of requests per minute."""
        if self.endpoint.requests_per_minute:
            turn = max(time.monotonic(), self._next_slot)
            self._next_slot = turn + 60 / self.endpoint.requests_per_minute
            await asyncio.sleep(turn - time.monotonic())

    def _safe(self, message: str) -> str:
        """One short line without the key, which some servers repeat."""
        if self.endpoint.key:
            message = message.replace(self.endpoint.key, "***")
        message = " ".join(message.split())
        return message[:400] + ("…" if len(message) > 400 else "")


def is_too_long(message: str, code: str = "") -> bool:
    """Whether a refusal says that the prompt does not fit: OpenAI, vLLM, SGLang, llama.cpp and TGI word it apart."""
    if "context_length" in code or "context_size" in code:
        return True
    text = message.lower()
    return any(
        all(part in text for part in parts)
        for parts in (
            ("context length",),
            ("context window",),
            ("context size",),
            ("max_model_len",),
            ("longer than the maximum model length",),
            ("prompt is too long",),
            ("inputs", "max_new_tokens", "must be <="),
        )
    )


def unanswered(endpoint: Endpoint, error: Exception) -> EvaluationError:
    """What to say when ``endpoint`` could not be reached, or will not have us."""
    if isinstance(error, Refusal) and error.status in (401, 403):
        given = "the key that it was given" if endpoint.key else f"a request without a key (set {KEY_VARIABLE})"
        return EvaluationError(f"{endpoint.url} refuses {given}: {error}")
    if isinstance(error, Refusal):
        return EvaluationError(f"{endpoint.url}: {error}; --endpoint takes an OpenAI-compatible address (…/v1)")
    return EvaluationError(f"{endpoint.url} does not answer ({error}); start the server, then run the same command")


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for ``url``. Looked up once: aiohttp's own way asks for every request,
    in another thread, and reads ~/.netrc besides."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


async def _content(reply: Any) -> bytes:
    pieces, size = [], 0
    async for piece in reply.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > _REPLY_BYTES:
            raise Passing(f"a reply of more than {_REPLY_BYTES >> 20} MB")
    return b"".join(pieces)


def _parsed(content: bytes) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _seconds(retry_after: str | None) -> float:
    """A Retry-After header, in seconds or as a date; 0 if there is none or it is nonsense."""
    try:
        if retry_after is None or retry_after.strip().isdigit():
            return float(retry_after or 0)
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _base(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"--endpoint {url}: expected an address such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise ConfigurationError("--endpoint: leave the key out of the address; put it into an environment variable")
    path = parts.path.rstrip("/")
    for route in _ROUTES:
        path = path.removesuffix(route)
    return urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))
