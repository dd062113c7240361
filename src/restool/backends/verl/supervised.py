"""Supervised runs for verl: what its trainer is configured with, and the demonstrations as it is given them.

Which demonstrations a step sees, as which ids, with which weights and at which learning rate is decided here, by the
functions of the local backend, and written down; verl's trainer reads it and adds nothing of its own. It runs as one
process a device on one node, whatever the layout of reinforcement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from restool import algorithms, files
from restool.backends import demonstrations
from restool.backends.demonstrations import Curriculum, Example
from restool.backends.local import optimisation
from restool.backends.verl import cpu_only
from restool.backends.verl.configuration import KEPT_CHECKPOINTS, verl
from restool.models import chat, loading
from restool.models.offsets import Decoder
from restool.settings import RunSettings

FILE = "demonstrations.json"  # in the folder of checkpoints
_SOURCE = "pkg://restool.backends.verl.inside.supervised"


def write(settings: RunSettings, folder: Path, prepared: Path, start: Path, report: Callable[[str], None]) -> int:
    """Write all that the trainer needs to know of the demonstrations into ``folder``; the number of steps.

    ``examples``: ids of prompt and answer, how many of them are the answer, and its weights. ``steps``: places in
    ``examples``, step by step. ``factors``: on the learning rate, step by step.
    """
    sft, record = settings.training.sft, algorithms.get(settings.method.algorithm)
    tokenizer = loading.load_tokenizer(start)
    examples = demonstrations.read(prepared, tokenizer, settings, report)
    decoder = Decoder(tokenizer, chat.stop_ids(tokenizer))
    weight_BT, _ = demonstrations.weights(record, examples, decoder, settings.method.weights)
    curriculum = Curriculum(examples, sft, settings.seed)
    numbers = range(1, curriculum.steps + 1)
    place = {id(example): number for number, example in enumerate(examples)}
    content = {
        "aggregate": record.aggregate,
        "examples": [_plain(example, weight_T) for example, weight_T in zip(examples, weight_BT.tolist(), strict=True)],
        "steps": [[place[id(example)] for example in curriculum.batch(number)] for number in numbers],
        "factors": [optimisation.factor_of_sft(sft, number, curriculum.steps) for number in numbers],
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / FILE, content)
    return curriculum.steps


def _plain(example: Example, weight_T: Sequence[float]) -> dict[str, Any]:
    length = len(example.answer)
    return {"ids": example.prompt + example.answer, "answer": length, "weights": weight_T[:length]}


def values(settings: RunSettings, run: Path, start: Path) -> dict[str, Any]:
    """Dotted keys of the configuration of verl's supervised trainer → values, for a run that `check` lets pass."""
    found = {**_data(settings, run), **_model(settings, start), **_optimiser(settings), **_trainer(settings, run)}
    return found | (cpu_only.SFT_SETTINGS if settings.backend.device == "cpu" else {})


def _data(settings: RunSettings, run: Path) -> dict[str, Any]:
    return {
        "data.train_files": str(run / "checkpoints" / FILE),
        "data.custom_cls.path": _SOURCE,
        "data.custom_cls.name": "Demonstrations",
        "data.train_batch_size": settings.training.sft.batch,
        "data.use_dynamic_bsz": True,
        "data.max_token_len_per_gpu": settings.training.sft.micro_tokens,
        "data.num_workers": 0,
    }


def _model(settings: RunSettings, start: Path) -> dict[str, Any]:
    chosen = verl(settings)
    return {
        "model.path": str(start),
        "model.use_remove_padding": chosen.remove_padding,
        "model.enable_gradient_checkpointing": settings.model.tiny is None,
        "model.override_config.attention_dropout": 0.0,  # as in the local backend, whatever the model says
        "engine.strategy": "fsdp2",
        "engine.param_offload": chosen.offload,
        "engine.optimizer_offload": chosen.offload,
    }


def _optimiser(settings: RunSettings) -> dict[str, Any]:
    """The schedule is ours (`write`), which verl has not; its own is left at constant."""
    sft = settings.training.sft
    return {
        "optim.lr": sft.learning_rate,
        "optim.betas": list(sft.betas),
        "optim.weight_decay": sft.weight_decay,
        "optim.clip_grad": sft.gradient_clip,
        "optim.lr_scheduler_type": "constant",
    }


def _trainer(settings: RunSettings, run: Path) -> dict[str, Any]:
    return {
        "trainer.device": settings.backend.device if settings.backend.device != "auto" else "cuda",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": verl(settings).gpus_per_node,
        "trainer.logger": [],  # our trainer writes metrics.jsonl
        "trainer.project_name": "restool",
        "trainer.experiment_name": run.name,
        "trainer.default_local_dir": str(run / "checkpoints"),
        "trainer.resume_mode": "auto",
        "trainer.save_freq": settings.training.sft.checkpoint_every,
        "trainer.max_ckpt_to_keep": KEPT_CHECKPOINTS,
        "trainer.test_freq": -1,
        "trainer.total_epochs": 1,  # of the file, which holds every step
    }
