"""What a run costs, from model facts: the scheduler's requests and the planner's estimates.

Hours follow an assumed throughput (`ASSUMED_TOKENS_PER_SECOND`); memory and disk are calculated.
"""

from __future__ import annotations

import math
from typing import Any

BYTES_PER_PARAMETER_TRAINING = 16  # fp32 weight, gradient and two Adam moments
BYTES_PER_PARAMETER_CHECKPOINT = 12  # float32 copy and two Adam moments, beside the model itself
CHECKPOINTS_KEPT = 2
BYTES_PER_PARAMETER_STORED = {"float32": 4, "bfloat16": 2}
TINY_PARAMETERS = 5e6  # below this a model trains on a CPU
# Trained tokens (prompt and answer, sampled and updated) per second, GPU and billion parameters: an assumption
# for planning on an 80 GB data-centre GPU, not a measurement of this program.
ASSUMED_TOKENS_PER_SECOND = 9000.0
ASSUMED_ANSWER_TOKENS = 400
ASSUMED_PROMPT_TOKENS = 900


def resources(config: dict[str, Any], kind: str) -> dict[str, int]:
    """What a scheduler must give a training job: ``mem_mb``, ``runtime`` (minutes), ``gpus``, ``threads``."""
    parameters = float(config["model"]["parameters"])
    threads = int(config["backend"]["threads"])
    if parameters <= TINY_PARAMETERS:
        return {"mem_mb": 3000, "runtime": 60, "gpus": 0, "threads": threads}
    return {
        "mem_mb": int(8000 + 6 * parameters / 1e6),
        "runtime": math.ceil(60 * assumed_hours(config, kind) * 2) + 30,
        "gpus": 0 if kind == "none" else gpus(parameters),
        "threads": max(threads, 8),
    }


def assumed_hours(config: dict[str, Any], kind: str) -> float:
    if kind == "none":
        return 0.0
    training = config["training"]
    if kind == "rl":
        rl = training["rl"]
        answers = rl["steps"] * rl["prompts"] * rl["samples"]
        answer_tokens = min(ASSUMED_ANSWER_TOKENS, rl["max_new_tokens"])
        tokens = answers * (answer_tokens * (1 + rl["epochs"]) + ASSUMED_PROMPT_TOKENS / rl["samples"])
    else:
        sft = training["sft"]
        demonstrations = sft["steps"] * sft["batch"] if sft["steps"] else sft["epochs"] * 400
        tokens = demonstrations * (ASSUMED_PROMPT_TOKENS + ASSUMED_ANSWER_TOKENS)
    billions = float(config["model"]["parameters"]) / 1e9
    return tokens * billions / (ASSUMED_TOKENS_PER_SECOND * gpus(billions * 1e9)) / 3600


def gpus(parameters: float) -> int:
    """Smallest power of two of 80 GB devices whose memory holds the training state with 40 % to spare."""
    needed = parameters * BYTES_PER_PARAMETER_TRAINING * 1.4 / 80e9
    return 2 ** max(0, math.ceil(math.log2(max(needed, 1e-9))))
