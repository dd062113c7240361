"""A Slurm that runs, and a clone whose jobs go there."""

from __future__ import annotations

import cluster
import pytest


@pytest.fixture(scope="module")
def slurm(request: pytest.FixtureRequest):
    """The cluster; a module that needs more memory a node than the usual says so as ``NODE_MEMORY_MB``."""
    if problem := cluster.install():
        pytest.skip(problem)
    cluster.up(getattr(request.module, "NODE_MEMORY_MB", cluster.MEMORY_MB))
    yield cluster
    cluster.down()


@pytest.fixture
def site(slurm, clone):
    clone.write("workflow/profiles/slurm/site.yaml", cluster.SITE)
    return clone
