"""A step's answers as verl's queue holds them, turned into our batch; and verl's metrics under our names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from restool.backends import answers as records
from restool.backends.verl.recipe import Recipe
from restool.core.batch import AnswerBatch
from restool.core.rewards import Reward
from restool.models import chat
from restool.models.offsets import Decoder

# verl's name → ours.
_UPDATE = {
    "actor/pg_loss": "loss/policy",
    "actor/grad_norm": "grad/norm",
    "actor/pg_clipfrac": "clip/fraction",
    "actor/pg_clipfrac_lower": "clip/dual",
    "actor/ppo_kl": "kl/old",
    "actor/lr": "learning_rate",
    "critic/vf_loss": "loss/value",
    "critic/grad_norm": "grad/critic_norm",
    "critic/vf_explained_var": "value/explained_variance",
    "training/rollout_probs_diff_max": "sampler/probability_gap_max",
    "training/rollout_probs_diff_mean": "sampler/probability_gap_mean",
}
_STAGES = {
    "gen": "sample",
    "old_log_prob": "score",
    "ref": "score",
    "values": "score",
    "adv": "score",
    "update_critic": "update",
    "update_actor": "update",
}


@dataclass(frozen=True)
class Sampled:
    """One step's answers in verl's order. ``uids``: name of each answer's prompt. ``gap_N``: distance between the
    sampler's and the trainer's log-probability of each sampled token."""

    uids: list[str]
    prompts: list[list[int]]
    ids: list[list[int]]
    exact: list[bool]
    batch: AnswerBatch
    reference_BT: Tensor | None
    advantage_BT: Tensor | None
    gap_N: Tensor

    @classmethod
    def read(cls, data: TensorDict, tokenizer: Any, recipe: Recipe, step: int) -> Sampled:
        """From the columns of verl's queue; rewards and their parts are those of our reward manager."""
        uids = [str(name) for name in _plain(data["uid"])]
        ids = [row.tolist() for row in data["responses"].unbind()]
        mask_BT = _padded(data["response_mask"]).bool()
        totals = data["rm_scores"].to_padded_tensor(0.0).sum(1).tolist()
        parts = [extra["reward_extra_info"] for extra in _plain(data["extra_fields"])]
        if wrong := {part["train_step"] for part in parts} - {step}:
            raise RuntimeError(f"rewards of step {step} were computed for step {sorted(wrong)}")
        names = {name: number for number, name in enumerate(dict.fromkeys(uids))}
        opening = chat.opening(tokenizer, thinking=recipe.settings.model.thinking)
        batch = records.answer_batch(
            Decoder(tokenizer, chat.stop_ids(tokenizer), opening).decode_batch(ids),
            [
                Reward(total, part["format"], part["correctness"], part["length"])
                for total, part in zip(totals, parts, strict=True)
            ],
            torch.tensor([names[name] for name in uids]),
            mask_BT,
            logprob_BT=_padded(data["old_log_probs"]).float(),
            entropy_BT=_padded(data["entropy"]).float(),
            step=step,
            settings=recipe.settings,
        )
        optional = [_padded(data[name]).float() if name in data else None for name in ("ref_log_prob", "advantages")]
        prompts = [row.tolist() for row in data["prompts"].unbind()]
        sampler_BT = _padded(data["rollout_log_probs"]).float()
        gap_N = (sampler_BT - batch.logprob_BT).abs()[mask_BT]
        return cls(uids, prompts, ids, [bool(part["exact"]) for part in parts], batch, *optional, gap_N)

    def order(self) -> Tensor:
        """Places of the answers so that those to one prompt stand side by side."""
        assert self.batch.group_B is not None
        return torch.argsort(self.batch.group_B, stable=True)


def metrics_of_update(metrics: dict[str, Any], timing: dict[str, float]) -> dict[str, float]:
    """What verl says about a step's update, and the seconds of its stages."""
    found = {ours: float(metrics[name]) for name, ours in _UPDATE.items() if name in metrics}
    for name, stage in _STAGES.items():
        if name in timing:
            found[f"time/{stage}"] = found.get(f"time/{stage}", 0.0) + timing[name]
    return found


def _plain(column: Any) -> list[Any]:
    """Values that are no tensors; the queue's store decides what holds them."""
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _padded(column: Tensor) -> Tensor:
    return column.to_padded_tensor(0)
