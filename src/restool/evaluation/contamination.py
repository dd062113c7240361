"""Items of a benchmark that the evaluated model was trained on: found, counted, and the score of the rest.

The hashes are those of `restool.data.overlap`. An item is *contaminated* if its question is among the training rows,
with the same tools or with others. The same set of tools under another question is counted apart and contaminates
nothing: libraries of tools are shared on purpose. An item whose question and tools an earlier item of the benchmark
has already is a *duplicate*; duplicates stay in the score (published numbers have them) and are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import DataError
from restool.data import overlap
from restool.data.overlap import Content
from restool.evaluation import items
from restool.runs import RunDirectory

KINDS = ("question_and_tools", "question", "tools")
CONTAMINATING = KINDS[:2]
NOT_RECORDED = "what this model was trained on is not recorded"

Row = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """What a model was trained on. ``reason``: why that is not known (then nothing can be checked)."""

    trained_on: tuple[dict[str, str], ...] = ()
    pairs: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)
    reason: str | None = None

    @classmethod
    def unknown(cls, reason: str = NOT_RECORDED) -> Training:
        return cls(reason=reason)

    @classmethod
    def of_run(cls, run: RunDirectory) -> Training:
        """From the run's record and the prepared data that it names, in ``results/prepared``."""
        recorded = run.trained_on
        if recorded is None:
            return cls.unknown()
        prepared = run.path.resolve().parents[2] / "prepared"
        try:
            return cls.of_splits(prepared, recorded)
        except DataError as error:
            return cls.unknown(str(error))

    @classmethod
    def of_model(cls, model: Path) -> Training:
        """Of a model folder: known if it is the ``model`` folder of a run."""
        run = RunDirectory(model.parent)
        return cls.of_run(run) if model.name == "model" and (run.path / "env.json").exists() else cls.unknown()

    @classmethod
    def of_splits(cls, folder: Path, splits: Sequence[dict[str, str]]) -> Training:
        """``splits``: ``{"prepared", "fingerprint", "split"}``; `DataError` if data is gone or is another."""
        pairs: set[tuple[str, str]] = set()
        for entry in splits:
            pairs |= {(question, tools) for question, tools in _hashes(folder / entry["prepared"], entry)}
        return cls(tuple(dict(entry) for entry in splits), frozenset(pairs))

    def overlap(self, content: Content) -> str | None:
        """Which of `KINDS` an item of this content shares with the training data, the strongest first."""
        if (content.question, content.tools) in self.pairs:
            return "question_and_tools"
        if content.question in self._questions:
            return "question"
        return "tools" if content.tools and content.tools in self._tools else None

    @cached_property
    def _questions(self) -> frozenset[str]:
        return frozenset(question for question, _ in self.pairs)

    @cached_property
    def _tools(self) -> frozenset[str]:
        return frozenset(tools for _, tools in self.pairs)


def mark(rows: Iterable[Row], contents: Mapping[str, Content], training: Training) -> None:
    """Give every row of items ``overlap`` (one of `KINDS` or None) and ``duplicate_of`` (an id or None).

    ``contents``: id of a row -> what its prompt holds, in the order of the benchmark. Rows of one id (one a way of
    answering) are the same item.
    """
    first: dict[Content, str] = {}
    same = {name: first.setdefault(content, name) for name, content in contents.items()}
    for row in rows:
        row["overlap"] = None if training.reason else training.overlap(contents[row["id"]])
        row["duplicate_of"] = same[row["id"]] if same[row["id"]] != row["id"] else None


def record(rows: Sequence[Row], training: Training, categories: Mapping[str, tuple[Sequence[Row], str]]) -> Row:
    """The key ``contamination`` of a summary, from marked rows.

    ``categories``: name -> (its rows, the field that says whether one is right). Counts are of different items;
    ``rest`` is the score of what does not overlap.
    """
    kind = {row["id"]: row.get("overlap") for row in rows}
    counts = Counter(kind.values())
    result: Row = {
        "checked": training.reason is None,
        "reason": training.reason,
        "trained_on": list(training.trained_on),
        "items": len(kind),
        "duplicates": len({row["id"] for row in rows if row.get("duplicate_of")}),
    }
    if training.reason:
        return result
    return result | {
        "contaminated": sum(counts[name] for name in CONTAMINATING),
        "kinds": {name: counts[name] for name in KINDS},
        "categories": {name: _category(*content) for name, content in categories.items()},
    }


def _category(rows: Sequence[Row], correct: str) -> Row:
    rest = items.category([row for row in rows if row["overlap"] not in CONTAMINATING], correct)
    counts = Counter(row["overlap"] for row in rows)
    return {
        "contaminated": sum(counts[name] for name in CONTAMINATING),
        "kinds": {name: counts[name] for name in KINDS},
        "rest": {name: rest[name] for name in ("n", "correct", "accuracy", "interval")},
    }


def _hashes(prepared: Path, entry: Mapping[str, str]) -> list[list[str]]:
    if not (prepared / "manifest.json").exists():
        raise DataError(f"the data that this model was trained on is gone: {entry['prepared']}")
    manifest = files.read_json(prepared / "manifest.json")
    if manifest["fingerprint"] != entry["fingerprint"]:
        raise DataError(f"the data that this model was trained on was replaced by other rows: {entry['prepared']}")
    told = manifest.get("training_hashes")
    if told is None or told["rule"] != overlap.RULE:
        raise DataError(f"the data that this model was trained on has no hashes of this version: {entry['prepared']}")
    path = prepared / told["file"]
    if files.sha256(path) != told["sha256"]:
        raise DataError(f"{path} was changed; delete {prepared} and run `restool prepare`")
    return files.read_json(path)["splits"][entry["split"]]
