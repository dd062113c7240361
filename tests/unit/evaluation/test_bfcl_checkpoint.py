"""Weights on this machine through the whole command, to its end and again after kill -9: our sampler, vLLM, and vLLM's
own server over HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_caller

from restool import files
from restool.data import api_bank
from restool.evaluation.answering import vllm
from restool.evaluation.bfcl.checker import Checker

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
BASE, FUNC = CATEGORIES = ("multi_turn_base", "multi_turn_miss_func")
LIMIT = 4
ALL = (*CATEGORIES, "simple_python", "live_relevance")
API_BANK = {"level-1/0", "level-2/0", "level-2/1", "level-3/0", "level-3/1"}  # no two of them begin the same


@pytest.fixture(scope="module")
def checkpoint(bfcl_oracle, mirror, tmp_path_factory) -> Path:
    """It knows the first dialogues of one category by heart, but for the last that it is asked; and some of
    API-Bank's."""
    with Checker([BASE]) as checker:
        rows = checker.entries(BASE)[: LIMIT - 1]
    samples = [row for row in api_bank.load_samples(mirror / "api_bank") if row["id"] in API_BANK]
    out = tmp_path_factory.mktemp("checkpoint") / "model"
    return tiny_caller.train(rows, bfcl_oracle(BASE), out, ROOT, samples)


@dataclass(frozen=True)
class Commands:
    """`restool evaluate`; each evaluation has its folder below ``folder``."""

    folder: Path
    variables: dict[str, str]

    def start(self, benchmark: str, name: str, *options: str, categories=ALL) -> subprocess.Popen[str]:
        chosen = [f"eval.bfcl_categories=[{','.join(categories)}]", f"eval.bfcl_limit={LIMIT}", "eval.api_bank_limit=8"]
        chosen += ["eval.bfcl.max_new_tokens=400", "eval.bfcl.batch_tokens=600"]  # several batches a round
        chosen += ["eval.api_bank.max_new_tokens=200"]
        program = str(Path(sys.executable).with_name("restool"))
        places = ["--out", str(self.folder / name), "--results", str(self.folder / "results")]
        whole = [program, "evaluate", benchmark, *options, *places, *chosen]
        return subprocess.Popen(whole, env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, benchmark: str, name: str, *options: str, categories=ALL) -> dict[str, Any]:
        """The summary."""
        process = self.start(benchmark, name, *options, categories=categories)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert output
        return files.read_json(self.folder / name / "summary.json")

    def kill(self, process: subprocess.Popen[str], name: str, lines: int) -> list[dict[str, Any]]:
        """Kill it when so many answers are stored; these."""
        while len(self.answers(name)) < lines:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (self.folder / name / "summary.json").exists()
        return self.answers(name)

    def answers(self, name: str) -> list[dict[str, Any]]:
        return files.read_json_lines(self.folder / name / "answers.jsonl")

    def right(self, name: str) -> dict[str, bool]:
        """Item → verdict (API-Bank's: the stricter one)."""
        rows = files.read_json_lines(self.folder / name / "items.jsonl")
        return {row["id"]: row.get("correct", row.get("strict")) for row in rows}


@pytest.fixture(scope="module")
def commands(tmp_path_factory, mirror) -> Commands:
    variables = {**os.environ, "RESTOOL_MIRROR": str(mirror), "OMP_NUM_THREADS": "1"}
    return Commands(tmp_path_factory.mktemp("evaluations"), variables)


def test_multi_turn_ends_and_after_a_kill_ends_the_same(commands, checkpoint):
    options = ("--checkpoint", str(checkpoint), "--engine", "transformers")
    summary = commands.finish("bfcl", "whole", *options, categories=CATEGORIES)
    assert summary["source"]["engine"] == "transformers"
    assert {name: category["n"] for name, category in summary["categories"].items()} == dict.fromkeys(CATEGORIES, LIMIT)
    assert summary["categories"][BASE]["correct"] == LIMIT - 1
    stored = 0
    for lines in (11, 30):
        rows = commands.kill(commands.start("bfcl", "killed", *options, categories=CATEGORIES), "killed", lines)
        assert len(rows) > stored
        stored = len(rows)
    assert stored < len(commands.answers("whole"))
    commands.finish("bfcl", "killed", *options, categories=CATEGORIES)
    for name in ("answers.jsonl", "items.jsonl", "examples.jsonl", "summary.json"):
        assert (commands.folder / "killed" / name).read_bytes() == (commands.folder / "whole" / name).read_bytes(), name


# --- vLLM on a CPU -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installation() -> vllm.Installation:
    found = vllm.find("cpu")
    if found is None:
        pytest.skip("the environment verl-cpu is not built (restool env build verl-cpu)")
    return found


@pytest.fixture(scope="module")
def by_vllm(commands, checkpoint, installation) -> dict[str, dict[str, Any]]:
    """Benchmark → summary; answered by what the command line takes of its own accord."""
    return {
        name: commands.finish(name, f"vllm-{name}", "--checkpoint", str(checkpoint)) for name in ("bfcl", "api-bank")
    }


def test_where_vllm_is_built_it_answers_with_the_same_verdicts_as_our_sampler(commands, checkpoint, by_vllm):
    assert all(summary["source"]["engine"].startswith("vllm ") for summary in by_vllm.values())
    assert by_vllm["bfcl"]["categories"][BASE]["correct"] == LIMIT - 1
    verdicts = commands.right("vllm-api-bank")
    assert API_BANK <= {name for name, right in verdicts.items() if right} < verdicts.keys()
    for name in by_vllm:
        commands.finish(name, f"own-{name}", "--checkpoint", str(checkpoint), "--engine", "transformers")
        assert commands.right(f"own-{name}") == commands.right(f"vllm-{name}")


@pytest.fixture(scope="module")
def served(checkpoint, installation, tmp_path_factory) -> Iterator[str]:
    """The address of vLLM's OpenAI-compatible server."""
    server = vllm.Server(installation, str(checkpoint), "float32", 8192, tmp_path_factory.mktemp("server") / "log")
    server.wait(print)
    yield server.endpoint.url
    server.stop()


def _count(url: str, metric: str) -> float:
    """The server's own count, over all labels."""
    text = urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=30).read().decode()
    return sum(float(value) for value in re.findall(rf"^vllm:{metric}{{.*}} (\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("interface", ["chat", "completions"])
@pytest.mark.parametrize(("benchmark", "lines"), [("bfcl", 12), ("api-bank", 7)])
def test_a_server_that_is_real_gives_the_same_verdicts_and_is_asked_only_for_what_is_missing(
    commands, checkpoint, served, by_vllm, benchmark, lines, interface
):
    name = f"{interface}-{benchmark}"
    options = ["--endpoint", served, "--concurrency", "2"]
    options += ["--tokenizer", str(checkpoint)] if interface == "completions" else []
    stored = commands.kill(commands.start(benchmark, name, *options), name, lines)
    while _count(served, "num_requests_running") + _count(served, "num_requests_waiting"):
        time.sleep(0.1)
    before = _count(served, "request_success_total")
    assert before > 0
    summary = commands.finish(benchmark, name, *options)
    assert summary["source"]["interface"].startswith(interface)
    answers = commands.answers(name)
    assert answers[: len(stored)] == stored
    assert _count(served, "request_success_total") - before == len(answers) - len(stored) > 5
    assert commands.right(name) == commands.right(f"vllm-{benchmark}")
    scores = ("categories", "aggregates", "intervals")
    unlike = {"parse_failures", "over_length", "force_quits"}  # of wrong answers, which may part in a token
    assert {s: _without(summary[s], unlike) for s in scores} == {
        s: _without(by_vllm[benchmark][s], unlike) for s in scores
    }


def _without(content: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {
        key: _without(value, names) if isinstance(value, dict) else value
        for key, value in content.items()
        if key not in names
    }
