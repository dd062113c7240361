"""What asking a server costs: our driver against one that sends a request, waits and sends the next.

    python benchmarks/endpoint.py [requests]

The server is another process of this machine; it takes 20 ms for an answer, or nothing. With 20 ms, the ratio is
what having many requests under way is worth; with nothing, what is left is the driver's own time.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

from restool.evaluation.answering import Question, collect
from restool.evaluation.answering.client import Endpoint
from restool.evaluation.answering.endpoint import EndpointModel
from restool.evaluation.answering.payloads import Chat
from restool.settings import DecodingSettings

DECODING = DecodingSettings(max_new_tokens=64, temperature=0.0, max_model_tokens=8192, batch_tokens=1)
QUESTIONS = [Question.of(f"q{i}", "tools " * 500, f"question {i} " * 40) for i in range(10_000)]
REPLY = json.dumps(
    {
        "choices": [{"message": {"content": "<tool_call>\n{}\n</tool_call>" * 8}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 700, "completion_tokens": 60},
    }
).encode()
MODELS = b'{"data": [{"id": "fake"}]}'


class Fake(asyncio.Protocol):
    """As little of HTTP as two clients need."""

    seconds = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, rest = self.received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if end and len(rest) >= int(length or 0):
            self.received = b""
            content = MODELS if head.startswith(b"GET") else REPLY
            asyncio.get_running_loop().call_later(self.seconds, self.reply, content)

    def reply(self, content: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        self.transport.write(head + content)


def serve(seconds: float, port: multiprocessing.Queue[int]) -> None:
    async def run() -> None:
        Fake.seconds = seconds
        server = await asyncio.get_running_loop().create_server(Fake, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def sequential(port: int, questions: list[Question]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for question in questions:
        body = {"model": "fake", "messages": list(question.prompt.messages), "max_tokens": 64, "temperature": 0}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        json.loads(connection.getresponse().read())


def ours(port: int, questions: list[Question]) -> None:
    model = EndpointModel(Endpoint.of(f"http://127.0.0.1:{port}"), Chat(), print)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answers.jsonl"
        assert len(collect(model, questions, DECODING, 0, path, report=lambda line: None)) == len(questions)


def measured(driver, port: int, questions: list[Question]) -> tuple[float, float]:
    """(seconds, processor seconds of this process) a request."""
    wall, processor = time.perf_counter(), time.process_time()
    driver(port, questions)
    return (time.perf_counter() - wall) / len(questions), (time.process_time() - processor) / len(questions)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for seconds in (0.02, 0.0):
        ports: multiprocessing.Queue[int] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(seconds, ports), daemon=True)
        server.start()
        port = ports.get()
        ours(port, QUESTIONS[:50])  # imports, connections
        fast, slow = measured(ours, port, QUESTIONS[:count]), measured(sequential, port, QUESTIONS[: count // 4])
        print(
            f"answers that take {1000 * seconds:.0f} ms: ours {1000 * fast[0]:.2f} ms a request "
            f"({1000 * fast[1]:.2f} ms of processor time), one at a time {1000 * slow[0]:.2f} ms; "
            f"ratio {slow[0] / fast[0]:.1f}"
        )
        server.terminate()


if __name__ == "__main__":
    main()
