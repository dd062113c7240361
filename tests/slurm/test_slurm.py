"""The bare command on a real Slurm: what jobs get, what happens when it was too little, when a node, the controller or
Snakemake dies. Skipped, with the reason, where Slurm cannot be started."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from cluster import COMMAND, SITE, SOON

pytestmark = pytest.mark.slow

OVERRIDES = ["experiment.matrix.methods=[grpo]", "experiment.matrix.seeds=[0]", "experiment.evaluations={held-out:all}"]
PATIENCE = 1200  # seconds, for a busy machine
SFT, RL = "tiny-sft-none-s0", "tiny-grpo-fraction-s0"


@pytest.fixture(scope="module", autouse=True)
def shapes(slurm, new_clone):
    """Jobs that do little but wait for their time limit, on nodes of their own while the others' test goes on."""
    clone = new_clone()
    clone.write("workflow/profiles/slurm/site.yaml", SITE)
    shutil.copy(Path(__file__).with_name("shapes.smk"), clone.path)
    flags = ["--slurm-status-command", "squeue", "--slurm-array-jobs", "device,member"]
    with (clone.path / "output.txt").open("w") as output:
        process = clone.start(*COMMAND, *SOON, *flags, "-s", "shapes.smk", output=output)
        yield clone, process
        process.kill()
        process.wait()


def test_an_experiment_survives_memory_node_controller_and_snakemake(site, slurm, finished_clone):
    """Too little memory at first; then a node goes down, the controller restarts, Snakemake is killed (-9)."""
    site.write("workflow/profiles/slurm/site.yaml", SITE + "memory_factor: 0.25\n")
    command = [*COMMAND, *SOON, "--config", "experiment=test", f"overrides={json.dumps(OVERRIDES)}"]
    with (site.path / "output.txt").open("w") as output:
        process = site.start(*command, output=output)
        try:
            slurm.wait_for(lambda: lines(site, SFT) >= 10, "step of SFT", PATIENCE)
            node = next(line.split("|")[3] for line in slurm.jobs() if "rule_train" in line)
            slurm.kill_node(node)
            slurm.revive_node(node)
            begun = lines(site, SFT)
            slurm.wait_for(lambda: lines(site, SFT) > begun, "step of the retry", PATIENCE)
            slurm.stop_controller()  # a job that has just been given out would wait minutes for it
            time.sleep(2)
            slurm.start_controller()
            slurm.wait_for(lambda: lines(site, SFT) >= 45 and running(slurm), "step behind a checkpoint", PATIENCE)
            slurm.pause_jobs("train")  # else it may be over before the next call looks
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    first = (site.path / "output.txt").read_text()
    assert "keeps no accounts" in first
    assert "Trying to restart job" in first or "restart" in first.lower()
    left = running(slurm)
    assert left, "Slurm does not know that Snakemake was killed"

    done = site.call(*command, timeout=2400)
    assert done.status == 0, done.output[-4000:]
    assert f"Cancelling {len(left)} Slurm job(s) that an earlier, killed call left: {left[0]}" in done.output
    assert not slurm.jobs()
    log = (site.path / f"results/test/logs/train/{SFT}.log").read_text()
    assert "resuming after step" in log
    for run in (SFT, RL):
        assert metrics(site, run) == metrics(finished_clone, run), run
        items = f"results/test/runs/{run}/eval/held-out/items.jsonl"
        assert (site.path / items).read_bytes() == (finished_clone.path / items).read_bytes()
    assert "<html" in (site.path / "results/test/report.html").read_text()
    again = site.call(*command)
    assert "Nothing to be done" in again.output, again.output


def test_jobs_get_what_they_ask_for_and_more_of_it_when_it_was_too_little(shapes):
    site, process = shapes
    process.wait(timeout=1800)
    assert process.returncode == 0, (site.path / "output.txt").read_text()[-4000:]
    out = site.path / "out"

    uses = [(out / f"device-{n}").read_text().split("\n") for n in range(4)]
    for k, (device, begin, end, _) in enumerate(uses):
        assert re.fullmatch(r"n[34] [01]", device), "one device of one node"
        for other, its_begin, its_end, _ in uses[:k]:
            assert device != other or int(end) <= int(its_begin) or int(its_end) <= int(begin), "shared"
    assert len({device for device, *_ in uses}) > 1

    members = [(out / f"member-{n}").read_text().split() for n in range(6)]
    assert len({array for array, _, _ in members}) == 1, "one array for all"
    assert sorted(int(task) for _, task, _ in members) == list(range(1, 7))
    assert [int(n) for _, _, n in members] == list(range(6)), "each wrote its own file"

    assert (site.path / "hungry.log").read_text() == "begun\n" * 2, "killed for its memory, then given twice as much"
    assert (site.path / "slow.log").read_text() == "1:00\n4:00\n", "ended at its time limit, then given four times it"


def lines(clone, run: str) -> int:
    path = clone.path / "results/test/runs" / run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def running(slurm) -> list[str]:
    return [line.split("|")[0] for line in slurm.jobs() if "RUNNING" in line]


def metrics(clone, run: str) -> list[dict]:
    clocks = ("timestamp", "time/", "throughput/")
    rows = (clone.path / "results/test/runs" / run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(row).items() if not k.startswith(clocks)} for row in rows]
