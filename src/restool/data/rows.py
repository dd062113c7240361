"""Prepared rows: one parquet schema for real and synthetic data.

The columns are those of the published rlla_4k files (`data_source`, `prompt`, `ability`, `reward_model`,
`extra_info`), so that the released code and stock verl read them too; what restool adds sits inside
`extra_info` (`id`, `kind`, `opportunities`, `meta`) and, for demonstrations, in the columns `group` and `phase`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restool import files
from restool.core.errors import DataError

DEMONSTRATIONS = "sft"
"""The split that holds demonstrations; its rows are labelled too."""

KINDS = ("one_call", "several_calls", "no_tool", "history")
THINK_TOOL = "I should use the appropriate tool with proper parameters to respond to the user's need."
THINK_RESPONSE = "I should directly respond to the user's need."
"""The only two thoughts of the published labels: placeholders, never compared by the reward."""


@dataclass(frozen=True)
class Row:
    """A prompt with its label, as RL and evaluation use it."""

    id: str
    split: str
    system: str
    user: str
    ground_truth: str
    kind: str
    opportunities: tuple[str, ...] = ()
    """Synthetic rows: which of 'name', 'think', 'arguments' a flawed demonstration could get wrong here."""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Demonstration(Row):
    """A row with the answer to imitate. File order is curriculum order."""

    output: str = ""
    group: int = 0
    """Consecutive demonstrations of one group have the same system text."""
    phase: int = 0
    """0: one listed tool, one call; 1: one call; 2: everything."""


@dataclass
class DataSet:
    """Everything that preparation makes of a source, before a tokenizer is asked."""

    splits: dict[str, list[Row]]
    held_out: tuple[str, ...]
    """Splits that evaluation reads."""
    skeleton: str
    """System prompt with a slot for the tool list (`restool.data.prompts`)."""
    counts: dict[str, Any]
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    lengths: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a reader of results must know about the data."""


def tool_label(calls: Iterable[tuple[str, dict[str, Any]]], think: str = THINK_TOOL) -> str:
    """An answer that calls tools, in the form of the published labels: one JSON object a line."""
    lines = (json.dumps({"name": name, "parameters": given}, ensure_ascii=False) for name, given in calls)
    return f"<think> {think} </think>\n<tool_call>\n" + "\n".join(lines) + "\n</tool_call>"


def response_label(text: str, think: str = THINK_RESPONSE) -> str:
    """An answer that calls no tool, in the form of the published labels."""
    return f"<think> {think} </think>\n<response> {text} </response>"


def record(row: Row) -> dict[str, Any]:
    """The parquet row of ``row``."""
    output = row.output if isinstance(row, Demonstration) else row.ground_truth
    result = {
        "data_source": "rlla",
        "prompt": [{"content": row.system, "role": "system"}, {"content": row.user, "role": "user"}],
        "ability": "math",  # as published; nothing reads it
        "reward_model": {"ground_truth": row.ground_truth, "style": "rule"},
        "extra_info": {
            "id": row.id,
            "index": int(row.id.rpartition("/")[2]),
            "input": row.user,
            "instruction": row.system,
            "kind": row.kind,
            "meta": json.dumps(row.meta, ensure_ascii=False),  # unsorted: the order of parameters counts
            "opportunities": list(row.opportunities),
            "output": output,
            "split": row.split,
        },
    }
    if isinstance(row, Demonstration):
        result |= {"group": row.group, "phase": row.phase}
    return result


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` (Row or Demonstration, not mixed) as one parquet file, atomically."""
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([record(row) for row in rows], schema=_schema(path.stem))
    with files.atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def read_rows(prepared: Path, split: str) -> list[Row]:
    """All rows of a split of prepared data, in file order (demonstrations as :class:`Demonstration`)."""
    import pyarrow
    import pyarrow.parquet

    path = Path(prepared) / f"{split}.parquet"
    if not path.exists():
        found = ", ".join(sorted(p.stem for p in Path(prepared).glob("*.parquet"))) or "no split at all"
        raise DataError(f"{prepared} has no split '{split}' (it has {found}); run `restool prepare`")
    try:
        # A handle, not a path: pyarrow would read 'key=value' folders above the file as partition columns.
        with open(path, "rb") as file:
            records = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete {prepared} and run `restool prepare`") from error
    return [_row(r) for r in records]


def read_demonstrations(prepared: Path) -> list[Demonstration]:
    """The demonstrations of prepared data in curriculum order."""
    return [row for row in read_rows(prepared, DEMONSTRATIONS) if isinstance(row, Demonstration)]


def fingerprint(splits: dict[str, list[Row]]) -> str:
    """Hash of the contents of all rows; independent of how parquet stores them."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        for row in splits[name]:
            digest.update(json.dumps(record(row), sort_keys=True, ensure_ascii=False).encode("utf-8", "replace"))
            digest.update(b"\n")
    return digest.hexdigest()[:16]


def _row(stored: dict[str, Any]) -> Row:
    extra = stored["extra_info"]
    system, user = (message["content"] for message in stored["prompt"])
    common = {
        "id": extra["id"],
        "split": extra["split"],
        "system": system,
        "user": user,
        "ground_truth": stored["reward_model"]["ground_truth"],
        "kind": extra["kind"],
        "opportunities": tuple(extra["opportunities"]),
        "meta": json.loads(extra["meta"]),
    }
    if "group" not in stored:
        return Row(**common)
    return Demonstration(**common, output=extra["output"], group=stored["group"], phase=stored["phase"])


def _schema(split: str) -> Any:
    import pyarrow as pa

    text = pa.string()
    extra = dict.fromkeys(("id", "input", "instruction", "kind", "meta", "output", "split"), text)
    extra |= {"index": pa.int64(), "opportunities": pa.list_(text)}
    columns = [
        ("data_source", text),
        ("prompt", pa.list_(pa.struct([("content", text), ("role", text)]))),
        ("ability", text),
        ("reward_model", pa.struct([("ground_truth", text), ("style", text)])),
        ("extra_info", pa.struct(sorted(extra.items()))),
    ]
    if split == DEMONSTRATIONS:
        columns += [("group", pa.int64()), ("phase", pa.int64())]
    return pa.schema(columns)
