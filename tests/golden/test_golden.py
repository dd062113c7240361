"""Numbers obtained by executing the released code (see the notes in the JSON files)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from restool.core import released, rewards, weights
from restool.core.batch import AnswerBatch
from restool.core.regions import region_ids_batch

FOLDER = Path(__file__).parent
REWARD = json.loads((FOLDER / "reward.json").read_text())
WEIGHT = json.loads((FOLDER / "weights.json").read_text())
CASES = {case["id"]: case for case in REWARD["cases"]}


def agree(reward: rewards.Reward, expected: dict[str, float]) -> bool:
    return all(abs(getattr(reward, key) - value) < 1e-9 for key, value in expected.items())


@pytest.mark.parametrize("case", REWARD["cases"], ids=lambda case: case["id"])
def test_reward(case: dict[str, Any]) -> None:
    pair = (case["response"], case["ground_truth"])
    assert agree(rewards.score(*pair, preset="rest_unscheduled"), case["rest_plain"])
    assert agree(rewards.score(*pair, preset="toolrl"), case["toolrl_plain"])
    for step, expected in case["rest_schedule"].items():
        assert agree(rewards.score(*pair, preset="rest", step=float(step)), expected), step


@pytest.mark.parametrize("variant", REWARD["variants"], ids=lambda v: f"{v['case']}-{'-'.join(v['env'])}-{v['step']}")
def test_reward_switches(variant: dict[str, Any]) -> None:
    case = CASES[variant["case"]]
    switches = {name: bool(value) for name, value in variant["env"].items()}
    for preset, key in (("toolrl", "toolrl"), ("rest_unscheduled", "rest")):
        reward = rewards.score(case["response"], case["ground_truth"], preset=preset, step=variant["step"], **switches)
        assert agree(reward, variant[key]), preset


def test_batch_scores_equal_single_scores() -> None:
    pairs = [(case["response"], case["ground_truth"]) for case in REWARD["cases"]]
    batch = rewards.score_batch(*zip(*pairs, strict=True), preset="rest", step=40)
    assert batch == [rewards.score(*pair, preset="rest", step=40) for pair in pairs]


@pytest.mark.parametrize("case", WEIGHT["cases"], ids=lambda case: case["id"])
def test_released_weights(case: dict[str, Any]) -> None:
    width = len(case["loss_mask"])
    raw, crashes = released.raw_weights([case["text"]], [torch.tensor(case["offsets"])], width, case["step"])
    weight_T = weights.released(case["text"], case["offsets"], case["loss_mask"], case["step"])
    if case["error"]:  # the released code raises; ours weights what can be weighted and counts
        assert int(crashes) == 1
        assert torch.isfinite(weight_T).all()
        assert abs(float(weight_T.sum()) - int((weight_T > 0).sum())) < 1e-4
        assert int((weight_T > 0).sum()) > 0
        return
    assert int(crashes) == 0
    torch.testing.assert_close(raw[0], torch.tensor(case["raw"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight_T, torch.tensor(case["normalized"]), atol=1e-6, rtol=0)


def test_fallback_keeps_everything_but_the_failing_span() -> None:
    cases = {case["id"]: case for case in WEIGHT["cases"]}
    # A closing tag inside a longer token: only that tag goes without weight.
    case = cases["stopiteration"]
    weight_T = weights.released(case["text"], case["offsets"], case["loss_mask"], 1)
    assert weight_T[-1] == 0
    assert int((weight_T > 0).sum()) == 22
    # Text longer than the answer tensor: what lies inside is weighted as in the untruncated case.
    case, whole = cases["retokenised_longer_than_T"], cases["single_step1"]
    raw = released.raw_weights([case["text"]], [torch.tensor(case["offsets"])], 20, 1).raw_BT[0]
    torch.testing.assert_close(raw, torch.tensor(whole["raw"])[:20])


def test_whole_file_as_one_padded_batch() -> None:
    cases = [case for case in WEIGHT["cases"] if not case["error"] and case["step"] == 1]
    offsets = [torch.tensor(case["offsets"]) for case in cases]
    width = max(map(len, offsets)) + 3
    mask_BT = torch.zeros(len(cases), width, dtype=torch.bool)
    for row, case in enumerate(cases):
        mask_BT[row, : len(case["loss_mask"])] = torch.tensor(case["loss_mask"]).bool()
    texts = [case["text"] for case in cases]
    batch = AnswerBatch(texts, offsets, mask_BT, region_ids_batch(texts, offsets, width), step=1)
    weight_BT = weights.weigh("released", batch)
    for row, case in enumerate(cases):
        expected = torch.tensor(case["normalized"])
        torch.testing.assert_close(weight_BT[row, : len(expected)], expected, atol=1e-6, rtol=0)
        assert (weight_BT[row, len(expected) :] == 0).all()
