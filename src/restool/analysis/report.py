"""The report of an experiment: one HTML file without any outside resource.

It is written from what `analyze` left behind (tables, figures, index) and from the run directories.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from restool import algorithms, files
from restool.analysis import experiment as experiments
from restool.analysis import findings, provenance, report_evaluation, report_tables, samples, tables
from restool.analysis.entropy import REGIONS
from restool.analysis.experiment import Experiment
from restool.core.errors import RunError


def write(experiment_dir: str | Path, *, report: Callable[[str], None] = lambda line: None) -> Path:
    """Write ``<experiment_dir>/report.html`` and return its path. Raises RunError if `analyze` has not run."""
    experiment = experiments.load(experiment_dir)
    path = experiment.analysis / "index.json"
    if not path.exists():
        raise RunError(f"{experiment.directory} has no analysis yet; run 'restool analyze' first")
    index = files.read_json(path)
    frames = tables.build(experiment)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(_context(experiment, index, frames))
    target = experiment.directory / "report.html"
    files.write_text(target, page)
    report(f"report: {target}")
    return target


def _context(experiment: Experiment, index: dict[str, Any], frames: dict[str, pd.DataFrame]) -> dict[str, Any]:
    settings = experiment.settings
    return {
        "experiment": settings,
        "question": _question(experiment),
        "answer": findings.state(experiment, frames),
        "is_tiny": any(run.settings.model.tiny for run in experiment.runs),
        "made": _provenance(experiment),
        "tables": report_tables.results(experiment, frames),
        "claims": report_tables.claims(frames["claims"]),
        "benchmarks": report_tables.benchmarks(frames["benchmarks"]),
        "evaluation": report_evaluation.context(experiment),
        "lemma": report_tables.lemma2(experiment),
        "figures": [_figure(experiment, name, entry) for name, entry in index["figures"].items()],
        "missing_figures": index["missing_figures"],
        "drawn_with": _shortened(provenance.commit(index.get("drawn_with", {}))),
        "regions": REGIONS,
        "samples": samples.choose(experiment),
        "methods": _methods(experiment),
        "runs": _runs(frames["runs"]),
        "settings": _settings(experiment),
        "csv": {name: entry["file"] for name, entry in index["tables"].items()},
    }


def _question(experiment: Experiment) -> str:
    reference = experiment.settings.reference
    others = [m for m in experiment.methods if m in {run.method for run in experiment.rl_runs} and m != reference]
    if not others:
        return f"What does {reference} change?"
    if len(others) > findings.MOST_NAMED:
        return f"Does any of {len(others)} methods do better than {reference}, and is the difference more than chance?"
    return f"Do {findings.listed(others)} do better than {reference}, and is the difference more than chance?"


def _provenance(experiment: Experiment) -> dict[str, Any]:
    finished = [run for run in experiment.runs if run.is_done]
    commits = sorted({str(run.environment.get("commit"))[:12] for run in finished})
    ended = max((run.directory.done().get("finished_at", 0.0) for run in finished), default=None)
    machines = sorted({str(run.environment.get("processor")) for run in finished})
    return {
        "runs": f"{len(finished)} of {len(experiment.runs)} runs finished",
        "commits": commits,
        "uncommitted": any(run.environment.get("uncommitted_changes") for run in finished),
        "ended": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ended)) if ended else None,
        "machines": machines,
        "data": sorted({run.prepared for run in experiment.runs}),
    }


# ------------------------------------------------------------------------------------------------------ parts


def _figure(experiment: Experiment, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    content = (experiment.directory / entry["svg"]).read_bytes()
    source = "data:image/svg+xml;base64," + base64.b64encode(content).decode()
    return {"name": name, **entry, "source": source, "behind": _behind(entry)}


def _behind(entry: dict[str, Any]) -> dict[str, Any]:
    """The runs behind a figure, with a line that says how many and which commits made them."""
    runs = [{"id": run, "path": f"runs/{run}/"} for run in entry.get("runs", [])]
    commits = [_shortened(commit) for commit in entry.get("commits", {})]
    count = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    return {"runs": runs, "line": f"{count}, commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"}


def _shortened(commit: str) -> str:
    """Twelve digits of a commit; the + of uncommitted changes stays."""
    return commit.rstrip("+")[:12] + ("+" if commit.endswith("+") else "")


def _methods(experiment: Experiment) -> list[dict[str, Any]]:
    """Record, chosen values and deviations of every method of the experiment, and what was left out."""
    runs = {run.method: run for run in reversed(experiment.runs)}
    made = []
    for method in experiment.methods:
        record = algorithms.get(runs[method].settings.method.algorithm)
        made.append(
            {
                "method": method,
                "title": record.title,
                "summary": record.summary,
                "paper": record.paper,
                "confidence": record.confidence,
                "deviations": record.deviations,
            }
        )
    return made


def _runs(frame: pd.DataFrame) -> list[dict[str, Any]]:
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return [record | {"path": f"runs/{record['run']}"} for record in records]


def _settings(experiment: Experiment) -> list[tuple[str, str]]:
    """The first run of each method and model, as frozen; seeds differ in the seed alone."""
    shown: dict[str, str] = {}
    for run in experiment.runs:
        text = yaml.safe_dump(run.settings.model_dump(mode="json"), sort_keys=False)
        shown.setdefault(f"{run.method} ({run.model}, {run.schedule})", text)
    return list(shown.items())
