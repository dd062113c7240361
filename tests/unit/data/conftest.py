"""Real data where they are at hand, and small settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from restool.experiments import compose_run
from restool.settings import RunSettings, SyntheticSettings

SMALL = [
    "data.synthetic.train_rows=40",
    "data.synthetic.demonstrations=60",
    "data.synthetic.held_out_rows=30",
    "data.synthetic.transfer_rows=10",
]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder laid out like a mirror; the test is skipped where there is none."""
    folder = Path(os.environ.get("RESTOOL_MIRROR") or Path(__file__).parents[4] / "shared" / "data")
    if not (folder / "rlla_4k" / "test.parquet").exists():
        pytest.skip(f"no real data in {folder} (RESTOOL_MIRROR)")
    return folder


@pytest.fixture(scope="session")
def small_run() -> RunSettings:
    """The tiny model on a few synthetic rows."""
    return compose_run(SMALL)


@pytest.fixture(scope="session")
def rlla_run() -> RunSettings:
    """The tiny model on the real rows that need no network."""
    return compose_run(["data=rlla_400", "model.tiny.vocabulary=1024"])


@pytest.fixture(scope="session")
def synthetic_settings() -> SyntheticSettings:
    """The settings of the default experiment, with fewer demonstrations."""
    settings = compose_run(["data.synthetic.train_rows=1500", "data.synthetic.demonstrations=4000"])
    return settings.data.synthetic


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESTOOL_MIRROR", raising=False)
