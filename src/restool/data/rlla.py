"""The published rlla_4k data: read, validate, split as published.

Two kinds of file: parquet (RL rows, `train` and `test`) and JSON (the 400 demonstrations, and `rlla_rl.json`, of
which the parquet files are a deterministic function). Every row is checked; a bad one is dropped and counted.

Deviation: a prompt over the token limit is dropped from RL and counted; the released code cuts off its beginning,
the head of the system prompt, without a word.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from restool.core.errors import DataError
from restool.core.rewards import is_exact
from restool.data import fetch
from restool.data.fetch import Fetcher
from restool.data.prompts import HISTORY, extract_skeleton, read_tools, tool_list
from restool.data.rows import DEMONSTRATIONS, THINK_RESPONSE, THINK_TOOL, DataSet, Demonstration, Row
from restool.settings import DataSettings

COUNTS = {"train": 3920, "test": 80, DEMONSTRATIONS: 400}
"""Rows of each published file."""

_LABEL = re.compile(r"<think>.*</think>\n(<tool_call>\n(?P<calls>.*)\n</tool_call>|<response>.*</response>)", re.S)
_BODY_START = "</think>\n"
_SHUFFLE_SEED = 31415  # of the released conversion from JSON to parquet


class Triple(NamedTuple):
    """One published row: system text, user text, label or demonstration."""

    instruction: str
    input: str
    output: str


def load(settings: DataSettings, fetcher: Fetcher) -> DataSet:
    """The splits that ``settings.splits`` name, validated, with their statistics.

    With ``rl_rows_from: sft`` the split `train` is made of the demonstrations' prompts and labels.
    """
    published = {split: _read(split, fetcher) for split in settings.splits}
    skeleton = extract_skeleton([row.instruction for rows in published.values() for row in rows], "rlla_4k")
    dropped: Counter[str] = Counter()
    splits = {split: _valid(split, rows, skeleton, dropped) for split, rows in published.items()}
    notes = []
    if settings.rl_rows_from == "sft":
        if "train" in settings.splits or DEMONSTRATIONS not in settings.splits:
            raise DataError("data.rl_rows_from=sft needs data.splits with sft and without train")
        splits["train"] = _rl_rows(splits[DEMONSTRATIONS])
        notes.append("RL draws its prompts and labels from the 400 demonstrations, not from the published train split.")
    overlap = _overlap(splits)
    notes += [f"Prompts that {name} share: {count}." for name, count in overlap.items() if count]
    counts = {"splits": {name: statistics(rows) for name, rows in splits.items()}, "shared_prompts": overlap}
    held_out = tuple(split for split in splits if split == "test")
    return DataSet(splits, held_out, skeleton, counts, dropped=dict(dropped), notes=notes)


def published_skeleton(fetcher: Fetcher) -> str:
    """The prompt skeleton alone, from the smallest of the published files."""
    return extract_skeleton([row.instruction for row in _read("test", fetcher)], "rlla_4k")


def rebuild(rows: Sequence[Triple]) -> tuple[list[Triple], list[Triple]]:
    """(train, test) of `rlla_rl.json`, as the released conversion splits it: shuffled, the last 2 % for testing."""
    import numpy

    order = list(rows)
    numpy.random.RandomState(_SHUFFLE_SEED).shuffle(order)
    test_rows = int(0.02 * len(order))
    return order[: len(order) - test_rows], order[len(order) - test_rows :]


# ------------------------------------------------------------------------------------------------------ reading


def _read(split: str, fetcher: Fetcher) -> list[Triple]:
    readers = {"train": _read_train, "test": _read_test, DEMONSTRATIONS: _read_demonstrations}
    if split not in readers:
        raise DataError(f"data.splits: rlla_4k has no split '{split}' (it has {', '.join(readers)})")
    rows = readers[split](fetcher)
    if len(rows) != COUNTS[split]:
        raise DataError(f"rlla_4k: split {split} has {len(rows)} rows, {COUNTS[split]} were published")
    return rows


def _read_test(fetcher: Fetcher) -> list[Triple]:
    return _from_parquet(fetcher.get(fetch.TEST), fetch.TEST.name)


def _read_demonstrations(fetcher: Fetcher) -> list[Triple]:
    return _from_json(fetcher.get(fetch.SFT_JSON), fetch.SFT_JSON.name)


def _read_train(fetcher: Fetcher) -> list[Triple]:
    """The published file or, if only `rlla_rl.json` is at hand, its exact rebuild."""
    content = fetcher.local(fetch.TRAIN)
    raw = fetcher.local(fetch.RL_JSON) if content is None else None
    if raw is None:
        return _from_parquet(content or fetcher.get(fetch.TRAIN), fetch.TRAIN.name)
    train, test = rebuild(_from_json(raw, fetch.RL_JSON.name))
    if test != _read_test(fetcher):
        raise DataError(f"the split rebuilt from {fetch.RL_JSON.name} does not end in the published test rows")
    return train


def _from_json(content: bytes, name: str) -> list[Triple]:
    try:
        return [Triple(row["instruction"], row["input"], row["output"]) for row in json.loads(content)]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name} is no list of rows with instruction, input and output ({error})") from error


def _from_parquet(content: bytes, name: str) -> list[Triple]:
    import pyarrow
    import pyarrow.parquet

    try:
        records = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
        return [_triple(record) for record in records]
    except (pyarrow.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{name} has not the published columns ({error})") from error


def _triple(record: dict[str, Any]) -> Triple:
    """The row as its prompt and label say; the copies in ``extra_info`` must agree."""
    messages = [(message["role"], message["content"]) for message in record["prompt"]]
    extra = record["extra_info"]
    triple = Triple(extra["instruction"], extra["input"], record["reward_model"]["ground_truth"])
    if messages != [("system", triple.instruction), ("user", triple.input)] or extra["output"] != triple.output:
        raise ValueError(f"row {extra['index']}: prompt, label and extra_info contradict each other")
    return triple


# --------------------------------------------------------------------------------------------------- validation


def _valid(split: str, published: Sequence[Triple], skeleton: str, dropped: Counter[str]) -> list[Row]:
    rows = []
    for index, triple in enumerate(published):
        reason = fault(triple, skeleton)
        if reason:
            dropped[f"{split}: {reason}"] += 1
        else:
            rows.append(_row(split, index, triple, skeleton))
    if not rows:
        raise DataError(f"rlla_4k: no valid row in split {split} ({dict(dropped)})")
    return rows


def fault(triple: Triple, skeleton: str) -> str | None:
    """Why a row cannot be used, or None."""
    if not all(isinstance(text, str) and text.strip() for text in triple):
        return "a text is missing"
    tools = tool_list(skeleton, triple.instruction)
    if tools is None:
        return "the system prompt has another skeleton"
    if read_tools(tools) is None:
        return "the tool list cannot be read"
    if not triple.input.startswith(HISTORY):
        return "the user message is no dialogue record"
    match = _LABEL.fullmatch(triple.output)
    if match is None:
        return "the answer is neither a tool call nor a response"
    if match["calls"] is not None and read_calls(triple.output) is None:
        return "a tool call is not JSON with name and parameters"
    if match["calls"] is not None and not _is_full_score(_label(triple.output)):
        return "the reward cannot read the label"
    return None


def _is_full_score(label: str) -> bool:
    try:
        return is_exact(label, label)
    except DataError:
        return False


def read_calls(answer: str) -> list[dict[str, Any]] | None:
    """The calls of a published answer ([] for a response), None if one is malformed.

    Looked for behind ``</think>``, because real thoughts mention the tags.
    """
    body = answer.rpartition(_BODY_START)[2]
    if not body.startswith("<tool_call>"):
        return []
    lines = body.removeprefix("<tool_call>").removesuffix("</tool_call>").strip().split("\n")
    try:
        calls = [json.loads(line) for line in lines]
    except ValueError:
        return None
    well_formed = all(
        isinstance(call, dict) and set(call) == {"name", "parameters"} and isinstance(call["parameters"], dict)
        for call in calls
    )
    return calls if well_formed else None


def _row(split: str, index: int, triple: Triple, skeleton: str) -> Row:
    calls = read_calls(triple.output) or []
    kind = "no_tool" if not calls else "one_call" if len(calls) == 1 else "several_calls"
    if "<tool_call>" in triple.input:
        kind = "history"
    tools = read_tools(tool_list(skeleton, triple.instruction) or "") or []
    meta = {"calls": len(calls), "tools": len(tools)}
    identity = f"{split}/{index}"
    if split != DEMONSTRATIONS:
        return Row(identity, split, triple.instruction, triple.input, triple.output, kind, meta=meta)
    return Demonstration(
        identity, split, triple.instruction, triple.input, _label(triple.output), kind, meta=meta,
        output=triple.output, group=index, phase=2,
    )  # fmt: skip


def _label(demonstration: str) -> str:
    """The label of a demonstration: its thought replaced by the placeholder, as in the published RL rows.

    The reward reads the first ``<tool_call>``; a thought that mentions the tag would make the label unreadable.
    """
    body = demonstration.rpartition(_BODY_START)[2]
    think = THINK_TOOL if body.startswith("<tool_call>") else THINK_RESPONSE
    return f"<think> {think} {_BODY_START}{body}"


def _rl_rows(demonstrations: Sequence[Row]) -> list[Row]:
    return [
        Row(f"train/{i}", "train", row.system, row.user, row.ground_truth, row.kind, meta=row.meta)
        for i, row in enumerate(demonstrations)
    ]


# --------------------------------------------------------------------------------------------------- statistics


def statistics(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts by category: what answers hold, calls, parameters and value types, tools listed, histories."""
    answers = [row.output if isinstance(row, Demonstration) else row.ground_truth for row in rows]
    calls_of = [read_calls(answer) or [] for answer in answers]
    calls = [call for listed in calls_of for call in listed]
    values = [value for call in calls for value in call["parameters"].values()]
    thoughts = [len(answer.rpartition("</think>")[0].removeprefix("<think>").strip()) for answer in answers]
    return {
        "rows": len(rows),
        "kinds": _counted(row.kind for row in rows),
        "answers": _counted("tool_call" if listed else "response" for listed in calls_of),
        "calls_per_tool_answer": _counted(len(listed) for listed in calls_of if listed),
        "parameters_per_call": _counted(len(call["parameters"]) for call in calls),
        "value_types": _counted(type(value).__name__ for value in values),
        "tools_per_prompt": _counted(row.meta["tools"] for row in rows),
        "with_observations": sum("<obs>" in row.user for row in rows),
        "thought_characters": {"mean": round(sum(thoughts) / len(thoughts), 1), "max": max(thoughts)},
        "thoughts_with_tags": {
            tag: sum(tag in answer.rpartition("</think>")[0] for answer in answers)
            for tag in ("<tool_call>", "<response>")
        },
    }


def _counted(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _overlap(splits: dict[str, list[Row]]) -> dict[str, int]:
    """Prompts of the test split that are also in a training split."""
    prompts = {name: {(row.system, row.user) for row in rows} for name, rows in splits.items()}
    return {
        f"{name} and test": len(prompts[name] & prompts["test"])
        for name in prompts
        if name != "test" and "test" in prompts
    }
