"""The process that steers a run; the same steps as verl's own task runner, with our trainer registered first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import transfer_queue
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, get_trainer_cls
from verl.utils.logging_utils import configure_verl_logging

from restool import files


@ray.remote
class TaskRunner:
    def run(self, config: Any) -> None:
        from restool.backends.verl.inside import trainer  # noqa: F401 - registers itself

        configure_verl_logging()
        config.transfer_queue.enable = True
        OmegaConf.resolve(config)
        transfer_queue.init(config.transfer_queue)
        try:
            chosen = get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)
            chosen.init()
            files.write_json(Path(config.restool.run) / "ray.json", _layout(chosen.actor_rollout_wg.workers))
            loop = AgentLoopManagerTQ.create(
                config=config,
                llm_client=chosen.get_llm_client(),
                teacher_client=chosen.get_teacher_client(),
                reward_loop_worker_handles=chosen.get_reward_handles(),
            )
            chosen.fit(loop)
        finally:
            transfer_queue.close()


def _layout(workers: list[Any]) -> dict[str, Any]:
    """Ray's own record of its nodes, and of where each of verl's workers is."""
    actors = ray._private.state.actors()
    places = [actors[worker._actor_id.hex()]["Address"]["NodeID"] for worker in workers]
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return {
        "nodes": [{"id": n["NodeID"], "address": n["NodeManagerAddress"], "resources": n["Resources"]} for n in nodes],
        "workers": [{"rank": rank, "node": place} for rank, place in enumerate(places)],
    }
