"""Equivalences and invariances of the core, on random batches and on arbitrary text."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from restool.core import advantages, aggregates, surrogates, weights
from restool.core.batch import AnswerBatch
from restool.core.parsing import parse
from restool.core.regions import Region, region_ids, region_ids_batch
from restool.core.rewards import PRESETS, score

PIECES = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "<toolcall>", "</toolcall>",
    '{"name": "', "get_weather", '", "parameters": ', '{"city": "Paris"}', "}", "{", '"', "\\", "\n", " ", "é",
    '"arguments":', '"name":', "[", "]", "<|im_end|>", "<", ">", ":", ",", "word", "\ud800",
]  # fmt: skip
answer_text = st.one_of(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.text(max_size=40))
REGION_SCHEMES = [
    "released",
    "fixed",
    "masked_uniform",
    "static",
    "no_think",
    "name_only",
    "arguments_only",
    "shuffled",
]
ENTROPY = {"form": "inverse_bound", "alpha_format": 0.3, "alpha_parameters": 0.3, "alpha_think": 0.3}
ENTROPY |= {"w_min": 0.1, "w_max": 8.0}
LABEL = '<think> t </think>\n<tool_call>\n{"name": "get_weather", "parameters": {"city": "Paris"}}\n</tool_call>'
quick = settings(max_examples=60, deadline=None)


@st.composite
def tokenised(draw: st.DrawFn) -> tuple[str, torch.Tensor]:
    """Arbitrary text, cut into arbitrary tokens; some tokens have no width, as bytes of one character have."""
    text = draw(answer_text)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    bounds = [0, *cuts, len(text)]
    return text, torch.tensor(list(pairwise(bounds)))


def batch_of(answers: list[tuple[str, torch.Tensor]], padding: int = 0, **fields: object) -> AnswerBatch:
    texts, offsets = [a[0] for a in answers], [a[1] for a in answers]
    lengths = torch.tensor([len(pairs) for pairs in offsets])
    mask_BT = torch.arange(int(lengths.max()) + padding) < lengths[:, None]
    region_BT = region_ids_batch(texts, offsets, mask_BT.shape[1])
    entropy_BT = 0.1 + region_BT.float() * mask_BT
    return AnswerBatch(texts, offsets, mask_BT, region_BT, entropy_BT=entropy_BT, **fields)  # type: ignore[arg-type]


@quick
@given(st.lists(tokenised(), min_size=1, max_size=4), st.floats(0, 400))
@example([("<think></think>", torch.tensor([(0, 15)]))], 1.0)
@example([("<tool_call>\n</tool_call>", torch.tensor([(0, 12), (12, 24)]))], 105.0)
def test_every_weight_is_finite_and_not_negative_on_arbitrary_text(answers: list, step: float) -> None:
    batch = batch_of(answers, padding=2, step=step, progress=min(step / 105, 1), beta_R=torch.arange(1.0, 7.0))
    for name in weights.SCHEMES:
        weight_BT = weights.weigh(name, batch, **(ENTROPY if name == "entropy" else {}))
        assert weight_BT.dtype == torch.float32
        assert torch.isfinite(weight_BT).all(), name
        assert (weight_BT >= 0).all(), name
        assert (weight_BT[~batch.mask_BT] == 0).all(), name


@quick
@given(st.lists(tokenised(), min_size=1, max_size=4), st.sampled_from(REGION_SCHEMES), st.floats(0, 400))
def test_weights_sum_to_the_number_of_weighted_tokens(answers: list, scheme: str, step: float) -> None:
    weight_BT = weights.weigh(scheme, batch_of(answers, step=step))
    torch.testing.assert_close(weight_BT.sum(1), (weight_BT > 0).sum(1).float(), atol=1e-4, rtol=1e-5)


@quick
@given(st.lists(tokenised(), min_size=2, max_size=5), st.permutations(range(5)), st.integers(0, 4))
def test_padding_and_batch_order_change_no_weight(answers: list, order: list[int], padding: int) -> None:
    order = [i for i in order if i < len(answers)]
    plain = batch_of(answers, step=9, seed=5)
    mixed = batch_of([answers[i] for i in order], padding=padding, step=9, seed=5)
    for name in (*REGION_SCHEMES, "uniform", "entropy", "tool_block", "uniform_released_normaliser"):
        arguments = ENTROPY if name == "entropy" else {}
        expected = weights.weigh(name, plain, **arguments)[order]
        got = weights.weigh(name, mixed, **arguments)
        torch.testing.assert_close(got[:, : expected.shape[1]], expected)
        assert (got[:, expected.shape[1] :] == 0).all()


@quick
@given(st.lists(tokenised(), min_size=1, max_size=4), st.floats(0.01, 5))
def test_equal_constants_are_grpo(answers: list, constant: float) -> None:
    batch = batch_of(answers)
    names = ("name", "format", "think", "arguments", "response", "other")
    weight_BT = weights.weigh("fixed", batch, **dict.fromkeys(names, constant))
    torch.testing.assert_close(weight_BT, weights.weigh("uniform", batch))
    loss_BT = torch.randn(weight_BT.shape)
    torch.testing.assert_close(
        aggregates.weighted_token_mean(loss_BT, batch.mask_BT, weight_BT),
        aggregates.token_mean(loss_BT, batch.mask_BT),
    )


@quick
@given(tokenised())
def test_regions_and_single_texts_agree_with_the_batch(answer: tuple[str, torch.Tensor]) -> None:
    text, offsets = answer
    batch = batch_of([("<think>a</think>", torch.tensor([(0, 16)])), answer], step=3)
    length = len(offsets)
    assert region_ids(text, offsets) == [Region(r) for r in batch.region_BT[1, :length].tolist()]
    mask_T = torch.ones(length)
    for name in ("released", "fixed"):
        single = getattr(weights, name)(text, offsets.tolist(), mask_T, 3)
        torch.testing.assert_close(single, weights.weigh(name, batch)[1, :length])


@quick
@given(answer_text)
def test_parsing_stays_inside_the_text_and_scoring_inside_its_bounds(text: str) -> None:
    answer = parse(text)
    spans = [*answer.tags, *(b.content for b in answer.blocks)]
    spans += [span for call in answer.calls for span in call if span]
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    for preset in PRESETS:
        reward = score(text, LABEL, preset=preset, step=20)
        assert -4 <= reward.total <= 4


rewards = st.lists(st.tuples(st.integers(0, 3), st.integers(-30, 40)), min_size=1, max_size=12)


@quick
@given(rewards, st.floats(-5, 5), st.floats(0.5, 20), st.randoms(use_true_random=False))
def test_advantages_ignore_shift_order_and_for_grpo_scale(pairs: list, shift: float, scale: float, random) -> None:
    group_B = torch.tensor([g for g, _ in pairs])
    reward_B = torch.tensor([r / 10 for _, r in pairs], dtype=torch.float64)
    alone_B = torch.bincount(group_B, minlength=4)[group_B] == 1
    order = list(range(len(pairs)))
    random.shuffle(order)
    for name, estimate in advantages.ADVANTAGES.items():
        plain_B = estimate(reward_B, group_B)
        torch.testing.assert_close(estimate(reward_B[order], group_B[order]), plain_B[order])
        torch.testing.assert_close(
            estimate(reward_B + shift, group_B)[~alone_B], plain_B[~alone_B], atol=1e-4, rtol=1e-4
        )
        factor = 1 if name == "group_norm" else scale
        scaled_B = estimate(reward_B * scale, group_B)
        torch.testing.assert_close(scaled_B[~alone_B], factor * plain_B[~alone_B], atol=1e-4, rtol=1e-4)


@quick
@given(st.lists(st.floats(-3, 4), min_size=2, max_size=6), st.integers(1, 6), st.floats(-4, 4))
def test_gae_ignores_padding_and_shift(reward: list[float], width: int, shift: float) -> None:
    reward_B = torch.tensor(reward)
    value_BT = torch.linspace(-1, 1, len(reward) * width).reshape(-1, width)
    mask_BT = torch.arange(width) <= torch.arange(len(reward))[:, None] % width
    plain_BT, _ = advantages.gae(reward_B, value_BT, mask_BT)
    padded_BT, _ = advantages.gae(
        reward_B, torch.nn.functional.pad(value_BT, (0, 3)), torch.nn.functional.pad(mask_BT, (0, 3))
    )
    torch.testing.assert_close(padded_BT[:, :width], plain_BT)
    shifted_BT, _ = advantages.gae(reward_B + shift, value_BT + shift, mask_BT)
    torch.testing.assert_close(shifted_BT, plain_BT, atol=1e-4, rtol=1e-4)


@quick
@given(
    st.integers(0, 10_000),
    st.sampled_from(sorted(surrogates.HOMOGENEOUS)),
    st.sampled_from(list(aggregates.AGGREGATES)),
)
def test_weights_may_be_folded_into_advantages(seed: int, name: str, aggregate: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 5)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64)
    new = (old + torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(3, 1, generator=generator, dtype=torch.float64).expand(shape)
    weight = torch.rand(shape, generator=generator, dtype=torch.float64) * 8
    weight[torch.rand(shape, generator=generator) < 0.3] = 0
    surrogate, mask = surrogates.SURROGATES[name], torch.rand(shape, generator=generator) < 0.8
    options = {"low": 0.2, "high": 0.2, "dual": 3.0, "mask_BT": mask}
    weighted = weight * surrogate(new, old, advantage, **options)[0]
    folded = surrogate(new, old, advantage * weight, **options)[0]
    torch.testing.assert_close(weighted, folded)
    for_loss = aggregates.AGGREGATES[aggregate]
    gradients = [
        torch.autograd.grad(for_loss(loss, mask, None), new, retain_graph=True)[0] for loss in (weighted, folded)
    ]
    torch.testing.assert_close(*gradients)


@quick
@given(st.lists(tokenised(), min_size=1, max_size=3))
def test_released_crashes_are_counted_only_where_tokens_hide_or_leave_a_span(answers: list) -> None:
    batch = batch_of(answers)
    assert (weights.released_crashes(batch) >= 0).all()
    # One token per character hides nothing, so nothing crashes.
    texts = [text for text, _ in answers]
    characters = [(t, torch.tensor([(i, i + 1) for i in range(len(t))]).reshape(-1, 2)) for t in texts if t]
    if characters:
        assert not weights.released_crashes(batch_of(characters)).any()


def test_optional_signals_are_not_needed_by_schemes_that_do_not_name_them() -> None:
    batch = batch_of([(LABEL, torch.tensor([(i, i + 1) for i in range(len(LABEL))]))])
    for name in set(weights.SCHEMES) - {"entropy", "optimal"}:
        weights.weigh(name, replace(batch, entropy_BT=None))
    with pytest.raises(Exception, match="entropy"):
        weights.weigh("entropy", replace(batch, entropy_BT=None), **ENTROPY)
