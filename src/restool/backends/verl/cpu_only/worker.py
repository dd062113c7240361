"""vLLM's worker on a CPU, able to take new weights: importing this module changes two functions for vLLM 0.28.0.

vLLM packs the weights of linear layers when it loads them and drops the originals, which leaves nothing to update;
here a layer multiplies by its live parameter instead. And verl hands weights over as views of shared memory that it
reuses, which a device copies and a CPU does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import vllm.model_executor.layers.utils as layers
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer as transfer
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

from restool.backends.verl.cpu_only import require_versions

require_versions()


class WorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension as it is; named in vLLM's settings so that this module is imported in its worker."""


def _multiply_by_the_live_weight(layer: torch.nn.Module, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


_receive = transfer.BucketedWeightReceiver.receive_weights


def _receive_copies(self: Any, on_bucket_received: Callable[[list[tuple[str, torch.Tensor]], bool], Any]) -> Any:
    return _receive(self, lambda weights, is_last: on_bucket_received([(n, w.clone()) for n, w in weights], is_last))


layers.dispatch_cpu_unquantized_gemm = _multiply_by_the_live_weight
transfer.BucketedWeightReceiver.receive_weights = _receive_copies
