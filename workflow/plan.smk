"""The experiment that was asked for: its plan, the paths of its parts, and what its jobs need.

No rules here; the rule files use these names. A request that cannot be met ends here, in one line, before any job.
"""

import functools
import gc
import importlib.util
import inspect
import os
import shlex
import sys
from pathlib import Path

import yaml
from snakemake.common import overwrite_function_params

from restool import costs, environments, files, integrity
from restool.core.errors import RestoolError
from restool.evaluation import benchmarks
from restool.experiments import load_plan, read_plan
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


def entry(name):
    """What workflow/entry/<name>.py defines."""
    path = Path(workflow.basedir) / "workflow" / "entry" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"restool_{name}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def begin():
    """One call at a time in one folder, and nothing left running of one that was killed."""
    try:
        if cluster.is_used(sys.argv) and (more := cluster.status_flags(sys.argv)):
            print("restool: this cluster keeps no accounts: asking squeue how jobs are doing", flush=True)
            os.execv(sys.executable, [sys.executable, *sys.argv, *more])
        lock.enter(LOCK, shlex.join(["snakemake", *sys.argv[1:]]))
        lock.clear_stale(Path.cwd())
        cluster.stop_leftovers(Path.cwd())
    except (lock.Occupied, cluster.Unknown) as error:
        stop(error)
    except OSError as error:
        stop(f"cannot write here: {error}")


PINNED = "RESTOOL_PLAN"  # where the call tells the small Snakemakes of its jobs which plan is theirs


def read_request():
    """The plan: composed by the call itself, read by the small Snakemakes that run its jobs on other machines.

    Somebody may edit configs/ while jobs wait or run; they are those of the plan that they were submitted with.
    """
    if not workflow.is_main_process and PINNED in os.environ:
        return read_plan(os.environ[PINNED])
    request = validated(dict(config), WorkflowSettings)
    plan = load_plan(request.experiment, request.overrides, write=RUNS_JOBS or not lock.is_occupied(LOCK))
    os.environ[PINNED] = plan.path.as_posix()
    return plan


def make_again(damaged):
    """Remove outputs whose files are no longer what they were, so that Snakemake, which does not look that far, sees."""
    for path, problem in damaged.items():
        print(f"restool: {problem}: {path} {'is' if RUNS_JOBS else 'would be'} made again", file=sys.stderr)
        if RUNS_JOBS:
            path.unlink()


def require_nodes():
    """A job that no node of the cluster can hold would wait for ever, or be refused in words that name no setting."""
    layouts = [costs.verl_layout(run.config, run.kind) for run in plan.runs if run.resources["gpus"]]
    most = max((layout["gpus_per_node"] for layout in layouts if layout), default=0)
    if most > site.gpus_per_node and cluster.is_used(sys.argv):
        stop(
            f"backend.verl.gpus_per_node={most}, but a node here has {site.gpus_per_node} GPUs (gpus_per_node in "
            "workflow/profiles/slurm/site.yaml); take more nodes of fewer GPUs: backend.verl.nodes"
        )


lock, cluster = entry("lock"), entry("cluster")
LOCK = Path("results") / ".lock"
RUNS_JOBS = workflow.is_main_process and not lock.LOOKS.intersection(sys.argv)

try:
    site = read_site()
    if RUNS_JOBS:
        begin()
    plan = read_request()
except RestoolError as error:
    stop(error)

# What is loaded now stays: thousands of jobs later, the collector need not walk through it again.
gc.collect()
gc.freeze()

if workflow.is_main_process:
    require_nodes()
    make_again(integrity.damaged(plan))

# One file each, asked for by every job.
benchmark_of, definition_of = functools.cache(benchmarks.get), functools.cache(benchmarks.definition_hash)

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
    benchmark="[^/]+",


def known(function):
    """Snakemake inspects every function for its parameters, several times a job, unless it is told them."""
    overwrite_function_params(function, inspect.signature(function).parameters)
    return function


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


@functools.cache
def environment_of(name):
    """Stamp of a tool environment; another path whenever its definition changes."""
    return os.path.relpath(environments.stamp(name))


@known
def data_of(wildcards):
    return prepared_of(wildcards.run)


@known
def model_of(wildcards):
    return start_of(wildcards.run)


@known
def trained_in(wildcards):
    """Stamp of the environment that a run trains in, if it is not ours; never a reason to train again."""
    name = plan.run(wildcards.run).environment
    return ancient(environment_of(name)) if name else []


@known
def checker_of(wildcards):
    """The tool environment that a benchmark needs, if it needs one."""
    name = benchmark_of(wildcards.benchmark).settings.environment
    return [environment_of(name)] if name else []


@known
def answers_of(wildcards):
    """The evaluation whose answers a benchmark scores, if it asks no model itself."""
    after = benchmark_of(wildcards.benchmark).settings.after
    return [SUMMARY.format(run=wildcards.run, benchmark=after)] if after else []


@known
def training_hash(wildcards):
    return plan.run(wildcards.run).config_hash


@functools.cache  # asked for several times a job
def evaluation_settings_hash(run):
    return files.content_hash(plan.run(run).config["eval"])


@known
def evaluation_hash(wildcards):
    """Changes with the evaluation settings: they re-score, but never retrain."""
    return evaluation_settings_hash(wildcards.run)


@known
def definition_hash(wildcards):
    """Changes with the benchmark's file."""
    return definition_of(wildcards.benchmark)


@functools.cache  # several rules ask, and thousands of paths take room
def summaries():
    """Every evaluation that the experiment asks for."""
    return [SUMMARY.format(run=run.id, benchmark=name) for run in plan.runs for name in run.evaluations]


@functools.cache
def finished():
    """What the experiment leaves behind, besides the report. Prepared data may go when nothing needs it any more."""
    trained = [TRAINED.format(run=run.id) for run in plan.runs]
    return [*trained, *summaries(), *([VARIANCE] if plan.variance_subject else []), ANALYZED]


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


# --- what a job asks of the scheduler: from the model and method of its run; memory and time grow with the attempt


def training(wildcards):
    return plan.run(wildcards.run).resources


def evaluating(wildcards):
    return evaluation_needs(wildcards.run, wildcards.benchmark)


@functools.cache  # every resource of every job asks
def evaluation_needs(run, name):
    benchmark = benchmark_of(name)
    needed = costs.evaluation_resources(plan.run(run).config, benchmark.name, asks=benchmark.asks_a_model)
    return {**needed, "runtime": max(needed["runtime"], benchmark.settings.runtime_minutes)}


def measuring(wildcards):
    return costs.variance_resources(plan.variance_subject.config, plan.variance)


def always(mem_mb, runtime):
    return lambda wildcards: {"mem_mb": mem_mb, "runtime": runtime, "gpus": 0, "threads": 1}


def asks(needs):
    """Resources of a rule. ``needs``: function of wildcards to what the job needs, one of the above.

    Snakemake works out every one for every job, in dry runs too: what nothing in the plan or the site file asks for is
    left away.
    """
    found = {
        "mem_mb": lambda wildcards, attempt: int(needs(wildcards)["mem_mb"] * site.memory_factor * attempt),
        "runtime": lambda wildcards, attempt: int(
            needs(wildcards)["runtime"] * site.runtime_factor * attempt
        ),
        "cpus_per_task": threads(needs),
        **(devices(needs) if uses_devices() else {}),
    }
    if site.partition or site.gpu_partition:
        found["slurm_partition"] = lambda wildcards: (
            (site.gpu_partition if needs(wildcards)["gpus"] else site.partition) or ""
        )
    if site.account:
        found["slurm_account"] = site.account
    return {name: known(value) if callable(value) else value for name, value in found.items()}


@functools.cache
def uses_devices():
    """Whether any job of the plan takes a GPU or several nodes."""
    asked = [run.resources for run in plan.runs]
    asked += [evaluation_needs(run.id, name) for run in plan.runs for name in run.evaluations]
    asked += [measuring(None)] if plan.variance_subject else []
    return any(needed["gpus"] or nodes_of(needed) > 1 for needed in asked)


def nodes_of(needed):
    """As its configuration says, else as few as hold its GPUs."""
    return needed.get("nodes") or costs.nodes(needed["gpus"], site.gpus_per_node)


def devices(needs):
    """GPUs on one node by number; on several by the share of each, which Slurm would else deal out as it likes.

    Tasks are one a node, so that Slurm gives all of the nodes; jobs with GPUs have that by default.
    """

    def given(wildcards, several):
        needed = needs(wildcards)
        return needed["gpus"] if (nodes_of(needed) > 1) == several else 0

    def share(wildcards):
        if not (gpus := given(wildcards, True)):
            return ""
        name = f"gpu:{site.gpu_model}" if site.gpu_model else "gpu"
        return f"{name}:{-(-gpus // nodes_of(needs(wildcards)))}"

    found = {
        "nodes": lambda wildcards: nodes_of(needs(wildcards)),
        "gpu": lambda wildcards: given(wildcards, False),
        "gres": share,
        "tasks": lambda wildcards: 0 if needs(wildcards)["gpus"] else nodes_of(needs(wildcards)),
    }
    if site.gpu_model:
        found["gpu_model"] = lambda wildcards: site.gpu_model if given(wildcards, False) else ""
    return found


def threads(needs):
    return known(lambda wildcards: needs(wildcards)["threads"])


def closing_lines():
    """What a person wants to know when everything is there (./reproduce-paper says it itself)."""
    if "RESTOOL_CALL" in os.environ:
        return ""
    programs = os.path.relpath(Path(sys.executable).parent)
    programs = Path(sys.executable).parent if programs.startswith("..") else programs
    return f"""
report: {REPORT} (open it in a browser)
MLflow: {programs}/restool mlflow {plan.name}   (the methods side by side)"""
