"""What `restool methods NAME` says of each method."""

from __future__ import annotations

import pytest

from restool import algorithms
from restool.algorithms import NEEDS
from restool.experiments import compose_run
from restool.explanations import explain, parts


@pytest.mark.parametrize("record", algorithms.ALGORITHMS.values(), ids=lambda record: record.id)
def test_every_method_is_explained_in_full(record):
    values = compose_run([f"method={record.id}"]).method.model_dump()
    text = "\n".join(explain(record, values))
    assert text.startswith(f"{record.id}: {record.title}\n{record.summary}\n")
    for part, name in parts(record).items():
        line = next(line for line in text.splitlines() if line.split()[:2] == [part, name])
        assert len(line.split()) > 4  # what the function does, not its name alone
    for need in record.needs:
        assert NEEDS[need] in text
    for deviation in record.deviations:
        assert f"- {deviation}" in text
    assert ("clip_low" in text) == (record.kind == "rl")
    assert ("beta_prompts" in text.partition("values")[2]) == (record.id == "optimal")
