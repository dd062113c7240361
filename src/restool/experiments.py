"""From an experiment's matrix to its runs: the one place that knows Hydra.

An experiment (``configs/experiment/<name>.yaml``) is expanded and composed once per change of ``configs/``; the
outcome is ``results/<experiment>/plan.json``, which every later step reads. A remote job never composes.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from restool import algorithms, backends, files
from restool.core.errors import ConfigurationError, nearest
from restool.costs import resources, verl_layout
from restool.evaluation import benchmarks
from restool.preparation import prepared_id
from restool.settings import ExperimentSettings, MatrixSettings, RunSettings, configs_directory, validate

PLAN_VERSION = 2
Compose = Callable[..., dict[str, Any]]
"""(overrides, what they change: ``configs/config.yaml`` if nothing else is given) → values."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment. ``parent``: id of the run whose model it starts from."""

    id: str
    kind: str
    parent: str | None
    prepared: str
    evaluations: tuple[str, ...]
    config: dict[str, Any]
    config_hash: str
    resources: dict[str, int] = field(default_factory=dict)

    @cached_property
    def settings(self) -> RunSettings:
        return validate(self.config)

    @property
    def environment(self) -> str | None:
        """The isolated environment that it trains in; None: ours."""
        layout = verl_layout(self.config, self.kind)
        return layout["environment"] if layout else None


@dataclass(frozen=True)
class Plan:
    """An expanded experiment; ``directory`` is ``results/<experiment>``."""

    experiment: ExperimentSettings
    directory: Path
    runs: tuple[PlannedRun, ...]

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def path(self) -> Path:
        return self.directory / "plan.json"

    @property
    def variance(self) -> dict[str, Any] | None:
        return self.experiment.variance.model_dump() if self.experiment.variance else None

    @property
    def variance_subject(self) -> PlannedRun | None:
        """The run whose starting checkpoint the gradient variance is measured at: the first RL run."""
        return next((run for run in self.runs if run.kind == "rl"), None) if self.experiment.variance else None

    @cached_property
    def _by_id(self) -> dict[str, PlannedRun]:
        return {run.id: run for run in self.runs}

    def run(self, run_id: str) -> PlannedRun:
        if run_id not in self._by_id:
            raise ConfigurationError(f"experiment '{self.name}' has no run '{run_id}'" + nearest(run_id, self._by_id))
        return self._by_id[run_id]

    @cached_property
    def prepared_ids(self) -> dict[str, PlannedRun]:
        """Prepared-data id → a run that uses it."""
        return {run.prepared: run for run in reversed(self.runs)}

    @cached_property
    def environments(self) -> list[str]:
        """The isolated environments that its jobs need."""
        needed = {name for run in self.runs if (name := run.environment)}
        checkers = {benchmarks.get(name).settings.environment for run in self.runs for name in run.evaluations}
        return sorted(needed | {name for name in checkers if name})

    def run_path(self, run_id: str) -> Path:
        return self.directory / "runs" / self.run(run_id).id

    def prepared_path(self, prepared: str) -> Path:
        return self.directory.parent / "prepared" / prepared


def experiment_names() -> list[str]:
    return sorted(path.stem for path in (configs_directory() / "experiment").glob("*.yaml"))


def load_plan(
    experiment: str = "quick",
    overrides: Sequence[str] = (),
    results: str | Path = "results",
    *,
    write: bool = True,
) -> Plan:
    """Expand ``experiment``; the plan is cached by content of ``configs/`` and written to ``plan.json``.

    ``overrides`` are Hydra overrides for every run (``training.rl.steps=5``) or, with the prefix
    ``experiment.``, for the experiment itself (``experiment.matrix.seeds=[0,1]``).
    """
    _check_experiment(experiment)
    results = Path(results)
    key = files.content_hash([PLAN_VERSION, _configs_hash(), experiment, list(overrides)], length=20)
    cache = results / ".cache" / "plans" / f"{key}.json"
    if not cache.exists():
        files.write_text(cache, _as_text(_expand(experiment, list(overrides))))
    content = _read(cache)
    plan = _from_json(content, results / content["experiment"]["name"])
    if write and not _is_copy(plan.path, cache):
        files.write_text(plan.path, cache.read_text(encoding="utf-8"))
    return plan


def read_plan(path: str | Path) -> Plan:
    """Read a ``plan.json`` that `load_plan` wrote; needs no Hydra."""
    content = _read(path)
    if content.get("version") != PLAN_VERSION:
        raise ConfigurationError(
            f"{path} was written by another version of restool (plan version {content.get('version')}, "
            f"this one reads {PLAN_VERSION}); delete it, and it is made again"
        )
    return _from_json(content, Path(path).parent)


def compose_run(overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None) -> RunSettings:
    """The settings of one run from ``configs/config.yaml`` and Hydra overrides.

    ``base``: values that stand in the place of whole groups, such as the ``eval`` of a run. An override of single
    values (``eval.bfcl_limit=5``) changes only those; one that chooses the group (``eval=paper``) replaces all.
    """
    choices = [override for override in overrides if _is_choice(override)]
    with _hydra() as compose:
        if not base:
            return validate(compose(list(overrides)))
        kept = {group: values for group, values in base.items() if group not in map(_key, choices)}
        return validate(compose([o for o in overrides if o not in choices], {**compose(choices), **kept}))


def _expand(experiment: str, overrides: list[str]) -> dict[str, Any]:
    own = [o for o in overrides if o.lstrip("+~").startswith("experiment.")]
    for_runs = [o for o in overrides if o not in own]
    with _hydra() as compose:
        chosen = compose([f"+experiment={experiment}", *own])["experiment"]
        settings: ExperimentSettings = validate(chosen, ExperimentSettings, source=f"experiment '{experiment}'")
        runs: dict[str, dict[str, Any]] = {}
        for matrix in (settings.matrix, *settings.extra):
            for run in _expand_matrix(matrix, settings, for_runs, compose):
                known = runs.setdefault(run["id"], run)
                if known["config_hash"] != run["config_hash"] or known["config"]["eval"] != run["config"]["eval"]:
                    raise ConfigurationError(
                        f"experiment '{experiment}' asks for run '{run['id']}' twice with different values; "
                        "give one of them another method, schedule or model name"
                    )
    _assign_evaluations(runs, settings)
    ordered = sorted(runs.values(), key=lambda run: run["parent"] is not None)
    return {"version": PLAN_VERSION, "experiment": settings.model_dump(mode="json"), "runs": ordered}


def _expand_matrix(
    matrix: MatrixSettings, experiment: ExperimentSettings, overrides: list[str], compose: Compose
) -> Iterable[dict[str, Any]]:
    """The runs of one matrix, each behind the run that it starts from (which may come more than once)."""
    shared = [*matrix.overrides, *overrides]
    not_method = [o for o in shared if not o.lstrip("+~").startswith("method.")]  # those are meant for RL methods
    for model, method, schedule in itertools.product(matrix.models, matrix.methods, matrix.schedules):
        run = validate(compose([f"model={model}", f"method={method}", f"schedule={schedule}", *shared]))
        kind = algorithms.get(run.method.algorithm).kind
        if kind != "rl":
            run = validate(compose([f"model={model}", f"method={method}", "schedule=none", *not_method]))
        parent = None
        if kind == "rl" and run.method.start == "sft":
            sft = validate(compose([f"model={model}", "method=sft", "schedule=none", *not_method]))
            planned = _planned(sft.model_copy(update={"seed": experiment.sft_seed}), None)
            parent = planned["id"]
            yield planned
        for seed in matrix.seeds if kind != "none" else matrix.seeds[:1]:  # nothing random in an untrained model
            yield _planned(run.model_copy(update={"seed": seed}), parent)


def _planned(settings: RunSettings, parent: str | None) -> dict[str, Any]:
    backends.check(settings)  # a method that cannot run is refused here, before anything is launched
    return {
        "id": settings.run_id,
        "kind": algorithms.get(settings.method.algorithm).kind,
        "parent": parent,
        "prepared": prepared_id(settings),
        "evaluations": [],
        "config": settings.model_dump(mode="json"),
        "config_hash": files.content_hash(settings.decisive()),
    }


def _assign_evaluations(runs: dict[str, dict[str, Any]], experiment: ExperimentSettings) -> None:
    """``first_seed`` or a list of methods: only the lowest seed of each model, method and schedule."""
    first: dict[str, int] = {}
    for run in runs.values():
        group = run["id"].rsplit("-s", 1)[0]
        first[group] = min(first.get(group, run["config"]["seed"]), run["config"]["seed"])
    methods = {run["config"]["method"]["name"] for run in runs.values()}
    for name, which in experiment.evaluations.items():
        if name not in benchmarks.names():
            known = ", ".join(benchmarks.names())
            raise ConfigurationError(
                f"key 'experiment.evaluations': no benchmark '{name}'{nearest(name, benchmarks.names())}; "
                f"there are: {known}"
            )
        unknown = [method for method in which if method not in methods] if isinstance(which, list) else []
        if unknown:
            raise ConfigurationError(
                f"key 'experiment.evaluations.{name}': no run of method '{unknown[0]}'{nearest(unknown[0], methods)}"
            )
        for run in runs.values():
            is_first = run["config"]["seed"] == first[run["id"].rsplit("-s", 1)[0]]
            is_listed = isinstance(which, str) or run["config"]["method"]["name"] in which
            if which == "all" or (is_first and is_listed):
                run["evaluations"].append(name)


def _as_text(content: dict[str, Any]) -> str:
    """JSON with one run a line, so that ``diff`` names the runs that differ; indented, thousands take seconds."""
    head = json.dumps({key: value for key, value in content.items() if key != "runs"}, ensure_ascii=False)
    runs = ",\n".join(json.dumps(run, ensure_ascii=False) for run in content["runs"])
    return f'{head.removesuffix("}")}, "runs": [\n{runs}\n]}}\n'


def _read(path: str | Path) -> dict[str, Any]:
    """A plan's file, with one object for each part of a configuration that runs share: thousands differ in little.

    They are put together while the file is being read, so that the memory for all of them is never needed.
    """
    known: dict[str, Any] = {}

    def shared(value: dict[str, Any]) -> dict[str, Any]:
        if isinstance(config := value.get("config"), dict):  # another version's plan may lack it: refused later
            value["config"] = {name: known.setdefault(json.dumps(part), part) for name, part in config.items()}
        return value

    return files.read_json(path, object_hook=shared)


def _from_json(content: dict[str, Any], directory: Path) -> Plan:
    runs = tuple(
        PlannedRun(
            **{**run, "evaluations": tuple(run["evaluations"])},
            resources=resources(run["config"], run["kind"]),
        )
        for run in content["runs"]
    )
    return Plan(validate(content["experiment"], ExperimentSettings), directory, runs)


def _is_copy(copy: Path, original: Path) -> bool:
    return copy.exists() and copy.read_bytes() == original.read_bytes()


def _configs_hash() -> str:
    root = configs_directory()
    source = Path(__file__).parent  # a changed schema or registry invalidates plans composed before it
    watched = [
        *sorted(root.rglob("*.yaml")),
        source / "settings.py",
        source / "algorithms.py",
        Path(__file__),
    ]
    return files.content_hash([(str(path.relative_to(path.parents[1])), files.sha256(path)) for path in watched])


def _check_experiment(name: str) -> None:
    names = experiment_names()
    if name not in names:
        raise ConfigurationError(f"unknown experiment '{name}'{nearest(name, names)}; there are: {', '.join(names)}")


class _hydra:
    """``with _hydra() as compose:`` → ``compose(overrides, content) -> dict``, with one-line errors."""

    def __enter__(self) -> Compose:
        from hydra import compose, initialize_config_dir
        from hydra.core.config_store import ConfigStore
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        logging.getLogger("hydra").setLevel(logging.ERROR)
        GlobalHydra.instance().clear()
        self._context = initialize_config_dir(str(configs_directory()), version_base=None)
        self._context.__enter__()

        def values(name: str, overrides: list[str]) -> dict[str, Any]:
            try:
                found = compose(name, [_plain(override) for override in overrides])
                return OmegaConf.to_container(found, resolve=True, throw_on_missing=True)
            except (HydraException, OmegaConfBaseException, ValueError) as error:
                raise ConfigurationError(_one_line(error, overrides)) from None

        @functools.cache  # a composition takes some 50 ms, and the runs of a matrix share many
        def composed(overrides: tuple[str, ...]) -> dict[str, Any]:
            return values("config", list(overrides))

        def changed(overrides: list[str], content: dict[str, Any]) -> dict[str, Any]:
            ConfigStore.instance().store("given", content)
            return values("given", overrides)

        return lambda overrides, content=None: changed(overrides, content) if content else composed(tuple(overrides))

    def __exit__(self, *details: Any) -> None:
        self._context.__exit__(*details)


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _is_choice(override: str) -> bool:
    """Whether it chooses a file of a group (``eval=paper``) rather than a value."""
    return (configs_directory() / _key(override)).is_dir()


def _plain(override: str) -> str:
    """The override with Hydra's word for "whether or not it is there" where the key is one of ours: a key that a file
    of ``configs/`` leaves away needs no ``+``, and a ``+`` too much is no error."""
    known = override.startswith("+") or _key(override) in _all_keys()
    return f"++{override.lstrip('+')}" if known and "." in _key(override) and override[0] != "~" else override


def _one_line(error: Exception, overrides: list[str]) -> str:
    """Hydra's message in one line, with the nearest valid option or key where one can be found."""
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        folder = configs_directory() / group
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        if options:
            return f"unknown {group} '{option}'{nearest(option, options)}; there are: {', '.join(options)}"
    message = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    keys = {override: _key(override) for override in overrides}
    named = [override for override, key in keys.items() if f"'{key}'" in message]
    named += [override for override in overrides if f"override {override}" in message.lower()]
    named += [override for override, key in keys.items() if key.split(".")[-1] in message]
    if not named:
        return message
    key = keys[named[0]]
    return f"override '{named[0]}': unknown key or option{nearest(key, _all_keys())} ({message})"


@functools.cache
def _all_keys() -> list[str]:
    """Dotted keys of the run settings."""
    from pydantic import BaseModel

    def walk(kind: type[BaseModel], prefix: str) -> Iterable[str]:
        for name, spec in kind.model_fields.items():
            yield prefix + name
            for option in (spec.annotation, *getattr(spec.annotation, "__args__", ())):
                if isinstance(option, type) and issubclass(option, BaseModel):
                    yield from walk(option, f"{prefix}{name}.")

    return list(walk(RunSettings, ""))
