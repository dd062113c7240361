"""What a plan costs and what a machine lacks: bases of figures, what is done, damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from restool import doctor, files, integrity, planning
from restool.core.errors import ConfigurationError
from restool.experiments import load_plan
from restool.runs import RunDirectory


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """A results folder whose cache holds the plan."""
    folder = tmp_path_factory.mktemp("composed")
    load_plan("test", results=folder, write=False)
    return folder


@pytest.fixture
def plan(composed, tmp_path):
    shutil.copytree(composed, tmp_path / "results")
    return load_plan("test", results=tmp_path / "results")


def by_name(plan):
    return {job.name: job for job in planning.jobs(plan)}


def finish(plan, run_id: str, seconds: float) -> RunDirectory:
    run = RunDirectory(plan.run_path(run_id))
    run.model.mkdir(parents=True)
    (run.model / "config.json").write_text("{}")
    run.metrics_path.write_text('{"step": 1}\n')
    run.finish({"wall_seconds": seconds})
    return run


def test_every_job_of_the_workflow_is_counted_once_and_waits_for_what_it_needs(plan):
    found = by_name(plan)
    assert len(found) == 1 + 5 + 8 + 1 + 3
    assert found["train tiny-grpo-fraction-s0"].after[1:] == ("train tiny-sft-none-s0",)
    assert found["evaluate tiny-grpo-fraction-s0 bfcl-synthetic"].after == ("evaluate tiny-grpo-fraction-s0 held-out",)
    assert set(found["analyze"].after) == set(found) - {"analyze", "report", "track"}
    assert all(job.basis == "assumed" and not job.done for job in found.values())
    total = planning.summary(plan, cores=2)
    assert 0 < total["cpu_hours"] / 2 <= total["wall_hours"] <= total["cpu_hours"]
    assert planning.summary(plan)["wall_hours"] is None


def test_a_finished_run_measures_its_other_seeds_also_in_another_experiment(plan):
    finish(plan, "tiny-grpo-fraction-s0", 720)
    found = by_name(plan)
    assert found["train tiny-grpo-fraction-s0"].done
    for name, job in found.items():
        is_measured = name.startswith("train tiny-grpo")
        assert (job.basis == "measured") == is_measured, name
        assert job.hours == 0.2 or not is_measured
    small = ["experiment.matrix.methods=[grpo]", "experiment.matrix.seeds=[7]", "experiment.name=other"]
    same = load_plan("test", small, results=plan.directory.parent)
    assert by_name(same)["train tiny-grpo-fraction-s7"].basis == "measured"
    longer = load_plan("test", [*small, "training.rl.steps=9"], results=plan.directory.parent)
    assert by_name(longer)["train tiny-grpo-fraction-s7"].basis == "assumed"
    times = plan.directory / "times/evaluate/tiny-grpo-fraction-s0.held-out.tsv"
    files.write_text(times, "s\th:m:s\tmax_rss\n36.0\t0:00:36\t900\n")
    found = by_name(plan)
    assert found["evaluate tiny-rest_fixed-fraction-s1 held-out"].hours == 0.01
    assert found["evaluate tiny-rest_fixed-fraction-s0 bfcl-synthetic"].basis == "assumed"


def test_devices_of_the_papers_jobs_follow_from_the_model(tmp_path):
    one = ["experiment.matrix.models=[qwen3_14b]", "experiment.matrix.methods=[sft,grpo]", "experiment.extra=[]"]
    total = planning.summary(load_plan("paper", one, results=tmp_path), gpus=4, cores=64)
    rows = {(row["kind"], row["model"]): row for row in total["kinds"]}
    assert rows["train rl", "qwen3_14b"]["gpus"] == rows["train sft", "qwen3_14b"]["gpus"] == total["most_gpus"] == 8
    assert rows["evaluate bfcl", "qwen3_14b"]["gpus"] == 1
    assert total["wall_hours"] is None, "four GPUs do not hold it"
    assert total["basis"] == ["assumed"]


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_model_that_no_gpu_holds_alone_is_refused_when_the_local_backend_is_planned(method, tmp_path):
    one = [f"experiment.matrix.methods=[{method}]", "experiment.extra=[]", f"experiment.reference={method}"]
    chosen = [*one, "experiment.matrix.seeds=[0]", "backend=local"]
    with pytest.raises(ConfigurationError, match=rf"{method} on qwen3_8b needs 131 GB .*backend=verl shares") as error:
        load_plan("paper", ["experiment.matrix.models=[qwen3_8b]", *chosen], results=tmp_path)
    assert "\n" not in str(error.value)
    plan = load_plan("paper", ["experiment.matrix.models=[qwen3_4b_2507]", *chosen], results=tmp_path)
    assert {run.resources["gpus"] for run in plan.runs} == {1}


def test_damage_is_found_behind_every_output(plan):
    run = finish(plan, "tiny-grpo-fraction-s0", 1)
    folder = run.evaluation("held-out")
    files.write_text(folder / "items.jsonl", "{}\n")
    files.write_json(folder / "summary.json", {"files": {"items.jsonl": 3}})
    analysis = plan.directory / "analysis"
    files.write_json(analysis / "variance.json", {})
    files.write_json(analysis / "index.json", {"files": {"runs.csv": 5}})
    for name in ("analysis/analyzed.stamp", "analysis/runs.csv", "report.html", "tracked.stamp"):
        files.write_text(plan.directory / name, "a,b\n1" if name.endswith("csv") else "</html>\n")
    files.write_text(plan.directory.parent / "mlflow.db", "x")
    assert integrity.damaged(plan) == {}
    assert not [what for what, ok, _ in doctor.checks(plan) if not ok and "done.json" in what]

    (run.model / "config.json").unlink()
    (folder / "items.jsonl").write_text("")
    (analysis / "variance.json").write_text("{")
    (analysis / "runs.csv").unlink()
    (plan.directory / "report.html").write_text("<html>")
    (plan.directory.parent / "mlflow.db").unlink()
    found = {path.relative_to(plan.directory).as_posix(): problem for path, problem in integrity.damaged(plan).items()}
    assert set(found) == {
        "runs/tiny-grpo-fraction-s0/done.json",
        "runs/tiny-grpo-fraction-s0/eval/held-out/summary.json",
        "analysis/analyzed.stamp",
        "analysis/variance.json",
        "report.html",
        "tracked.stamp",
    }
    assert "config.json is gone" in found["runs/tiny-grpo-fraction-s0/done.json"]
    mended = {what: fix for what, ok, fix in doctor.checks(plan) if not ok}
    assert str(run.path / "done.json") in mended
    assert all(fix for fix in mended.values())


def test_doctor_names_a_command_for_what_is_missing(plan, monkeypatch):
    monkeypatch.setenv("RESTOOL_ENVS", str(Path(plan.directory) / "none"))
    monkeypatch.delenv("RESTOOL_MIRROR", raising=False)
    fixes = {what: fix for what, ok, fix in doctor.checks(plan) if not ok}
    assert fixes["tool environment 'bfcl'"] == "restool env build bfcl"
    (prepared,) = (fix for what, fix in fixes.items() if what.startswith("prepared data"))
    assert prepared.startswith("restool plan test --write && restool prepare --plan ")
    assert json.dumps(fixes)
