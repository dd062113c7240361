from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from restool.core import weights
from restool.core.batch import AnswerBatch
from restool.core.derived_weights import region_beta, region_entropy, running_entropy
from restool.core.errors import ConfigurationError
from restool.core.regions import Region

OURS = {"alpha_format": 0.3, "alpha_parameters": 0.3, "alpha_think": 0.3, "w_min": 0.1, "w_max": 8.0}


def by_region(weight_BT: torch.Tensor, batch: AnswerBatch, row: int) -> dict[Region, set[float]]:
    found: dict[Region, set[float]] = {}
    for region, weight in zip(batch.region_BT[row].tolist(), weight_BT[row].tolist(), strict=True):
        found.setdefault(Region(region), set()).add(round(weight, 4))
    return found


def test_fixed_has_the_released_constants_on_whole_spans(batch: AnswerBatch) -> None:
    weight_BT = weights.weigh("fixed", batch)
    ramp = 0.6 + 0.002 * 21
    found = by_region(weight_BT, batch, 0)
    (tag,), (name,), (think,) = found[Region.FORMAT], found[Region.NAME], found[Region.THINK]
    assert found[Region.ARGUMENTS] == {think}
    assert name / tag == pytest.approx(1.2, abs=1e-3)
    assert think / tag == pytest.approx(ramp, abs=1e-3)
    assert found[Region.OTHER] == {0.0}
    assert (weight_BT[2] > 0).any()  # cut off inside the call: still weighted
    assert (weight_BT[3] == 0).all()  # nothing to weight
    assert (weights.weigh("released", batch)[2, 10:] == 0).all()  # where the released rules see the thought only


def test_controls_change_one_thing_each(batch: AnswerBatch) -> None:
    fixed = weights.weigh("fixed", batch)
    assert ((weights.weigh("masked_uniform", batch) == 1) == (fixed > 0)).all()
    share = weights.weigh("uniform_released_normaliser", batch)
    torch.testing.assert_close(share.sum(1), (fixed > 0).sum(1).float())
    assert len(share[0][batch.mask_BT[0]].unique()) == 1
    torch.testing.assert_close(weights.weigh("static", batch), weights.weigh("fixed", replace(batch, step=0)))
    assert (weights.weigh("no_think", batch)[batch.region_BT == Region.THINK] == 0).all()
    only = weights.weigh("name_only", batch)
    assert set(batch.region_BT[only > 0].tolist()) == {Region.NAME}
    only = weights.weigh("arguments_only", batch)
    assert set(batch.region_BT[only > 0].tolist()) == {Region.ARGUMENTS}


def test_shuffled_keeps_the_histogram_and_depends_on_the_seed(batch: AnswerBatch) -> None:
    fixed, mixed = weights.weigh("fixed", batch), weights.weigh("shuffled", batch)
    torch.testing.assert_close(mixed.sort(1).values, fixed.sort(1).values)
    assert (mixed[~batch.mask_BT] == 0).all()
    assert not torch.equal(mixed, fixed)
    assert torch.equal(mixed, weights.weigh("shuffled", batch))
    assert not torch.equal(mixed, weights.weigh("shuffled", replace(batch, seed=4)))


@pytest.mark.parametrize("form", ["inverse", "inverse_bound"])
def test_entropy_weights_fall_in_the_region_entropy(batch: AnswerBatch, form: str) -> None:
    level_R = torch.tensor([0.5, 0.2, 0.4, 0.8, 0.3, 0.9])
    batch = replace(batch, entropy_BT=level_R[batch.region_BT.long()], progress=0.0)
    weight_BT = weights.weigh("entropy", batch, form=form, **OURS)
    found = {region: next(iter(values)) for region, values in by_region(weight_BT, batch, 0).items()}
    expected = (
        0.8 / 0.2 if form == "inverse" else (1 - torch.exp(torch.tensor(-0.8))) / (1 - torch.exp(torch.tensor(-0.2)))
    )
    assert found[Region.FORMAT] / found[Region.ARGUMENTS] == pytest.approx(float(expected), rel=1e-3)
    assert found[Region.OTHER] == 0
    torch.testing.assert_close(weight_BT[:3].sum(1), batch.mask_BT[:3].sum(1).float())  # the paper's normaliser
    later = weights.weigh("entropy", replace(batch, progress=1.0), form=form, **OURS)
    ratio = [by_region(w, batch, 0) for w in (weight_BT, later)]
    tag = [next(iter(r[Region.FORMAT])) / next(iter(r[Region.ARGUMENTS])) for r in ratio]
    assert tag[1] < tag[0]  # the curriculum moves weight from format to arguments


def test_running_entropy(batch: AnswerBatch, make_batch: Callable[..., AnswerBatch]) -> None:
    now_R = region_entropy(batch)
    assert torch.equal(running_entropy(None, batch), now_R)
    old_R = torch.ones(len(Region))
    torch.testing.assert_close(running_entropy(old_R, batch, decay=0.5), 0.5 * old_R + 0.5 * now_R)
    lacking = make_batch(["<think>a</think>"], entropy_BT=torch.ones(1, 6))
    kept_R = running_entropy(old_R * 2, lacking)
    assert kept_R[Region.NAME] == 2
    measured = weights.weigh("entropy", batch, form="inverse", **OURS)
    given = weights.weigh("entropy", replace(batch, entropy_R=now_R), form="inverse", **OURS)
    torch.testing.assert_close(measured, given)


def test_optimal_is_inverse_in_beta(batch: AnswerBatch) -> None:
    beta = {"other": 6.0, "format": 59.0, "name": 96.0, "arguments": 133.0, "think": 25.0, "response": 655.0}
    weight_BT = weights.weigh("optimal", batch, beta=beta)
    found = {
        region: next(iter(values)) for region, values in by_region(weight_BT, batch, 0).items() if len(values) == 1
    }
    assert found[Region.NAME] / found[Region.ARGUMENTS] == pytest.approx(133 / 96, rel=1e-2)
    torch.testing.assert_close(weight_BT.sum(1), batch.mask_BT.sum(1).float())
    measured = region_beta(torch.full((4, 6), 10.0), torch.full((4, 6), 5))
    torch.testing.assert_close(measured, torch.full((6,), 2.0))
    torch.testing.assert_close(weights.weigh("optimal", replace(batch, beta_R=measured)), batch.mask_BT.float())
    with pytest.raises(ConfigurationError, match="think"):
        weights.weigh("optimal", batch, beta=beta | {"think": 0.0})
    with pytest.raises(ConfigurationError, match=r"method\.weights\.beta"):
        weights.weigh("optimal", batch)


def test_demonstration_weights_double_their_block(make_batch: Callable[..., AnswerBatch]) -> None:
    text = "<think> mind <tool_call> </think>\n<tool_call>\n{}\n</tool_call>"
    batch = make_batch([text, "<think></think>"], size=1)
    tool, think = weights.weigh("tool_block", batch), weights.weigh("think_block", batch, factor=3.0)
    first = text.index("<tool_call>")  # the mention in the thought begins the block, as ms-swift's pattern has it
    assert tool[0, :first].eq(1).all()
    assert tool[0, first : len(text)].eq(2).all()
    assert think[0, : text.index("</think>") + 8].eq(3).all()
    assert think[0, text.index("</think>") + 8 : len(text)].eq(1).all()
    assert think[1].tolist() == [1.0] * 15 + [0.0] * (len(text) - 15)  # `.+?` asks for content


def test_wrong_arguments_are_refused(batch: AnswerBatch) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'released'"):
        weights.weigh("relesed", batch)
    with pytest.raises(ConfigurationError, match=r"takes no 'thinks'.*did you mean 'think'"):
        weights.weigh("fixed", batch, thinks=1.0)
    with pytest.raises(ConfigurationError, match="also needs form"):
        weights.weigh("entropy", batch)
    with pytest.raises(ConfigurationError, match="inverse_bound"):
        weights.weigh("entropy", batch, form="x", **OURS)
    with pytest.raises(ConfigurationError, match="negative"):
        weights.weigh("fixed", batch, think=-1.0)
    with pytest.raises(ConfigurationError, match="'entropy'"):
        weights.weigh("entropy", replace(batch, entropy_BT=None), form="inverse", **OURS)


def test_selecting_rows_keeps_their_weights(batch: AnswerBatch) -> None:
    rows = torch.tensor([2, 0])
    part = batch.select(rows)
    for scheme in ("released", "fixed", "shuffled"):
        torch.testing.assert_close(weights.weigh(scheme, part), weights.weigh(scheme, batch)[rows])
