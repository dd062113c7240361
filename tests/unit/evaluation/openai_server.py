"""An OpenAI-compatible server of the standard library, with every fault that a real one has."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler"], bool]
"""Replies in its own way and says so (True), or lets the request through."""


def text_of(body: dict[str, Any]) -> str:
    """The model: a function of the prompt."""
    return hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.models: list[dict[str, Any]] = [{"id": "fake", "object": "model"}]
        self.reply: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: chat_reply(text_of(body))
        self.faults: dict[str, list[Fault]] = {}
        self.delay: Callable[[int], float] = lambda number: 0.0
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()

    @contextmanager
    def request(self, prompt: str) -> Iterator[int]:
        with self._lock:
            self.asked[prompt] += 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            number = self.asked.total()
        try:
            yield number
        finally:
            with self._lock:
                self._in_flight -= 1

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    body: dict[str, Any]
    number: int  # of the request, in the order of arrival

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [row | {"created": time.time_ns()} for row in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.body, prompt = body, body["messages"][-1]["content"]
        self.server.keys.add(self.headers["Authorization"])
        self.server.bodies.append(body)
        with self.server.request(prompt) as self.number:
            time.sleep(self.server.delay(self.number))
            waiting = self.server.faults.get(prompt) or self.server.faults.get("*") or []
            if waiting and (waiting.pop(0) if prompt in self.server.faults else waiting[0])(self):
                return
            self.send(200, self.server.reply(body))

    def send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def chat_reply(text: str, **message: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 20, "completion_tokens": 3}}


def status(code: int, message: Any = "no", **headers: str) -> Fault:
    return lambda handler: handler.send(code, {"error": {"message": message}}, **headers) or True


def raw(content: bytes) -> Fault:
    return lambda handler: handler.send(200, content) or True


def hang_up(handler: Handler) -> bool:
    handler.close_connection = True
    handler.connection.close()
    return True


def cut_off(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    return hang_up(handler)


def slow(seconds: float) -> Fault:
    def wait(handler: Handler) -> bool:
        time.sleep(seconds)
        return False

    return wait
