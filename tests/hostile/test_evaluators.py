"""No answer escapes, stops a run, or costs another answer its score."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from restool import environments, files
from restool.evaluation import answering, api_bank, items
from restool.evaluation.bfcl import scoring
from restool.evaluation.bfcl.checker import Checker, Limits
from restool.evaluation.bfcl.fenced import decoding

CATEGORIES = ("simple_python", "simple_javascript", "parallel", "irrelevance", "live_relevance")


@pytest.fixture(scope="module", autouse=True)
def _environment():
    environments.build("bfcl")


def _right(checker: Checker) -> bool:
    """Whether the worker still judges a right answer right."""
    text = json.dumps({"name": "calculate_triangle_area", "parameters": {"base": 10, "height": 5, "unit": "units"}})
    return _check(checker, "simple_python", "simple_python_0", f"<tool_call>\n{text}\n</tool_call>")["correct"]


def _check(checker: Checker, category: str, entry: str, text: str) -> dict:
    (verdict,) = checker.check(category, [(entry, text)])
    return verdict


def test_no_answer_breaks_the_checker(hostile, tmp_path):
    with Checker(list(CATEGORIES)) as checker:
        for category in CATEGORIES:
            entry = checker.entries(category)[0]["id"]
            for name, text in hostile.items():
                verdict = _check(checker, category, entry, text)
                if "relevance" not in category:
                    assert verdict["correct"] is False, name
                files.write_json(tmp_path / "verdict.json", verdict)  # whatever it is, it can be written
        assert _right(checker)


def test_exponential_expression_costs_only_its_own_score():
    """The JavaScript converter's pattern takes hours on this argument, inside one call of C code."""
    limits = Limits(item_seconds=0.5)
    with Checker(["simple_javascript", "simple_python"], limits=limits) as checker:
        entry = _array_entry(checker)
        function = entry["function"][0]
        given = dict.fromkeys(function["parameters"]["properties"], "[[" + "],[" * 500)
        text = f"<tool_call>\n{json.dumps({'name': function['name'], 'parameters': given})}\n</tool_call>"
        verdict = _check(checker, "simple_javascript", entry["id"], text)
        assert verdict["failure"] == "time"
        assert verdict["error_type"] == "failure:time"
        assert checker.restarts == 1
        assert _right(checker)


def _array_entry(checker: Checker) -> dict:
    """A JavaScript entry whose first parameter is an array in the documents without hints."""
    data = next(environments.path("bfcl").glob("lib/python*/site-packages/bfcl_eval/data"))
    for line in (data / "BFCL_v4_simple_javascript.json").read_text().splitlines():
        entry = json.loads(line)
        kinds = [value["type"] for value in entry["function"][0]["parameters"]["properties"].values()]
        if kinds[0] == "array":
            return next(e for e in checker.entries("simple_javascript") if e["id"] == entry["id"])
    raise AssertionError("no such entry")


def test_a_worker_killed_from_outside_costs_nothing():
    with Checker(["simple_python"]) as checker:
        os.kill(checker.pid, signal.SIGKILL)
        assert _right(checker)
        assert checker.restarts == 1


def test_a_worker_that_used_up_its_processor_time_costs_nothing():
    """Many slow answers in a row must not make the next one pay."""
    with Checker(["simple_python"], limits=Limits(processor_seconds=1, item_seconds=30)) as checker:
        for _ in range(500):  # a fast machine takes more of them
            verdict = _check(checker, "simple_python", "simple_python_0", "<tool_call>" + "[1,\n" * 16_000)
            assert verdict["correct"] is False
            assert verdict["failure"] is None
            if checker.restarts:
                break
        assert checker.restarts == 1
        assert _right(checker)


def test_memory_is_limited():
    with Checker(["simple_python"], limits=Limits(memory_bytes=256 << 20)) as checker:
        assert _right(checker)
        status = Path(f"/proc/{checker.pid}/limits").read_text()
        assert str(256 << 20) in status.split("Max address space", 1)[1].splitlines()[0]


def test_walls_hold(tmp_path):
    """The walls themselves, with code behind them that does try: none of it may succeed."""
    import subprocess

    program = """
import json, sys
sys.path.insert(0, sys.argv[1])
import walls
network = walls.cut_network()
walls.set_limits(1 << 30, 60, 1 << 20)
import ctypes, os, shutil, socket, subprocess, urllib.request
walls.seal()
target = sys.argv[2]
attempts = {
    "system": lambda: os.system("touch " + target),
    "process": lambda: subprocess.run(["touch", target]),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/touch", ["touch", target]),
    "write": lambda: open(target, "w"),
    "append": lambda: open(target, "a"),
    "descriptor": lambda: os.open(target, os.O_CREAT | os.O_WRONLY),
    "folder": lambda: os.mkdir(target),
    "remove": lambda: os.remove(__file__),
    "rename": lambda: os.rename(__file__, target),
    "tree": lambda: shutil.rmtree("."),
    "socket": lambda: socket.create_connection(("127.0.0.1", int(sys.argv[3])), 5),
    "name": lambda: socket.getaddrinfo("localhost", 80),
    "page": lambda: urllib.request.urlopen("http://127.0.0.1:" + sys.argv[3]),
    "library": lambda: ctypes.CDLL(None),
    "input": input,
    "debugger": breakpoint,
}
done = []
for name, attempt in attempts.items():
    try:
        attempt()
        done.append(name)
    except walls.Refused:
        pass
print(json.dumps({"done": done, "network": network, "reads": len(open(__file__).read()) > 0}))
"""
    import socket

    script = tmp_path / "program.py"
    script.write_text(program)
    target = tmp_path / "pwned"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        folder = str(Path(decoding.__file__).parent)
        command = [sys.executable, "-I", str(script), folder, str(target), port]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    outcome = json.loads(done.stdout)
    assert outcome["done"] == []
    assert outcome["reads"]
    assert outcome["network"] in ("namespace", "guard")
    assert not target.exists()
    assert script.exists()


def test_namespace_has_no_network_even_without_the_audit_hook(tmp_path):
    import socket
    import subprocess

    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import walls\n"
        "how = walls.cut_network()\n"
        "import socket\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[2])), 5); print(how, 'connected')\n"
        "except OSError: print(how, 'cut')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = [sys.executable, "-I", "-c", program, str(Path(decoding.__file__).parent), port]
        outcome = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if outcome[0] == "guard":
        pytest.skip("this system forbids network namespaces; the audit hook stands alone")
    assert outcome == ["namespace", "cut"]


def test_decoding_never_raises(hostile):
    for text in hostile.values():
        decoded = decoding.decode(text)
        json.dumps(decoded.calls).encode()


def test_api_bank_scores_every_answer(hostile, tmp_path):
    gold = {"name": "f", "parameters": {"x": "1"}}
    sample = api_bank.Sample("level-1/0", "level-1", "", "", gold)
    rows = []
    for name, text in hostile.items():
        row = api_bank.item(sample, answering.GeneratedAnswer(text, 1, True))
        assert not row["compat"], name
        assert not row["strict"], name
        rows.append(row)
    items.write(tmp_path, rows, api_bank.summarize(rows, [sample]))


def test_whole_run_survives_the_corpus(hostile, tmp_path):
    """Answers in the official layout, one per entry, hostile ones among right ones."""
    with Checker(["irrelevance"]) as checker:
        ids = {"irrelevance": [row["id"] for row in checker.entries("irrelevance")][: len(hostile)]}
        answers = [answering.GeneratedAnswer(text, 1, True) for text in hostile.values()]
        found = {"irrelevance": dict(zip(ids["irrelevance"], answers, strict=True))}
        rows, judged = scoring.score(checker, ids, found, lambda line: None)
    summary = scoring.summarize(rows, judged, None)
    items.write(tmp_path, rows, summary)
    assert len(files.read_json_lines(tmp_path / "items.jsonl")) == len(hostile)
    assert summary["categories"]["irrelevance"]["parse_failures"] > 0
    assert summary["complete"] is False
