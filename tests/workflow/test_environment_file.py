"""One list of versions in two files."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_conda_environment_holds_the_pins_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert listed == [*project["dependencies"], "--editable ."]
    assert any(str(entry).startswith("python=3.11") for entry in environment["dependencies"])
    assert all("==" in requirement for requirement in project["dependencies"])


def test_conda_twins_of_tool_environments_hold_what_pip_installs():
    """envs/<name>.txt is what restool builds; envs/<name>.yaml the same for --sdm conda."""
    twins = sorted((ROOT / "envs").glob("*.yaml"))
    assert twins
    for definition in [twin.with_suffix(".txt") for twin in twins]:
        lines = [line.split(" #")[0].strip() for line in definition.read_text().splitlines()]
        options = [o for line in lines if line.startswith("# pip-options:") for o in line.split(":", 1)[1].split()]
        options = [o for o in options if o != "--no-compile"]  # only for speed
        pinned = [line for line in lines if line and not line.startswith("#")]
        twin = yaml.safe_load(definition.with_suffix(".yaml").read_text())
        listed = next(entry["pip"] for entry in twin["dependencies"] if isinstance(entry, dict))
        listed = [entry for entry in listed if not entry.startswith("--extra-index-url")]
        assert listed in ([*options, *pinned], [*options, f"-r {definition.name}"]), definition.name
        assert any(str(entry).startswith("python=") for entry in twin["dependencies"])
