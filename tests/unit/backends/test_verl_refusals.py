"""What stops a run through verl, or its resumption, before it has cost anything."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch
from small_runs import begin, settings

from restool import environments
from restool.backends.verl import checkpoints, launch
from restool.backends.verl.inside import main as inside

VERL = ["backend=verl_cpu", "training.rl.final_learning_rate=1"]


@pytest.mark.parametrize("name", ["verl-cpu", "verl-gpu"])
def test_the_program_is_told_the_exact_versions_of_its_environment(name, prepared, tmp_path):
    chosen = settings(*VERL, f"backend.verl.environment={name}")
    versions = launch.request_of(chosen, tmp_path, prepared, prepared)["versions"]
    assert len(versions) == 7
    assert versions["verl"] == "0.9.1"
    assert versions["ray"] == "2.60.0", "named with its extras in one of them"
    assert versions.items() <= environments.pins(name).items()


def test_another_version_than_the_pinned_one_is_one_line():
    here = metadata.version("torch").partition("+")[0]
    inside._require_versions({"torch": f"{here}+cpu"})
    with pytest.raises(RuntimeError, match=rf"torch {here} \(not 0\.1\)") as error:
        inside._require_versions({"torch": "0.1"})
    assert "\n" not in str(error.value)


def test_fewer_visible_gpus_than_asked_for_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    asked = {"device": "cuda", "verl": {"gpus_per_node": 3}}
    inside._require_gpus({"backend": asked})
    asked["verl"]["gpus_per_node"] = 4
    with pytest.raises(RuntimeError, match=r"gpus_per_node=4, but this machine shows 3 .*0,1,2"):
        inside._require_gpus({"backend": asked})
    inside._require_gpus({"backend": asked | {"device": "cpu"}})


def save(folder, step: int, *, world: int = 2, model: str = "actor") -> None:
    """A checkpoint as verl leaves it."""
    target = folder / f"global_step_{step}" / model
    target.mkdir(parents=True)
    for rank in range(world):
        for part in ("model", "optim", "extra_state"):
            torch.save({"x": torch.arange(100)}, target / f"{part}_world_size_{world}_rank_{rank}.pt")
    (folder / f"global_step_{step}" / checkpoints.STATE).write_text("{}")
    (folder / checkpoints.NOTE).write_text(str(step))


def damage_by_loss(part):
    part.unlink()


def damage_by_a_full_disk(part):
    part.write_bytes(part.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [damage_by_loss, damage_by_a_full_disk])
@pytest.mark.parametrize("part", ["actor/model_world_size_2_rank_1.pt", "actor/optim_world_size_2_rank_0.pt"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, damage, part):
    for step in (2, 4):
        save(tmp_path, step)
    assert checkpoints.settle(tmp_path, checkpoints.of_rl(2, ("actor",))) == 4
    damage(tmp_path / "global_step_4" / part)
    assert checkpoints.settle(tmp_path, checkpoints.of_rl(2, ("actor",))) == 2
    assert (tmp_path / checkpoints.NOTE).read_text() == "2", "verl goes on from there"
    assert not (tmp_path / "global_step_4").exists()
    damage(tmp_path / "global_step_2" / part)
    assert checkpoints.settle(tmp_path, checkpoints.of_rl(2, ("actor",))) == 0
    assert not (tmp_path / checkpoints.NOTE).exists(), "from the beginning"


def test_what_verl_had_not_noted_yet_and_a_missing_critic_do_not_count(tmp_path):
    save(tmp_path, 2)
    save(tmp_path, 2, model="critic")
    save(tmp_path, 4)
    (tmp_path / checkpoints.NOTE).write_text("2")  # killed while it wrote the next
    assert checkpoints.settle(tmp_path, checkpoints.of_rl(2, ("actor", "critic"))) == 2
    (tmp_path / "global_step_2" / "critic" / "model_world_size_2_rank_0.pt").unlink()
    assert checkpoints.settle(tmp_path, checkpoints.of_rl(2, ("actor", "critic"))) == 0


def test_logs_behind_the_last_whole_checkpoint_are_cut_back(prepared, tmp_path):
    run = begin(tmp_path / "run", prepared, settings(*VERL))
    run.metrics_path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 5)))
    save(run.checkpoints, 2, world=1)
    assert launch._cut_back(run, settings(*VERL)) == 2
    assert [row["step"] for row in run.metrics()] == [1, 2]
    damage_by_a_full_disk(run.checkpoints / "global_step_2/actor/extra_state_world_size_1_rank_0.pt")
    assert launch._cut_back(run, settings(*VERL)) == 0
    assert run.metrics() == []
