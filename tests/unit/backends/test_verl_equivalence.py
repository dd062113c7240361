"""The same answers get the same rewards, regions, weights, advantages and losses from verl as from the local backend.

verl's side runs in its own environment, on its own functions: our reward manager, what our trainer in verl writes into
its queue, and verl's losses of policy and critic, over two ranks with two mini-batches each.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import settings

from restool import algorithms, environments, files
from restool.algorithms import ALGORITHMS
from restool.backends import answers as records
from restool.backends.local.critic import Critic
from restool.backends.local.packing import Scored
from restool.backends.local.rl import Learner, _Tally
from restool.backends.local.rollouts import Rollouts
from restool.backends.verl import configuration, launch
from restool.core import rewards
from restool.data.rows import read_rows
from restool.experiments import load_plan
from restool.models import chat, loading
from restool.models.offsets import Decoder

pytestmark = pytest.mark.slow

RANKS, STEP, SAMPLES = 2, 3, 4
CARRIED = [record.id for record in ALGORITHMS.values() if record.kind == "rl"]
EXTRA = {
    "ppo": ["training.rl.critic_learning_rate=1e-3"],
    "optimal": ["+method.weights.beta={format: 2.0, name: 9.0, arguments: 8.0, think: 4.0, response: 1.0, other: 3.0}"],
    "toolrl": ["reward=toolrl"],
    "rest_entropy": ["method.entropy_decay=0.5"],
}


@pytest.fixture(scope="module")
def cases(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return [_case(prepared, name, by_micro_batch=False) for name in CARRIED] + [
        _case(prepared, name, by_micro_batch=True) for name in ("rest_released", "rest_fixed")
    ]


@pytest.fixture(scope="module")
def verl_results(cases: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("verl")
    plain = [{name: value for name, value in case.items() if name != "settings"} for case in cases]
    torch.save(plain, folder / "cases.pt")
    python = environments.build("verl-cpu")
    script = Path(__file__).parent / "verl_side" / "losses.py"
    done = subprocess.run(
        [python, script, folder / "cases.pt", folder / "results.pt"],
        capture_output=True,
        text=True,
        env=launch.variables("cpu"),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return torch.load(folder / "results.pt", weights_only=False)


def test_every_method_is_the_same_in_both(cases: list[dict[str, Any]], verl_results: list[dict[str, Any]]):
    assert len(cases) == len(verl_results) >= 20
    for case, theirs in zip(cases, verl_results, strict=True):
        ours = _local(case)
        for name, value in ours.items():
            assert torch.allclose(
                torch.as_tensor(theirs[name]).double(), torch.as_tensor(value).double(), rtol=1e-5, atol=1e-5
            ), (case["name"], name, theirs[name], value)
    assert any(float(_local(case)["gradient_BT"].abs().max()) > 1e-3 for case in cases)
    [ppo] = [case for case in cases if case["critic"]]
    assert _local(ppo).keys() >= {"return_BT", "value_loss", "value_gradient_BT"}
    assert float(_local(ppo)["value_gradient_BT"].abs().max()) > 1e-3


def test_verl_keeps_the_end_of_a_long_prompt_as_the_local_backend_does(cases, verl_results):
    """`chat.prompt_ids_batch` with ``last``: where the data says ``overlong=truncate_left``."""
    limits = {case["settings"].data.max_prompt_tokens for case in cases}
    assert all(theirs["kept_ids"] == list(range(10_000))[-limit:] for theirs in verl_results for limit in limits)


def test_what_verl_cannot_carry_is_refused_with_the_reason():
    for override, reason in {
        "training.rl.final_learning_rate=0.5": "no linear decay",
        "training.rl.minibatches=3": "does not divide",
        "training.rl.micro_tokens=64": "raise it to",
        "training.rl.normaliser_tokens=77": "micro-batches",
    }.items():
        chosen = settings("backend=verl_cpu", "training.rl.final_learning_rate=1", override)
        with pytest.raises(Exception, match=reason):
            configuration.check(chosen)


def test_the_papers_runs_pass_verls_own_validation(prepared: Path, tmp_path: Path):
    """Without a device; the tiny model stands for the weights, because verl reads the configuration of a critic."""
    plan = load_plan("paper", [], tmp_path / "results", write=False)
    first = {}
    for run in plan.runs:
        if run.kind != "none":
            first.setdefault((run.config["model"]["name"], run.config["method"]["name"]), run)
    assert len({model for model, _ in first}) == 5
    requests = [
        launch.request_of(run.settings, tmp_path / run.id, prepared, prepared / "model") for run in first.values()
    ]
    files.write_json(tmp_path / "requests.json", {"runs": requests})
    command = [environments.build("verl-cpu"), "-m", launch.PROGRAM, "check", tmp_path / "requests.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=launch.variables("cuda"), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [answer["run"] for answer in answers] == [request["name"] for request in requests]
    assert [answer for answer in answers if answer["fault"]] == []


def _case(prepared: Path, name: str, *, by_micro_batch: bool) -> dict[str, Any]:
    """A run of 4 prompts with 4 answers each: labels, damaged labels and noise, in verl's order."""
    chosen = settings(
        f"method={name}",
        "backend=verl_cpu",
        "training.rl.final_learning_rate=1",
        "training.rl.max_new_tokens=96",
        *(["training.rl.normaliser_tokens=8192"] if by_micro_batch else []),
        *EXTRA.get(name, []),
    )
    generator = torch.Generator().manual_seed(len(name))
    _, tokenizer = loading.load(prepared / "model")
    rows = read_rows(prepared, "train")[: chosen.training.rl.prompts]
    order = torch.randperm(len(rows) * SAMPLES, generator=generator)
    texts = [_answer(row.ground_truth, sample) for row in rows for sample in range(SAMPLES)]
    ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][:96] for text in texts]
    prompts = chat.prompt_ids_batch(tokenizer, [(row.system, row.user) for row in rows])
    ids, group_B = [ids[i] for i in order], order // SAMPLES
    shape = (len(ids), max(map(len, ids)))
    old_BT = -torch.rand(shape, generator=generator) * 3
    return {
        "name": name + (" by micro-batch" if by_micro_batch else ""),
        "request": launch.request_of(chosen, Path("run"), prepared, prepared / "model"),
        "settings": chosen,
        "tokenizer": str(prepared / "model"),
        "step": STEP,
        "ids": ids,
        "prompts": [prompts[g] for g in group_B],
        "labels": [rows[g].ground_truth for g in group_B],
        "group_B": group_B,
        "old_BT": old_BT,
        "policy_BT": old_BT + 0.5 * torch.randn(shape, generator=generator),
        "reference_BT": old_BT + 0.2 * torch.randn(shape, generator=generator),
        "entropy_BT": torch.rand(shape, generator=generator),
        "critic": algorithms.get(chosen.method.algorithm).advantage == "gae",
        "value_BT": torch.randn(shape, generator=generator),
        "predicted_BT": 2 * torch.randn(shape, generator=generator),
        "entropy_bonus": chosen.method.entropy_coefficient != 0,
        "per_batch": len(ids) // chosen.training.rl.minibatches,
        "micro_batches": 1 if not by_micro_batch else 2,
    }


def _answer(label: str, sample: int) -> str:
    wrong_name = label.replace('"name": "', '"name": "x')
    return (label, wrong_name, label.split("</think>")[0], label[: len(label) // 2])[sample]


def _local(case: dict[str, Any]) -> dict[str, Any]:
    """The local backend's own functions on the case; mini-batches as verl deals them."""
    chosen = case["settings"]
    _, tokenizer = loading.load(case["tokenizer"])
    decoded = Decoder(tokenizer, chat.stop_ids(tokenizer)).decode_batch(case["ids"])
    lengths_B = torch.tensor([len(ids) for ids in case["ids"]])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    completions = [d.completion for d in decoded]
    batch = records.answer_batch(
        decoded,
        records.rewards_of(completions, case["labels"], STEP, chosen),
        case["group_B"],
        mask_BT,
        logprob_BT=case["old_BT"] * mask_BT,
        entropy_BT=case["entropy_BT"] * mask_BT,
        step=STEP,
        settings=chosen,
    )
    exact = [rewards.is_exact(c, label) for c, label in zip(completions, case["labels"], strict=True)]
    answers = Rollouts([], case["prompts"], case["ids"], completions, exact, batch)
    record = algorithms.get(chosen.method.algorithm)
    reference_BT = case["reference_BT"] * mask_BT
    learner = SimpleNamespace(
        _record=record,
        _method=chosen.method,
        _rl=chosen.training.rl.model_copy(update={"normaliser_tokens": None}),
        _reference=object() if chosen.method.kl_coefficient else None,
        _reference_logprobs=lambda answers: reference_BT,
        critic=_StandIn(case["value_BT"] * mask_BT, case["predicted_BT"]) if case["critic"] else None,
    )
    advantage_BT = Learner.advantages(learner, answers)
    weight_BT = Learner.weights(learner, answers)
    policy_BT = case["policy_BT"].clone().requires_grad_()
    scored = Scored(torch.arange(len(mask_BT)), policy_BT, case["entropy_BT"] if case["entropy_bonus"] else None)
    loss_BT = Learner._loss(learner, scored, answers, advantage_BT, _Tally())
    bonus_BT = Learner._regulariser(learner, scored, None) if case["entropy_bonus"] else torch.zeros_like(loss_BT)
    losses = []
    for rows_B, share in _parts(case):
        share_BT = Learner._shares(learner, answers, rows_B, weight_BT) * share
        plain_BT = Learner._shares(learner, answers, rows_B, mask_BT.float()) * share
        losses.append((loss_BT * share_BT).sum() + (bonus_BT * plain_BT).sum())
    torch.stack(losses).sum().backward()
    per_batch = len(losses) // chosen.training.rl.minibatches
    of_critic = learner.critic.found(answers, [rows_B for rows_B, _ in _parts(case)]) if case["critic"] else {}
    return of_critic | {
        "reward_B": batch.reward_B,
        "region_BT": batch.region_BT,
        "advantage_BT": advantage_BT,
        "weight_BT": weight_BT,
        "loss": [float(sum(losses[i : i + per_batch]).detach()) for i in range(0, len(losses), per_batch)],
        "gradient_BT": policy_BT.grad,
    }


class _StandIn(Critic):
    """The local backend's critic with values that were drawn in the place of a model's."""

    def __init__(self, value_BT: torch.Tensor, predicted_BT: torch.Tensor):
        self._given_BT, self.predicted_BT = value_BT, predicted_BT.clone().requires_grad_()
        self._micro_tokens = 0
        self._scorer = SimpleNamespace(micro_batches=lambda trees, tokens: [trees[:5], trees[5:]])
        self._optimiser = SimpleNamespace(step=lambda factor: 0.0)

    def values(self, trees: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        rows_B = torch.tensor([row for tree in trees for row in tree.rows])
        return rows_B, self._given_BT[rows_B]

    def found(self, answers: Rollouts, batches: list[torch.Tensor]) -> dict[str, Any]:
        """Returns, and the loss of each mini-batch with all gradients."""
        self._given_BT = self.predicted_BT
        losses = [self.update(answers, rows_B, 1.0)["value_loss"] for rows_B in batches]
        return {
            "return_BT": self._return_BT,
            "value_loss": losses,
            "value_gradient_BT": self.predicted_BT.grad,
        }


def _parts(case: dict[str, Any]) -> list[tuple[torch.Tensor, float]]:
    """The answers whose loss is normalised together, with their share of the mini-batch: whole mini-batches, or the
    micro-batches of every rank."""
    answers, per_batch = len(case["ids"]), case["per_batch"]
    per_rank, mine = answers // RANKS, per_batch // RANKS
    parts = []
    for begin in range(0, per_rank, mine):
        owned = [[rank * per_rank + begin + place for place in range(mine)] for rank in range(RANKS)]
        halves = [part for own in owned for part in (own[: mine // 2], own[mine // 2 :])]
        for part in [[row for own in owned for row in own]] if case["micro_batches"] == 1 else halves:
            parts.append((torch.isin(torch.arange(answers), torch.tensor(part)), len(part) / per_batch))
    return parts
