"""Reinforcement learning: sample, score, weigh, update. The whole algorithm is in this file, top to bottom.

What is summed, clipped, normalised and weighted is the registry's composition (`restool.algorithms`) of functions in
`restool.core`; this file only says in which order they run and on which data.

Deviations from the released trainer:
- The released normaliser is that of a micro-batch, whose answers the trainer picks to balance its devices. Here it is
  that of the mini-batch, or with ``normaliser_tokens`` that of neighbours with at most so many tokens together.
- The sampler's log-probabilities are the old ones; the released code computes them again with the trainer.
- Answers whose loss is zero for certain (no advantage, or no weight) are left out of the forward pass. They stay in
  the normaliser and in the optimiser's count of updates, so nothing else changes.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from torch import Tensor

from restool import algorithms
from restool.algorithms import Algorithm
from restool.backends import answers as records
from restool.backends.local import optimisation
from restool.backends.local.critic import Critic
from restool.backends.local.packing import Scored, TokenScorer
from restool.backends.local.rollouts import Collector, Rollouts
from restool.backends.local.session import Session, Stateful
from restool.backends.local.signals import Signals
from restool.backends.seeds import derived_seed
from restool.core import advantages, surrogates
from restool.core.errors import ConfigurationError
from restool.core.weights import released_crashes
from restool.files import JsonLinesWriter


def train(session: Session, record: Algorithm, prepared: Path) -> None:
    """Train on the prompts of ``prepared`` and finish the run."""
    rl = session.settings.training.rl
    used = rl.prompts - session.settings.method.beta_prompts
    if rl.minibatches > used:
        aside = f" of which {used} are left by method.beta_prompts" if used < rl.prompts else ""
        raise ConfigurationError(f"training.rl.minibatches={rl.minibatches} is more than prompts={rl.prompts}{aside}")
    collector = Collector(session, prepared)
    learner = Learner(session, record)

    def step(number: int) -> dict[str, float]:
        clock = _Clock()
        sampled = collector.sample(number)
        clock.lap("sample")
        answers = collector.score(sampled)
        advantage_BT = learner.advantages(answers)
        answers = learner.signals.observe(answers, advantage_BT)
        weight_BT = learner.weights(answers)
        clock.lap("score")
        statistics = learner.update(number, answers, advantage_BT, weight_BT)
        clock.lap("update")
        if number == 1 or number % rl.rollouts_every == 0:
            with JsonLinesWriter(session.run.rollouts_path) as log:
                log.append(*records.shown(number, answers.rows, answers.ids, answers.batch, weight_BT, advantage_BT))
        found = records.metrics(answers.batch, answers.exact, weight_BT)
        found |= learner.diagnostics(answers) | statistics | clock.laps
        return found | {"throughput/tokens_per_second": found["tokens"] / sum(clock.laps.values())}

    session.finish(session.steps(rl.steps, rl.checkpoint_every, learner.parts, step))


class Learner:
    """The policy's optimiser and everything that turns scored answers into updates."""

    def __init__(self, session: Session, record: Algorithm):
        self._session, self._record = session, record
        self._method, self._rl = session.settings.method, session.settings.training.rl
        self._policy = TokenScorer(session.model, temperature=self._rl.temperature)
        self._optimiser = optimisation.Optimiser(
            session.model,
            learning_rate=self._rl.learning_rate,
            betas=self._rl.betas,
            weight_decay=self._rl.weight_decay,
            gradient_clip=self._rl.gradient_clip,
        )
        self.critic = Critic(session.model, self._rl, packed=self._policy.packed) if record.advantage == "gae" else None
        self.signals = Signals(self._method, self._policy)
        self.parts: dict[str, Stateful] = {"optimiser": self._optimiser, "signals": self.signals}
        if self.critic is not None:
            self.parts["critic"] = self.critic
        self._reference: TokenScorer | None = None
        if self._method.kl_coefficient > 0:  # a frozen copy of the model that training starts from
            frozen = copy.deepcopy(session.model).requires_grad_(False)
            self._reference = TokenScorer(frozen, temperature=self._rl.temperature, packed=self._policy.packed)

    # --- from rewards to what each token's loss counts for ---------------------------------------------------

    def advantages(self, answers: Rollouts) -> Tensor:
        """(B, T): an answer's advantage on each of its tokens."""
        batch = answers.batch
        reward_B = batch.reward_B
        if self._reference is not None and self._record.kl_in_reward:
            reference_BT = self._reference_logprobs(answers)
            reward_B = advantages.kl_in_reward(
                reward_B, batch.logprob_BT, reference_BT, batch.mask_BT, self._method.kl_coefficient
            )
        if self.critic is not None:
            return self.critic.assess(answers, reward_B)
        return algorithms.advantage(self._record)(reward_B, batch.group_B)[:, None] * batch.mask_BT

    def weights(self, answers: Rollouts) -> Tensor:
        """(B, T): the method's token weights."""
        return algorithms.weight_scheme(self._record)(answers.batch, **self._method.weights)

    def diagnostics(self, answers: Rollouts) -> dict[str, float]:
        """Measured beta by region; at how many spans the released weighting would have raised."""
        found = self.signals.metrics()
        if self._record.weights == "released":
            found["weight/released_crashes"] = float(released_crashes(answers.batch).sum())
        return found

    # --- from there to updates -----------------------------------------------------------------------------

    def update(self, step: int, answers: Rollouts, advantage_BT: Tensor, weight_BT: Tensor) -> dict[str, float]:
        """``epochs`` passes over the answers, each in ``minibatches`` updates of whole groups; so does the critic."""
        factor = optimisation.linear_decay(step, self._rl.steps, self._rl.final_learning_rate)
        reference_BT = None
        if self._reference is not None and not self._record.kl_in_reward:
            reference_BT = self._reference_logprobs(answers)
        tally = _Tally()
        for epoch in range(self._rl.epochs):
            for group_M in self._minibatches(step, epoch, len(answers.prompts) - self._method.beta_prompts):
                in_batch_B = torch.isin(answers.batch.group_B, group_M)
                tally.add(loss=self._accumulate(answers, in_batch_B, advantage_BT, weight_BT, reference_BT, tally))
                tally.add(norm=self._optimiser.step(factor))
        of_critic = {}
        if self.critic is not None:
            for epoch in range(self._rl.critic_epochs or self._rl.epochs):
                for group_M in self._minibatches(step, epoch, len(answers.prompts)):
                    tally.add(**self.critic.update(answers, torch.isin(answers.batch.group_B, group_M), factor))
            of_critic = {
                "loss/value": tally.mean("value_loss"),
                "grad/critic_norm": tally.mean("critic_norm"),
                "value/explained_variance": self.critic.explained_variance(answers),
            }
        return of_critic | {
            "loss/policy": tally.mean("loss"),
            "grad/norm": tally.mean("norm"),
            "clip/fraction": tally.ratio("clipped", "tokens"),
            "clip/dual": tally.ratio("dual", "tokens"),
            "kl/old": tally.ratio("kl", "tokens"),
            "learning_rate": self._rl.learning_rate * factor,
        }

    def _minibatches(self, step: int, epoch: int, groups: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(derived_seed(self._session.settings.seed, "minibatch", step, epoch))
        return list(torch.randperm(groups, generator=generator).tensor_split(self._rl.minibatches))

    def _accumulate(
        self,
        answers: Rollouts,
        in_batch_B: Tensor,
        advantage_BT: Tensor,
        weight_BT: Tensor,
        reference_BT: Tensor | None,
        tally: _Tally,
    ) -> float:
        """Add the gradient of one mini-batch's loss; returns the loss."""
        share_BT = self._shares(answers, in_batch_B, weight_BT)
        bonus = self._method.entropy_coefficient
        regularised = bonus != 0 or reference_BT is not None  # then every answer has a gradient
        # Token weights reshape the policy's gradient only: entropy bonus and KL penalty count every token alike.
        plain_BT = self._shares(answers, in_batch_B, answers.batch.mask_BT.float()) if regularised else share_BT
        keep_B = in_batch_B & (regularised | (share_BT * advantage_BT).any(1))
        total = 0.0
        for trees in self._policy.micro_batches(answers.trees(keep_B), self._rl.micro_tokens):
            scored = self._policy(trees, entropy=bonus != 0)
            loss = (self._loss(scored, answers, advantage_BT, tally) * _rows(share_BT, scored)).sum()
            if regularised:
                loss = loss + (self._regulariser(scored, reference_BT) * _rows(plain_BT, scored)).sum()
            loss.backward()
            total += float(loss.detach())
        return total

    def _shares(self, answers: Rollouts, in_batch_B: Tensor, weight_BT: Tensor) -> Tensor:
        """(B, T) what each token's loss counts for in the mini-batch's; 0 outside it.

        Each part that is normalised by itself counts for its share of the answers, as in the released trainer.
        """
        share_BT = torch.zeros_like(weight_BT)
        rows = in_batch_B.nonzero()[:, 0]
        lengths = [answers.total_tokens(row) for row in rows.tolist()]
        for part in rows.split(optimisation.neighbours(lengths, self._rl.normaliser_tokens)):
            share_BT[part] = optimisation.gradient(
                algorithms.aggregate(self._record),
                answers.batch.mask_BT[part],
                weight_BT[part],
                length=self._rl.max_new_tokens,
            ) * (len(part) / len(rows))
        return share_BT

    def _loss(self, scored: Scored, answers: Rollouts, advantage_BT: Tensor, tally: _Tally) -> Tensor:
        """(b, t) surrogate loss of the scored answers' tokens."""
        assert answers.batch.logprob_BT is not None
        mask_BT = _rows(answers.batch.mask_BT, scored)
        loss_BT, statistics = algorithms.surrogate(self._record)(
            scored.logprob_BT,
            _rows(answers.batch.logprob_BT, scored),
            _rows(advantage_BT, scored),
            low=self._method.clip_low,
            high=self._method.clip_high,
            dual=self._method.clip_dual,
            mask_BT=mask_BT,
        )
        tally.add(
            tokens=float(mask_BT.sum()),
            clipped=float((statistics["clip_fraction_BT"] * mask_BT).sum()),
            dual=float((statistics["dual_clip_fraction_BT"] * mask_BT).sum()),
            kl=float((statistics["kl_BT"] * mask_BT).sum()),
        )
        return loss_BT

    def _regulariser(self, scored: Scored, reference_BT: Tensor | None) -> Tensor:
        """(b, t) KL penalty minus entropy bonus."""
        total_BT = torch.zeros_like(scored.logprob_BT)
        if scored.entropy_BT is not None:
            total_BT = total_BT - self._method.entropy_coefficient * scored.entropy_BT
        if reference_BT is not None:
            penalty_BT = surrogates.kl_penalty(scored.logprob_BT, _rows(reference_BT, scored))
            total_BT = total_BT + self._method.kl_coefficient * penalty_BT
        return total_BT

    @torch.no_grad()
    def _reference_logprobs(self, answers: Rollouts) -> Tensor:
        assert self._reference is not None
        found_BT = torch.zeros(answers.batch.mask_BT.shape)
        every_B = torch.ones(len(answers.batch), dtype=torch.bool)
        for trees in self._reference.micro_batches(answers.trees(every_B), self._rl.micro_tokens):
            scored = self._reference(trees)
            found_BT[scored.rows_B, : scored.logprob_BT.shape[1]] = scored.logprob_BT.cpu()
        return found_BT


def _rows(value_BT: Tensor, scored: Scored) -> Tensor:
    """The rows of ``value_BT`` that were scored, cut to their width, where the scores are."""
    return value_BT[scored.rows_B, : scored.logprob_BT.shape[1]].to(scored.logprob_BT.device)


class _Tally:
    """Sums and counts over a step's mini-batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def mean(self, name: str) -> float:
        return self._sums.get(name, 0.0) / max(self._counts.get(name, 0), 1)

    def ratio(self, name: str, of: str) -> float:
        return self._sums.get(name, 0.0) / max(self._sums.get(of, 0.0), 1.0)


class _Clock:
    """Wall seconds of the stages of a step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"time/{name}"] = now - self._last
        self._last = now
