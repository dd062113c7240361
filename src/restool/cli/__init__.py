"""The command line: every stage of the pipeline as one verb.

Each verb works in two ways: with Hydra overrides, for a person (``restool train method=rest_fixed seed=3``), or
with ``--plan FILE`` and an id, for the workflow. Heavy libraries are imported inside the verb that needs them.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from typer import _click as click  # typer's own copy, whose errors it raises

from restool.cli import evaluate
from restool.cli.shared import (
    JsonOption,
    Overrides,
    PlanOption,
    ResultsOption,
    RunOption,
    compose,
    open_plan,
    planned_run,
    report,
    terminal,
)
from restool.core.errors import ConfigurationError, RestoolError, RunError, nearest

if TYPE_CHECKING:
    from restool.analysis.answers import Weighting
    from restool.experiments import Plan
    from restool.settings import RunSettings

app = typer.Typer(
    name="restool",
    help="Reproduce and examine ResT: token-level policy-gradient reshaping for tool-use language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
env_app = typer.Typer(help="Isolated environments of tools that cannot share ours.", no_args_is_help=True)
app.add_typer(env_app, name="env")

AD_HOC = "adhoc"  # experiment name of runs that were started by hand


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show the trace of an error")] = False,
) -> None:
    if debug:
        os.environ["RESTOOL_DEBUG"] = "1"


# ---------------------------------------------------------------------------------------------------- stages


@app.command()
def prepare(
    overrides: Overrides = None,
    plan: PlanOption = None,
    prepared: Annotated[str | None, typer.Option(help="id of the prepared data of the plan")] = None,
    results: ResultsOption = Path("results"),
) -> None:
    """Fetch, verify, read and split the data; build the tiny model and its tokenizer where one is asked for."""
    from restool import preparation

    if plan is not None:
        loaded = open_plan(plan)
        chosen = prepared or next(iter(loaded.prepared_ids))
        if chosen not in loaded.prepared_ids:
            raise ConfigurationError(
                f"plan {plan} has no prepared data '{chosen}'{nearest(chosen, loaded.prepared_ids)}"
            )
        settings, out = loaded.prepared_ids[chosen].settings, loaded.prepared_path(chosen)
    else:
        settings = compose(overrides)
        out = results / "prepared" / preparation.prepared_id(settings)
    manifest = preparation.prepare(settings, out, report=report)
    rows = ", ".join(f"{split} {entry['rows']}" for split, entry in manifest["files"].items())
    report(f"prepared {manifest['name']}: {rows} -> {out}")


@app.command()
def train(
    overrides: Overrides = None,
    plan: PlanOption = None,
    run: RunOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="set a run of other settings aside, begin anew")] = False,
    results: ResultsOption = Path("results"),
) -> None:
    """Train one run (SFT or RL, as its method says), or resume it."""
    from restool import files, runs
    from restool.backends import train as train_run

    if plan is not None:
        loaded = open_plan(plan)
        planned = planned_run(loaded, run)
        settings, path = planned.settings, loaded.run_path(planned.id)
        prepared = loaded.prepared_path(planned.prepared)
        parent = loaded.run_path(planned.parent) if planned.parent else None
    else:
        settings = compose(overrides)
        path, prepared, parent = _ad_hoc_places(settings, results)
    manifest = files.read_json(prepared / "manifest.json")
    start, start_identity = _start_model(settings, prepared, parent)
    lineage = {"data": manifest["fingerprint"], "start": start_identity}
    seen = _trained_on(settings, prepared.name, manifest["fingerprint"], start)
    with runs.alone(path):
        directory = runs.open_run(path, settings, lineage, replace=replace, trained_on=seen)
        if directory.settle(report):
            report(f"{directory.id} is finished already: {directory.path}")
            return
        train_run(directory, settings, prepared, start, report=report)
    report(f"{directory.id} finished -> {directory.path}")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="model folder or run folder")],
    question: Annotated[str, typer.Argument(help="what the user asks")],
    tools: Annotated[Path | None, typer.Option(help="text file with the system prompt (tool list)")] = None,
    samples: Annotated[int, typer.Option(help="answers to draw", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy", min=0)] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    seed: int = 0,
) -> None:
    """Answer one question with a model."""
    answers = _answers(model, tools, question, samples, temperature, max_new_tokens, seed)
    for answer in answers:
        print(answer)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="model folder or run folder")],
    tools: Annotated[Path | None, typer.Option(help="text file with the system prompt (tool list)")] = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Talk to a model; the record of the dialogue grows as in the training data. An empty line ends it."""
    history = ""
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if not line:
            return
        history += f"<user> {line} </user>\n\n"
        answer = _answers(model, tools, history.strip(), 1, temperature, max_new_tokens, 0)[0]
        print(answer)
        history += answer.strip() + "\n\n"


@app.command()
def analyze(
    what: Annotated[
        str, typer.Argument(help="'all', or 'variance' for the gradient-variance measurement alone")
    ] = "all",
    plan: PlanOption = None,
) -> None:
    """Tables and figures of an experiment from its run directories."""
    if what not in ("all", "variance"):
        raise ConfigurationError(
            f"cannot analyze '{what}'{nearest(what, ['all', 'variance'])}; there are: all, variance"
        )
    loaded = open_plan(plan)
    if what == "variance":
        from restool.analysis import variance

        settings, model, prepared = _variance_subject(loaded)
        out = loaded.directory / "analysis" / "variance.json"
        variance.measure(model, prepared, settings, loaded.experiment.variance, out, report=report)
    else:
        from restool.analysis.experiment import analyze as analyze_experiment

        analyze_experiment(loaded.directory, report=report)


@app.command(name="report")
def write_report(plan: PlanOption = None) -> None:
    """Write the experiment's report: one HTML file that opens offline."""
    from restool.analysis import report as reports

    path = reports.write(open_plan(plan).directory, report=report)
    print(path)


@app.command()
def track(
    plan: PlanOption = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow store; default MLFLOW_TRACKING_URI, else results/mlflow.db")
    ] = None,
) -> None:
    """Import an experiment's results into MLflow; importing twice changes nothing."""
    from restool import tracking

    tracking.track(open_plan(plan).directory, uri=uri, report=report)


@app.command(name="mlflow")
def open_mlflow(
    experiment: Annotated[str, typer.Argument(help="an imported experiment")] = "quick",
    methods: Annotated[list[str] | None, typer.Argument(help="compare these, e.g. grpo rest_fixed")] = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow store; default MLFLOW_TRACKING_URI, else results/mlflow.db")
    ] = None,
    port: Annotated[int, typer.Option(help="of the server that is started, or the next free one")] = 5000,
    browser: Annotated[bool, typer.Option(help="open the page where there is a desktop")] = True,
    results: ResultsOption = Path("results"),
) -> None:
    """Open MLflow on the saved comparison of an experiment: its methods side by side, mean over seeds.

    Prints the page's address. A store without a server gets one, which runs until Ctrl-C.
    """
    from restool import tracking

    tracking.show(results / experiment, methods or [], uri=uri, port=port, browser=browser, report=report)


# ------------------------------------------------------------------------------------------------- evaluation


app.add_typer(evaluate.app, name="evaluate")


@app.command()
def compare(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="A and B: run folders, or folders of evaluations")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option("--group", help="seeds of A, then of B, as a pattern in quotes: 'results/x/runs/*grpo*'"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Is the difference of two models real? Pairs them item by item; with two --group, seed by seed.

    For every benchmark, metric and category that both have: B - A with its interval, a test, Holm's correction over
    the categories, and the smallest difference that could have shown. Refuses what was scored on other data.
    """
    from restool.analysis import contrasts, contrasts_text, evaluated

    if len(folders or []) == 2 and not group:
        result = contrasts.compare(*map(evaluated.read, folders or []))
    elif len(group or []) == 2 and not folders:
        result = contrasts.compare_groups(*map(evaluated.read_group, group or []))
    else:
        raise ConfigurationError("give two folders, A and B, or two groups: --group 'PATTERN' --group 'PATTERN'")
    if as_json:
        print(json.dumps(contrasts_text.plain(result), indent=2))
        return
    contrasts_text.print_comparison(terminal(100), result)


# ---------------------------------------------------------------------------------------------- environments


@env_app.command("build")
def env_build(name: Annotated[str, typer.Argument(help="bfcl, …")]) -> None:
    """Make an isolated tool environment (a second call finds it ready)."""
    from restool import environments

    print(environments.build(name, report=report))


@env_app.command("list")
def env_list() -> None:
    """Name the environments and say which are ready."""
    from restool import environments

    for name in environments.names():
        try:
            print(f"{name}\t{environments.python(name)}")
        except RestoolError:
            print(f"{name}\tnot built (restool env build {name})")


# ------------------------------------------------------------------------------------------------- information


@app.command(name="plan")
def show_plan(
    experiment: Annotated[str, typer.Argument()] = "quick",
    overrides: Overrides = None,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
    write: Annotated[bool, typer.Option("--write", help="also write results/<experiment>/plan.json")] = False,
    gpus: Annotated[int | None, typer.Option(help="GPUs that there are, for the wall time", min=0)] = None,
    cores: Annotated[int | None, typer.Option(help="CPU cores that there are, for the wall time", min=1)] = None,
) -> None:
    """Jobs, hours, memory and disk that an experiment takes, each figure with its basis."""
    from restool import planning
    from restool.experiments import load_plan

    total = planning.summary(load_plan(experiment, overrides or [], results, write=write), gpus, cores)
    if as_json:
        print(json.dumps(total, indent=2))
        return
    console = terminal()
    console.print(f"[bold]{total['experiment']}[/]: {total['title']}")
    table = Table("job", "model", "jobs", "done", "GPUs each", "hours each", "GPU-hours left", "basis", "memory GB")
    for row in total["kinds"]:
        counts = [str(row[key]) for key in ("jobs", "done", "gpus")]
        sums = [f"{row['hours_each']:.2f}", f"{row['gpu_hours']:.1f}", row["basis"], f"{row['memory_gb']:.0f}"]
        table.add_row(row["kind"], row["model"], *counts, *sums)
    console.print(table)
    console.print(
        f"still to do: {sum(total['jobs'].values()) - total['jobs_done']} of {sum(total['jobs'].values())} jobs "
        f"({total['runs'] - total['runs_done']} of {total['runs']} runs), {total['gpu_hours']} GPU-hours, "
        f"{total['cpu_hours']} CPU-hours, {total['disk_gb']} GB on disk, at most {total['peak_memory_gb']} GB of "
        f"memory ({', '.join(total['basis']) or 'nothing to do'})"
    )
    if gpus is not None or cores is not None:
        given = f"{gpus or 0} GPUs, {cores or 'any number of'} cores"
        needs = f"not possible: one job needs {total['most_gpus']} GPUs"
        wall = needs if total["wall_hours"] is None else f"{total['wall_hours']} hours with nobody else on them"
        console.print(f"wall time on {given}: {wall}")
    for excluded in total["excluded"]:
        console.print(f"left out: {excluded['method']} ({excluded['reason']})")


@app.command()
def doctor(
    experiment: Annotated[str, typer.Argument()] = "quick",
    overrides: Overrides = None,
    results: ResultsOption = Path("results"),
    as_json: JsonOption = False,
) -> None:
    """What this machine lacks for an experiment, and what mends it. Exit status 1 if something is missing."""
    from restool import doctor as doctors
    from restool.experiments import load_plan

    checks = doctors.checks(load_plan(experiment, overrides or [], results, write=False))
    if as_json:
        print(json.dumps([{"what": w, "ok": ok, "detail": d} for w, ok, d in checks], indent=2))
    else:
        table = Table("", "what", "found, or how to mend it")
        for what, ok, detail in checks:
            table.add_row("[green]ok[/]" if ok else "[red]missing[/]", what, detail)
        terminal().print(table)
    if not all(ok for _, ok, _ in checks):
        raise typer.Exit(1)


@app.command()
def methods(
    method: Annotated[str | None, typer.Argument(help="explain this one")] = None,
    as_json: JsonOption = False,
) -> None:
    """The registry: what each method is composed of, what it needs, how sure we are of it."""
    from restool import algorithms

    chosen = [algorithms.get(method)] if method else list(algorithms.ALGORITHMS.values())
    records = [asdict(item) | {"needs": sorted(item.needs)} for item in chosen]
    if as_json:
        print(json.dumps(records if method is None else records[0], indent=2))
    elif method:
        from restool.explanations import explain

        print("\n".join(explain(chosen[0], compose([f"method={chosen[0].id}"]).method.model_dump())))
    else:
        table = Table("id", "title", "kind", "weights", "advantage", "needs", "confidence")
        for r in records:
            table.add_row(
                r["id"],
                r["title"],
                r["kind"],
                str(r["weights"]),
                str(r["advantage"]),
                ", ".join(r["needs"]),
                r["confidence"],
            )
        terminal().print(table)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="run folder")],
    step: Annotated[int | None, typer.Option(help="training step; default: the last written")] = None,
    worst: Annotated[int, typer.Option(help="this many answers of lowest reward", min=0)] = 0,
    best: Annotated[int, typer.Option(help="this many answers of highest reward", min=0)] = 0,
    weights: Annotated[
        str | None, typer.Option(help="scheme, scheme:argument=value,… or method; default: the run's own weights")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="the same, for the second column; default: uniform (fixed for a uniform run)")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print sampled answers, each token coloured by region, with its weight under two schemes side by side."""
    from restool.analysis import answers
    from restool.runs import RunDirectory

    directory = RunDirectory(run)
    _ = directory.settings  # an error if this is no run folder
    chosen = [_weighting(text) if text else None for text in (weights, against)]
    found = answers.compare(directory, step=step, worst=worst, best=best, first=chosen[0], second=chosen[1])
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    from restool.analysis.answers_text import print_comparison

    print_comparison(terminal(100), found)


# ------------------------------------------------------------------------------------------------------ parts


def _ad_hoc_places(settings: RunSettings, results: Path) -> tuple[Path, Path, Path | None]:
    """Folders of a run that was started by hand: run, prepared data (made if absent), parent."""
    from restool import preparation

    prepared = results / "prepared" / preparation.prepared_id(settings)
    if not (prepared / "manifest.json").exists():
        preparation.prepare(settings, prepared, report=report)
    folder = results / AD_HOC / "runs"
    parent = folder / f"{settings.model.name}-sft-none-s0" if settings.method.start == "sft" else None
    return folder / settings.run_id, prepared, parent


def _start_model(settings: RunSettings, prepared: Path, parent: Path | None) -> tuple[Path, str]:
    """The model that training starts from, and an identity that changes when it does."""
    from restool import files

    if parent is not None:
        if not (parent / "done.json").exists():
            raise RunError(f"{parent} is not finished, and this run starts from its model; train it first (method=sft)")
        return parent / "model", files.read_json(parent / "done.json")["model"]
    if settings.model.tiny is not None:
        return prepared / "model", prepared.name
    return Path(str(settings.model.path)), f"{settings.model.path}@{settings.model.revision}"


def _trained_on(settings: RunSettings, prepared: str, fingerprint: str, start: Path) -> list[dict[str, str]] | None:
    """What the run will have learnt from: the splits behind its start model, and its own. None if the former is
    the model of a run that recorded nothing."""
    from restool import algorithms
    from restool.runs import RunDirectory

    parent = RunDirectory(start.parent)
    before = parent.trained_on if (parent.path / "env.json").exists() else []
    split = {"sft": "sft", "rl": "train"}.get(algorithms.get(settings.method.algorithm).kind)
    own = [{"prepared": prepared, "fingerprint": fingerprint, "split": split}] if split else []
    return None if before is None else before + [entry for entry in own if entry not in before]


def _variance_subject(plan: Plan) -> tuple[RunSettings, Path, Path]:
    """The model that RL starts from, and the settings of the first RL run."""
    run = plan.variance_subject
    if run is None:
        raise ConfigurationError(f"experiment '{plan.name}' measures no variance: it has no RL run or no such setting")
    parent = plan.run_path(run.parent) if run.parent else None
    prepared = plan.prepared_path(run.prepared)
    return run.settings, _start_model(run.settings, prepared, parent)[0], prepared


def _model_folder(name: str) -> Path:
    """A run folder means its model; anything else is taken as a model folder or Hugging Face id."""
    path = Path(name)
    return path / "model" if (path / "done.json").exists() else path


def _answers(
    model: str,
    tools: Path | None,
    question: str,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    from restool.models import chat as chats
    from restool.models import loading, sampling
    from restool.models.offsets import Decoder

    system = tools.read_text() if tools else ""
    user = question if question.startswith("**Dialogue") else f"**Dialogue Records History**\n{question}"
    loaded, tokenizer = loading.load(_model_folder(model), dtype="float32", device=loading.resolve_device("auto"))
    stops = chats.stop_ids(tokenizer)
    prompt = chats.prompt_ids(tokenizer, system, user)
    sampler = sampling.make_sampler(loaded, tokenizer, stops)
    answers = sampler.generate(
        [prompt], samples=samples, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed
    )
    decoder = Decoder(tokenizer, stops)
    return [decoder.decode(ids).completion for ids in answers.ids]


def _weighting(text: str) -> Weighting:
    """A token-weight scheme with its arguments, or a method of configs/method, which has both."""
    from restool import algorithms, experiments
    from restool.analysis import answers
    from restool.core.weights import SCHEMES

    methods = experiments.configs_directory() / "method"
    if text.partition(":")[0] in SCHEMES or not (methods / f"{text}.yaml").exists():
        return answers.parse_weighting(text)
    method = compose([f"method={text}"]).method
    return answers.Weighting(text, algorithms.get(method.algorithm).weights, method.weights)


def main() -> None:
    """Entry point: one line and a non-zero status for every error that a user can mend."""
    # Threads that wait for each other sleep. By default they spin, and where anything else wants a core, two threads
    # are several times slower than one. torch reads this when it is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        status = app(standalone_mode=False)
    except RestoolError as error:
        _fail(error, str(error), error.exit_status)
    except typer.Abort:
        sys.exit(130)
    except click.exceptions.ClickException as error:
        _fail(error, error.format_message(), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(error, f"{where}{error.strerror or error}", 1)
    except MemoryError as error:
        _fail(error, "out of memory; use smaller batches (training.rl.micro_tokens, eval.*.batch_tokens)", 1)
    except Exception as error:  # a defect of ours: said so in one line, trace on request
        _fail(
            error,
            f"unexpected {type(error).__name__}: {error} (a defect; `restool --debug` shows the trace)",
            70,
        )
    sys.exit(status if isinstance(status, int) else 0)


def _fail(error: Exception, message: str, status: int) -> None:
    if os.environ.get("RESTOOL_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"restool: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
