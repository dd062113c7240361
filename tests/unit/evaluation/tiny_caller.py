"""A checkpoint small enough to be trained in a test that makes real tool calls: it knows some dialogues by heart.

Its chat template shows it the beginning of what the user said last, nothing else; so it answers in milliseconds
where prompts have thousands of tokens, and what it says in turns that it does not know is of no interest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bfcl_texts
import torch
import yaml

from restool.evaluation.bfcl import prompts
from restool.models import chat, loading, tiny
from restool.settings import TinyArchitecture

SEEN = 120
REMINDER = "<user> Based on our conversation above"  # how every prompt of API-Bank ends
LAST = f"messages[-1]['content'].split('{REMINDER}')[0].split('<user> ')[-1][:{SEEN}]"
TEMPLATE = (
    f"{{{{- '<|im_start|>user\\n' + {LAST} + '<|im_end|>\\n' }}}}"
    "{% if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"
)
TRAINED = 0.02
"""Nats a token at which greedy answers are those that it was shown."""


def train(
    rows: Sequence[dict[str, Any]],
    oracle: Mapping[str, Any],
    out: Path,
    root: Path,
    samples: Sequence[dict[str, Any]] = (),
) -> Path:
    """Save a model that gives the oracle's answers to the multi-turn entries ``rows``: one answer with all calls of a
    turn, then one without; and to ``samples`` of API-Bank the right call. What begins the same must be answered the
    same."""
    pairs = {prompts.AFTER_TOOL[:SEEN]: bfcl_texts.DONE}
    for sample in samples:
        said = sample["user"].split(REMINDER)[0].split("<user> ")[-1][:SEEN]
        assert pairs.setdefault(said, text := bfcl_texts.answer([sample["gold"]])) == text, f"two answers to: {said}"
    for row in rows:
        for messages, texts in zip(row["question"], oracle[row["id"]], strict=True):
            said = f"{messages[-1]['content'].strip()}\n{prompts.HINT} </user>"[:SEEN]
            assert pairs.setdefault(said, texts[0]) == texts[0], f"two answers to: {said}"
    values = yaml.safe_load((root / "configs/model/tiny.yaml").read_text())["tiny"]
    arch = TinyArchitecture(**(values | {"layers": 2, "vocabulary": 700}))
    tokenizer = tiny.train_tokenizer([text for pair in pairs.items() for text in pair], arch.vocabulary)
    tokenizer.chat_template = TEMPLATE
    model = tiny.build_tiny(arch, tokenizer)
    _fit(model, tokenizer, pairs)
    loading.save(model, tokenizer, out)
    return out


def _fit(model: Any, tokenizer: Any, pairs: Mapping[str, str]) -> None:
    given = chat.prompt_ids_batch(tokenizer, [("", f"<user> {said}") for said in pairs])
    wanted = [tokenizer(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"] for text in pairs.values()]
    length = max(len(a) + len(b) for a, b in zip(given, wanted, strict=True))
    ids_BT = torch.full((len(given), length), tokenizer.pad_token_id)
    labels_BT = torch.full((len(given), length), -100)
    for row, (prompt, answer) in enumerate(zip(given, wanted, strict=True)):
        ids_BT[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels_BT[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(600):
        loss = model(input_ids=ids_BT, labels=labels_BT).loss
        if loss < TRAINED:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"not learnt by heart: loss {loss:.3f}")
