"""Evaluations as a comparison sees them: a folder with summary.json and items.jsonl, wherever it came from."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import RunError
from restool.runs import RunDirectory

Item = dict[str, Any]

_WHOLE = {"correct": {"field": "correct"}}
"""Metrics of a summary that names none."""

IDENTIFYING = {
    "data_sha256": "other data",
    "version": "another version of the benchmark",
}
"""Keys of a summary that must agree: scores of different data or rules are no difference of models."""


@dataclass(frozen=True)
class Evaluation:
    """One benchmark, one model: what is in an evaluation folder."""

    path: Path
    summary: dict[str, Any]

    @property
    def benchmark(self) -> str:
        return self.summary["benchmark"]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Name -> ``field`` of an item; ``kind`` (``binary``, else ``number``); ``where``: fields an item must have
        to count; ``categories``: a prefix of this metric's categories in the summary."""
        return self.summary.get("metrics") or _WHOLE

    @cached_property
    def items(self) -> dict[tuple[str, str], Item]:
        """(category, id) -> item."""
        return {(part(item), item["id"]): item for item in files.read_json_lines(self.path / "items.jsonl")}


@dataclass(frozen=True)
class Evaluated:
    """One model with all its evaluations. ``seed``: of its run; None where the folder is no run."""

    path: Path
    evaluations: dict[str, Evaluation]
    seed: int | None = None

    @property
    def name(self) -> str:
        return self.path.name or str(self.path)


def part(item: Item) -> str:
    """The category of an item, in older rows of held-out its split and mode."""
    return str(item["category"]) if "category" in item else f"{item['split']}/{item['mode']}"


def read(path: str | Path) -> Evaluated:
    """A run folder, a folder of evaluations, or the folder of one; RunError that says what was expected."""
    folder = Path(path)
    run = RunDirectory(folder)
    if (folder / "config.yaml").exists():
        seed = run.settings.seed
        return Evaluated(folder, _evaluations(folder / "eval", folder), seed)
    if (folder / "summary.json").exists():
        found = _evaluation(folder)
        return Evaluated(folder, {found.benchmark: found} if found else _nothing(folder))
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist; give a run folder or the folder of an evaluation")
    return Evaluated(folder, _evaluations(folder, folder))


def read_group(pattern: str) -> list[Evaluated]:
    """All that match a pattern (``'results/x/runs/*rest*'``), in order; RunError if none does."""
    paths = sorted(path for path in glob.glob(pattern) if Path(path).is_dir())
    if not paths:
        raise RunError(f"no folder matches '{pattern}'; put quotes around a pattern, so that the shell leaves it alone")
    return [read(path) for path in paths]


def _evaluations(folder: Path, named: Path) -> dict[str, Evaluation]:
    found = [_evaluation(path.parent) for path in sorted(folder.glob("*/summary.json"))]
    return {one.benchmark: one for one in found if one} or _nothing(named)


def _evaluation(folder: Path) -> Evaluation | None:
    """None where the benchmark was not run."""
    summary = files.read_json(folder / "summary.json")
    return None if summary.get("not_run") else Evaluation(folder, summary)


def _nothing(folder: Path) -> Any:
    raise RunError(f"{folder} holds no evaluation; make one with: restool evaluate NAME")


def obstacle(a: Evaluation, b: Evaluation) -> str | None:
    """Why comparing these two would mean nothing, or None."""
    for key, told in IDENTIFYING.items():
        if a.summary.get(key) != b.summary.get(key):
            return f"scored on {told} ({_differing(a.summary.get(key), b.summary.get(key))})"
    for name, one in (("A", a), ("B", b)):
        lacking = [how["field"] for how in a.metrics.values() if not all(how["field"] in i for i in one.items.values())]
        if lacking:
            return f"{name} has no '{lacking[0]}' in its items, as older evaluations have not; evaluate it again"
    if not a.items.keys() & b.items.keys():
        return "scored on different items: no item is in both"
    return None


def warnings(a: Evaluation, b: Evaluation) -> Iterator[str]:
    """What a reader must know beside the numbers; the comparison still means something."""
    common = len(a.items.keys() & b.items.keys())
    if common < max(len(a.items), len(b.items)):
        yield f"different items: A {len(a.items)}, B {len(b.items)}; compared on the {common} that both have"
    first, second = a.summary.get("decoding"), b.summary.get("decoding")
    if first is None or second is None:
        unknown = " and ".join(name for name, value in (("A", first), ("B", second)) if value is None)
        yield f"decoding of {unknown} is not known (its answers were made elsewhere)"
    elif first != second:
        yield f"different decoding ({_differing(first, second)}): the difference is of models and decoding together"
    prompts = [one.summary.get("prompt_template_sha256") for one in (a, b)]
    if prompts[0] != prompts[1] and all(prompts):
        yield "different prompt templates: the difference is of models and prompts together"
    for name, one in (("A", a), ("B", b)):
        if one.summary.get("missing"):
            yield f"{one.summary['missing']} answers of {name} are missing and count as wrong"


def _differing(a: Any, b: Any) -> str:
    """``temperature: 0.0 and 1.0``; long hashes are shortened."""
    from restool.runs import differing_keys

    if isinstance(a, dict) and isinstance(b, dict):
        told = [text.replace("'", "").replace(" -> ", " and ") for text in differing_keys(a, b)]
        return ", ".join(_short(text) for text in told[:3]) + (", ..." if len(told) > 3 else "")
    return f"{_short(str(a))} and {_short(str(b))}"


def _short(text: str) -> str:
    import re

    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b", r"\1...", text)


def by_seed(group: Sequence[Evaluated]) -> dict[int, Evaluated] | None:
    """Seed -> run; None where some member has no seed. RunError if two members have the same one."""
    if any(one.seed is None for one in group):
        return None
    found: dict[int, Evaluated] = {}
    for one in group:
        if one.seed in found:
            raise RunError(
                f"one group holds two runs of seed {one.seed}: {found[one.seed].path} and {one.path}; "
                "narrow the pattern to one method"
            )
        found[one.seed] = one  # type: ignore[index]
    return found
