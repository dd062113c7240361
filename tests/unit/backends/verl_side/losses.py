"""Runs in the environment of verl: what verl's own functions make of answers that the test drew, method by method.

``python losses.py CASES.pt RESULTS.pt``: every case holds a run's request and a step's answers; every result, the
rewards, regions, weights, advantages and the loss with its gradient, and for PPO the returns and the critic's loss.
A dictionary stands for the queue that verl keeps a step's columns in.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import transfer_queue
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopBase
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss, value_loss

from restool.backends.verl import configuration
from restool.backends.verl.inside import composition, losses, reward
from restool.backends.verl.inside.trainer import Trainer
from restool.backends.verl.recipe import Recipe
from restool.settings import validate

assert POLICY_LOSS_REGISTRY[configuration.POLICY_LOSS] is losses.released_loss
RANKS = 2


def main(cases: str, results: str) -> None:
    torch.save([_result(case) for case in torch.load(cases, weights_only=False)], results)


def _result(case: dict[str, Any]) -> dict[str, Any]:
    request = case["request"]
    config = composition.composed(request["values"], request["overrides"], {"settings": request["settings"]})
    tokenizer = AutoTokenizer.from_pretrained(case["tokenizer"])
    data = _queue(case, config, tokenizer)
    trainer = _Trainer.of(case, config, tokenizer)
    columns = trainer.columns(data)
    batch = trainer._sampled.batch
    advantage_BT, weight_BT = trainer._shown
    loss, gradient_BT = _losses(case, data, columns, config)
    found = {
        "reward_B": batch.reward_B,
        "region_BT": batch.region_BT,
        "advantage_BT": advantage_BT,
        "weight_BT": weight_BT,
        "loss": loss,
        "gradient_BT": gradient_BT,
        "kept_ids": _kept(config, list(range(10_000))),
    }
    return found | (_critic(case, columns, config) if case["critic"] else {})


def _kept(config: Any, ids: list[int]) -> list[int]:
    """What verl's agent loop makes of a prompt that is too long; the data set cuts nothing."""
    return AgentLoopBase._cap_text_prompt_length(SimpleNamespace(rollout_config=config.actor_rollout_ref.rollout), ids)


class _Trainer(Trainer):
    """Our trainer from a step's columns to what it writes back; without workers, which the rest of it steers."""

    @classmethod
    def of(cls, case: dict[str, Any], config: Any, tokenizer: Any) -> _Trainer:
        self = object.__new__(cls)
        self.config, self.tokenizer, self.global_steps = config, tokenizer, case["step"]
        self._settings = validate(case["request"]["settings"])
        self._recipe = Recipe(self._settings)
        return self

    def columns(self, data: TensorDict) -> dict[str, torch.Tensor]:
        """What the trainer writes to the queue, padded."""
        written: dict[str, torch.Tensor] = {}

        def get(keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
            columns = {name: data[name] for name in select_fields if name in data} | written
            return tensordict_utils.get_tensordict({n: c for n, c in columns.items() if n in select_fields})

        def put(keys: list[str], partition_id: str, fields: TensorDict) -> KVBatchMeta:
            written.update(dict(fields.items()))
            return batch

        transfer_queue.kv_batch_get, transfer_queue.kv_batch_put = get, put
        keys = [f"{name}_0_{row}" for row, name in enumerate(data["uid"])]
        batch = KVBatchMeta(keys=keys, tags=[{} for _ in keys], partition_id="train")
        self._compute_advantage(batch, {})
        return {name: column.to_padded_tensor(0) for name, column in written.items()}

    def _ranks(self) -> int:
        return RANKS


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
        "rollout_log_probs": _cut(case["old_BT"], case["ids"]),
        **({"values": _cut(case["value_BT"], case["ids"])} if case["critic"] else {}),
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
    """verl's loss of the policy, mini-batch by mini-batch, and all gradients."""
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    policy_BT = case["policy_BT"].clone().requires_grad_()

    def loss(rows: list[int], tokens: int) -> torch.Tensor:
        return ppo_loss(actor, *_micro(case, data, columns, policy_BT, rows, tokens))[0]

    return _added_up(case, loss), policy_BT.grad / RANKS


def _critic(case: dict[str, Any], columns: dict[str, torch.Tensor], config: Any) -> dict[str, Any]:
    """verl's loss of the critic, as that of the policy, and the returns that it is to predict."""
    critic = omega_conf_to_dataclass(config.critic)
    predicted_BT = case["predicted_BT"].clone().requires_grad_()

    def loss(rows: list[int], tokens: int) -> torch.Tensor:
        ids = [case["ids"][row] for row in rows]
        given = {"values": _cut(case["value_BT"][rows], ids), "returns": _cut(columns["returns"][rows], ids)}
        micro = _answers(case, rows, given, tokens)
        lengths = [len(case["prompts"][row]) for row in rows]
        return value_loss(critic, {"values": _model_output(predicted_BT[rows], ids, lengths)}, micro)[0]

    losses = _added_up(case, loss)
    return {"return_BT": columns["returns"], "value_loss": losses, "value_gradient_BT": predicted_BT.grad / RANKS}


def _added_up(case: dict[str, Any], loss: Callable[[list[int], int], torch.Tensor]) -> list[float]:
    """The loss of each mini-batch as verl's engine adds it up over ranks and micro-batches; leaves the gradients.

    ``loss``: of the rows of a micro-batch, in a mini-batch of so many tokens.
    """
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
                value = loss(part, tokens)
                value.backward()
                total = total + value.detach()
        found.append(float(total) / RANKS)
    return found


def _micro(
    case: dict[str, Any],
    data: TensorDict,
    columns: dict[str, torch.Tensor],
    policy_BT: torch.Tensor,
    rows: list[int],
    tokens: int,
) -> tuple[dict[str, torch.Tensor], TensorDict]:
    ids = [case["ids"][row] for row in rows]
    lengths = [len(case["prompts"][row]) for row in rows]
    given = {name: _cut(value[rows], ids) for name, value in columns.items()}
    given |= {name: _cut(case[source][rows], ids) for name, source in _COLUMNS.items() if name != "entropy"}
    output = {"log_probs": _model_output(policy_BT[rows], ids, lengths)}
    if case["entropy_bonus"]:
        output["entropy"] = _model_output(case["entropy_BT"][rows], ids, lengths)
    return output, _answers(case, rows, given, tokens)


def _answers(case: dict[str, Any], rows: list[int], given: dict[str, Any], tokens: int) -> TensorDict:
    """The columns ``given`` of a micro-batch with its answers, and what verl says of its mini-batch."""
    ids = [case["ids"][row] for row in rows]
    given = given | {"prompts": _nested([case["prompts"][row] for row in rows]), "responses": _nested(ids)}
    given["response_mask"] = _nested([[1] * len(answer) for answer in ids])
    micro = tensordict_utils.get_tensordict(given)
    batch = {"batch_num_tokens": tokens, "global_batch_size": case["per_batch"]}
    tensordict_utils.assign_non_tensor(micro, dp_size=RANKS, **batch)
    return micro


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
