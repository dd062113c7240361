"""Region statistics behind weights: measured on answers that do not train, carried over steps and interruptions."""

from __future__ import annotations

import pytest
import torch
from small_runs import settings
from test_rl import parts, rollouts_of_labels

from restool import algorithms
from restool.backends import check
from restool.core.derived_weights import running_entropy
from restool.core.errors import ConfigurationError
from restool.core.regions import Region

OPTIMAL = ["method=optimal", "method.beta_prompts=1"]


def test_beta_is_the_gradient_of_the_answers_set_aside_written_out(imitator, prepared, tmp_path):
    session, collector, learner = parts(tmp_path / "a", prepared, imitator, *OPTIMAL)
    answers, advantage_BT = rollouts_of_labels(collector, learner)
    observed = learner.signals.observe(answers, advantage_BT)
    square, count = torch.zeros(len(Region)), torch.zeros(len(Region))
    for b in range(12, 16):  # the answers to the last prompt
        prompt, ids = answers.prompts[3], answers.ids[b]
        log_p = session.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        taken = log_p.gather(1, torch.tensor(ids)[:, None])[:, 0] * advantage_BT[b, : len(ids)]
        for region in answers.batch.region_BT[b, : len(ids)].unique().tolist():
            inside = answers.batch.region_BT[b, : len(ids)] == region
            gradient = torch.autograd.grad(taken[inside].sum(), list(session.model.parameters()), retain_graph=True)
            square[region] += float(sum(g.square().sum() for g in gradient))
            count[region] += int(inside.sum())
    beta = square / count
    seen = count > 0
    mean = float(square.sum() / count.sum())
    torch.testing.assert_close(observed.batch.beta_R[seen], beta[seen].clamp(min=0.01 * mean), rtol=1e-3, atol=1e-6)
    assert torch.allclose(observed.batch.beta_R[~seen], torch.tensor(mean))
    assert all(p.grad is None or not p.grad.any() for p in session.model.parameters())
    named = {f"beta/{r.name.lower()}": float(beta[r]) for r in Region if seen[r]}
    assert learner.signals.metrics() == pytest.approx(named, rel=1e-3)


def test_answers_set_aside_do_not_train(imitator, prepared, tmp_path):
    models = []
    for name, factor in (("a", 1.0), ("b", -5.0)):
        session, collector, learner = parts(tmp_path / name, prepared, imitator, *OPTIMAL)
        answers, advantage_BT = rollouts_of_labels(collector, learner)
        weight_BT = torch.ones_like(advantage_BT)
        advantage_BT[12:] *= factor
        assert learner.update(1, answers, advantage_BT, weight_BT)["grad/norm"] > 0
        models.append([p.detach().clone() for p in session.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*models, strict=True))


def test_without_any_advantage_beta_is_neutral(imitator, prepared, tmp_path):
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, *OPTIMAL)
    answers, advantage_BT = rollouts_of_labels(collector, learner)
    observed = learner.signals.observe(answers, torch.zeros_like(advantage_BT))
    assert torch.equal(observed.batch.beta_R, torch.ones(len(Region)))
    assert torch.allclose(learner.weights(observed), answers.batch.mask_BT.float())


def test_running_entropies_reach_the_weights_and_survive_an_interruption(imitator, prepared, tmp_path):
    overrides = ["method=rest_entropy", "method.entropy_decay=0.5"]
    _, collector, learner = parts(tmp_path / "a", prepared, imitator, *overrides)
    first, second = (collector.score(collector.sample(step)) for step in (1, 2))
    zero_BT = torch.zeros(first.batch.mask_BT.shape)
    learner.signals.observe(first, zero_BT)
    state = learner.signals.state_dict()
    observed = learner.signals.observe(second, zero_BT)
    expected = running_entropy(running_entropy(None, first.batch), second.batch, decay=0.5)
    torch.testing.assert_close(observed.batch.entropy_R, expected, equal_nan=True)
    assert not torch.allclose(learner.weights(observed), learner.weights(second))
    _, _, other = parts(tmp_path / "b", prepared, imitator, *overrides)
    other.signals.load_state_dict(state)
    again = other.signals.observe(second, zero_BT)
    torch.testing.assert_close(again.batch.entropy_R, expected, equal_nan=True)


def test_optimal_is_offered_where_something_measures_beta(trained):
    check(settings("method=optimal"))
    check(settings("method=optimal", "method.beta_prompts=0", "+method.weights={beta: {name: 1.0}}"))
    with pytest.raises(ConfigurationError, match=r"'beta': set method\.beta_prompts"):
        check(settings("method=optimal", "method.beta_prompts=0"))
    with pytest.raises(ConfigurationError, match="minibatches=4 is more than prompts=4 of which 3 are left"):
        trained(*OPTIMAL, "training.rl.minibatches=4")
    assert "beta" in algorithms.get("optimal").needs
