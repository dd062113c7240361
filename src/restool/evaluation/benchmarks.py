"""The benchmarks that there are: one YAML each, ``configs/benchmark/<name>.yaml``, that names one module.

`restool evaluate <name>`, the workflow and an experiment's ``evaluations`` find a benchmark by the name of its file.
Its module is one of two kinds:

- It has ``tasks(source)`` and ``judge(task, text)``: `tasks.evaluate` does the rest (answers, resume, items,
  intervals, contamination, summary). This is the way to add one; see docs/evaluation.md.
- It has ``evaluate(model, prepared, out, settings, *, answers, allow_missing, training, report)`` and does all of it
  itself, as BFCL must with its checker in another process.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from restool import files
from restool.core.errors import ConfigurationError, nearest
from restool.evaluation import tasks
from restool.evaluation.answering import Answerer
from restool.evaluation.contamination import Training
from restool.settings import BenchmarkSettings, RunSettings, configs_directory, validate


@dataclass(frozen=True)
class Benchmark:
    """One entry of the registry."""

    name: str
    settings: BenchmarkSettings

    @property
    def asks_a_model(self) -> bool:
        """Whether it generates answers, rather than scoring those of another benchmark."""
        return self.settings.after is None

    @property
    def sources(self) -> tuple[str, ...]:
        """What may answer: options of `restool evaluate`."""
        return ("checkpoint", "endpoint", "answers") if self.asks_a_model else ()

    def evaluate(
        self,
        model: Answerer | None,
        prepared: Path,
        out: Path,
        settings: RunSettings,
        *,
        answers: Path | None = None,
        allow_missing: bool = False,
        training: Training,
        report: Callable[[str], None],
    ) -> dict[str, Any]:
        """Score ``model``, or ``answers`` that exist; writes items.jsonl and summary.json below ``out``.

        ``training``: what the model was trained on, to find items that it has seen.
        """
        module = _module(self.settings.module)
        given: dict[str, Any] = {"answers": answers, "allow_missing": allow_missing, "training": training}
        if hasattr(module, "evaluate"):
            return module.evaluate(model, prepared, out, settings, **given, report=report)
        source = tasks.Source(self.name, prepared, settings, self.settings)
        return tasks.evaluate(module, source, model, out, **given, report=report)


def names() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def get(name: str, overrides: dict[str, Any] | None = None) -> Benchmark:
    """The benchmark of this name. ``overrides``: values that go before those of its file (``eval.benchmarks``)."""
    path = _folder() / f"{name}.yaml"
    if not path.is_file():
        raise ConfigurationError(f"no benchmark '{name}'{nearest(name, names())}; there are: {', '.join(names())}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return Benchmark(name, validate({**content, **(overrides or {})}, BenchmarkSettings))
    except (yaml.YAMLError, ConfigurationError) as error:
        raise ConfigurationError(f"{path}: {' '.join(str(error).split())}") from None


def definition_hash(name: str) -> str:
    """Changes with the benchmark's file and its questions, so that the workflow evaluates again."""
    settings = get(name).settings
    asked = Path(settings.questions) if settings.questions else None
    questions = files.sha256(asked) if asked and asked.is_file() else None
    return files.content_hash([settings.model_dump(mode="json"), questions])


def _folder() -> Path:
    return configs_directory() / "benchmark"


def _module(name: str) -> ModuleType:
    """An importable module, or a Python file (relative to the folder that holds ``configs/``)."""
    if not name.endswith(".py"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"benchmark module '{name}' cannot be imported: {error}") from None
    path = configs_directory().parent / name
    if not path.is_file():
        raise ConfigurationError(f"benchmark module {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"restool_benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module
