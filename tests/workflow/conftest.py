"""A copy of the repository's workflow files in an empty folder, as a new user has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
PARTS = ["Snakefile", "rules", "workflow", "configs", "envs", "profiles", "slurm", "pyproject.toml"]
PARTS += ["reproduce-paper", "run-tests", "results/README.md"]


@dataclass(frozen=True)
class Finished:
    """Exit status, and what was printed on both streams."""

    status: int
    output: str


@dataclass(frozen=True)
class Clone:
    path: Path
    home: Path

    def call(self, *command: str, timeout: float = 300, **variables: str) -> Finished:
        """Run a command of the project's environment here, with an empty home and nothing on its input."""
        environment = {"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "HOME": str(self.home), "LANG": "C.UTF-8"}
        for name in ("RESTOOL_MIRROR", "OMP_NUM_THREADS"):
            if name in os.environ:
                environment[name] = os.environ[name]
        done = subprocess.run(
            command,
            cwd=self.path,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout)

    def snakemake(self, *arguments: str, **variables: str) -> Finished:
        return self.call("snakemake", "--cores", "all", *arguments, **variables)

    def write(self, path: str, content: str) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_text(content)

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.path / path).read_text()
        assert text.count(old) == 1, f"{path}: {old!r} occurs {text.count(old)} times"
        (self.path / path).write_text(text.replace(old, new))


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    copy = tmp_path / "clone"
    for part in PARTS:
        source, target = ROOT / part, copy / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "site.yaml"))
        else:
            shutil.copy2(source, target)
    (tmp_path / "home").mkdir()
    return Clone(copy, tmp_path / "home")
