from __future__ import annotations

from pathlib import Path

import pytest
from bfcl_texts import oracle

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
