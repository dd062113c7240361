"""Supervised fine-tuning: order, loss and weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from small_runs import settings

from restool.backends.demonstrations import Curriculum, Example
from restool.backends.local.packing import TokenScorer
from restool.backends.local.sft import trees_of
from restool.core.errors import DataError
from restool.data.rows import read_demonstrations
from restool.models import chat, loading


def examples(groups: int = 12, size: int = 3) -> list[Example]:
    phases = [0] * (groups // 4) + [1] * (groups // 4) + [2] * (groups - 2 * (groups // 4))
    return [
        Example([1, group, member], [9, number], group, phases[group])
        for number, (group, member) in enumerate((g, m) for g in range(groups) for m in range(size))
    ]


def test_order_depends_on_seed_and_step_only():
    sft = settings().training.sft.model_copy(update={"batch": 5, "steps": 30})
    first, again, other = (Curriculum(examples(), sft, seed) for seed in (0, 0, 1))
    batches = [first.batch(step) for step in range(1, 31)]
    assert [again.batch(step) for step in reversed(range(1, 31))] == batches[::-1]
    assert [other.batch(step) for step in range(1, 31)] != batches


def test_phases_come_in_their_stages():
    sft = settings().training.sft.model_copy(update={"batch": 4, "steps": 20, "phase_ends": (0.1, 0.4)})
    curriculum = Curriculum(examples(), sft, 0)
    phases = [{e.phase for e in curriculum.batch(step)} for step in range(1, 21)]
    assert phases == [{0}] * 2 + [{1}] * 6 + [{2}] * 12


@pytest.mark.parametrize("batch", [1, 5, 36, 50])
def test_an_epoch_sees_every_demonstration_once(batch):
    sft = settings().training.sft.model_copy(
        update={"batch": batch, "steps": None, "epochs": 2.0, "phase_ends": (0.0, 0.0)}
    )
    curriculum = Curriculum(examples(), sft, 0)
    assert curriculum.steps == math.ceil(2 * 36 / batch)
    seen = [e.answer[1] for step in range(1, curriculum.steps + 1) for e in curriculum.batch(step)]
    assert sorted(seen[:36]) == list(range(36))
    assert sorted(seen[36:72]) == list(range(36))


def test_neighbours_of_a_group_share_the_beginning_of_their_prompts():
    batch = [
        Example([1, 2, 3, 4], [8, 0], 0, 0),
        Example([1, 2, 5], [9, 0], 0, 0),
        Example([1, 2, 5], [7, 0], 1, 0),
    ]
    first, second = trees_of(batch)
    assert (first.prefix, first.branches, first.targets, first.rows) == (
        [1, 2],
        [[3, 4, 8, 0], [5, 9, 0]],
        [2, 2],
        [0, 1],
    )
    assert (second.prefix, second.branches, second.rows) == ([1, 2, 5], [[7, 0]], [2])


def test_first_loss_is_the_mean_over_answer_tokens_of_the_plain_model(trained, prepared):
    run = trained("method=sft", "training.sft.steps=1", "training.sft.batch=120", "training.sft.phase_ends=[0.0,0.0]")
    model, tokenizer = loading.load(prepared / "model")
    total, count = 0.0, 0
    with torch.no_grad():
        for row in read_demonstrations(prepared):
            prompt = chat.prompt_ids(tokenizer, row.system, row.user)
            answer = [*tokenizer.encode(row.output, add_special_tokens=False), tokenizer.eos_token_id]
            log_p = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            total -= float(log_p.gather(1, torch.tensor(answer)[:, None]).sum())
            count += len(answer)
    assert run.metrics()[0]["loss/sft"] == pytest.approx(total / count, abs=1e-5)


def test_division_into_forward_passes_changes_nothing(trained):
    whole = trained("method=tsft", name="whole").metrics()
    parts = trained("method=tsft", "training.sft.micro_tokens=300", name="parts").metrics()
    for a, b in zip(whole, parts, strict=True):
        assert a["loss/sft"] == pytest.approx(b["loss/sft"], abs=1e-3)
        assert a["grad/norm"] == pytest.approx(b["grad/norm"], rel=1e-2)


def test_weighted_methods_count_their_block_more(trained):
    losses = {name: trained(f"method={name}", name=name).metrics()[0]["loss/sft"] for name in ("sft", "tsft", "rsft")}
    assert losses["tsft"] > losses["sft"] + 0.5  # most tokens are in the tool_call block and count twice
    assert losses["rsft"] > losses["sft"] + 0.5


def test_training_imitates(trained):
    losses = [row["loss/sft"] for row in trained("method=sft", "training.sft.steps=60").metrics()]
    assert losses[-1] < losses[0] - 1


def test_long_demonstrations_are_left_out_and_counted(trained):
    lines: list[str] = []
    trained("method=sft", "training.sft.max_tokens=180", "training.sft.steps=2", report=lines.append)
    assert any("demonstrations are longer than training.sft.max_tokens=180" in line for line in lines)
    with pytest.raises(DataError, match=r"raise it"):
        trained("method=sft", "training.sft.max_tokens=5", name="none")


def test_scorer_is_exact_on_real_demonstrations(prepared):
    model, tokenizer = loading.load(prepared / "model")
    rows = read_demonstrations(prepared)[:4]
    batch = [
        Example(
            chat.prompt_ids(tokenizer, row.system, row.user),
            tokenizer.encode(row.output, add_special_tokens=False),
            0,
            0,
        )
        for row in rows
    ]
    scored = [TokenScorer(model, packed=packed) for packed in (True, False)]
    found = []
    for scorer in scored:
        by_row = {}
        for trees in scorer.micro_batches(trees_of([dataclasses.replace(e) for e in batch]), 4096):
            result = scorer(trees)
            for row, logprob_T in zip(result.rows_B.tolist(), result.logprob_BT.detach(), strict=True):
                by_row[row] = logprob_T[: len(batch[row].answer)]
        found.append(torch.cat([by_row[row] for row in range(4)]))
    assert float((found[0] - found[1]).abs().max()) < 1e-5
