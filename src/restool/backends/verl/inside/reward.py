"""The reward, where verl asks for it: answer by answer, as soon as it is sampled.

Deviation from verl's own managers: they decode without special tokens and do not know the training step. Ours decodes
the sampled ids as the token weights' regions do, up to the first stop token, and reads the step of the batch. (The
server's ``extra_fields`` hold a ``global_steps`` too, the version of the weights, which is one less.)
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from restool.backends import answers
from restool.core import rewards
from restool.models import chat
from restool.models.offsets import Decoder
from restool.settings import RunSettings, validate


class RewardManager(RewardManagerBase):
    """Scores one answer; its parts go along as ``reward_extra_info``."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any):
        super().__init__(config, tokenizer, compute_score)
        self._settings: RunSettings = validate(OmegaConf.to_container(config.restool.settings, resolve=True))
        opening = chat.opening(tokenizer, thinking=self._settings.model.thinking)
        self._decoder = Decoder(tokenizer, chat.stop_ids(tokenizer), opening)

    async def run_single(self, data: Any) -> dict[str, Any]:
        answer = data[-1]
        ids = answer.batch["responses"]
        given = int(answer.batch["attention_mask"][-len(ids) :].sum())
        label = answer.non_tensor_batch["reward_model"]["ground_truth"]
        step = int(answer.non_tensor_batch["global_steps"])
        return await self.loop.run_in_executor(None, self._score, ids[:given].tolist(), label, step)

    def _score(self, ids: list[int], label: str, step: int) -> dict[str, Any]:
        completion = self._decoder.decode(ids).completion
        reward = answers.rewards_of([completion], [label], step, self._settings)[0]
        parts = {
            "format": reward.format,
            "correctness": reward.correctness,
            "length": reward.length,
            "exact": float(rewards.is_exact(completion, label)),
            "train_step": step,
        }
        return {"reward_score": reward.total, "reward_extra_info": parts}
