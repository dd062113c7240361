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
