"""Typed configuration: the composed Hydra configuration of one run, validated.

``configs/`` holds every value that a person chooses; this module says which values exist, what they mean and
which are legal. Nothing here has a default that decides an experiment: a value absent from ``configs/`` is an
error, except switches whose neutral setting is "off".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from restool import algorithms
from restool.core.errors import ConfigurationError, nearest


class Settings(BaseModel):
    """Immutable; unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class TinyArchitecture(Settings):
    """The built-in from-scratch Qwen3-architecture model."""

    hidden_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    feed_forward: int = Field(gt=0)
    vocabulary: int = Field(gt=256, description="largest size of the byte-pair vocabulary trained on the data")
    max_positions: int = Field(gt=0)
    rope_theta: float = Field(gt=0)
    init_std: float = Field(gt=0, description="standard deviation of the initial weights; about 1/sqrt(hidden_size)")
    init_seed: int


class ModelSettings(Settings):
    name: str = Field(description="short name, part of run ids")
    path: str | None = Field(description="Hugging Face id or folder; null for the built-in tiny model")
    revision: str | None = None
    tiny: TinyArchitecture | None = None
    dtype: Literal["float32", "bfloat16"]
    thinking: bool | None = Field(None, description="value of the chat template's thinking switch, if it has one")
    parameters: float = Field(gt=0, description="parameter count, for planning")
    layers: int | None = Field(None, description="for planning; null: unknown")
    hidden_size: int | None = Field(None, description="for planning; null: unknown")

    @model_validator(mode="after")
    def _one_source(self) -> ModelSettings:
        if (self.path is None) == (self.tiny is None):
            raise ValueError("give exactly one of model.path and model.tiny")
        return self


class SyntheticSettings(Settings):
    """The seeded generator of tool-use tasks. Probabilities are per prompt unless said otherwise."""

    seed: int
    train_rows: int = Field(gt=0)
    demonstrations: int = Field(gt=0)
    questions_per_header: int = Field(gt=0, description="demonstrations: consecutive rows with the same tool list")
    phases: tuple[float, float, float] = Field(
        description="demonstrations: shares of phase 0 (one listed tool), 1 (single calls only) and 2 (everything)"
    )
    held_out_rows: int = Field(gt=0)
    transfer_rows: int = Field(ge=0, description="prompts over tools that RL never sees")
    no_tool: float = Field(ge=0, le=1)
    several_calls: float = Field(ge=0, le=1)
    history: float = Field(ge=0, le=1, description="prompts with earlier turns in the dialogue record")
    sibling_listed: float = Field(ge=0, le=1, description="a tool's sibling is listed beside it")
    alias: float = Field(ge=0, le=1, description="per time, date or integer slot: said by an alias (noon, dozen)")
    unmentioned: float = Field(ge=0, le=1, description="one optional parameter is not mentioned")
    flaw_name: float = Field(ge=0, le=1, description="demonstrations only: the listed sibling is called")
    flaw_think: float = Field(ge=0, le=1, description="demonstrations only: an alias is copied, not resolved")
    flaw_arguments: float = Field(ge=0, le=1, description="demonstrations only: the last parameter is dropped")


class DataSettings(Settings):
    name: str
    kind: Literal["synthetic", "rlla"]
    splits: list[str] = Field([], description="rlla: which published files are needed (train, test, sft)")
    rl_rows_from: Literal["train", "sft"] = Field("train", description="whose prompts and labels RL uses")
    synthetic: SyntheticSettings | None = None
    mirror: str | None = Field(None, description="folder tried before the network; RESTOOL_MIRROR if null")
    max_prompt_tokens: int = Field(gt=0)
    overlong: Literal["drop", "truncate_left"] = Field(
        description="RL prompts over the limit are dropped and counted, or lose their beginning (the head of the "
        "system prompt), as in the released ResT code"
    )
    optional_benchmarks: bool = Field(
        False, description="go on without API-Bank and BFCL prompts when neither mirror nor network has them"
    )

    @property
    def kept_ids(self) -> int | None:
        """How many ids of an RL prompt's end are kept; None: all."""
        return self.max_prompt_tokens if self.overlong == "truncate_left" else None


class MethodSettings(Settings):
    """What a method chooses; the composition that it names is the record in `restool.algorithms`."""

    name: str = Field(description="part of run ids")
    algorithm: str = Field(description="id in the registry, see `restool methods`")
    start: Literal["base", "sft"] = Field(description="weights that training starts from")
    weights: dict[str, Any] = Field({}, description="arguments of the token-weight scheme")
    entropy_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="entropy weights: share of the old value that the running mean of region entropies keeps a step; "
        "null: each batch's own entropies",
    )
    beta_prompts: int = Field(
        0, ge=0, description="optimal weights: prompts of each step set aside to measure beta, left out of the update"
    )
    beta_decay: float = Field(0.9, ge=0, lt=1, description="share that past measurements of beta keep a step")
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    clip_dual: float | None = Field(3.0, description="null: no dual clip")
    entropy_coefficient: float = 0.0
    kl_coefficient: float = Field(0.0, ge=0)


class ScheduleSettings(Settings):
    """How weights and reward move over training (`restool.core.schedules`)."""

    name: str = Field(description="part of run ids")
    clock: Literal["step", "fraction"] = Field(
        description="step: the absolute training step, as released; fraction: the share of this run's steps, "
        "mapped onto `horizon` steps"
    )
    shape: Literal["linear", "constant", "cosine"]
    horizon: int = Field(gt=0, description="steps of the original run (105)")


class RewardSettings(Settings):
    """`restool.core.rewards` preset and switches, named as in the released code."""

    name: str
    preset: Literal["rest", "rest_unscheduled", "toolrl"]
    switches: dict[str, bool] = {}


class SFTSettings(Settings):
    steps: int | None = Field(None, gt=0, description="optimiser steps; null: given by epochs")
    epochs: float | None = Field(None, gt=0)
    batch: int = Field(gt=0, description="demonstrations per optimiser step")
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    constant_fraction: float = Field(ge=0, le=1, description="share of the steps before linear decay starts")
    final_learning_rate: float = Field(ge=0, le=1, description="share of the learning rate left at the end")
    betas: tuple[float, float]
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    max_tokens: int = Field(gt=0, description="longer demonstrations are dropped and counted")
    phase_ends: tuple[float, float] = Field(
        (0.0, 0.0),
        description="share of the steps at which curriculum phases 0 and 1 of the demonstrations end",
    )
    micro_tokens: int = Field(gt=0, description="most tokens in one forward pass")
    checkpoint_every: int = Field(gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> SFTSettings:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


class RLSettings(Settings):
    steps: int = Field(gt=0)
    prompts: int = Field(gt=0, description="prompts per step")
    samples: int = Field(gt=0, description="answers per prompt (the group)")
    minibatches: int = Field(gt=0, description="optimiser updates per epoch of a step")
    epochs: int = Field(gt=0, description="passes over a step's answers")
    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(ge=0, le=1, description="share left at the end (linear decay); 1: constant")
    betas: tuple[float, float]
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    temperature: float = Field(gt=0)
    max_new_tokens: int = Field(gt=0)
    micro_tokens: int = Field(gt=0, description="most tokens in one forward pass of the update")
    normaliser_tokens: int | None = Field(
        None,
        gt=0,
        description="answers whose losses are normalised together: as many as have this many tokens with their prompts "
        "(released: 16384, a micro-batch of one GPU); null: the whole mini-batch",
    )
    checkpoint_every: int = Field(gt=0)
    rollouts_every: int = Field(gt=0, description="steps between written samples of answers")
    critic_learning_rate: float | None = Field(None, gt=0)
    critic_epochs: int | None = Field(
        None, gt=0, description="the critic's passes over a step's answers; null: as many as the policy's"
    )


class TrainingSettings(Settings):
    name: str
    sft: SFTSettings
    rl: RLSettings


class VerlSettings(Settings):
    """How verl and vLLM are laid out over devices."""

    environment: Literal["verl-cpu", "verl-gpu"] = Field(description="isolated environment (restool env build NAME)")
    nodes: int = Field(gt=0)
    gpus_per_node: int = Field(gt=0, description="on a CPU: 1, the machine itself")
    tensor_parallel: int = Field(gt=0, description="devices that hold one copy of the model when vLLM answers")
    memory_share: float = Field(gt=0, lt=1, description="of a device's memory, for vLLM")
    offload: bool = Field(description="weights and optimiser state wait in main memory while they are not needed")
    remove_padding: bool = Field(description="train on packed sequences; needs flash-attention")
    workers: int = Field(gt=0, description="processes that send prompts, and as many that compute rewards")
    stall_minutes: float = Field(
        30, gt=0, description="without a new step and without anything new in verl's log for so long, a run is ended"
    )
    overrides: list[str] = Field([], description="further Hydra overrides of verl's own configuration")
    sft_overrides: list[str] = Field([], description="the same for the configuration of verl's supervised trainer")


class BackendSettings(Settings):
    name: Literal["local", "verl"]
    device: Literal["auto", "cpu", "cuda"]
    threads: int = Field(gt=0, description="CPU threads of one training process; one is bit-reproducible")
    sft_threads: int | None = Field(
        None, gt=0, description="CPU threads of an SFT run, which all that starts from it wait for; null: threads"
    )
    verl: VerlSettings | None = None

    def threads_of(self, kind: str) -> int:
        """CPU threads of a run of this kind (``sft``, ``rl``, ``none``)."""
        return self.sft_threads or self.threads if kind == "sft" else self.threads


class DecodingSettings(Settings):
    max_new_tokens: int = Field(gt=0)
    temperature: float = Field(ge=0, description="0: greedy")
    max_model_tokens: int = Field(gt=0, description="prompt and answer together; longer prompts count as over_length")
    batch_tokens: int = Field(gt=0, description="most tokens (prompts and answers) held in the key-value cache at once")


class EvaluationSettings(Settings):
    name: str
    held_out: DecodingSettings
    api_bank: DecodingSettings
    bfcl: DecodingSettings
    bfcl_categories: list[str] = Field(min_length=1)
    bfcl_format: Literal["rlla", "native"] = Field(
        "rlla",
        description="how prompts list tools and answers write calls: as in the training data, or the model's own",
    )
    bfcl_limit: int | None = Field(None, gt=0, description="first N entries of each category; null: all")
    api_bank_limit: int | None = Field(None, gt=0, description="first N samples of each level; null: all")
    benchmarks: dict[str, dict[str, Any]] = Field(
        {}, description="benchmark: values that go before those of configs/benchmark/<name>.yaml"
    )
    seed: int


class BenchmarkSettings(Settings):
    """One benchmark: configs/benchmark/<name>.yaml."""

    title: str = Field(description="one line, shown by `restool evaluate --help`")
    module: str = Field(description="importable module, or a .py file relative to the folder that holds configs/")
    environment: str | None = Field(None, description="tool environment that it needs, see `restool env list`")
    after: str | None = Field(None, description="benchmark whose answers it scores; null: it asks the model itself")
    runtime_minutes: int = Field(240, gt=0, description="time limit of its job on a cluster")
    decoding: DecodingSettings | None = Field(None, description="null: the module takes its own from eval.*")
    reads: Literal["data", "questions"] = Field(
        "data", description="where its tasks are: in the prepared data, or in a file of questions (--questions)"
    )
    questions: str | None = Field(None, description="that file; --questions goes before it")
    limit: int | None = Field(None, gt=0, description="first N tasks of each category; null: all")
    options: dict[str, Any] = Field({}, description="values for the module")


class MatrixSettings(Settings):
    """Models x methods x schedules x seeds."""

    models: list[str] = Field(min_length=1)
    methods: list[str] = Field(min_length=1)
    schedules: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    overrides: list[str] = Field([], description="Hydra overrides for every run of this matrix")


class ExclusionSettings(Settings):
    method: str
    reason: str


class VarianceSettings(Settings):
    """Per-sequence gradient variance at the checkpoint that RL starts from."""

    prompts: int = Field(gt=0)
    samples: int = Field(gt=1)
    projection: int = Field(gt=0, description="random-projection dimension of a gradient")


class ExperimentSettings(Settings):
    name: str
    title: str
    note: str = Field(description="printed with every result of the experiment")
    matrix: MatrixSettings
    extra: list[MatrixSettings] = []
    excluded: list[ExclusionSettings] = Field([], description="methods of the paper left out, and why")
    sft_seed: int = Field(description="seed of the SFT run that methods with start=sft begin from")
    evaluations: dict[str, Literal["all", "first_seed"] | list[str]] = Field(
        description="by benchmark (configs/benchmark), which runs: all, the lowest seed of each method, or that of "
        "the methods in a list"
    )
    variance: VarianceSettings | None = None
    reference: str = Field(description="method that the paired differences are taken against")


class RunSettings(Settings):
    """Everything that decides one run; frozen in the run directory as config.yaml."""

    model: ModelSettings
    data: DataSettings
    method: MethodSettings
    schedule: ScheduleSettings
    reward: RewardSettings
    training: TrainingSettings
    backend: BackendSettings
    eval: EvaluationSettings
    seed: int

    @property
    def run_id(self) -> str:
        return f"{self.model.name}-{self.method.name}-{self.schedule.name}-s{self.seed}"

    def decisive(self) -> dict[str, Any]:
        """The values that the trained model depends on: a change elsewhere (evaluation, say) never retrains."""
        values = self.model_dump(mode="json")
        unused = {"none": ("schedule", "reward", "training"), "sft": ("schedule", "reward"), "rl": ()}
        kind = algorithms.get(self.method.algorithm).kind
        for key in ("eval", *unused[kind]):
            del values[key]
        if verl := values["backend"]["verl"]:
            del verl["stall_minutes"]
            del verl["overrides" if kind == "sft" else "sft_overrides"]
        if kind != "none":
            del values["training"]["rl" if kind == "sft" else "sft"]
        return values


class WorkflowSettings(Settings):
    """What ``snakemake --config`` takes."""

    experiment: str = Field("quick", description="name of a file in configs/experiment")
    overrides: list[str] = Field([], description="Hydra overrides for every run of the experiment")


class SiteSettings(Settings):
    """What a cluster calls its things: workflow/profiles/slurm/site.yaml, every key optional."""

    account: str | None = None
    partition: str | None = Field(None, description="for jobs without a GPU; null: the cluster's default")
    gpu_partition: str | None = Field(None, description="for jobs with GPUs; null: the cluster's default")
    gpu_model: str | None = Field(None, description="GPU type as the cluster names it, e.g. h100; null: any")
    gpus_per_node: int = Field(8, gt=0, description="a job that needs more GPUs asks for more nodes")
    memory_factor: float = Field(1.0, gt=0, description="multiplies every job's memory")
    runtime_factor: float = Field(1.0, gt=0, description="multiplies every job's time limit")


def configs_directory() -> Path:
    """``configs/`` of the current directory, else the one beside this package's source."""
    here = Path.cwd() / "configs"
    return here if (here / "config.yaml").exists() else Path(__file__).resolve().parents[2] / "configs"


def validate(composed: dict[str, Any], kind: type[Settings] = RunSettings, *, source: str = "") -> Any:
    """Validate a composed configuration; the first faults become one line naming key, expectation and nearest key,
    after ``source``, where they are from."""
    try:
        return kind.model_validate(composed)
    except ValidationError as error:
        told = "; ".join(_explain(fault, kind) for fault in error.errors()[:3])
        raise ConfigurationError(f"{source}: {told}" if source else told) from None


def _explain(fault: Any, kind: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'" + nearest(str(fault["loc"][-1]), _valid_keys(kind, fault["loc"][:-1]))
    if fault["type"] == "missing":
        return f"key '{key}' is missing"
    return f"key '{key}': {fault['msg']}, got {fault['input']!r}"


def _valid_keys(kind: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        found = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if found is None:
            return []
        kind = found
    return list(kind.model_fields)
