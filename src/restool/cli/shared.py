"""What the verbs share: options, settings and plans, and where their lines go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from restool.core.errors import ConfigurationError

if TYPE_CHECKING:
    from restool.experiments import Plan, PlannedRun
    from restool.settings import RunSettings

Overrides = Annotated[list[str] | None, typer.Argument(help="Hydra overrides, e.g. method=rest_fixed seed=3")]
PlanOption = Annotated[Path | None, typer.Option("--plan", help="plan.json of an experiment (used by the workflow)")]
RunOption = Annotated[str | None, typer.Option("--run", help="id of a run of the plan")]
ResultsOption = Annotated[Path, typer.Option("--results", help="folder for everything generated")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for programs")]


def report(line: str) -> None:
    """Progress goes to standard error, results to standard output."""
    print(line, file=sys.stderr, flush=True)


def terminal(width: int = 150) -> Console:
    """The terminal, or ``width`` characters where there is none."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def compose(overrides: list[str] | None, base: dict[str, Any] | None = None) -> RunSettings:
    """The settings of one run."""
    from restool.experiments import compose_run

    return compose_run(overrides or [], base)


def open_plan(path: Path | None) -> Plan:
    """The plan in a file, or the default experiment's."""
    from restool.experiments import load_plan, read_plan

    return read_plan(path) if path is not None else load_plan()


def planned_run(plan: Plan, run: str | None) -> PlannedRun:
    """One run of ``plan``, which somebody must have named."""
    if run is None:
        raise ConfigurationError(f"--run is missing; the plan has: {', '.join(r.id for r in plan.runs)}")
    return plan.run(run)
