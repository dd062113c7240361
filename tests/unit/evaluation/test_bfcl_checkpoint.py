"""Weights on this machine through the whole command: multi-turn BFCL to its end, and again after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_caller

from restool import environments, files
from restool.core.errors import ToolEnvironmentError
from restool.evaluation.bfcl.checker import Checker

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
BASE, FUNC = CATEGORIES = ("multi_turn_base", "multi_turn_miss_func")
LIMIT = 4


@pytest.fixture(scope="module")
def checkpoint(bfcl_oracle, tmp_path_factory) -> Path:
    """It knows the first dialogues of one category by heart, but for the last that it is asked."""
    with Checker([BASE]) as checker:
        rows = checker.entries(BASE)[: LIMIT - 1]
    return tiny_caller.train(rows, bfcl_oracle(BASE), tmp_path_factory.mktemp("checkpoint") / "model", ROOT)


@pytest.fixture
def command(checkpoint, tmp_path, mirror):
    """(name of the output folder, engine) → the running command."""
    program = str(Path(sys.executable).with_name("restool"))
    places = ["--checkpoint", str(checkpoint), "--results", str(tmp_path / "results")]
    chosen = [f"eval.bfcl_categories=[{','.join(CATEGORIES)}]", f"eval.bfcl_limit={LIMIT}"]
    chosen += ["eval.bfcl.max_new_tokens=400", "eval.bfcl.batch_tokens=600"]  # several batches a round
    variables = {**os.environ, "RESTOOL_MIRROR": str(mirror), "OMP_NUM_THREADS": "1"}

    def start(name: str, engine: str = "transformers") -> subprocess.Popen[str]:
        whole = [program, "evaluate", "bfcl", *places, "--out", str(tmp_path / name), "--engine", engine, *chosen]
        return subprocess.Popen(whole, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def _finished(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def test_multi_turn_ends_and_after_a_kill_ends_the_same(command, tmp_path):
    output = _finished(command("whole"))
    assert BASE in output
    summary = files.read_json(tmp_path / "whole" / "summary.json")
    assert summary["source"]["engine"] == "transformers"
    assert {name: category["n"] for name, category in summary["categories"].items()} == dict.fromkeys(CATEGORIES, LIMIT)
    assert summary["categories"][BASE]["correct"] == LIMIT - 1
    path = tmp_path / "killed" / "answers.jsonl"
    stored = 0
    for lines in (11, 30):
        process = command("killed")
        while len(rows := files.read_json_lines(path)) < lines:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(rows) > stored
        stored = len(rows)
    assert stored < len(files.read_json_lines(tmp_path / "whole" / "answers.jsonl"))
    assert not (tmp_path / "killed" / "summary.json").exists()
    _finished(command("killed"))
    for name in ("answers.jsonl", "items.jsonl", "examples.jsonl", "summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_vllm_on_a_cpu_ends_with_the_same_verdicts(command, tmp_path):
    """The command line takes vLLM of its own accord where the environment that has it is built."""
    try:
        environments.python("verl-cpu")
    except ToolEnvironmentError:
        pytest.skip("the environment verl-cpu is not built (restool env build verl-cpu)")
    _finished(command("own"))
    _finished(command("vllm", "auto"))
    summary = files.read_json(tmp_path / "vllm" / "summary.json")
    assert summary["source"]["engine"].startswith("vllm ")
    own, served = ({row["id"]: row for row in files.read_json_lines(tmp_path / name / "items.jsonl")}
                   for name in ("own", "vllm"))  # fmt: skip
    assert {name for name, row in own.items() if row["correct"]} == {n for n, row in served.items() if row["correct"]}
    assert own.keys() == served.keys()
