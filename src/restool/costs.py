"""What a run costs, from model facts: the scheduler's requests and the planner's estimates.

Hours follow an assumed throughput (`ASSUMED_TOKENS_PER_SECOND`); memory and disk are calculated.
"""

from __future__ import annotations

import math
from typing import Any

from restool.settings import BackendSettings

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
# Items of a benchmark, for planning: BFCL by category, a multi-turn item in exchanges; two answers a held-out row.
ASSUMED_ITEMS = {"api-bank": 597, "held-out": 1000}
ASSUMED_ITEMS_ELSEWHERE = 1000
ASSUMED_BFCL_ITEMS = {"single": 280, "multi_turn": 200 * 10}
ASSUMED_TINY_SECONDS = {"sft": 180, "rl": 60, "none": 5, "evaluate": 30, "variance": 60}
GPU_GB = 80.0  # of the devices that plans assume
THREADS_PER_GPU = 8  # of a job through verl
VERL_CPU_MEGABYTES = {"rl": 12_000, "sft": 4_000}  # a tiny model through verl on a CPU; with vLLM about ten processes
# Models up to about this size share the weights of input and output, and then each process of verl loads a copy.
MOST_PARAMETERS_TIED = 5e9
TIME_MARGIN = 2  # what a scheduler is asked for, over what is assumed


def resources(config: dict[str, Any], kind: str) -> dict[str, int]:
    """What a scheduler must give a training job: ``mem_mb``, ``runtime`` (minutes), ``gpus``, ``threads``, and
    ``nodes`` where the configuration says how many."""
    parameters = float(config["model"]["parameters"])
    threads = BackendSettings.model_validate(config["backend"]).threads_of(kind)
    if verl_layout(config, kind):
        return _resources_of_verl(config, kind, parameters)
    if parameters <= TINY_PARAMETERS:
        return {"mem_mb": 3000, "runtime": 60, "gpus": 0, "threads": threads}
    return {
        "mem_mb": int(8000 + 6 * parameters / 1e6),
        "runtime": math.ceil(60 * assumed_hours(config, kind) * TIME_MARGIN) + 30,
        "gpus": 0 if kind == "none" else 1,  # the local backend is one process on one device
        "threads": max(threads, 8),
    }


def verl_layout(config: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """Nodes and devices of a run through verl; None for another backend, and for an untrained model."""
    return config["backend"]["verl"] if config["backend"]["name"] == "verl" and kind != "none" else None


def verl_nodes(config: dict[str, Any], kind: str) -> int:
    """How many nodes a run through verl takes: a supervised one never more than one."""
    return config["backend"]["verl"]["nodes"] if kind == "rl" else 1


def _resources_of_verl(config: dict[str, Any], kind: str, parameters: float) -> dict[str, int]:
    """Memory and threads are those of each node, GPUs those of all nodes together."""
    layout, nodes = config["backend"]["verl"], verl_nodes(config, kind)
    if config["backend"]["device"] == "cpu":
        threads = 2 if kind == "rl" else 1
        return {"mem_mb": VERL_CPU_MEGABYTES[kind], "runtime": 60, "gpus": 0, "threads": threads, "nodes": nodes}
    # The model as it is loaded, in float32, the offloaded state if there is any, and room for Ray and its workers.
    copies = layout["gpus_per_node"] if parameters < MOST_PARAMETERS_TIED else 1
    state = BYTES_PER_PARAMETER_CHECKPOINT / nodes if layout["offload"] else 0
    return {
        "mem_mb": int(60_000 + parameters * (4 * copies + state) / 1e6),
        "runtime": math.ceil(60 * assumed_hours(config, kind) * TIME_MARGIN) + 30,
        "gpus": nodes * layout["gpus_per_node"],
        "threads": THREADS_PER_GPU * layout["gpus_per_node"],
        "nodes": nodes,
    }


def training_state(parameters: float, dtype: str, *, critic: bool, reference: bool) -> dict[str, float]:
    """Bytes of weights, gradients and optimiser states of all that learns, and of a frozen reference's weights: a lower
    bound of what training takes, whatever the batch."""
    parts = {"policy": parameters * BYTES_PER_PARAMETER_TRAINING}
    if critic:
        parts["critic"] = parameters * BYTES_PER_PARAMETER_TRAINING
    if reference:
        parts["frozen reference"] = parameters * BYTES_PER_PARAMETER_STORED[dtype]
    return parts


def gpu_memory_gb(config: dict[str, Any], kind: str) -> float:
    """Memory of each GPU of a run through verl when it updates, calculated: the sharded training state (weight,
    gradient and two moments in float32) and one layer gathered, without activations; with a critic, of both models."""
    parameters = float(config["model"]["parameters"])
    models = 2 if config["method"]["algorithm"] == "ppo" else 1
    devices = verl_nodes(config, kind) * config["backend"]["verl"]["gpus_per_node"]
    sharded = models * parameters * BYTES_PER_PARAMETER_TRAINING / devices
    return (sharded + 2 * parameters / (config["model"]["layers"] or 1)) / 1e9


def evaluation_resources(config: dict[str, Any], benchmark: str, *, asks: bool) -> dict[str, int]:
    """What a benchmark takes: the model's weights in memory once, on as few GPUs as hold them.

    ``asks``: whether it asks the model, rather than scoring answers that are there.
    """
    parameters = float(config["model"]["parameters"])
    if not asks:
        return {"mem_mb": 2000, "runtime": 60, "gpus": 0, "threads": 1}
    if parameters <= TINY_PARAMETERS:
        return {"mem_mb": 3000, "runtime": 60, "gpus": 0, "threads": 1}
    runtime = math.ceil(60 * evaluation_hours(config, benchmark) * TIME_MARGIN) + 60
    return {**_inference(parameters), "runtime": runtime}


def variance_resources(config: dict[str, Any], variance: dict[str, Any]) -> dict[str, int]:
    """What the gradient variance takes at the model of ``config``: one gradient an answer and weighting."""
    parameters = float(config["model"]["parameters"])
    if parameters <= TINY_PARAMETERS:
        return {"mem_mb": 4000, "runtime": 120, "gpus": 0, "threads": 1}
    needed = _inference(2 * parameters)  # weights and one gradient
    return {**needed, "runtime": math.ceil(60 * variance_hours(config, variance) * TIME_MARGIN) + 60}


def nodes(gpus: int, gpus_per_node: int) -> int:
    """As few machines as hold so many GPUs; one for a job without any."""
    return max(1, math.ceil(gpus / gpus_per_node))


def evaluation_hours(config: dict[str, Any], benchmark: str) -> float:
    """Assumed: every item costs a prompt and an answer of assumed length."""
    if benchmark == "bfcl":
        names = config["eval"]["bfcl_categories"]
        items = sum(ASSUMED_BFCL_ITEMS["multi_turn" if "multi_turn" in name else "single"] for name in names)
    else:
        items = ASSUMED_ITEMS.get(benchmark, ASSUMED_ITEMS_ELSEWHERE)
    return _hours(config, items * (ASSUMED_PROMPT_TOKENS + ASSUMED_ANSWER_TOKENS), 1)


def variance_hours(config: dict[str, Any], variance: dict[str, Any]) -> float:
    """Assumed: ten weightings, each with a backward pass an answer."""
    answers = variance["prompts"] * variance["samples"]
    return _hours(config, 10 * answers * (ASSUMED_PROMPT_TOKENS + ASSUMED_ANSWER_TOKENS), 1)


def _inference(parameters: float) -> dict[str, int]:
    devices = 2 ** max(0, math.ceil(math.log2(max(parameters * 2 * 1.4 / 80e9, 1e-9))))
    return {"mem_mb": int(8000 + 2.5 * parameters / 1e6), "gpus": devices, "threads": 8}


def _hours(config: dict[str, Any], tokens: float, devices: int) -> float:
    billions = float(config["model"]["parameters"]) / 1e9
    if billions * 1e9 <= TINY_PARAMETERS:
        return ASSUMED_TINY_SECONDS["evaluate"] / 3600
    return tokens * billions / (ASSUMED_TOKENS_PER_SECOND * devices) / 3600


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
    layout = verl_layout(config, kind)
    return _hours(config, tokens, verl_nodes(config, kind) * layout["gpus_per_node"] if layout else 1)
