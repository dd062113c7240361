"""The experiment of every method leaves none out."""

from __future__ import annotations

from restool import algorithms
from restool.experiments import load_plan


def test_every_method_of_the_registry_is_run_or_excluded_with_a_reason(tmp_path):
    plan = load_plan("methods_tiny", results=tmp_path)
    planned = {run.settings.method.algorithm for run in plan.runs}
    excluded = {entry.method for entry in plan.experiment.excluded if entry.reason}
    assert planned | excluded == set(algorithms.ALGORITHMS)
    assert not planned & excluded


def test_every_trained_method_has_three_seeds_and_is_evaluated(tmp_path):
    plan = load_plan("methods_tiny", results=tmp_path)
    seeds: dict[str, set[int]] = {}
    for run in plan.runs:
        seeds.setdefault(run.settings.method.name, set()).add(run.settings.seed)
        assert "held-out" in run.evaluations
        assert run.kind != "rl" or run.parent == "tiny-sft-none-s0"
    assert {name: found for name, found in seeds.items() if found != {0, 1, 2}} == {"base": {0}}
