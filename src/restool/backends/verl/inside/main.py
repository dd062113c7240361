"""``python -m restool.backends.verl.inside.main {check,train} REQUEST.json``, in the environment of verl.

``check``: compose and validate, without devices; one line of JSON for each run of the request. ``train``: run, then put
the last checkpoint's weights together; a supervised run is started once a device, by ``torch.distributed.run``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from restool.backends.verl.configuration import SUPERVISED
from restool.backends.verl.inside import composition


def main(arguments: list[str]) -> int:
    verb, path = arguments
    request = json.loads(Path(path).read_text())
    if verb == "check":
        for entry in request["runs"]:
            print(json.dumps(_check(entry)), flush=True)
        return 0
    _train(request)
    return 0


def _compose(request: dict[str, Any]) -> Any:
    ours = {name: request[name] for name in ("settings", "run", "prepared")}
    return composition.composed(request["values"], request["overrides"], ours, request["trainer"])


def _check(request: dict[str, Any]) -> dict[str, Any]:
    """What verl says to one run's configuration."""
    started = time.perf_counter()
    try:
        _validate(request, _compose(request))
        fault = None
    except Exception as error:  # verl asserts, OmegaConf and dataclasses raise what they like
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return {"run": request["name"], "fault": fault, "seconds": time.perf_counter() - started}


def _validate(request: dict[str, Any], config: Any) -> None:
    from contextlib import redirect_stdout

    if request["trainer"] == SUPERVISED:
        from verl.utils.config import omega_conf_to_dataclass

        for section in ("model", "engine", "optim", "checkpoint", "profiler"):
            omega_conf_to_dataclass(config[section])
        return
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    with redirect_stdout(sys.stderr):
        validate_config(
            config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
        )


def _require_versions(wanted: dict[str, str]) -> None:
    """RuntimeError unless the environment holds what its definition says; a local part (+cpu) is no difference."""
    found = {name: metadata.version(name).partition("+")[0] for name in wanted}
    wrong = [
        f"{name} {found[name]} (not {pin})" for name, pin in wanted.items() if found[name] != pin.partition("+")[0]
    ]
    if wrong:
        raise RuntimeError(f"this environment holds {', '.join(wrong)}; remove {sys.prefix}, and build it again")


def _require_gpus(settings: dict[str, Any]) -> None:
    """RuntimeError if fewer GPUs are visible on this machine than each node of the run needs."""
    if settings["backend"]["device"] == "cpu":
        return
    import torch

    wanted, found = settings["backend"]["verl"]["gpus_per_node"], torch.cuda.device_count()
    if found < wanted:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise RuntimeError(
            f"backend.verl.gpus_per_node={wanted}, but this machine shows {found} (CUDA_VISIBLE_DEVICES: {visible})"
        )


def _train(request: dict[str, Any]) -> None:
    _require_versions(request["versions"])
    _require_gpus(request["settings"])
    config = _compose(request)
    _validate(request, config)
    run = Path(request["run"])
    is_supervised = request["trainer"] == SUPERVISED
    is_first = not is_supervised or os.environ["RANK"] == "0"
    if is_first:
        (run / "verl.yaml").write_text(OmegaConf.to_yaml(config))
    if is_supervised:
        from restool.backends.verl.inside import supervised

        supervised.run(config)
    else:
        _reinforce(request, config)
    if is_first:
        from restool.backends.verl.inside import export

        last = run / "checkpoints" / f"global_step_{request['steps']}" / ("" if is_supervised else "actor")
        export.merge(last, Path(request["merged"]), request["settings"]["model"]["dtype"])


def _reinforce(request: dict[str, Any], config: Any) -> None:
    from verl.trainer.main_ppo import run_ppo

    from restool.backends.verl.inside.runner import TaskRunner

    if request["settings"]["backend"]["device"] == "cpu":
        from restool.backends.verl.cpu_only import driver

        driver.be_patient()
    run_ppo(config, task_runner_class=TaskRunner)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
