"""verl's synchronous trainer with our prompts, advantages, token weights and log.

Built for verl 0.9.1 exactly: besides registered extension points it overrides four private methods of its trainer
(`_build_replay_buffer`, `_fetch_one_gen_batch`, `_compute_advantage`, `_save_checkpoint`).

Deviations from the local backend:
- vLLM samples, from random numbers of its own: answers differ from the local backend's and from run to run.
- The old log-probabilities are the trainer's, computed again as in the released code; entropies come with them.
- Which answers share an update follows their order after verl has balanced them over devices, not their prompts.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy
import transfer_queue
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils
from verl.utils.dataset.rl_dataset import collate_fn
from verl.workers.utils.padding import response_to_nested

from restool import files
from restool.backends import answers as records
from restool.backends.verl import checkpoints
from restool.backends.verl.configuration import TRAINER
from restool.backends.verl.inside.sampled import Sampled, metrics_of_update
from restool.backends.verl.recipe import Recipe
from restool.data.rows import read_rows
from restool.files import JsonLinesWriter
from restool.models import chat
from restool.runs import RunDirectory
from restool.settings import validate

_FIELDS = [
    "uid", "prompts", "responses", "response_mask", "rm_scores", "old_log_probs", "rollout_log_probs", "entropy",
    "ref_log_prob", "advantages", "extra_fields",
]  # fmt: skip


@register_trainer(TRAINER)
class Trainer(PPOTrainerSync):
    """One run of ours inside verl."""

    def __init__(self, config: Any):
        ours = OmegaConf.to_container(config.restool, resolve=True)
        self._settings = validate(ours["settings"])
        self._run = RunDirectory(Path(ours["run"]))
        self._rows = read_rows(Path(ours["prepared"]), "train")
        self._recipe = Recipe(self._settings)
        self._row_of_prompt: dict[str, int] = {}
        super().__init__(config)

    def _build_replay_buffer(self) -> Any:
        self.trainer_mode = "sync"  # its branches in the base class, which our name would miss
        return super()._build_replay_buffer()

    # --- the prompts of a step: a function of (data, seed, step), so that nothing has to be restored ---------

    def _fetch_one_gen_batch(self) -> TensorDict:
        chosen = records.prompts_of_step(len(self._rows), self.global_steps, self._settings)
        content = collate_fn([self.train_dataset[index] for index in chosen])
        names = [f"step{self.global_steps}row{index}" for index in chosen]  # verl splits keys at "_"
        content["uid"] = numpy.array(names, dtype=object)
        self._row_of_prompt = dict(zip(names, chosen, strict=True))
        return tensordict_utils.get_tensordict(content)

    # --- from sampled answers to advantages that carry the token weights -------------------------------------

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        if self._recipe.record.advantage == "gae":
            batch = super()._compute_advantage(batch, metrics)
        data = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=_FIELDS)
        self._sampled = sampled = Sampled.read(data, self.tokenizer, self._recipe, self.global_steps)
        if self.global_steps == 1:
            self._compare_prompts(sampled)
        advantage_BT = self._recipe.advantages(sampled.batch, sampled.reference_BT)
        if advantage_BT is None:
            advantage_BT = sampled.advantage_BT
        weight_BT = self._recipe.weights(sampled.batch)
        columns = self._recipe.columns(sampled.batch, advantage_BT, weight_BT, ranks=self._ranks())
        self._shown = (advantage_BT, weight_BT)
        nested = {name: response_to_nested(value, data["response_mask"]) for name, value in columns.items()}
        fields = TensorDict(nested, batch_size=len(batch.keys))
        return transfer_queue.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _ranks(self) -> int:
        """How many devices the answers are dealt to."""
        return max(self.actor_rollout_wg._dispatch_info["actor"]) + 1

    def _compare_prompts(self, sampled: Sampled) -> None:
        """Prompts must be those of the local backend, or rewards and regions would judge other texts."""
        rows = [self._rows[self._row_of_prompt[name]] for name in sampled.uids]
        pairs = [(row.system, row.user) for row in rows]
        thinking, kept = self._settings.model.thinking, self._settings.data.kept_ids
        expected = chat.prompt_ids_batch(self.tokenizer, pairs, thinking=thinking, last=kept)
        for ids, row, found in zip(expected, rows, sampled.prompts, strict=True):
            if ids != found:
                raise RuntimeError(f"verl made another prompt of row {row.id} than restool: {found[:40]} != {ids[:40]}")

    # --- the log ---------------------------------------------------------------------------------------------

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        started = time.perf_counter()
        batch = super().step(metrics, timing_raw)
        seconds = time.perf_counter() - started
        self._log(metrics, timing_raw, seconds)
        return batch

    def _log(self, metrics: dict[str, Any], timing: dict[str, float], seconds: float) -> None:
        step, sampled = self.global_steps, self._sampled
        advantage_BT, weight_BT = self._shown
        found = records.metrics(sampled.batch, sampled.exact, weight_BT) | self._recipe.diagnostics(sampled.batch)
        found |= metrics_of_update(metrics, timing)
        found["sampler/logprob_gap_max"] = float(sampled.gap_N.max())
        found["sampler/logprob_gap_mean"] = float(sampled.gap_N.mean())
        found["throughput/tokens_per_second"] = found["tokens"] / seconds
        if step == 1 or step % self._settings.training.rl.rollouts_every == 0:
            order = sampled.order()
            rows = [self._rows[self._row_of_prompt[sampled.uids[place]]] for place in order]
            samples = self._settings.training.rl.samples
            shown = records.shown(
                step,
                rows[::samples],
                [sampled.ids[place] for place in order],
                sampled.batch.select(order),
                weight_BT[order],
                advantage_BT[order],
            )
            with JsonLinesWriter(self._run.rollouts_path) as log:
                log.append(*shown)
        with JsonLinesWriter(self._run.metrics_path) as log:
            log.append({"step": step, "timestamp": time.time(), "seconds": seconds, **found})

    def _compute_metrics(self, *arguments: Any, **options: Any) -> None:
        """Our log has been written by `step`."""

    # --- what a checkpoint holds besides the model -----------------------------------------------------------

    def _save_checkpoint(self) -> None:
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        files.write_json(folder / checkpoints.STATE, self._recipe.state())
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        path = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}" / checkpoints.STATE
        if self.global_steps:
            self._recipe.restore(files.read_json(path))
