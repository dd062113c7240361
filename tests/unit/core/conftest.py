"""Fixtures: a batch of answers of every kind, with character-chunk tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from restool.core.batch import AnswerBatch
from restool.core.regions import region_ids_batch

TEXTS = [
    '<think> need it </think>\n<tool_call>\n{"name": "book_hotel", "parameters": {"city": "Rome", "days": 3}}\n'
    '{"name": "ping", "parameters": {}}\n</tool_call><|im_end|>',
    "<think> just talk </think>\n<response> Hello there. </response><|im_end|>",
    '<think> cut off </think>\n<tool_call>\n{"name": "book_hotel", "parameters": {"city": "Ro',
    "no structure at all<|im_end|>",
]


def chunk_offsets(text: str, size: int = 3) -> torch.Tensor:
    return torch.tensor([(i, min(i + size, len(text))) for i in range(0, len(text), size)]).reshape(-1, 2)


def answer_batch(texts: list[str], *, size: int = 3, padding: int = 0, **fields: object) -> AnswerBatch:
    offsets = [chunk_offsets(text, size) for text in texts]
    lengths = torch.tensor([len(pairs) for pairs in offsets])
    width = int(lengths.max()) + padding if len(texts) else padding
    mask_BT = torch.arange(width) < lengths[:, None]
    return AnswerBatch(texts, offsets, mask_BT, region_ids_batch(texts, offsets, width), **fields)  # type: ignore[arg-type]


@pytest.fixture
def make_batch() -> Callable[..., AnswerBatch]:
    return answer_batch


@pytest.fixture
def batch() -> AnswerBatch:
    made = answer_batch(TEXTS, padding=5, step=21.0, progress=0.2, seed=3)
    generator = torch.Generator().manual_seed(0)
    entropy_BT = torch.rand(made.mask_BT.shape, generator=generator) * made.mask_BT
    return AnswerBatch(
        made.texts,
        made.offsets,
        made.mask_BT,
        made.region_BT,
        group_B=torch.tensor([0, 0, 1, 1]),
        reward_B=torch.tensor([4.0, 1.0, -3.0, -3.0]),
        entropy_BT=entropy_BT,
        step=made.step,
        progress=made.progress,
        seed=made.seed,
    )
