"""What a method is, in words: the registry's record with what its parts do and how its needs are met."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from restool import algorithms
from restool.algorithms import NEEDS, Algorithm

CONFIDENCE = {
    "code": "released or published code says so",
    "text": "a paper says so, no code was seen",
    "partial": "some values are unknown and are ours",
    "ours": "a control or correction of this project",
}


def parts(record: Algorithm) -> dict[str, str]:
    """Part of the composition → name of the core function; {} for a method that does not train."""
    names = {part: getattr(record, part) for part in ("weights", "advantage", "surrogate", "aggregate")}
    return {part: name for part, name in names.items() if record.kind != "none" and name != "none"}


_LOSS = ("clip_low", "clip_high", "clip_dual", "entropy_coefficient", "kl_coefficient")
_READ = {"sft": ("weights",), "rl": ("weights", *_LOSS)}
_READ_FOR_NEED = {"entropy": ("entropy_decay",), "beta": ("beta_prompts", "beta_decay")}


def explain(record: Algorithm, values: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a person. ``values``: the method's settings, of which those that its kind reads are shown."""
    names = [*_READ.get(record.kind, ()), *(n for need in sorted(record.needs) for n in _READ_FOR_NEED.get(need, ()))]
    shown = {name: str(values[name]) for name in names if values[name] not in ({}, None)}
    yield f"{record.id}: {record.title}"
    yield record.summary
    yield ""
    yield f"source       {record.paper}"
    yield f"known from   {record.confidence}: {CONFIDENCE[record.confidence]}"
    yield f"starts from  {'the SFT checkpoint' if record.start == 'sft' else 'the base model'} (method.start)"
    yield from _block("composed of", {p: f"{n:28} {_does(record, p)}" for p, n in parts(record).items()})
    yield from _block("needs", {need: NEEDS[need] for need in sorted(record.needs)})
    yield from _block(f"values (configs/method/{record.id}.yaml)", shown)
    if record.deviations:
        yield ""
        yield "deviations"
        yield from (f"  - {deviation}" for deviation in record.deviations)
    yield ""
    yield f"run it       restool train method={record.id}"


def _block(title: str, entries: Mapping[str, str]) -> Iterator[str]:
    if entries:
        yield ""
        yield title
        width = max(map(len, entries))
        yield from (f"  {name:{width}}  {text}" for name, text in entries.items())


def _does(record: Algorithm, part: str) -> str:
    """The first sentence of the core function's docstring."""
    if record.advantage == "gae" and part == "advantage":
        from restool.core.advantages import gae as function
    else:
        of_part = {"weights": algorithms.weight_scheme}.get(part) or getattr(algorithms, part)
        function = of_part(record)
    return (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").replace("``", "")
