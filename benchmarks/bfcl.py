"""Speed of scoring BFCL behind the fence and of driving its episodes, against the official code on the same answers.

    python benchmarks/bfcl.py [--at-most-single 5] [--at-most-episodes 30] [--at-most-request 1]

Prints CPU seconds (start of the processes included), memory of the worker, and the ratio to bfcl-eval's runner, which
loads the same data in a process of its own (environment ``bfcl-official``; left out where that is not built). Answers
are those of the official ground truth. Exit status 1 if something exceeds its limit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "unit" / "evaluation"))
from bfcl_texts import oracle

from restool import environments, files
from restool.core.errors import ToolEnvironmentError
from restool.evaluation import bfcl
from restool.evaluation.answering import GeneratedAnswer, Prompt, answer_keys
from restool.evaluation.bfcl import crosscheck, episodes, prompts, results
from restool.evaluation.bfcl.aggregates import MULTI_TURN, SINGLE_TURN
from restool.evaluation.bfcl.checker import Checker
from restool.experiments import compose_run

MEMORY_MB = 500


def main() -> int:
    options = _options()
    data = next(environments.build("bfcl").parents[1].glob("lib/python*/site-packages/bfcl_eval/data"))
    answers = {name: oracle(data, name) for name in (*SINGLE_TURN, *MULTI_TURN)}
    slow = False
    for title, categories, most in (
        (f"{sum(len(answers[name]) for name in SINGLE_TURN)} single-turn answers", SINGLE_TURN, options.at_most_single),
        (f"{sum(len(answers[name]) for name in MULTI_TURN)} episodes", MULTI_TURN, options.at_most_episodes),
    ):
        ours, official = _scored({name: answers[name] for name in categories})
        ratio = f", official runner {official:.2f} s, ratio {ours / official:.2f}" if official else ""
        print(f"scoring {title}: {ours:.2f} CPU seconds{ratio}")
        slow |= ours > most
    requests, driven, memory = _driven({name: turns for c in MULTI_TURN for name, turns in answers[c].items()})
    print(f"driving them: {requests} requests, {1000 * driven / requests:.3f} CPU milliseconds each, tools included")
    print(f"memory of the worker with all episodes alive: {memory:.0f} MB")
    return int(slow or 1000 * driven / requests > options.at_most_request or memory > MEMORY_MB)


def _scored(answers: dict[str, dict[str, Any]]) -> tuple[float, float | None]:
    """CPU seconds of our evaluation and of the official runner's."""
    settings = compose_run([])
    chosen = settings.eval.model_copy(update={"bfcl_categories": list(answers)})
    settings = settings.model_copy(update={"eval": chosen})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results.write(folder, answers)
        files.write_json(folder / "manifest.json", {"skeleton": None})
        given = {"answers": folder / "result", "report": lambda line: None}
        ours = _seconds(lambda: bfcl.evaluate(None, folder, folder / "out", settings, **given))
        try:
            python = environments.python("bfcl-official")
        except ToolEnvironmentError:
            return ours, None
        return ours, _seconds(lambda: crosscheck.official(python, answers, partial=False))


def _driven(script: dict[str, list[list[str]]]) -> tuple[int, float, float]:
    """(requests, CPU seconds of driver and tools, memory of the worker in MB), one call an answer."""
    asked, fingerprint, decoding = [], "script", compose_run([]).eval.bfcl

    def ask(questions: Any) -> list[GeneratedAnswer]:
        asked.extend(questions)
        answer_keys(fingerprint, questions, decoding, 0)  # what remembering the answers costs
        places = (question.id.split("/") for question in questions)
        return [GeneratedAnswer(script[entry][int(turn)][int(step)], 1, True) for entry, turn, step in places]

    with Checker(list(MULTI_TURN)) as checker:
        entries = {name: checker.entries(name) for name in MULTI_TURN}
        before, mine = _processor(checker.pid), time.process_time()
        episodes.run(entries, checker, lambda row, messages: Prompt.of("tools", prompts.user(messages)), ask)
        spent = time.process_time() - mine + _processor(checker.pid) - before
        status = Path(f"/proc/{checker.pid}/status").read_text()
    return len(asked), spent, int(status.split("VmHWM:")[1].split()[0]) / 1024


def _seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of ``run``, of the processes that it starts too."""

    def spent() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    before = spent()
    run()
    return spent() - before


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at-most-single", type=float, default=5.0, help="CPU seconds for all single-turn answers")
    parser.add_argument("--at-most-episodes", type=float, default=30.0, help="CPU seconds for all episodes")
    parser.add_argument("--at-most-request", type=float, default=1.0, help="CPU milliseconds for one request")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
