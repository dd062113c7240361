"""``python -m restool.backends.verl.inside.main {check,train} REQUEST.json``, in the environment of verl.

``check``: compose and validate, without devices; one line of JSON for each run of the request. ``train``: run, then put
the last checkpoint's weights together.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

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
    return composition.composed(request["values"], request["overrides"], ours)


def _check(request: dict[str, Any]) -> dict[str, Any]:
    """What verl says to one run's configuration."""
    started = time.perf_counter()
    try:
        _validate(_compose(request))
        fault = None
    except Exception as error:  # verl asserts, OmegaConf and dataclasses raise what they like
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return {"run": request["name"], "fault": fault, "seconds": time.perf_counter() - started}


def _validate(config: Any) -> None:
    from contextlib import redirect_stdout

    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    with redirect_stdout(sys.stderr):
        validate_config(
            config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config)
        )


def _train(request: dict[str, Any]) -> None:
    config = _compose(request)
    _validate(config)
    from verl.trainer.main_ppo import run_ppo

    from restool.backends.verl.inside import export
    from restool.backends.verl.inside.runner import TaskRunner

    if request["settings"]["backend"]["device"] == "cpu":
        from restool.backends.verl.cpu_only import driver

        driver.be_patient()
    run = Path(request["run"])
    (run / "verl.yaml").write_text(OmegaConf.to_yaml(config))
    run_ppo(config, task_runner_class=TaskRunner)
    steps = request["settings"]["training"]["rl"]["steps"]
    export.merge(
        run / "checkpoints" / f"global_step_{steps}" / "actor",
        Path(request["merged"]),
        request["settings"]["model"]["dtype"],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
