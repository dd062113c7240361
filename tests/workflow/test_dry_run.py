"""What Snakemake would do, through its own command line."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from restool.costs import evaluation_resources, resources

pytestmark = pytest.mark.end_to_end

SOURCE = Path(__file__).resolve().parents[2] / "src"


def jobs(output: str) -> dict[str, int]:
    """The table of jobs that a dry run prints."""
    table = output.split("Job stats:")[1].split("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def job_messages(output: str) -> set[str]:
    return set(re.findall(r"^Job \d+: (.*)$", output, re.MULTILINE))


def test_bare_call_plans_the_default_experiment_with_the_default_profile(clone):
    done = clone.snakemake("-n")
    assert done.status == 0, done.output
    assert "profiles/default" in done.output
    planned = jobs(done.output)
    plan = json.loads((clone.path / "results/quick/plan.json").read_text())
    assert planned["train"] == len(plan["runs"]) == 13
    assert planned["evaluate"] == sum(len(run["evaluations"]) for run in plan["runs"]) >= 2 * 13
    assert planned["prepare"] == planned["variance"] == planned["report"] == planned["track"] == 1


@pytest.mark.parametrize("experiment", ["rlla_tiny", pytest.param("paper", marks=pytest.mark.slow)])
def test_other_experiments_expand_and_dry_run(clone, experiment):
    done = clone.snakemake("-n", "--config", f"experiment={experiment}")
    assert done.status == 0, done.output
    plan = json.loads((clone.path / f"results/{experiment}/plan.json").read_text())
    planned = jobs(done.output)
    assert planned["train"] == len(plan["runs"]) > 0
    evaluations = sum(count for name, count in planned.items() if name.startswith("evaluate"))
    assert evaluations == sum(len(run["evaluations"]) for run in plan["runs"])


def test_bare_profile_name_resolves_in_a_fresh_clone_with_an_empty_home(clone):
    done = clone.snakemake("--profile", "slurm", "-n")
    assert done.status == 0, done.output
    assert "Using profiles slurm and workflow specific profile profiles/default" in done.output
    assert list(clone.home.iterdir()) in ([], [clone.home / ".cache"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiment=qick"], "unknown experiment 'qick' (did you mean 'quick'?); there are: "),
        (["experimnt=quick"], "unknown key 'experimnt' (did you mean 'experiment'?)"),
        (["experiment=5"], "key 'experiment': "),
        (["overrides=[training.rl.stpes=5]"], "did you mean 'training.rl.steps'?"),
        (["overrides=[training.rl.steps=many]"], "key 'training.rl.steps': "),
        (["overrides=[method=rest_fixd]"], "unknown method 'rest_fixd' (did you mean 'rest_fixed'?)"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line_before_any_job(clone, arguments, expected):
    done = clone.snakemake("-n", "--config", *arguments)
    lines = [line for line in done.output.splitlines() if not line.startswith("Using workflow specific profile")]
    assert done.status == 2
    assert len(lines) == 1, done.output
    assert lines[0].startswith("restool: ")
    assert expected in lines[0]
    assert not (clone.path / "results/quick/runs").exists()


def test_an_unknown_key_in_a_configuration_file_is_named(clone):
    with (clone.path / "configs/method/rest_fixed.yaml").open("a") as file:
        file.write("\nclip_hgih: 0.3\n")
    done = clone.snakemake("-n")
    assert done.status == 2
    assert "method.clip_hgih" in done.output
    assert "clip_high" in done.output


def test_only_what_an_edit_decides_runs_again_and_reverting_runs_nothing(clone):
    shutil.copytree(SOURCE, clone.path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    own = {"PYTHONPATH": str(clone.path / "src"), **own_environments(clone)}
    outputs = pretend_everything_is_done(clone, **own)
    runs = json.loads((clone.path / "results/quick/plan.json").read_text())["runs"]
    assert len(outputs) > len(runs) + sum(len(run["evaluations"]) for run in runs)
    assert "Nothing to be done" in clone.snakemake("-n", **own).output
    last = {"Report", "Import into MLflow", "quick: the report is results/quick/report.html"}

    with edited(clone, "configs/method/rest_fixed.yaml", "\nclip_low: 0.11\n"):
        planned = job_messages(clone.snakemake("-n", **own).output)
    trained = {m for m in planned if m.startswith("Train")}
    assert trained == {f"Train tiny-rest_fixed-fraction-s{s}" for s in range(3)}
    others = planned - trained - last - {"Tables and figures"}
    assert others
    assert all(m.startswith("Evaluate tiny-rest_fixed") for m in others)
    assert planned >= {*last, "Tables and figures"}

    assert "Nothing to be done" in clone.snakemake("-n", **own).output, "edited back"

    clone.replace("configs/eval/tiny.yaml", "seed: 7", "seed: 8")
    planned = job_messages(clone.snakemake("-n", **own).output)
    assert not any(m.startswith("Train") for m in planned)
    assert sum(m.startswith("Evaluate") for m in planned) == sum(len(run["evaluations"]) for run in runs)
    clone.replace("configs/eval/tiny.yaml", "seed: 8", "seed: 7")

    more = clone.snakemake("-n", "--config", 'overrides=["experiment.matrix.seeds=[0,1,2,3]"]', **own)
    trained = {m for m in job_messages(more.output) if m.startswith("Train")}
    assert len(trained) == 4
    assert all(m.endswith("-s3") for m in trained)

    with edited(clone, "src/restool/analysis/drawing.py", "\n# another colour\n"):
        assert job_messages(clone.snakemake("-n", **own).output) == {*last, "Tables and figures"}

    (clone.path / "results/quick/runs/tiny-grpo-fraction-s1/done.json").unlink()
    planned = job_messages(clone.snakemake("-n", **own).output)
    assert {m for m in planned if m.startswith("Train")} == {"Train tiny-grpo-fraction-s1"}, "a lost result is noticed"
    assert all("tiny-grpo-fraction-s1" in m for m in planned - last - {"Tables and figures"})


@contextmanager
def edited(clone, path: str, more: str):
    """Text appended to a file, for a while."""
    before = (clone.path / path).read_text()
    (clone.path / path).write_text(before + more)
    yield
    (clone.path / path).write_text(before)


def own_environments(clone) -> dict[str, str]:
    """What is pretended here must not touch the tool environments that other tests use."""
    return {"RESTOOL_ENVS": str(clone.path / "environments")}


def pretend_everything_is_done(clone, *request: str, **variables: str) -> list[str]:
    """Put an empty file at every output and have Snakemake record it as made with the current parameters."""
    chosen = ("--config", *(request or ["experiment=quick"]))
    summary = clone.snakemake("--summary", *chosen, **variables)
    outputs = [line.split("\t")[0] for line in summary.output.splitlines()[1:]]
    for output in outputs:
        if output.endswith("/figures"):  # the one output that is a folder
            (clone.path / output).mkdir(parents=True)
        else:
            clone.write(output, "{}\n")
    touched = clone.snakemake("--touch", *chosen, **variables)
    assert touched.status == 0, touched.output[-2000:]
    return outputs


def test_lint_finds_nothing_but_the_known_exception(clone):
    """Every rule runs in the one environment that Snakemake itself runs in, so none names its own."""
    done = clone.call("snakemake", "--lint")
    complaints = {line.strip() for line in done.output.splitlines() if line.strip().startswith("*")}
    assert complaints <= {"* Specify a conda environment or container for each rule.:"}


OVER_NODES = ",".join(
    f"{{models: [qwen3_14b], methods: [{method}], schedules: [step], seeds: [0], overrides: {values}}}"
    for method, values in [
        ("grpo", ["data=rlla_4k", "training=paper", "eval=paper", "backend=verl_2nodes"]),
        ("dr_grpo", ["data=rlla_4k", "training=paper", "eval=paper", "backend=verl_cpu", "backend.verl.nodes=2"]),
    ]
)


def test_slurm_jobs_ask_for_what_the_site_file_and_the_run_say(clone):
    """The real plugin against an `sbatch` that notes its arguments and refuses."""
    clone.write(
        "workflow/profiles/slurm/site.yaml",
        "account: lab\npartition: cpus\ngpu_partition: gpus\ngpu_model: h100\nmemory_factor: 2\n",
    )
    for program, script in [
        ("sbatch", 'printf "%s\\n" "$*" >> sbatch.log; exit 1'),
        ("sacctmgr", "echo lab"),
        ("sacct", "exit 0"),
        ("squeue", "exit 0"),
        ("scontrol", "exit 0"),
    ]:
        clone.write(f"bin/{program}", f"#!/bin/sh\n{script}\n")
        (clone.path / "bin" / program).chmod(0o755)
    several = ["matrix.models=[qwen3_14b]", "matrix.methods=[base,rest_fixed]", f"extra=[{OVER_NODES}]"]
    request = ["experiment=paper", f"overrides={json.dumps([f'experiment.{value}' for value in several])}"]
    outputs = pretend_everything_is_done(clone, *request, **own_environments(clone))
    done_file = next(path for path in outputs if "14b-rest_fixed" in path and path.endswith("s0/done.json"))
    plan = json.loads((clone.path / "results/paper/plan.json").read_text())
    run = next(run for run in plan["runs"] if f"/{run['id']}/" in done_file)
    wanted = [done_file, "results/paper/runs/qwen3_14b-base-none-s0/eval/api-bank/summary.json"]
    wanted += [f"results/paper/runs/qwen3_14b-{method}-step-s0/done.json" for method in ("grpo", "dr_grpo")]
    for name in wanted:
        (clone.path / name).unlink()
    path = f"{clone.path / 'bin'}:{clone.variables['PATH']}"
    arguments = ["--config", *request, "--profile", "slurm", "--retries", "0"]
    clone.snakemake(*wanted, *arguments, PATH=path, **own_environments(clone))
    submitted = (clone.path / "sbatch.log").read_text().splitlines()
    training = next(line for line in submitted if "rule_train" in line and "14b-rest_fixed-" in line)
    needed = resources(run["config"], run["kind"])
    assert f"--gpus=h100:{needed['gpus']}" in training
    assert f"--mem {2 * needed['mem_mb']} " in training
    assert f"-t {needed['runtime']} " in training
    assert f"--cpus-per-task={needed['threads']}" in training
    assert "--nodes=1" in training
    assert "ntasks-per-gpu" not in training
    assert "-A lab" in training
    assert re.search(r"-p '?gpus'?", training)
    evaluation = next(line for line in submitted if "rule_evaluate" in line)
    base = next(run for run in plan["runs"] if run["id"] == "qwen3_14b-base-none-s0")
    asked = evaluation_resources(base["config"], "api-bank", asks=True)
    assert f"--gpus=h100:{asked['gpus']}" in evaluation
    assert f"--mem {2 * asked['mem_mb']} " in evaluation
    assert f"--cpus-per-task={asked['threads']}" in evaluation
    on_gpus, on_cpus = (next(line for line in submitted if f"14b-{name}-" in line) for name in ("grpo", "dr_grpo"))
    assert "--nodes=2 " in on_gpus
    assert "--gres=gpu:h100:8" in on_gpus, "of each node"
    assert "--gpus" not in on_gpus
    assert "--ntasks" not in on_gpus, "one a node is what Slurm takes"
    assert "--nodes=2 --ntasks=2 " in on_cpus
    assert "--gpus" not in on_cpus
    assert "--gres" not in on_cpus


def test_more_gpus_than_a_node_of_the_cluster_has_are_one_line(clone):
    clone.write("workflow/profiles/slurm/site.yaml", "gpus_per_node: 4\n")
    one = ["experiment.matrix.models=[qwen3_14b]", "experiment.matrix.methods=[grpo]", "experiment.matrix.seeds=[0]"]
    overrides = [*one, "experiment.extra=[]", "experiment.variance=null", "backend=verl"]
    request = ["experiment=paper", f"overrides={json.dumps(overrides)}"]
    done = clone.snakemake("-n", "--profile", "slurm", "--config", *request)
    assert done.status == 2
    assert "backend.verl.gpus_per_node=8, but a node here has 4" in done.output
    assert "Traceback" not in done.output


def test_unknown_site_key_is_one_line(clone):
    clone.write("workflow/profiles/slurm/site.yaml", "acount: lab\n")
    done = clone.snakemake("-n")
    assert done.status == 2
    assert "acount" in done.output
    assert "account" in done.output
