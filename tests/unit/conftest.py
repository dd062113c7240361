"""Run directories made up of plausible numbers, written as the trainer and the evaluators write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from restool import files, runs
from restool.analysis.experiment import Experiment, Run, load
from restool.evaluation import examples, held_out

REGIONS = ("format", "name", "arguments", "think", "response", "other")
EFFECT = {"grpo": 0.24, "rest_released": 0.12, "rest_fixed": 0.26, "masked_uniform": 0.23}
HOSTILE = {
    "why": "</pre></div><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}\x1b[31m\u202e--> \ud83d",
    "id": "<b id=pwned>",
}
ANSWER = (
    '<think> I look it up. </think>\n<tool_call>\n{"name": "book_hotel", "parameters": {"city": "Rome"}}\n</tool_call>'
)
LABEL = ANSWER.replace("I look it up.", "I should use the appropriate tool.")


def _write_experiment(results: Path, *overrides: str, steps: int = 12, items: int = 60) -> Path:
    """``quick``, planned for real, its runs made up. Returns ``results/quick``."""
    from restool.experiments import load_plan

    plan = load_plan("quick", overrides, results)
    for prepared in plan.prepared_ids:
        manifest = {"name": prepared, "kind": "synthetic", "fingerprint": "f" * 12, "counts": {}, "lengths": {}}
        files.write_json(plan.prepared_path(prepared) / "manifest.json", manifest)
    for run in load(plan.directory).runs:
        write_run(run, steps, items)
    return plan.directory


def write_run(run: Run, steps: int, items: int) -> None:
    lineage = {"data": "f" * 12, "start": "initial"}
    directory = runs.open_run(run.directory.path, run.settings, lineage)
    random = np.random.default_rng(1000 * run.seed + len(run.method))
    rows = [_metrics(run, step, steps, random) for step in range(1, steps + 1)]
    files.write_json_lines(directory.metrics_path, rows)
    if run.kind == "rl":
        files.write_json_lines(directory.rollouts_path, [_rollout(steps)])
    _evaluate(run, items, random)
    directory.finish({"steps": steps})


def _metrics(run: Run, step: int, steps: int, random: np.random.Generator) -> dict[str, float]:
    row = {"step": step, "timestamp": 1.7e9 + 60 * run.seed + step}
    if run.kind == "sft":
        return row | {"loss/sft": 2.0 / step, "grad/norm": 1.0, "learning_rate": 1e-3, "tokens": 900}
    reward = 0.9 + 4 * EFFECT[run.method] * step / steps + random.normal(0, 0.1)
    base = {"format": 0.003, "name": 0.09, "arguments": 0.47, "think": 0.15, "response": 0.23, "other": 0.013}
    regions = {f"entropy/{r}": base[r] * (1 - 0.5 * step / steps) for r in REGIONS}
    if step % 5 == 0:
        regions["entropy/response"] = None  # a step without a response
    weights = {f"weight/{r}": 1.0 for r in REGIONS}
    if run.method != "grpo":
        weights |= {"weight/other": 0.0, "weight/response": 0.0, "weight/name": 1.7, "weight/think": 0.9}
    more = {
        "reward/total": reward,
        "reward/format": 0.95,
        "reward/correctness": reward - 0.95,
        "reward/exact": 0.3,
        "entropy/mean": 0.2,
        "loss/policy": -0.01,
        "grad/norm": 0.5,
        "clip/fraction": 0.004,
        "length/mean": 40.0 - step / steps,
        "length/max": 90,
        "time/sample": 0.3,
        "throughput/tokens_per_second": 9000.0,
        "schedule/reference_step": 105 * step / steps,
        "signal/groups": 0.9,
    }
    return row | regions | weights | more


def _rollout(step: int) -> dict[str, object]:
    offsets = [[i, min(i + 6, len(ANSWER))] for i in range(0, len(ANSWER), 6)]
    answer = {
        "text": ANSWER,
        "ids": list(range(len(offsets))),
        "offsets": offsets,
        "regions": [4] * len(offsets),
        "weights": [1.0] * len(offsets),
        "reward": 4.0,
        "format": 1.0,
        "correctness": 3.0,
        "advantage": 0.7,
        "ground_truth": LABEL,
    }
    worse = answer | {
        "text": "<think> </tool_call> \ud83d <script>alert(1)</script>",
        "reward": -3.0,
        "advantage": -1.2,
    }
    worse |= {"offsets": [[0, 20], [20, len(worse["text"])]], "ids": [1, 2], "regions": [0, 0], "weights": [0.0, 0.0]}
    return {"step": step, "prompt": "<user> Book a hotel in Rome </user>", "answers": [answer, worse]}


def _evaluate(run: Run, items: int, random: np.random.Generator) -> None:
    chance = 0.37 + EFFECT.get(run.method, 0.0) + (0.02 * random.standard_normal() if run.kind == "rl" else 0)
    rows = [
        _item(split, mode, number, chance - 0.1 * (mode == "sampled"), random)
        for split in ("held_out", "transfer")
        for mode in ("greedy", "sampled")
        for number in range(items)
    ]
    names = {f"{row['split']}/{row['mode']}" for row in rows}
    categories = {name: {"n": items, "correct": 1, "accuracy": 1 / items, "interval": [0, 1]} for name in names}
    seen = {"contaminated": 1, "kinds": {"question_and_tools": 1, "question": 0, "tools": 5}}
    seen["rest"] = {"n": items - 1, "correct": 1, "accuracy": 1 / (items - 1), "interval": [0, 1]}
    record = {"checked": True, "reason": None, "trained_on": [{}], "items": 2 * items, "duplicates": 0, **seen}
    record["categories"] = {name: seen if name == "held_out/greedy" else {**seen, "contaminated": 0} for name in names}
    _summary(run, "held-out", categories, {}, rows, metrics=held_out.METRICS, contamination=record)
    wrong = [row | HOSTILE for row in rows if row["failure_kind"]]
    shown = [examples.Shown(HOSTILE["why"], HOSTILE["why"], HOSTILE["why"]) for _ in wrong]
    chosen = examples.choose(wrong, shown)
    files.write_json_lines(run.directory.evaluation("held-out") / "examples.jsonl", chosen)
    one = {"n": 50, "correct": 20, "accuracy": 0.4, "interval": [0.3, 0.5], "parse_failures": 1, "over_length": 0}
    _summary(run, "bfcl-synthetic", {"simple": one}, {"overall": 0.4}, [])
    if "api-bank" in run.evaluations:
        none = {**one, "correct": 0, "accuracy": 0.0}
        _summary(run, "api-bank", {"compat/level-1": none, "compat/level-3": none}, {"compat/overall": 0.0}, [])
    if "bfcl" in run.evaluations:
        reason = {"complete": False, "not_run": "BFCL's data is not reachable"}
        _summary(run, "bfcl", {}, {}, [], **reason)


def _item(split: str, mode: str, number: int, chance: float, random: np.random.Generator) -> dict[str, object]:
    tool = number % 10 != 0
    right = bool(random.random() < chance)
    opportunities = [["name"], ["think", "arguments"], []][number % 3] if tool else []
    return {
        "id": f"{split}-{number}",
        "category": f"{split}/{mode}",
        "overlap": "question_and_tools" if (split, mode, number) == ("held_out", "greedy", 0) else None,
        "failure_kind": None if right or not tool else ("tool name", "number of calls")[number % 2],
        "why": None if right or not tool else "calls book_table, expected book_hotel",
        "split": split,
        "mode": mode,
        "kind": "one_call" if tool else "no_tool",
        "opportunities": opportunities,
        "format": 1.0,
        "correctness": 3.0 if right and tool else 0.0,
        "total": 4.0 if right and tool else 1.0,
        "exact": right or not tool,
        "tool": tool,
        "tool_exact": right and tool,
        "right": dict.fromkeys(opportunities, right),
        "parse_failure": False,
        "over_length": False,
        "tokens": 40,
        "finished": True,
    }


def _summary(run: Run, benchmark: str, categories: dict, aggregates: dict, rows: list, **more: object) -> None:
    folder = run.directory.evaluation(benchmark)
    files.write_json_lines(folder / "items.jsonl", rows)
    content = {"benchmark": benchmark, "version": "1", "categories": categories, "aggregates": aggregates}
    files.write_json(folder / "summary.json", {**content, "complete": True, **more})


def write_variance(experiment_dir: Path) -> None:
    """The record of `restool analyze variance`, made up."""
    names = ("uniform", "masked_uniform", "released_0", "released_105", "inverse_entropy")
    weightings = [
        {
            "name": name,
            "title": name,
            "fitted": name == "inverse_entropy",
            "variance_ratio": 1 - 0.1 * i,
            "variance_low": 0.9 - 0.1 * i,
            "variance_high": 1.1 - 0.1 * i,
            "cosine": 1 - 0.1 * i,
            "cosine_low": 0.9 - 0.1 * i,
            "cosine_high": 1.0 - 0.05 * i,
            "snr": 0.1 * i,
            "snr_low": -0.1,
            "snr_high": 0.2 * i,
        }
        for i, name in enumerate(names)
    ]
    lemma = {"tokens": 900, "expected": 0.1, "sampled": 0.101, "standard_error": 0.003, "bound": 0.15, "violations": 0}
    record = {
        "model": "results/quick/runs/tiny-sft-none-s0/model",
        "prompts": 24,
        "samples": 8,
        "prompts_with_signal": 20,
        "projection": 4096,
        "batch": 64,
        "weightings": weightings,
        "entropy": dict.fromkeys(REGIONS, 0.1),
        "beta": dict.fromkeys(REGIONS, 30.0),
        "tokens": dict.fromkeys(REGIONS, 100),
        "lemma2": {"all": lemma, **dict.fromkeys(REGIONS, lemma)},
        "cpu_seconds": 20.0,
    }
    files.write_json(experiment_dir / "analysis" / "variance.json", record)


@pytest.fixture(scope="session")
def _made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = _write_experiment(tmp_path_factory.mktemp("made-up") / "results")
    write_variance(directory)
    return directory


@pytest.fixture
def write_experiment() -> Callable[..., Path]:
    """``(results, *overrides, steps, items) -> results/quick``, made up."""
    return _write_experiment


@pytest.fixture
def quick(_made_up: Path, tmp_path: Path) -> Path:
    """A fresh copy of a finished ``quick`` experiment's folder."""
    shutil.copytree(_made_up.parent, tmp_path / "results")
    return tmp_path / "results" / "quick"


@pytest.fixture
def experiment(quick: Path) -> Experiment:
    return load(quick)


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict], None]], None]:
    """Change a JSON file in place."""

    def change(path: Path, how: Callable[[dict], None]) -> None:
        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))

    return change
