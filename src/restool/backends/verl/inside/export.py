"""The weights of a checkpoint as one file, in their own precision.

verl's merger casts everything to bfloat16; here each tensor is put together from its shards as it is and cast to the
precision that the run asks for.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from restool import files


def merge(checkpoint: Path, target: Path, dtype: str) -> None:
    """Write the state dict of ``checkpoint`` (verl's folder ``actor``) to ``target``."""
    ranks = sorted(checkpoint.glob("model_world_size_*_rank_*.pt"), key=lambda path: int(path.stem.rpartition("_")[2]))
    world = int(ranks[0].stem.split("_")[3]) if ranks else 0
    if not ranks or len(ranks) != world:
        raise RuntimeError(f"{checkpoint} holds {len(ranks)} of {world} parts of the model")
    shards = [torch.load(path, map_location="cpu", weights_only=False, mmap=True) for path in ranks]
    wanted = getattr(torch, dtype)
    with torch.no_grad():
        merged = {name: _whole([shard[name] for shard in shards]).to(wanted) for name in shards[0]}
    with files.atomic_path(target) as temporary:
        torch.save(merged, temporary)


def _whole(parts: list[Tensor]) -> Tensor:
    first = parts[0]
    if not isinstance(first, DTensor):
        return first
    if len(first.placements) != 1:
        raise RuntimeError(f"restool writes models that are sharded along one axis of devices, not {first.placements}")
    placement = first.placements[0]
    if not isinstance(placement, Shard):
        return first.to_local()
    return torch.cat([part.to_local() for part in parts], placement.dim)
