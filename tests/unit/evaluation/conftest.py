from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bfcl_texts import oracle
from openai_server import Server

from restool import environments


@pytest.fixture(scope="session")
def bfcl_data() -> Path:
    """BFCL's data folder; builds the environment if it is not there (seconds, once)."""
    environments.build("bfcl")
    return next(environments.path("bfcl").glob("lib/python*/site-packages/bfcl_eval/data"))


@pytest.fixture(scope="session")
def bfcl_oracle(bfcl_data: Path):
    """category → {id: the answer that the official ground truth asks for; in multi-turn, answers by turn and step}."""

    return lambda category: oracle(bfcl_data, category)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of the published data; skips where it is not."""
    root = Path(os.environ.get("RESTOOL_MIRROR") or Path(__file__).parents[4] / "shared" / "data")
    if not (root / "api_bank").is_dir():
        pytest.skip("the published data is not here (RESTOOL_MIRROR)")
    return root
