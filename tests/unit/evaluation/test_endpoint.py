"""Answers from a server: asked fast and patiently, whatever it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from openai_server import Handler, Server, chat_reply, cut_off, hang_up, raw, slow, status, text_of

from restool import files
from restool.core.errors import ConfigurationError, EvaluationError
from restool.evaluation.answering import GeneratedAnswer, Prompt, Question, answer, collect
from restool.evaluation.answering.client import Endpoint, is_too_long
from restool.evaluation.answering.endpoint import EndpointModel
from restool.evaluation.answering.payloads import Chat
from restool.settings import DecodingSettings

GREEDY = DecodingSettings(max_new_tokens=8, temperature=0.0, max_model_tokens=64, batch_tokens=100)
QUESTIONS = [Question.of(f"q{i}", "system", f"question {i};") for i in range(40)]


def model(server: Server, lines: list[str] | None = None, **options: Any) -> EndpointModel:
    access = Endpoint.of(server.url, **{"first_wait_seconds": 0.01, "timeout_seconds": 5.0, **options})
    return EndpointModel(access, Chat(), [].append if lines is None else lines.append)


def gather(source: EndpointModel, path: Path, questions=QUESTIONS, **options: Any) -> dict[str, GeneratedAnswer]:
    return collect(source, questions, GREEDY, 0, path, report=lambda line: None, **options)


def expected(questions=QUESTIONS) -> dict[str, GeneratedAnswer]:
    texts = {q.id: text_of({"messages": list(q.prompt.messages)}) for q in questions}
    return {name: GeneratedAnswer(text, 3, True) for name, text in texts.items()}


def test_many_at_once_and_each_answer_to_its_question(server, tmp_path):
    server.delay = lambda number: 0.02 * (number % 7)  # replies come out of order
    assert gather(model(server, concurrency=16), tmp_path / "a.jsonl") == expected()
    assert 8 < server.most_in_flight <= 16
    assert set(server.asked.values()) == {1}
    first = server.bodies[0]
    assert (first["model"], first["temperature"], first["top_p"], first["max_tokens"]) == ("fake", 0.0, 1.0, 8)


def test_what_passes_is_waited_for(server, tmp_path):
    """Every passing fault, several in a row: the answers are those of a server without faults."""
    kinds = [
        [status(500), status(503), status(502)],
        [status(429, Retry_After="0")],
        [hang_up, cut_off],
        [raw(b"<html>busy</html>"), raw(b"[]"), raw(b"null")],
        [raw(b"{}"), raw(b'{"choices": []}'), raw(b'{"choices": [{"message": 5}]}')],
        [raw(b'{"choices": [{"message": {"content": {}}}]}'), raw(b"\xff\xfe")],
        [raw(b'{"choices": [{"message": {"content": "", "tool_calls": [{}]}}]}')],
        [slow(0.6)],
    ]
    server.faults = {q.prompt.messages[-1]["content"]: faults for q, faults in zip(QUESTIONS, kinds, strict=False)}
    assert gather(model(server, timeout_seconds=0.4), tmp_path / "a.jsonl") == expected()
    assert server.asked["question 0;"] == 4
    assert server.asked["question 7;"] == 2
    assert server.asked["question 9;"] == 1


def test_a_server_that_asks_for_time_gets_it(server, tmp_path):
    server.faults = {"question 3;": [status(429, Retry_After="1")]}
    begin = time.monotonic()
    assert gather(model(server), tmp_path / "a.jsonl", QUESTIONS[:5]) == expected(QUESTIONS[:5])
    assert time.monotonic() - begin >= 1.0
    server.faults = {"question 9;": [status(429, Retry_After="86400")]}
    with pytest.raises(EvaluationError, match="HTTP 429"):
        gather(model(server), tmp_path / "a.jsonl", QUESTIONS[:10])


def test_requests_per_minute_are_kept(server, tmp_path):
    begin = time.monotonic()
    gather(model(server, requests_per_minute=1200), tmp_path / "a.jsonl", QUESTIONS[:11])
    assert time.monotonic() - begin >= 10 * 0.05 - 0.01


def test_one_request_that_fails_costs_its_own_answer(server, tmp_path):
    path = tmp_path / "a.jsonl"
    server.faults = {"question 5;": [status(500)] * 3, "question 6;": [status(400, "bad schema")]}
    with pytest.raises(EvaluationError, match=r"2 of 40 .*\(q5, q6\).*run the same command") as told:
        gather(model(server, attempts=3), path)
    assert "bad schema" in str(told.value) or "HTTP 500" in str(told.value)
    assert len(files.read_json_lines(path)) == 38
    server.asked.clear()
    assert gather(model(server), path) == expected()  # the same command again
    assert server.asked == {"question 5;": 1, "question 6;": 1}
    server.faults = {"question 5;": [status(400)]}
    found = gather(model(server), tmp_path / "b.jsonl", allow_missing=True)
    assert found.keys() == expected().keys() - {"q5"}
    server.faults = {"question 1;": [status(400, "never")]}
    (failed,) = answer(model(server), [QUESTIONS[1].prompt], GREEDY, 0)  # a dialogue goes on without it
    assert "never" in failed.failure


def test_a_server_that_only_fails_ends_the_run(server, tmp_path):
    server.faults = {"*": [status(400, "out of order")]}
    with pytest.raises(EvaluationError, match="16 requests failed in a row, the last: HTTP 400: out of order"):
        gather(model(server, concurrency=1), tmp_path / "a.jsonl")
    assert server.asked.total() == 16


def test_a_server_that_dies_leaves_what_it_answered(server, tmp_path):
    path = tmp_path / "a.jsonl"

    def dies(handler: Handler) -> bool:
        if server.asked.total() < 15:
            return False
        server.socket.close()
        return hang_up(handler)

    server.faults = {"*": [dies]}
    with pytest.raises(EvaluationError, match=r"does not answer .*run the same command"):
        gather(model(server, concurrency=2, attempts=2), path)
    kept = {row["id"]: row["text"] for row in files.read_json_lines(path)}
    assert 10 <= len(kept) < 20
    assert all(expected()[name].text == text for name, text in kept.items())


def test_too_long_a_prompt_is_over_length_and_a_tight_one_gets_what_room_there_is(server, tmp_path):
    message = "This model's maximum context length is 25 tokens. However, you requested 8 output tokens and your prompt"

    def full(handler: Handler) -> bool:
        body = handler.body
        size = {"question 0;": 30, "question 1;": 20}[body["messages"][-1]["content"]]
        if size + body["max_tokens"] <= 25:
            return False
        return status(400, f"{message} contains at least 18 input tokens")(handler)

    server.faults = {f"question {i};": [full] * 3 for i in range(2)}
    found = gather(model(server), tmp_path / "a.jsonl", QUESTIONS[:3])
    assert found["q0"] == GeneratedAnswer("", 0, False, over_length=True)
    assert found["q1"] == expected()["q1"]
    assert [b["max_tokens"] for b in server.bodies if b["messages"][-1]["content"] == "question 1;"] == [8, 1, 5]
    assert gather(model(server), tmp_path / "a.jsonl", QUESTIONS[:3]) == found


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, your messages resulted in 5000 tokens.",
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "the request exceeds the available context size, try increasing it",
        "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens",
    ],
)
def test_servers_say_too_long_in_their_own_words(message):
    assert is_too_long(message)
    assert not is_too_long("max_tokens must be positive")


def test_parts_that_a_server_took_out_of_the_text_are_put_back(server):
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    server.reply = lambda body: chat_reply(None, reasoning_content="hm", tool_calls=[call, call])
    (found,) = answer(model(server), [QUESTIONS[0].prompt], GREEDY, 0)
    block = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert found.text == f"<think>\nhm\n</think>\n\n{block}\n{block}"


def test_a_server_is_asked_as_it_wants_to_be(server):
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    prompts = [Prompt(q.prompt.messages, (tool,)) for q in QUESTIONS]

    def picky(handler: Handler) -> bool:
        body = handler.body
        if body.get("tool_choice") != "none":
            return status(400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser')(handler)
        if "max_completion_tokens" not in body:
            return status(400, "max_tokens is not supported, use max_completion_tokens instead")(handler)
        return False

    server.faults = {"*": [picky]}
    found = answer(model(server, concurrency=1), prompts, GREEDY, 0)
    assert [a.text for a in found] == [a.text for a in expected().values()]
    assert server.asked.total() == len(prompts) + 2
    assert server.bodies[-1]["tools"] == [tool]


def test_sampling_seeds_differ_by_question_and_stay(server):
    decoding = GREEDY.model_copy(update={"temperature": 1.0})
    answer(model(server), [q.prompt for q in QUESTIONS], decoding, 7)
    first = {b["messages"][-1]["content"]: b["seed"] for b in server.bodies}
    assert len(set(first.values())) == len(QUESTIONS)
    server.bodies.clear()
    answer(model(server), [q.prompt for q in QUESTIONS], decoding, 7)
    assert {b["messages"][-1]["content"]: b["seed"] for b in server.bodies} == first


def test_the_key_goes_to_the_server_and_nowhere_else(server, tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    source = model(server, lines, key_variable="SOME_KEY")
    server.faults = {"question 0;": [status(503, "busy, sk-secret")]}
    gather(source, tmp_path / "a.jsonl", QUESTIONS[:3])
    assert server.keys == {"Bearer sk-secret"}
    shown = "".join([*lines, repr(source.endpoint), str(source.description), (tmp_path / "a.jsonl").read_text()])
    assert "busy" in shown
    assert "sk-secret" not in shown
    server.faults = {"*": [status(401, "Incorrect API key provided: sk-secret")]}
    with pytest.raises(EvaluationError, match=r"refuses the key.*\*\*\*") as told:
        gather(source, tmp_path / "b.jsonl")
    assert "sk-secret" not in str(told.value)
    with pytest.raises(ConfigurationError, match="OTHER_KEY"):
        Endpoint.of(server.url, None, "OTHER_KEY")
    with pytest.raises(ConfigurationError, match="leave the key out"):
        Endpoint.of("http://me:sk-secret@localhost/v1")


def test_fingerprint_is_the_servers_own_word(server):
    first = model(server).fingerprint
    assert model(server).fingerprint == first  # "created" is new every time
    server.models = [{"id": "fake", "object": "model", "root": "/another/checkpoint"}]
    assert model(server).fingerprint != first
    server.models.append({"id": "other"})
    with pytest.raises(ConfigurationError, match="serves 2 models; choose with --model: fake, other"):
        _ = model(server).fingerprint
    with pytest.raises(ConfigurationError, match="did you mean 'fake'"):
        _ = model(server, model="fakee").fingerprint


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://host/api/v3/chat/completions", "https://host/api/v3"),
        ("http://host/v1/models?x=1", "http://host/v1"),
    ],
)
def test_addresses_as_people_write_them(given, base):
    assert Endpoint.of(given).url == base


# --- the whole command, killed -----------------------------------------------------------------------------


def _command(server: Server, out: Path) -> list[str]:
    program = str(Path(sys.executable).with_name("restool"))
    limits = ["--concurrency", "8", "--results", str(out.parent / "results")]
    return [program, "evaluate", "api-bank", "--endpoint", server.url, "--out", str(out), *limits]


def _answers_api_bank(body: dict[str, Any]) -> dict[str, Any]:
    """Some right, some wrong: the user's last call again, and now and then nothing."""
    text = body["messages"][-1]["content"]
    call = text.rpartition("<tool_call>")[2].partition("</tool_call>")[0]
    return chat_reply(f"<tool_call>{call}</tool_call>" if len(text) % 5 else "I cannot.")


def test_killed_and_started_again_it_gives_the_same_result(server, tmp_path, mirror):
    variables = {**os.environ, "RESTOOL_MIRROR": str(mirror)}
    server.reply = _answers_api_bank
    whole = subprocess.run(_command(server, tmp_path / "whole"), env=variables, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    server.asked.clear()
    server.delay = lambda number: 0.02
    killed = subprocess.Popen(_command(server, tmp_path / "killed"), env=variables, stderr=subprocess.DEVNULL)
    path = tmp_path / "killed" / "answers.jsonl"
    while not path.exists() or path.stat().st_size < 40_000:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = files.read_json_lines(path)
    assert 0 < len(before) < 597
    assert not (tmp_path / "killed" / "summary.json").exists()
    time.sleep(0.1)
    server.delay = lambda number: 0.0
    asked = server.asked.total()
    again = subprocess.run(_command(server, tmp_path / "killed"), env=variables, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{len(before)} of 597 answers are there already" in again.stderr
    assert server.asked.total() - asked == 597 - len(before)  # only what is missing
    for name in ("items.jsonl", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    summary = files.read_json(tmp_path / "killed" / "summary.json")
    assert summary["complete"]
    assert summary["source"]["url"] == server.url
    assert 0 < summary["aggregates"]["compat/overall"] < 1


def test_a_server_that_is_not_there_is_one_line(tmp_path, mirror, server):
    gone = server.url
    server.server_close()
    server.url = gone
    variables = {**os.environ, "RESTOOL_MIRROR": str(mirror)}
    done = subprocess.run(_command(server, tmp_path / "out"), env=variables, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("restool: error")]
    assert len(lines) == 1
    assert "does not answer" in lines[0]
