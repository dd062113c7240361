"""RL: the update is that of the formula, written out; pairs of runs; what is logged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_runs import begin, settings
from torch.nn import functional

from restool import algorithms
from restool.backends import answers as backend_answers
from restool.backends.local.rl import Learner, _Tally
from restool.backends.local.rollouts import Collector, Rollouts, Sampled
from restool.backends.local.session import Session
from restool.core.errors import ConfigurationError
from restool.models import chat


def parts(path, prepared, start, *overrides):
    chosen = settings(*overrides)
    run = begin(path, prepared, chosen)
    session = Session.open(run, chosen, start, lambda line: None)
    return session, Collector(session, prepared), Learner(session, algorithms.get(chosen.method.algorithm))


def rollouts_of_labels(collector: Collector, learner: Learner) -> tuple[Rollouts, torch.Tensor]:
    """Labels with some tokens replaced, as if sampled by a policy that has moved since; and advantages for them.

    The first group has no advantage at all, nor has the fourth answer of the second.
    """
    random = torch.Generator().manual_seed(0)
    rows = collector.rows(1)
    pairs = [(row.system, row.user) for row in rows]
    prompts = chat.prompt_ids_batch(collector._tokenizer, pairs)
    ids = []
    for row in rows:
        label = [*collector._tokenizer.encode(row.ground_truth, add_special_tokens=False), 2]
        for _ in range(4):
            swap = torch.rand(len(label), generator=random) < 0.05
            ids.append(
                [5 + i if swapped else token for i, (token, swapped) in enumerate(zip(label, swap, strict=True))]
            )
    mask_BT = torch.arange(max(map(len, ids))) < torch.tensor([len(answer) for answer in ids])[:, None]
    zeros_BT = torch.zeros(mask_BT.shape)
    answers = collector.score(Sampled(1, rows, prompts, ids, mask_BT, zeros_BT, zeros_BT + 0.5))
    for trees in learner._policy.micro_batches(answers.trees(torch.ones(16)), 8192):
        with torch.no_grad():
            scored = learner._policy(trees)
        answers.batch.logprob_BT[scored.rows_B, : scored.logprob_BT.shape[1]] = scored.logprob_BT
    answers.batch.logprob_BT.add_(0.3 * torch.randn(mask_BT.shape, generator=random)).mul_(mask_BT)
    advantage_B = torch.randn(16, generator=random)
    advantage_B[:4] = advantage_B[7] = 0
    return answers, advantage_B[:, None] * mask_BT


def plain_loss(session: Session, answers: Rollouts, rows: list[int], advantage_BT, weight_BT, entropy=0.0):
    """The mini-batch's loss, written out: one row at a time, no packing, nothing left out."""
    method, record = session.settings.method, algorithms.get(session.settings.method.algorithm)
    temperature = session.settings.training.rl.temperature
    samples = len(answers.ids) // len(answers.prompts)
    width = answers.batch.mask_BT.shape[1]
    logprobs, entropies = [], []
    for b in rows:
        prompt = answers.prompts[b // samples]
        ids = torch.tensor([prompt + answers.ids[b]])
        log_p = (session.model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        padding = (0, width - len(answers.ids[b]))
        logprobs.append(functional.pad(log_p.gather(1, ids[0, len(prompt) :, None])[:, 0], padding))
        entropies.append(functional.pad(-(log_p.exp() * log_p).sum(1), padding))
    mask_BT = answers.batch.mask_BT[rows]
    loss_BT, _ = algorithms.surrogate(record)(
        torch.stack(logprobs),
        answers.batch.logprob_BT[rows],
        advantage_BT[rows],
        low=method.clip_low,
        high=method.clip_high,
        dual=method.clip_dual,
        mask_BT=mask_BT,
    )
    length = session.settings.training.rl.max_new_tokens
    aggregate = algorithms.aggregate(record)
    bonus = aggregate(torch.stack(entropies), mask_BT, None, length=length)  # token weights do not reach it
    return aggregate(loss_BT, mask_BT, weight_BT[rows], length=length) - entropy * bonus


@pytest.mark.parametrize(
    "method", ["grpo", "rest_released", "rest_fixed", "masked_uniform", "dr_grpo", "gspo", "rest_entropy"]
)
@pytest.mark.parametrize("micro_tokens", [300, 8192])
def test_updates_are_those_of_the_formula(method, micro_tokens, imitator, prepared, tmp_path):
    overrides = [
        f"method={method}",
        f"training.rl.micro_tokens={micro_tokens}",
        "training.rl.temperature=0.9",
        "training.rl.epochs=2",
        "training.rl.max_new_tokens=100",
    ]
    session, collector, learner = parts(tmp_path / "a", prepared, imitator, *overrides)
    answers, advantage_BT = rollouts_of_labels(collector, learner)
    weight_BT = learner.weights(answers)
    minibatches = [m for epoch in range(2) for m in learner._minibatches(1, epoch, 4)]
    statistics = learner.update(1, answers, advantage_BT, weight_BT)
    assert statistics["clip/fraction"] > 0.1

    other, _, _ = parts(tmp_path / "b", prepared, imitator, *overrides)
    rl = other.settings.training.rl
    optimiser = torch.optim.AdamW(
        other.model.parameters(), lr=rl.learning_rate, betas=rl.betas, weight_decay=rl.weight_decay
    )
    for group_M in minibatches:
        rows = [b for b in range(16) if b // 4 in group_M.tolist()]
        optimiser.zero_grad()
        plain_loss(other, answers, rows, advantage_BT, weight_BT).backward()
        torch.nn.utils.clip_grad_norm_(other.model.parameters(), rl.gradient_clip)
        optimiser.step()
    moved = 0.0
    start, _, _ = parts(tmp_path / "c", prepared, imitator, *overrides)
    for ours, theirs, before in zip(
        session.model.parameters(), other.model.parameters(), start.model.parameters(), strict=True
    ):
        moved = max(moved, float((theirs - before).detach().abs().max()))
        assert torch.allclose(ours, theirs, atol=2e-5)
    assert moved > 1e-4


@pytest.mark.parametrize("method", ["grpo", "rest_fixed"])
def test_entropy_bonus_reaches_every_token_alike(method, imitator, prepared, tmp_path):
    overrides = [f"method={method}", "+method.entropy_coefficient=0.1"]
    session, collector, learner = parts(tmp_path / "a", prepared, imitator, *overrides)
    answers, advantage_BT = rollouts_of_labels(collector, learner)
    weight_BT = learner.weights(answers)
    every_B = torch.ones(16, dtype=torch.bool)
    loss = learner._accumulate(answers, every_B, advantage_BT, weight_BT, None, _Tally())
    expected = plain_loss(session, answers, list(range(16)), advantage_BT, weight_BT, entropy=0.1)
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)


def test_parts_of_a_mini_batch_are_normalised_by_themselves(imitator, prepared, tmp_path):
    overrides = ["method=rest_released", "+training.rl.normaliser_tokens=1000", "training.rl.max_new_tokens=100"]
    session, collector, learner = parts(tmp_path / "a", prepared, imitator, *overrides)
    answers, advantage_BT = rollouts_of_labels(collector, learner)
    weight_BT = learner.weights(answers)
    lengths = [len(answers.prompts[b // 4]) + len(answers.ids[b]) for b in range(16)]
    groups: list[list[int]] = [[]]
    for b, length in enumerate(lengths):
        if groups[-1] and sum(lengths[i] for i in groups[-1]) + length > 1000:
            groups.append([])
        groups[-1].append(b)
    assert len({len(group) for group in groups}) > 1  # parts of unequal size
    every_B = torch.ones(16, dtype=torch.bool)
    loss = learner._accumulate(answers, every_B, advantage_BT, weight_BT, None, _Tally())
    expected = sum(len(g) / 16 * plain_loss(session, answers, g, advantage_BT, weight_BT) for g in groups)
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    whole = plain_loss(session, answers, list(range(16)), advantage_BT, weight_BT)
    assert abs(loss - float(whole.detach())) > 1e-4


def test_reference_penalty_is_zero_at_the_start_and_not_later(trained, imitator, prepared, tmp_path):
    session, collector, learner = parts(tmp_path / "a", prepared, imitator, "method=grpo", "+method.kl_coefficient=0.1")
    answers = collector.score(collector.sample(1))
    reference_BT = learner._reference_logprobs(answers)
    assert torch.allclose(reference_BT, answers.batch.logprob_BT, atol=1e-4)
    with torch.no_grad():
        for parameter in session.model.parameters():
            parameter.mul_(1.1)
    assert torch.equal(learner._reference_logprobs(answers), reference_BT)  # it is frozen


def test_prompts_and_random_numbers_do_not_depend_on_the_method(imitator, prepared, tmp_path):
    found = []
    for method in ("grpo", "rest_released"):
        _, collector, _ = parts(tmp_path / method, prepared, imitator, f"method={method}")
        found.append([([r.id for r in collector.rows(s)], collector.sample(s).ids) for s in (1, 2, 9)])
    assert found[0] == found[1]
    _, other, _ = parts(tmp_path / "seed", prepared, imitator, "method=grpo", "seed=1")
    assert [r.id for r in other.rows(1)] != found[0][0][0]


def test_long_prompts_lose_their_head_where_the_data_says_so(prepared, tmp_path):
    overrides = ["data.overlong=truncate_left", "data.max_prompt_tokens=50"]
    _, whole, _ = parts(tmp_path / "a", prepared, prepared / "model")
    _, cut, _ = parts(tmp_path / "b", prepared, prepared / "model", *overrides)
    assert cut.sample(1).prompts == [prompt[-50:] for prompt in whole.sample(1).prompts]


def test_an_epoch_sees_no_prompt_twice(prepared, tmp_path):
    _, collector, _ = parts(tmp_path / "a", prepared, prepared / "model", "training.rl.prompts=5")
    epoch = [row.id for step in range(1, 5) for row in collector.rows(step)]  # 24 rows: 4 steps, 4 rows left out
    assert len(set(epoch)) == 20
    assert [row.id for row in collector.rows(5)] != epoch[:5]


def test_sampler_log_probabilities_are_those_of_the_update(imitator, prepared, tmp_path):
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, "training.rl.temperature=0.8")
    answers = collector.score(collector.sample(1))
    for trees in learner._policy.micro_batches(answers.trees(torch.ones(16)), 8192):
        scored = learner._policy(trees)
        old_BT = answers.batch.logprob_BT[scored.rows_B, : scored.logprob_BT.shape[1]]
        assert torch.allclose(scored.logprob_BT, old_BT, atol=1e-4)


def test_every_part_of_the_reward_is_logged(imitator, prepared, tmp_path):
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, "method=grpo", "reward=toolrl_length")
    answers, _ = rollouts_of_labels(collector, learner)
    found = backend_answers.metrics(answers.batch, answers.exact, learner.weights(answers))
    assert found["reward/length"] > 0
    three = found["reward/format"] + found["reward/correctness"] + found["reward/length"]
    assert found["reward/total"] == pytest.approx(three, abs=1e-5)


def test_a_run_logs_every_step_and_shows_answers(trained, imitator, prepared, tmp_path):
    from restool.backends.local import train

    chosen = settings("method=rest_fixed", "schedule=fraction", "training.rl.max_new_tokens=60")
    run = begin(tmp_path / "logged", prepared, chosen)
    lines: list[str] = []
    train(run, chosen, prepared, imitator, report=lines.append)
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == [1, 2, 3, 4, 5]
    assert [row["schedule/reference_step"] for row in metrics] == [21, 42, 63, 84, 105]
    assert metrics[0]["learning_rate"] == chosen.training.rl.learning_rate
    assert metrics[0]["weight/format"] > 0
    assert metrics[0]["weight/other"] == 0
    assert "weight/released_crashes" not in metrics[0]
    assert {"reward/total", "reward/exact", "signal/groups", "time/sample", "grad/norm"} <= metrics[0].keys()
    assert sorted({row["step"] for row in run.rollouts()}) == [1, 2, 4]
    answer = run.rollouts()[0]["answers"][0]
    assert len(answer["ids"]) == len(answer["offsets"]) == len(answer["regions"]) == len(answer["weights"])
    assert answer["offsets"][-1][1] == len(answer["text"])
    assert run.done()["steps"] == 5
    assert any("step 5/5 | reward total" in line and "left" in line for line in lines)


def test_spans_at_which_the_released_code_raises_are_counted(imitator, prepared, tmp_path):
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, "method=rest_released")
    answers, _ = rollouts_of_labels(collector, learner)
    batch = answers.batch
    assert learner.diagnostics(answers) == {"weight/released_crashes": 0}
    hidden = [torch.tensor([[0, len(batch.texts[0])]]), *batch.offsets[1:]]  # one token hides every span but the first
    crashed = replace(answers, batch=replace(batch, offsets=hidden))
    assert learner.diagnostics(crashed)["weight/released_crashes"] > 0


def test_zero_gradient_still_counts_as_an_update(imitator, prepared, tmp_path):
    session, collector, learner = parts(tmp_path / "a", prepared, imitator)
    answers = collector.score(collector.sample(1))
    zero_BT = torch.zeros_like(answers.batch.logprob_BT)
    statistics = learner.update(1, answers, zero_BT, learner.weights(answers))
    assert statistics["loss/policy"] == statistics["grad/norm"] == 0
    state = learner.parts["optimiser"].state_dict()["adamw"]["state"]
    rl = session.settings.training.rl
    assert {int(s["step"]) for s in state.values()} == {rl.minibatches * rl.epochs}


def test_impossible_settings_are_refused(trained):
    with pytest.raises(ConfigurationError, match="minibatches=9 is more than prompts=4"):
        trained("training.rl.minibatches=9", name="a")
    with pytest.raises(ConfigurationError, match="has only 24 training rows"):
        trained("training.rl.prompts=25", name="b")
    with pytest.raises(ConfigurationError, match="'groups': sample at least two"):
        trained("training.rl.samples=1", name="c")
