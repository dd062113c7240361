"""`restool evaluate`: one verb for every benchmark of configs/benchmark, and the check against BFCL's own runner."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core
import typer.main
from rich.table import Table
from typer import _click as click  # typer's own copy, whose errors it raises

from restool.cli.shared import (
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
from restool.core.errors import ConfigurationError, EvaluationError, RunError

if TYPE_CHECKING:
    from restool.evaluation.answering import Source
    from restool.evaluation.benchmarks import Benchmark
    from restool.settings import RunSettings


def _evaluate(benchmark: str, source: Source, settings: RunSettings, prepared: Path, target: Path) -> dict[str, Any]:
    from restool import runs
    from restool.evaluation import benchmarks
    from restool.evaluation.contamination import Training

    chosen = benchmarks.get(benchmark, settings.eval.benchmarks.get(benchmark))
    checkpoint = source.checkpoint if chosen.asks_a_model else str(target.parents[1] / "model")
    training = Training.of_model(Path(checkpoint)) if checkpoint else Training.unknown()
    existing = {"answers": source.answers, "allow_missing": source.allow_missing, "training": training}
    model = source.open(settings, target / "vllm.log", report) if chosen.asks_a_model else None
    with runs.alone(target), contextlib.closing(model) if model else contextlib.nullcontext():
        return chosen.evaluate(model, prepared, target, settings, **existing, report=report)


def _of_plan(plan: Path, run: str | None, benchmark: str) -> tuple[RunSettings, str, Path, Path]:
    """Settings, model, prepared data and target of a finished run of a plan."""
    from restool.runs import RunDirectory

    loaded = open_plan(plan)
    planned = planned_run(loaded, run)
    directory = loaded.run_path(planned.id)
    if not (directory / "done.json").exists():
        raise RunError(f"run '{planned.id}' is not finished; train it first: restool train --plan {plan} --run {run}")
    if problems := RunDirectory(directory).damage():
        raise RunError(f"{problems[0]}; train it again: restool train --plan {plan} --run {run}")
    places = loaded.prepared_path(planned.prepared), directory / "eval" / benchmark
    return planned.settings, str(directory / "model"), *places


def _by_hand(
    benchmark: str, checkpoint: str | None, overrides: list[str], results: Path
) -> tuple[RunSettings, str | None, Path]:
    """Settings, model and prepared data for somebody's checkpoint, endpoint or answers.

    A run folder is evaluated as its experiment would: its own data, model and evaluation settings, but for the values
    that are overridden. Anything else meets the published prompts and, unless ``eval=`` says otherwise, the whole
    benchmark.
    """
    from restool import preparation
    from restool.evaluation import benchmarks
    from restool.runs import RunDirectory

    run = RunDirectory(Path(checkpoint)) if checkpoint and (Path(checkpoint) / "done.json").exists() else None
    named = [override.lstrip("+~").partition("=")[0] for override in overrides]
    base: dict[str, Any] = {}
    if run is not None:
        base, checkpoint = run.settings.model_dump(mode="json", include=_OF_A_RUN), str(run.path / "model")
    elif checkpoint is not None:
        from restool.models import loading

        base = {"model": compose([]).model.model_dump(mode="json") | loading.traits(checkpoint)}
    whole = ["eval=paper"] if run is None and "eval" not in named else []
    settings = compose([*whole, *overrides], base)
    if benchmarks.get(benchmark).settings.reads == "questions":
        prepared = results / "prepared"  # nothing of it is read
    elif run is None and benchmark in ("api-bank", "bfcl") and "data" not in named:
        prepared = results / "prepared" / f"benchmark-{benchmark}"
        preparation.prepare_benchmark(benchmark, settings.data.mirror, prepared, report=report)
    else:
        prepared = results / "prepared" / preparation.prepared_id(settings)
        if not (prepared / "manifest.json").exists():
            preparation.prepare(settings, prepared, report=report)
    return settings, checkpoint, prepared


_OF_A_RUN = {"model", "data", "eval"}


def _with_questions(settings: RunSettings, benchmark: Benchmark, questions: Path | None) -> RunSettings:
    """The settings with a file of questions for a benchmark that reads one."""
    if questions is None:
        return settings
    if benchmark.settings.reads != "questions":
        raise ConfigurationError(f"{benchmark.name} reads no file of questions; leave --questions away")
    named = {**settings.eval.benchmarks.get(benchmark.name, {}), "questions": str(questions)}
    benchmarks = {**settings.eval.benchmarks, benchmark.name: named}
    return settings.model_copy(update={"eval": settings.eval.model_copy(update={"benchmarks": benchmarks})})


def _evaluation_command(benchmark: str) -> click.Command:
    from restool.evaluation import benchmarks

    single = typer.Typer(add_completion=False)
    chosen = benchmarks.get(benchmark)

    @single.command(name=benchmark, help=chosen.settings.title)
    def command(
        overrides: Overrides = None,
        checkpoint: Annotated[str | None, typer.Option(help="model folder, run folder or Hugging Face id")] = None,
        engine: Annotated[
            Literal["auto", "transformers", "vllm"],
            typer.Option(
                help="what answers for a checkpoint; auto: vLLM where it is built for the device, else our sampler on "
                "transformers, which --plan always takes on a CPU"
            ),
        ] = "auto",
        endpoint: Annotated[str | None, typer.Option(help="address of an OpenAI-compatible server (…/v1)")] = None,
        model: Annotated[str | None, typer.Option(help="model of the server; needed if it has several")] = None,
        api_key_env: Annotated[
            str | None, typer.Option(help="environment variable with the server's key; default OPENAI_API_KEY if set")
        ] = None,
        tokenizer: Annotated[
            str | None, typer.Option(help="folder or Hugging Face id: render prompts here, send raw completions")
        ] = None,
        concurrency: Annotated[int, typer.Option(help="requests to the server at once", min=1)] = 64,
        requests_per_minute: Annotated[float | None, typer.Option(help="limit to ask the server less", min=0.1)] = None,
        timeout: Annotated[float, typer.Option(help="seconds that one answer of the server may take", min=1)] = 600,
        answers: Annotated[Path | None, typer.Option(help="answers that exist already")] = None,
        allow_missing: Annotated[bool, typer.Option(help="count missing answers wrong instead of refusing")] = False,
        questions: Annotated[
            Path | None, typer.Option(help="file of questions, for a benchmark that reads one")
        ] = None,
        out: Annotated[Path | None, typer.Option(help="folder for answers, items and summary")] = None,
        plan: PlanOption = None,
        run: RunOption = None,
        results: ResultsOption = Path("results"),
    ) -> None:
        from restool.evaluation.answering import Source

        limits = {
            "concurrency": concurrency,
            "requests_per_minute": requests_per_minute,
            "timeout_seconds": timeout,
        }
        given = (checkpoint, engine, endpoint, model, api_key_env, tokenizer, limits, answers, allow_missing)
        source = Source(*given, planned=plan is not None)
        if plan is not None:
            settings, checkpoint, prepared, target = _of_plan(plan, run, benchmark)
        else:
            source.check(benchmark, chosen.sources)
            settings, checkpoint, prepared = _by_hand(benchmark, checkpoint, overrides or [], results)
            target = out or Path("evaluation") / benchmark
        settings = _with_questions(settings, chosen, questions)
        summary = _evaluate(benchmark, replace(source, checkpoint=checkpoint), settings, prepared, target)
        _print_summary(summary)
        if plan is None and summary.get("not_run"):
            raise EvaluationError(f"{benchmark} was not run: {summary['not_run']}")

    return typer.main.get_command(single)


CROSSCHECK = "bfcl-crosscheck"


def _crosscheck_command() -> click.Command:
    single = typer.Typer(add_completion=False)

    @single.command(name=CROSSCHECK)
    def command(
        out: Annotated[Path, typer.Argument(help="folder of an evaluation (--out of restool evaluate bfcl)")],
    ) -> None:
        """Score the answers of a BFCL evaluation with BFCL's own runner, unmodified; fail where it differs from us."""
        from restool.evaluation.bfcl import crosscheck

        outcome = crosscheck.crosscheck(out, report=report)
        title = f"right answers, ours and those of bfcl-eval {outcome['bfcl_eval']}"
        table = Table("category", "n", "ours", "official", title=title)
        for name, c in outcome["categories"].items():
            table.add_row(name, str(c["n"]), str(c["ours"]), str(c["official"]))
        terminal().print(table)
        if not outcome["equal"]:
            raise EvaluationError(f"{out}: {crosscheck.differences(outcome)} (see {out / 'crosscheck.json'})")
        print("equal in every entry")

    return typer.main.get_command(single)


def _print_summary(summary: dict[str, Any]) -> None:
    from restool.analysis import summary_text

    if summary.get("not_run"):
        report(f"{summary['benchmark']}: not run: {summary['not_run']}")
        return
    summary_text.print_summary(terminal(100), summary)


class Benchmarks(typer.core.TyperGroup):
    """The verbs of `restool evaluate`: whatever configs/benchmark holds, read when somebody asks, and one check."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from restool.evaluation import benchmarks

        return [*benchmarks.names(), CROSSCHECK]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == CROSSCHECK:
            return _crosscheck_command()
        return _evaluation_command(cmd_name)


app = typer.Typer(cls=Benchmarks, help="Score a model, or answers that exist, on a benchmark.", no_args_is_help=True)
