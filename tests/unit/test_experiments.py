"""Matrix → runs: expansion, caching, selectivity and one-line errors."""

from __future__ import annotations

import json
import shutil

import pytest

from restool import experiments, planning
from restool.core.errors import ConfigurationError
from restool.experiments import load_plan, read_plan


@pytest.fixture
def own_configs(tmp_path, monkeypatch):
    """A private copy of configs/ that a test may edit."""
    shutil.copytree(experiments.configs_directory(), tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "configs"


def test_quick_expands_to_paired_seeds_from_one_sft_run(tmp_path):
    plan = load_plan("quick", results=tmp_path)
    rl = [run for run in plan.runs if run.kind == "rl"]
    assert {run.parent for run in rl} == {"tiny-sft-none-s0"}
    assert plan.runs[0].id == "tiny-sft-none-s0"
    methods = {run.settings.method.name for run in rl}
    assert methods >= {"grpo", "rest_released", "rest_fixed", "masked_uniform"}
    assert len(rl) == len(methods) * len(plan.experiment.matrix.seeds)
    assert len(plan.experiment.matrix.seeds) >= 3


@pytest.mark.parametrize("name", experiments.experiment_names())
def test_every_experiment_expands_and_plans(tmp_path, name):
    plan = load_plan(name, results=tmp_path)
    total = planning.summary(plan)
    assert total["runs"] == len(plan.runs) > 0
    assert read_plan(plan.path).runs == plan.runs


def test_a_second_load_needs_no_hydra(tmp_path, monkeypatch):
    first = load_plan("quick", results=tmp_path)
    monkeypatch.setattr(experiments, "_hydra", None)
    assert load_plan("quick", results=tmp_path) == first


def test_a_plan_is_read_with_one_object_for_what_runs_share(tmp_path):
    plan = load_plan("quick", results=tmp_path)
    assert len({id(run.config["eval"]) for run in plan.runs}) == len({str(run.config["eval"]) for run in plan.runs})
    assert len({id(run.config["method"]) for run in plan.runs}) < len(plan.runs)


def test_a_plans_file_has_a_line_for_each_run(tmp_path):
    plan = load_plan("quick", results=tmp_path)
    lines = [line for line in plan.path.read_text().splitlines() if '"config_hash"' in line]
    assert [json.loads(line.rstrip(","))["id"] for line in lines] == [run.id for run in plan.runs]


def test_one_methods_value_changes_only_its_runs(own_configs, tmp_path):
    before = {run.id: run.config_hash for run in load_plan("quick", results=tmp_path / "r").runs}
    method = own_configs / "method" / "rest_fixed.yaml"
    text = method.read_text()
    method.write_text(text + "\nclip_high: 0.3\n")
    after = {run.id: run.config_hash for run in load_plan("quick", results=tmp_path / "r").runs}
    assert {i for i in before if before[i] != after[i]} == {i for i in before if "rest_fixed" in i}
    method.write_text(text)
    assert {r.id: r.config_hash for r in load_plan("quick", results=tmp_path / "r").runs} == before


def test_overrides_reach_runs_and_the_experiment(tmp_path):
    plan = load_plan("quick", ["training.rl.steps=5", "experiment.matrix.seeds=[4]"], results=tmp_path)
    assert {run.settings.training.rl.steps for run in plan.runs} == {5}
    assert {run.settings.seed for run in plan.runs if run.kind == "rl"} == {4}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.rl.stepz=5"], "training.rl.steps"),
        (["training.rl.steps=five"], r"training\.rl\.steps.*'five'"),
        (["method=grpp"], "did you mean 'grpo'"),
        (["experiment.matrix.seedz=[1]"], "seedz"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_overrides_are_named_with_the_nearest_valid_one(tmp_path, overrides, message):
    with pytest.raises(ConfigurationError, match=message) as error:
        load_plan("quick", overrides, results=tmp_path)
    assert "\n" not in str(error.value)


def test_an_unknown_experiment_is_answered_with_the_list(tmp_path):
    with pytest.raises(ConfigurationError, match=r"did you mean 'quick'.*there are: "):
        load_plan("quik", results=tmp_path)


@pytest.mark.parametrize("runs", ["[]", '[{"config_hash": "1"}]', '[{"config": []}]'])
def test_a_plan_of_another_version_is_refused(tmp_path, runs):
    (tmp_path / "plan.json").write_text(f'{{"version": 0, "runs": {runs}}}')
    with pytest.raises(ConfigurationError, match="another version"):
        read_plan(tmp_path / "plan.json")


def test_variance_is_measured_where_rl_starts(tmp_path):
    assert load_plan("quick", results=tmp_path).variance_subject.parent == "tiny-sft-none-s0"
    assert load_plan("rlla_tiny", results=tmp_path).variance_subject is None
