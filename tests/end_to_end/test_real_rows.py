"""The published rows, from the demonstrations to API-Bank; in a file of its own, beside the other end-to-end tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).resolve().parents[2]


def real_data() -> Path | None:
    named = os.environ.get("RESTOOL_MIRROR")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.mark.skipif(real_data() is None, reason="neither RESTOOL_MIRROR nor ../shared/data holds the real data")
def test_real_rows_go_the_whole_way_to_api_bank(clone):
    overrides = ["training=test", "training.sft.max_tokens=4096", "training.sft.steps=3", "training.rl.steps=2"]
    overrides += ["training.rl.prompts=2", "training.rl.samples=2", "eval.api_bank.max_new_tokens=8"]
    overrides += ["eval.api_bank.max_model_tokens=1200", "eval.held_out.max_new_tokens=8"]
    overrides += ["experiment.matrix.methods=[rest_released]"]
    overrides += ["experiment.evaluations={held-out: all, api-bank: [rest_released]}"]
    overrides += ["experiment.reference=rest_released"]
    config = f"overrides={json.dumps(overrides)}"
    command = clone.reproduce("rlla_tiny", "--config", config)
    done = clone.call(*command, timeout=500, RESTOOL_MIRROR=str(real_data()))
    assert done.status == 0, done.output
    summaries = list((clone.path / "results/rlla_tiny/runs").glob("*/eval/api-bank/summary.json"))
    assert len(summaries) == 1
    for path in summaries:
        summary = json.loads(path.read_text())
        assert summary["complete"], summary
        assert sum(category["n"] for category in summary["categories"].values()) >= 597
    assert (clone.path / "results/rlla_tiny/report.html").exists()
