"""The paper's experiment holds every arm that a claim is about; its page is complete before anything has run."""

from __future__ import annotations

import pytest

from restool.analysis import claims
from restool.analysis import experiment as experiments
from restool.experiments import load_plan

ABLATIONS = {"rest_static_reward": "reward", "no_think": "method", "static": "method"}  # and what they change


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """Its 8B part: the model of the ablations."""
    chosen = ["experiment.matrix.models=[qwen3_8b]"]
    return experiments.load(load_plan("paper", chosen, results=tmp_path_factory.mktemp("paper")).directory)


def test_every_arm_of_a_claim_is_planned_with_three_seeds(paper):
    runs = [run for run in paper.runs if run.settings.model.name == "qwen3_8b"]
    arms = {arm for claim in claims.CLAIMS for arm in (claim.arm, claim.minus) if arm not in (None, claims.GPT_4O)}
    for arm in (*arms, *claims.MAIN_TABLE):
        seeds = {run.seed for run in runs if arm.has(run)}
        assert len(seeds) == (1 if arm.algorithm == "base" else 3), arm
    for arm in (claims.NO_DYNAMIC_REWARD, claims.NO_THINK, claims.STATIC):
        assert {run.method for run in runs if arm.has(run)}.isdisjoint({"rest_released"}), "an arm of its own"


def test_ablations_differ_from_rest_in_one_thing(paper):
    settings = {run.method: run.settings.model_dump() for run in paper.runs if run.seed == 0 and "8b" in run.id}
    for name, changed in ABLATIONS.items():
        differing = {key for key in settings[name] if settings[name][key] != settings["rest_released"][key]}
        assert differing == {changed, "method"}
    common = ("start", "clip_low", "clip_high", "clip_dual", "entropy_coefficient", "kl_coefficient")
    for key in common:
        assert len({str(settings[name]["method"][key]) for name in (*ABLATIONS, "rest_released")}) == 1, key


def test_the_reproduction_table_lacks_nothing_but_results(paper):
    rows = claims.table(paper)
    assert {row["status"] for row in rows} == {claims.NOT_RUN, claims.UNKNOWN}
    assert all(row["ours"] is None and row["why"] for row in rows)
    ours = [row for row in rows if "Qwen3-8B" in row["claim"] and row["paper"] is not None]
    assert len(ours) >= 10
    reasons = {row["why"] for row in ours}
    assert all(why.startswith("no finished result of") or why == "metric unknown" for why in reasons), reasons
