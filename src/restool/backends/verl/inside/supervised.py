"""verl's supervised trainer on our demonstrations, with our shares of the loss, learning rate and log.

Built for verl 0.9.1 exactly. Extension points: a dataset class (``data.custom_cls``) and a loss. Beside them it
overrides two private methods of the trainer (`_build_engine`, `_build_dataloader`) and one of its engine
(`_build_lr_scheduler`): verl has no linear decay, and shuffles what is in order already.

Deviation from the local backend: demonstrations over one tool list do not share its computation.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils import tensordict_utils
from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group
from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig
from verl.workers.utils.losses import sft_loss

from restool import files
from restool.backends.local import optimisation
from restool.backends.verl import supervision
from restool.core.aggregates import AGGREGATES
from restool.files import JsonLinesWriter
from restool.runs import RunDirectory


class Demonstrations(Dataset):
    """The demonstrations of all steps in their order, from the file that `restool.backends.verl.supervised` writes."""

    def __init__(self, parquet_files: str, **_: Any):
        """``parquet_files``: verl's name for the file, whatever is in it."""
        content = files.read_json(Path(parquet_files))
        self._examples, self._steps, self.factors = content["examples"], content["steps"], content["factors"]
        self._aggregate = AGGREGATES[content["aggregate"]]
        self._batch = len(self._steps[0])
        self._at, self._share_BT = 0, torch.empty(0)

    def __len__(self) -> int:
        return len(self._steps) * self._batch

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        """Ids, and as ``loss_mask`` what each token's loss counts for in its step's."""
        step, row = place // self._batch + 1, place % self._batch
        example = self._of_step(step)[row]
        ids, answer = torch.tensor(example["ids"]), example["answer"]
        mask = torch.zeros(len(ids))
        mask[-answer:] = self._shares(step)[row, :answer]
        return {"input_ids": ids, "position_ids": torch.arange(len(ids)), "loss_mask": mask}

    def sizes(self, step: int) -> dict[str, float]:
        """How much the demonstrations of a step are, under the names of our log."""
        batch = self._of_step(step)
        return {
            "tokens": sum(len(example["ids"]) for example in batch),
            "length/mean": sum(example["answer"] for example in batch) / len(batch),
        }

    def _of_step(self, step: int) -> list[dict[str, Any]]:
        return [self._examples[place] for place in self._steps[step - 1]]

    def _shares(self, step: int) -> Tensor:
        """(B, T) for the answers of a step; its demonstrations are asked for one after the other."""
        if step != self._at:
            weights = [torch.tensor(example["weights"]) for example in self._of_step(step)]
            weight_BT = torch.nn.utils.rnn.pad_sequence(weights, batch_first=True)
            lengths_B = torch.tensor([len(row) for row in weights])
            mask_BT = torch.arange(weight_BT.shape[1]) < lengths_B[:, None]
            self._at, self._share_BT = step, optimisation.gradient(self._aggregate, mask_BT, weight_BT)
        return self._share_BT


def shared_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """verl's loss of a micro-batch without verl's normaliser, the sum of the mask: the shares have ours in them."""
    loss, metrics = sft_loss(config, model_output, data, dp_group)
    return loss * data["batch_num_tokens"], metrics


class Trainer(SFTTrainer):
    """One run of ours inside verl, on one of its devices."""

    def __init__(self, config: Any):
        self._run = RunDirectory(Path(config.restool.run))
        super().__init__(config)
        self.training_client.step = self.resume_global_step

    def _build_engine(self) -> None:
        config = TrainingWorkerConfig(
            model_type="language_model",
            model_config=self.model_config,
            engine_config=self.engine_config,
            optimizer_config=self.optimizer_config,
            checkpoint_config=self.checkpoint_config,
            profiler_config=self.profiler_config,
        )
        self.training_client = Worker(config, self._run, self.train_dataset)
        self.training_client.set_loss_fn(lambda **given: shared_loss(None, **given))
        self.engine = self.training_client.engine
        self.engine._build_lr_scheduler = self._schedule

    def _build_dataloader(self) -> None:
        super()._build_dataloader()
        self.train_sampler.shuffle = False

    def _schedule(self, optimiser: torch.optim.Optimizer) -> LambdaLR:
        factors = self.train_dataset.factors
        return LambdaLR(optimiser, lambda done: factors[min(done, len(factors) - 1)])


class Worker(TrainingWorker):
    """Trains a step and writes it down. ``step``: the last one done."""

    def __init__(self, config: TrainingWorkerConfig, run: RunDirectory, demonstrations: Demonstrations):
        super().__init__(config)
        self._run, self._demonstrations, self.step = run, demonstrations, 0

    def train_batch(self, data: Any) -> Any:
        started = time.perf_counter()
        output = super().train_batch(data)
        self.step += 1
        if torch.distributed.get_rank() == 0:
            self._log(tensordict_utils.get(output, "metrics"), time.perf_counter() - started)
        return output

    def _log(self, metrics: dict[str, Any], seconds: float) -> None:
        sizes = self._demonstrations.sizes(self.step)
        row = {
            "loss/sft": metrics["loss"],
            "grad/norm": metrics["grad_norm"],
            "learning_rate": self.optimizer_config.lr * self._demonstrations.factors[self.step - 1],
            **sizes,
            "time/update": seconds,
            "throughput/tokens_per_second": sizes["tokens"] / seconds,
        }
        with JsonLinesWriter(self._run.metrics_path) as log:
            log.append({"step": self.step, "timestamp": time.time(), "seconds": seconds, **row})


def run(config: Any) -> None:
    """Train as one of the processes that ``torch.distributed.run`` has started."""
    supervision.end_with_parent()  # its launcher may be killed, and would leave it behind
    initialize_global_process_group()
    Trainer(config).fit()
    destroy_global_process_group()
