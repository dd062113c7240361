"""Policy gradients of single answers, split so that any token weighting can be applied afterwards.

The tokens of an answer fall into classes: tokens of one region to which every weighting under study gives one value.
Per class, the gradient of the summed log-probability is computed exactly and projected (count sketch: every parameter
goes to one of ``dimension`` buckets with a random sign), which keeps inner products right on average with a relative
error of about sqrt(2 / dimension). A weighted gradient is then a weighted sum of a few short vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restool.core import advantages, rewards
from restool.core.batch import AnswerBatch
from restool.core.regions import region_ids_batch
from restool.data.rows import Row
from restool.models import chat, loading, sampling
from restool.models.offsets import Decoder
from restool.settings import RunSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Scheme = Callable[[AnswerBatch], Tensor]

_CACHED_PARAMETERS = 100_000_000  # above this, buckets are drawn anew for every gradient instead of kept in memory


@dataclass(frozen=True)
class SampledAnswers:
    """Answers to P prompts, n each, prompt-major (B = P * n rows)."""

    batch: AnswerBatch
    prompts: list[list[int]]  # per answer: ids of its prompt
    answers: list[list[int]]
    advantage_B: Tensor
    prompt_B: Tensor


@dataclass(frozen=True)
class TokenClasses:
    """Projected gradients of all classes (C) of all answers with a non-zero advantage.

    ``gradient_CM``: of the class's summed log-probability, times the answer's advantage; ``weight_CS``: what each given
    weighting assigns to its tokens; ``answer_C``, ``prompt_C``: whose they are; ``region_C``; ``count_C``: tokens.
    """

    gradient_CM: Tensor
    weight_CS: Tensor
    answer_C: Tensor
    prompt_C: Tensor
    region_C: Tensor
    count_C: Tensor


@dataclass(frozen=True)
class ScoreNorms:
    """Per sampled token (N): entropy H, 1 - sum p^2 (the expectation of the squared score norm), the norm of the token
    that was drawn, and its region. That region depends on the draw, so only over all tokens does the drawn norm
    estimate the expected one.
    """

    entropy_N: Tensor
    expected_N: Tensor
    sampled_N: Tensor
    region_N: Tensor


class Projection:
    """A seeded count sketch of gradients: list of tensors -> (dimension,) float32."""

    def __init__(self, parameters: Sequence[Tensor], dimension: int, seed: int):
        self.dimension = dimension
        self._seed = seed
        self._sizes = [parameter.numel() for parameter in parameters]
        self._device = parameters[0].device
        is_small = sum(self._sizes) <= _CACHED_PARAMETERS
        self._kept = list(self._draw()) if is_small else None

    def __call__(self, gradients: Sequence[Tensor]) -> Tensor:
        signed_M = torch.zeros(2 * self.dimension, device=self._device)
        for gradient, bucket in zip(gradients, self._kept or self._draw(), strict=True):
            signed_M.index_add_(0, bucket, gradient.reshape(-1).float())
        return signed_M[: self.dimension] - signed_M[self.dimension :]

    def _draw(self) -> Iterator[Tensor]:
        """Buckets of every parameter; those from ``dimension`` up stand for the negative sign."""
        generator = torch.Generator(device=self._device).manual_seed(self._seed)
        for size in self._sizes:
            yield torch.randint(
                2 * self.dimension, (size,), generator=generator, device=self._device, dtype=torch.int32
            )


def sample(
    model_path: str | Path, rows: Sequence[Row], samples: int, settings: RunSettings
) -> tuple[PreTrainedModel, SampledAnswers]:
    """Answer every row ``samples`` times as training does, and score the answers with the unscheduled reward."""
    device = loading.resolve_device(settings.backend.device)
    model, tokenizer = loading.load(model_path, dtype=settings.model.dtype, device=device)
    stops = chat.stop_ids(tokenizer)
    pairs = [(row.system, row.user) for row in rows]
    thinking = settings.model.thinking
    prompts = chat.prompt_ids_batch(tokenizer, pairs, thinking=thinking, last=settings.data.kept_ids)
    rl = settings.training.rl
    drawn = sampling.make_sampler(model, tokenizer, stops).generate(
        prompts,
        samples=samples,
        temperature=rl.temperature,
        max_new_tokens=rl.max_new_tokens,
        seed=settings.seed,
    )
    decoded = Decoder(tokenizer, stops).decode_batch(drawn.ids)
    labels = [row.ground_truth for row in rows for _ in range(samples)]
    preset = "toolrl" if settings.reward.preset == "toolrl" else "rest_unscheduled"
    scored = rewards.score_batch([d.completion for d in decoded], labels, preset=preset)
    prompt_B = torch.arange(len(rows)).repeat_interleave(samples)
    reward_B = torch.tensor([reward.total for reward in scored])
    texts, offsets, mask_BT = [d.text for d in decoded], [d.offsets for d in decoded], drawn.mask_BT.cpu()
    batch = AnswerBatch(
        texts=texts,
        offsets=offsets,
        mask_BT=mask_BT,
        region_BT=region_ids_batch(texts, offsets, mask_BT.shape[1]),
        group_B=prompt_B,
        reward_B=reward_B,
        entropy_BT=drawn.entropy_BT.cpu(),
        seed=settings.seed,
    )
    advantage_B = advantages.group_norm(reward_B, prompt_B)
    by_answer = [prompt for prompt in prompts for _ in range(samples)]
    return model, SampledAnswers(batch, by_answer, drawn.ids, advantage_B, prompt_B)


def measure(
    model: PreTrainedModel,
    sampled: SampledAnswers,
    schemes: Mapping[str, Scheme],
    settings: RunSettings,
    dimension: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[TokenClasses, ScoreNorms]:
    """Per-class gradients of every answer with an advantage, and score norms of its tokens."""
    weight_SBT = torch.stack([scheme(sampled.batch) for scheme in schemes.values()])
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    projection = Projection(parameters, dimension, settings.seed)
    advantages_B = sampled.advantage_B.tolist()
    classes, norms = [], []
    for row, ids in enumerate(sampled.answers):
        region_T = sampled.batch.region_BT[row, : len(ids)].long()
        with torch.set_grad_enabled(advantages_B[row] != 0):
            logits_TV = _answer_logits(model, sampled.prompts[row], ids) / settings.training.rl.temperature
            logprobs_TV = logits_TV.log_softmax(-1)
        ids_T = torch.tensor(ids, device=logits_TV.device)
        norms.append(_score_norms(logprobs_TV.detach(), ids_T, region_T))
        if advantages_B[row] != 0:
            logprob_T = logprobs_TV.gather(1, ids_T[:, None])[:, 0]
            for value_S1, members_T in _classes(weight_SBT[:, row, : len(ids)], region_T):
                total = logprob_T[members_T.to(logprob_T.device)].sum()
                vector_M = projection(torch.autograd.grad(total, parameters, retain_graph=True)).cpu()
                classes.append(
                    (vector_M * advantages_B[row], value_S1[:-1], row, int(value_S1[-1]), int(members_T.sum()))
                )
        progress(row + 1, len(sampled.answers))
    return _collect(classes, sampled.prompt_B, dimension, len(schemes)), _join(norms)


def _answer_logits(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> Tensor:
    """(t, V) float32 logits that each token of ``answer`` was drawn from."""
    ids_1T = torch.tensor([prompt + answer], device=next(model.parameters()).device)
    logits_1TV = model(ids_1T, use_cache=False, logits_to_keep=len(answer) + 1).logits
    return logits_1TV[0, :-1].float()


def _classes(weight_ST: Tensor, region_T: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(weights of every scheme, then the region; which tokens) for each class of one answer."""
    key_T = torch.cat([weight_ST.double(), region_T[None].double()]).T
    values, class_T = torch.unique(key_T, dim=0, return_inverse=True)
    for index, value in enumerate(values):
        yield value, class_T == index


def _score_norms(logprobs_TV: Tensor, ids_T: Tensor, region_T: Tensor) -> ScoreNorms:
    p_TV = logprobs_TV.double().exp()
    square_T = p_TV.square().sum(-1)
    sampled_T = 1 - 2 * p_TV.gather(1, ids_T[:, None])[:, 0] + square_T
    entropy_T = -(p_TV * logprobs_TV.double()).sum(-1)
    return ScoreNorms(entropy_T.cpu(), (1 - square_T).cpu(), sampled_T.cpu(), region_T)


def _collect(
    classes: list[tuple[Tensor, Tensor, int, int, int]], prompt_B: Tensor, dimension: int, n: int
) -> TokenClasses:
    if not classes:
        none = torch.zeros(0, dtype=torch.long)
        return TokenClasses(torch.zeros(0, dimension), torch.zeros(0, n), none, none, none, none)
    vectors, weights, rows, regions, counts = zip(*classes, strict=True)
    answer_C = torch.tensor(rows)
    prompt_C = prompt_B[answer_C]
    region_C, count_C = torch.tensor(regions), torch.tensor(counts)
    return TokenClasses(torch.stack(vectors), torch.stack(weights), answer_C, prompt_C, region_C, count_C)


def _join(norms: list[ScoreNorms]) -> ScoreNorms:
    names = ("entropy_N", "expected_N", "sampled_N", "region_N")
    parts = {name: [getattr(norm, name) for norm in norms] for name in names}
    return ScoreNorms(**{name: torch.cat(part) if part else torch.zeros(0) for name, part in parts.items()})
