"""Starts our Ray over the nodes of its job, with a program in Ray's place that writes down what its node gave it."""

from __future__ import annotations

import os
from pathlib import Path

from restool.backends.verl import cluster
from restool.experiments import compose_run

HERE = Path.cwd()
PYTHON = HERE / "ray-python"
PYTHON.write_text(
    f"""#!/bin/sh
echo $CUDA_VISIBLE_DEVICES > {HERE}/out/$SLURMD_NODENAME
nproc >> {HERE}/out/$SLURMD_NODENAME
echo "Ray runtime started."
sleep 100
"""
)
PYTHON.chmod(0o755)
settings = compose_run(["backend=verl_2nodes", "backend.verl.gpus_per_node=2"])
with cluster.ray(settings, PYTHON, os.environ, HERE / "ray.log", print):
    assert {path.name for path in (HERE / "out").iterdir()} == {"n1", "n2"}
