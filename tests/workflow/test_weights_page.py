"""docs/weights.md says what the schemes do: measured again where the labels are at hand."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CALL = '{"name": "get_weather", "parameters": {"city": "Rome", "days": 3}}'
ANSWERS = [
    f"<think> Two calls. </think>\n<tool_call>\n{CALL}\n{CALL}\n</tool_call><|im_end|>",
    f"<think> I write <tool_call> soon. </think>\n<tool_call>\n{CALL}\n</tool_call><|im_end|>",
    "<think> No tool. </think>\n<response> Hello. </response><|im_end|>",
    '<think> Cut off </think>\n<tool_call>\n{"name": "get',
    '<think> Odd </think><tool_call>\n{"parameters": {"name": "x"}, "name": "get_weather"}\n</tool_call>',
    "",
]


@pytest.fixture(scope="module")
def pages():
    """The two programs beside the page."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import measure_weights
        import released_faults
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return SimpleNamespace(measure=measure_weights, faults=released_faults)


@pytest.fixture(scope="module")
def labels(pages):
    folder = pages.measure.data_folder()
    if folder is None:
        pytest.skip("no rlla_4k (RESTOOL_MIRROR)")
    return folder


def by_characters(text: str) -> torch.Tensor:
    """Tokens of three characters."""
    starts = torch.arange(0, len(text), 3)
    return torch.stack([starts, (starts + 3).clamp(max=len(text))], 1).reshape(-1, 2)


def test_no_fault_is_fixed_and_all_faults_are_released(pages):
    batch = pages.measure.make_batch(ANSWERS, lambda texts: [by_characters(text) for text in texts], 20)
    weigh = pages.measure.weights.weigh
    assert torch.equal(pages.faults.faulty_weights(batch, ()), weigh("fixed", batch))
    assert torch.allclose(pages.faults.faulty_weights(batch, pages.faults.FAULTS), weigh("released", batch))


def test_every_fault_changes_an_answer_made_for_it(pages):
    batch = pages.measure.make_batch(ANSWERS, lambda texts: [by_characters(text) for text in texts], 20)
    right = pages.faults.faulty_weights(batch, ())
    for fault in pages.faults.FAULTS:
        assert not torch.equal(pages.faults.faulty_weights(batch, [fault]), right), fault


def test_the_page_holds_what_is_measured(pages, labels):
    measured = pages.measure.measured(labels)
    _, written, _ = pages.measure.page_parts(pages.measure.PAGE.read_text("utf-8"))
    assert pages.measure.without_date(written) == measured.strip(), "run: .venv/bin/python docs/measure_weights.py"


def test_the_faults_are_complete_on_the_labels(pages, labels):
    corpus = pages.measure.read_corpus(labels)
    for encode in pages.measure.train_tokenizers(corpus).values():
        batch = pages.measure.make_batch(corpus.labels, encode, 1)
        found = pages.faults.faulty_weights(batch, pages.faults.FAULTS)
        assert torch.allclose(found, pages.measure.weights.weigh("released", batch), atol=1e-5)
