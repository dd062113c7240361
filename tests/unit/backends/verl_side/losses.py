"""Runs in the environment of verl: what verl's own functions make of answers that the test drew, method by method.

``python losses.py CASES.pt RESULTS.pt``: every case holds a run's request and a step's answers; every result, the
rewards, regions, weights, advantages and the loss with its gradient.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import torch
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from restool.backends.verl import configuration
from restool.backends.verl.inside import composition, losses, reward
from restool.backends.verl.inside.sampled import Sampled
from restool.backends.verl.recipe import Recipe
from restool.settings import validate

assert POLICY_LOSS_REGISTRY[configuration.POLICY_LOSS] is losses.released_loss
RANKS = 2


def main(cases: str, results: str) -> None:
    torch.save([_result(case) for case in torch.load(cases, weights_only=False)], results)


def _result(case: dict[str, Any]) -> dict[str, Any]:
    request = case["request"]
    config = composition.composed(request["values"], request["overrides"], {"settings": request["settings"]})
    recipe = Recipe(validate(request["settings"]))
    tokenizer = AutoTokenizer.from_pretrained(case["tokenizer"])
    data = _queue(case, config, tokenizer)
    sampled = Sampled.read(data, tokenizer, recipe, case["step"])
    advantage_BT = recipe.advantages(sampled.batch, sampled.reference_BT)
    weight_BT = recipe.weights(sampled.batch)
    columns = recipe.columns(sampled.batch, advantage_BT, weight_BT, ranks=RANKS)
    loss, gradient_BT = _losses(case, data, columns, config)
    return {
        "reward_B": sampled.batch.reward_B,
        "region_BT": sampled.batch.region_BT,
        "advantage_BT": advantage_BT,
        "weight_BT": weight_BT,
        "loss": loss,
        "gradient_BT": gradient_BT,
    }


def _queue(case: dict[str, Any], config: Any, tokenizer: Any) -> TensorDict:
    """The columns of verl's queue: nested tensors, and rewards from our reward manager."""
    manager = reward.RewardManager(config, tokenizer)
    scores = [
        manager.loop.run_until_complete(manager.run_single(_single(case, row))) for row in range(len(case["ids"]))
    ]
    totals = [_last(torch.tensor(ids), score["reward_score"]) for ids, score in zip(case["ids"], scores, strict=True)]
    columns = {
        "uid": [f"prompt{group}" for group in case["group_B"].tolist()],
        "prompts": _nested(case["prompts"]),
        "responses": _nested(case["ids"]),
        "response_mask": _nested([[1] * len(ids) for ids in case["ids"]]),
        "rm_scores": torch.nested.as_nested_tensor(totals, layout=torch.jagged),
        "extra_fields": [{"reward_extra_info": score["reward_extra_info"]} for score in scores],
        **{name: _cut(case[source], case["ids"]) for name, source in _COLUMNS.items()},
    }
    return tensordict_utils.get_tensordict(columns)


_COLUMNS = {"old_log_probs": "old_BT", "entropy": "entropy_BT", "ref_log_prob": "reference_BT"}


def _single(case: dict[str, Any], row: int) -> DataProto:
    ids = torch.tensor([case["ids"][row]])
    mask = torch.ones(1, len(case["prompts"][row]) + ids.shape[1], dtype=torch.long)
    return DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": mask},
        non_tensors={"reward_model": [{"ground_truth": case["labels"][row]}], "global_steps": [case["step"]]},
    )


def _losses(
    case: dict[str, Any], data: TensorDict, columns: dict[str, torch.Tensor], config: Any
) -> tuple[list[float], torch.Tensor]:
    """verl's loss of each mini-batch as its engine adds it up over ranks and micro-batches, and all gradients."""
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    policy_BT = case["policy_BT"].clone().requires_grad_()
    answers, per_batch = len(case["ids"]), case["per_batch"]
    per_rank, mine = answers // RANKS, per_batch // RANKS
    found = []
    for begin in range(0, per_rank, mine):
        batch = [rank * per_rank + begin + place for rank in range(RANKS) for place in range(mine)]
        tokens = sum(len(case["ids"][row]) for row in batch)
        total = torch.zeros(())
        for rank in range(RANKS):
            own = batch[rank * mine : (rank + 1) * mine]
            for part in [own] if case["micro_batches"] == 1 else [own[: mine // 2], own[mine // 2 :]]:
                loss, _ = ppo_loss(actor, *_micro(case, data, columns, policy_BT, part, tokens, per_batch))
                loss.backward()
                total = total + loss.detach()
        found.append(float(total) / RANKS)
    return found, policy_BT.grad / RANKS


def _micro(
    case: dict[str, Any],
    data: TensorDict,
    columns: dict[str, torch.Tensor],
    policy_BT: torch.Tensor,
    rows: list[int],
    tokens: int,
    per_batch: int,
) -> tuple[dict[str, torch.Tensor], TensorDict]:
    ids = [case["ids"][row] for row in rows]
    lengths = [len(case["prompts"][row]) for row in rows]
    given = {name: _cut(value[rows], ids) for name, value in columns.items()}
    given |= {name: _cut(case[source][rows], ids) for name, source in _COLUMNS.items() if name != "entropy"}
    given |= {"prompts": _nested([case["prompts"][row] for row in rows]), "responses": _nested(ids)}
    given["response_mask"] = _nested([[1] * len(answer) for answer in ids])
    micro = tensordict_utils.get_tensordict(given)
    tensordict_utils.assign_non_tensor(micro, dp_size=RANKS, batch_num_tokens=tokens, global_batch_size=per_batch)
    output = {"log_probs": _model_output(policy_BT[rows], ids, lengths)}
    if case["entropy_bonus"]:
        output["entropy"] = _model_output(case["entropy_BT"][rows], ids, lengths)
    return output, micro


def _model_output(value_BT: torch.Tensor, ids: list[list[int]], prompts: list[int]) -> torch.Tensor:
    """What the model says at each position about the next token: responses one place early, as verl reads them."""
    rows = []
    for value_T, answer, prompt in zip(value_BT, ids, prompts, strict=True):
        zeros = value_T.new_zeros(prompt - 1)
        rows.append(torch.cat([zeros, value_T[: len(answer)], value_T.new_zeros(1)]))
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _last(ids: torch.Tensor, value: float) -> torch.Tensor:
    found = torch.zeros(len(ids))
    found[-1] = value
    return found


def _nested(rows: list[list[int]]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def _cut(value_BT: torch.Tensor, ids: list[list[int]]) -> torch.Tensor:
    rows = [value_T[: len(answer)] for value_T, answer in zip(value_BT, ids, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


if __name__ == "__main__":
    asyncio.set_event_loop(asyncio.new_event_loop())
    main(*sys.argv[1:])
