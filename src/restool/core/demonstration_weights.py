"""Token weights of the SFT family, on demonstrations instead of sampled answers.

TSFT is ms-swift's loss scale "hermes": factor 2 on the match of its pattern, literal mentions of the tag in a thought
included (17 of the 400 real demonstrations have one). A token that straddles the block's border counts as inside;
ms-swift cuts the text there before it tokenises. The weights are not normalised: the loss is divided by the number of
tokens (`aggregates.token_mean`).
"""

from __future__ import annotations

from torch import Tensor

from restool.core import spans
from restool.core.batch import AnswerBatch


def tool_block(batch: AnswerBatch, *, factor: float = 2.0) -> Tensor:
    """TSFT: ``factor`` on every `<tool_call>...</tool_call>` that is not empty, 1 elsewhere."""
    return _emphasised(batch, "tool_call", factor)


def think_block(batch: AnswerBatch, *, factor: float = 2.0) -> Tensor:
    """RSFT: ``factor`` on every `<think>...</think>`, 1 elsewhere (the paper's factor is unknown; 2 is our choice)."""
    return _emphasised(batch, "think", factor)


def _emphasised(batch: AnswerBatch, tag: str, factor: float) -> Tensor:
    weight_BT = batch.mask_BT.float()
    found = [(row, *span) for row, text in enumerate(batch.texts) for span in blocks(text, tag)]
    if found:
        line = spans.lay_out(batch.texts, batch.offsets)
        rows, starts, ends = zip(*found, strict=True)
        inside_BT = line.to_batch(spans.cover(line, rows, starts, ends), batch.mask_BT.shape[1])
        weight_BT[inside_BT.to(weight_BT.device)] *= factor
    return weight_BT


def blocks(text: str, tag: str) -> list[tuple[int, int]]:
    """Matches of ``<tag>.+?</tag>`` over lines, in time linear in the text."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    found = []
    start = text.find(opening)
    while start >= 0:
        close = text.find(closing, start + len(opening) + 1)
        if close < 0:
            break
        found.append((start, close + len(closing)))
        start = text.find(opening, found[-1][1])
    return found
