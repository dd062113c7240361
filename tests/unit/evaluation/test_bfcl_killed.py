"""The whole command on multi-turn dialogues, killed in the middle of rounds and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bfcl_texts import DONE, answer
from openai_server import chat_reply

from restool import files
from restool.evaluation.bfcl import prompts
from restool.evaluation.bfcl.checker import Checker

BASE = "multi_turn_base"
EPISODES = 6
LS = answer([{"name": "ls", "parameters": {}}])


@pytest.fixture(scope="module")
def policy(bfcl_oracle):
    """What the server's model answers to a prompt: the right calls of the turn that it asks for, then no call. Every
    third dialogue gets another call instead."""
    with Checker([BASE]) as checker:
        entries = checker.entries(BASE)[:EPISODES]
    oracle = bfcl_oracle(BASE)
    answers = {
        messages[-1]["content"].strip(): LS if number % 3 == 2 else texts[0]
        for number, row in enumerate(entries)
        for messages, texts in zip(row["question"], oracle[row["id"]], strict=True)
    }
    assert len(answers) == sum(len(row["question"]) for row in entries)

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        if text.endswith(f"<user> {prompts.AFTER_TOOL} </user>"):
            return chat_reply(DONE)
        said = text.rpartition("<user> ")[2].removesuffix(f"\n{prompts.HINT} </user>")
        return chat_reply(answers[said])

    return reply


@pytest.fixture
def command(server, tmp_path, mirror):
    """name of the output folder → the command, its environment."""
    program = str(Path(sys.executable).with_name("restool"))
    options = ["--endpoint", server.url, "--concurrency", "2", "--results", str(tmp_path / "results")]
    chosen = [f"eval.bfcl_categories=[{BASE}]", f"eval.bfcl_limit={EPISODES}"]
    variables = {**os.environ, "RESTOOL_MIRROR": str(mirror)}

    def start(name: str) -> subprocess.Popen[str]:
        whole = [program, "evaluate", "bfcl", *options, "--out", str(tmp_path / name), *chosen]
        return subprocess.Popen(whole, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    return start


def _finished(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def _killed_after(process: subprocess.Popen[str], server, path: Path, answered: int) -> list[dict[str, Any]]:
    """Kill the command, workers and all left to themselves, when ``answered`` answers lie in ``path`` and the next
    ones are being waited for; what was stored by then."""
    gate = threading.Event()
    served = server.asked.total() + answered - len(files.read_json_lines(path))
    server.faults["*"] = [lambda handler: handler.number > served and gate.wait(60) and False]
    deadline = time.monotonic() + 60
    while len(rows := files.read_json_lines(path)) < answered or server.asked.total() < served + 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    del server.faults["*"]
    gate.set()
    assert workers
    while any(map(_is_there, workers)):
        assert time.monotonic() < deadline, "a checker outlives the command"
        time.sleep(0.02)
    return rows


def _children(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [below for child in found for below in _children(child)]


def _is_there(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_killed_in_the_middle_of_rounds_it_ends_as_if_undisturbed(server, command, policy, tmp_path):
    """Every answer that was stored is used again, also those of half a round; every other is asked for once."""
    server.reply = policy
    _finished(command("whole"))
    whole = server.asked.total()
    summary = files.read_json(tmp_path / "whole" / "summary.json")
    assert summary["categories"][BASE]["correct"] == 4
    server.asked.clear()
    path, out = tmp_path / "killed" / "answers.jsonl", tmp_path / "killed"
    first = _killed_after(command("killed"), server, path, 2 * EPISODES + 3)
    second = _killed_after(command("killed"), server, path, 4 * EPISODES + 1)
    for rows, rounds in ((first, 2), (second, 4)):
        assert len({row["id"].partition("/")[0] for row in rows}) == EPISODES
        assert len(rows) % EPISODES, f"not in the middle of round {rounds + 1}"
    assert second[: len(first)] == first
    assert not (out / "summary.json").exists()
    server.asked.clear()
    _finished(command("killed"))
    assert server.asked.total() == whole - len(second)
    for name in ("items.jsonl", "examples.jsonl", "summary.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    written = f"result/restool/multi_turn/BFCL_v4_{BASE}_result.json"
    assert (out / written).read_bytes() == (tmp_path / "whole" / written).read_bytes()
