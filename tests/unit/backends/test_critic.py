"""PPO's critic: its values, its updates, and a run with it."""

from __future__ import annotations

import pytest
import torch
from small_runs import settings
from test_rl import parts, rollouts_of_labels

from restool.core.errors import ConfigurationError

PPO = ["method=ppo", "training.rl.critic_learning_rate=3e-3"]


def test_values_start_at_zero_and_advantages_are_whitened(imitator, prepared, tmp_path):
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, *PPO)
    answers, _ = rollouts_of_labels(collector, learner)
    advantage_BT = learner.advantages(answers)
    assert (learner.critic._value_BT == 0).all()
    token_N = advantage_BT[answers.batch.mask_BT]
    assert float(token_N.mean()) == pytest.approx(0, abs=1e-5)
    assert float(token_N.std()) == pytest.approx(1, abs=1e-3)
    assert (advantage_BT[~answers.batch.mask_BT] == 0).all()


@pytest.mark.parametrize("micro_tokens", [300, 8192])
def test_values_are_those_of_plain_rows(micro_tokens, imitator, prepared, tmp_path):
    overrides = [*PPO, f"training.rl.micro_tokens={micro_tokens}"]
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, *overrides)
    answers, _ = rollouts_of_labels(collector, learner)
    critic = learner.critic
    torch.nn.init.normal_(critic.model.get_output_embeddings().weight)
    learner.advantages(answers)
    for b, ids in enumerate(answers.ids):
        prompt = answers.prompts[b // 4]
        with torch.no_grad():
            plain = critic.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1, 0]
        assert torch.allclose(critic._value_BT[b, : len(ids)], plain, atol=1e-4)


def test_updates_explain_the_returns(imitator, prepared, tmp_path):
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, *PPO)
    answers, _ = rollouts_of_labels(collector, learner)
    every_B = torch.ones(16, dtype=torch.bool)
    learner.advantages(answers)
    first = learner.critic.update(answers, every_B, 1.0)["value_loss"]
    for _ in range(60):
        learner.advantages(answers)
        last = learner.critic.update(answers, every_B, 1.0)["value_loss"]
    assert learner.critic.explained_variance(answers) > 0.3
    assert last < first / 2


def test_the_policy_is_not_touched_by_the_critic(imitator, prepared, tmp_path):
    session, collector, learner = parts(tmp_path / "a", prepared, imitator, *PPO)
    answers, _ = rollouts_of_labels(collector, learner)
    before = [p.clone() for p in session.model.parameters()]
    learner.advantages(answers)
    learner.critic.update(answers, torch.ones(16, dtype=torch.bool), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, session.model.parameters(), strict=True))


def test_the_critic_makes_passes_of_its_own(imitator, prepared, tmp_path, monkeypatch):
    overrides = ["training.rl.minibatches=2", "training.rl.critic_epochs=3"]
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, *PPO, *overrides)
    answers, _ = rollouts_of_labels(collector, learner)
    advantage_BT = learner.advantages(answers)
    update, seen = learner.critic.update, []
    monkeypatch.setattr(learner.critic, "update", lambda a, rows_B, f: (seen.append(rows_B), update(a, rows_B, f))[1])
    learner.update(1, answers, advantage_BT, learner.weights(answers))
    assert len(seen) == 3 * 2
    assert (torch.stack(seen).sum(0) == 3).all()  # each answer once a pass
    assert len({tuple(rows_B.tolist()) for rows_B in seen}) > 2  # each pass divided anew


def test_a_run_with_one_answer_a_prompt(trained):
    run = trained(*PPO, "training.rl.samples=1")
    assert {"loss/value", "grad/critic_norm", "value/explained_variance"} <= run.metrics()[-1].keys()
    assert all(row["grad/norm"] > 0 for row in run.metrics())


def test_without_its_learning_rate_ppo_is_refused(trained):
    assert settings().training.rl.critic_learning_rate is None
    with pytest.raises(ConfigurationError, match=r"'critic': set training.rl.critic_learning_rate"):
        trained("method=ppo")
