"""The experiment that was asked for: its plan, the paths of its parts, and what its jobs need.

No rules here; the rule files use these names. A request that cannot be met ends here, in one line, before any job.
"""

import os
import sys
from pathlib import Path

import yaml

from restool import environments, files
from restool.core.errors import RestoolError
from restool.experiments import load_plan
from restool.settings import SiteSettings, WorkflowSettings, validate as validated


def stop(problem):
    """End Snakemake with one line and status 2 instead of a trace."""
    print(f"restool: {problem}", file=sys.stderr)
    sys.stderr.flush()
    sys.exit(2)


def read_site():
    """This cluster's names, if somebody wrote them down."""
    path = Path(workflow.basedir) / "workflow" / "profiles" / "slurm" / "site.yaml"
    return validated(yaml.safe_load(path.read_text()) or {} if path.exists() else {}, SiteSettings)


try:
    request = validated(dict(config), WorkflowSettings)
    site = read_site()
    plan = load_plan(request.experiment, request.overrides)
except RestoolError as error:
    stop(error)


# Jobs use the `restool` of the environment that Snakemake runs in, activated or not, wherever they land.
shell.prefix(f'export PATH="{Path(sys.executable).parent}:$PATH"; ')

DIRECTORY = plan.directory.as_posix()
PLAN = plan.path.as_posix()  # never an input: it changes with any part of the configuration
PREPARED = f"{plan.directory.parent}/prepared/{{prepared}}/manifest.json"
RUN = f"{DIRECTORY}/runs/{{run}}"
TRAINED = f"{RUN}/done.json"
SUMMARY = f"{RUN}/eval/{{benchmark}}/summary.json"
ANALYSIS = f"{DIRECTORY}/analysis"
ANALYZED = f"{ANALYSIS}/analyzed.stamp"
VARIANCE = f"{ANALYSIS}/variance.json"
REPORT = f"{DIRECTORY}/report.html"
TRACKED = f"{DIRECTORY}/tracked.stamp"
LOGS = f"{DIRECTORY}/logs"
TIMES = f"{DIRECTORY}/times"
ENVIRONMENT = os.path.join(os.path.relpath(environments.root()), "{name}-{version}", environments.STAMP)


wildcard_constraints:
    run="[^/]+",
    prepared="[^/]+",
    version="[0-9a-f]+",


def prepared_of(run):
    """Manifest of the data that a run uses."""
    return PREPARED.format(prepared=plan.run(run).prepared)


def start_of(run):
    """done.json of the run whose model this one starts from, if there is one."""
    parent = plan.run(run).parent
    return [TRAINED.format(run=parent)] if parent else []


def variance_needs():
    """What the gradient variance is measured on: the data, and the run whose model RL starts from."""
    subject = plan.variance_subject
    return [prepared_of(subject.id), *start_of(subject.id)] if subject else []


def environment_of(name):
    """Stamp of a tool environment; another path whenever its definition changes."""
    return os.path.relpath(environments.stamp(name))


def evaluation_hash(run):
    """Changes with the evaluation settings: they re-score, but never retrain."""
    return files.content_hash(plan.run(run).config["eval"])


def summaries():
    """Every evaluation that the experiment asks for."""
    return [SUMMARY.format(run=run.id, benchmark=name) for run in plan.runs for name in run.evaluations]


def source_hash(*parts):
    """Changes with the code of these parts of the package: for cheap steps, which must follow their code."""
    root = Path(files.__file__).parent
    found = sorted(path for path in root.rglob("*.py") if path.relative_to(root).parts[0] in parts)
    return files.content_hash([(str(path.relative_to(root)), files.sha256(path)) for path in found])


def captions():
    """Figure → caption, for `snakemake --report`."""
    folder = Path(workflow.basedir) / "workflow" / "report"
    return {
        path.stem: path.read_text().strip() for path in sorted(folder.glob("*.rst")) if path.stem != "figure"
    }


# --- what a job asks of the scheduler; memory and time grow with the attempt


def grows(amount, factor):
    """``amount``: a number, or a function of a planned run."""

    def ask(wildcards, attempt):
        needed = amount(plan.run(wildcards.run)) if callable(amount) else amount
        return int(needed * factor * attempt)

    return ask


def memory(megabytes):
    return grows(megabytes, site.memory_factor)


def minutes(duration):
    return grows(duration, site.runtime_factor)


def gpus(wildcards):
    """Of the training job of a run."""
    return plan.run(wildcards.run).resources["gpus"]


def one_gpu(wildcards):
    """To answer or measure with a model: one GPU if any run of that model trains on some."""
    name = plan.run(wildcards.run).config["model"]["name"] if "run" in wildcards.keys() else None
    return int(any(count for model, count in GPUS_OF_MODEL.items() if name in (None, model)))


def gpu_model(count):
    """``count``: function of wildcards, one of the two above."""
    return lambda wildcards: (site.gpu_model or "") if count(wildcards) else ""


def partition(count):
    return lambda wildcards: (site.gpu_partition if count(wildcards) else site.partition) or ""


GPUS_OF_MODEL = {}
for run in plan.runs:
    model = run.config["model"]["name"]
    GPUS_OF_MODEL[model] = max(GPUS_OF_MODEL.get(model, 0), run.resources["gpus"])


def account(wildcards):
    return site.account or ""


def closing_lines():
    """What a person wants to know when everything is there (./reproduce-paper says it itself)."""
    if "RESTOOL_CALL" in os.environ:
        return ""
    programs = os.path.relpath(Path(sys.executable).parent)
    programs = Path(sys.executable).parent if programs.startswith("..") else programs
    return f"""
report: {REPORT} (open it in a browser)
MLflow: {programs}/mlflow ui --backend-store-uri sqlite:///results/mlflow.db   then open http://127.0.0.1:5000"""
