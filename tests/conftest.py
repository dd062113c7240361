"""A copy of the repository's workflow files in an empty folder, as a new user has them: the fixture `clone`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

hypothesis.settings.register_profile("restool", deadline=None)  # no test asserts a time
hypothesis.settings.load_profile("restool")

ROOT = Path(__file__).resolve().parents[1]
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

    @property
    def variables(self) -> dict[str, str]:
        """An empty home, the project's programs, and little else."""
        kept = {name: os.environ[name] for name in ("RESTOOL_MIRROR", "OMP_NUM_THREADS") if name in os.environ}
        path = f"{PROGRAMS}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", "RESTOOL_ENVS": str(ROOT / ".venvs"), **kept}

    def start(self, *command: str, output: Any = subprocess.PIPE, **variables: str) -> subprocess.Popen[str]:
        """Begin a command here: nothing on its input, both streams together, in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env={**self.variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def call(self, *command: str, timeout: float = 300, **variables: str) -> Finished:
        process = self.start(*command, **variables)
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return Finished(process.returncode, output)

    def reproduce(self, *arguments: str) -> list[str]:
        """The command ``./reproduce-paper ARGUMENTS`` with the environment of the tests instead of an own one."""
        program = (
            "import pathlib, sys; sys.path.insert(0, 'workflow/entry'); import environment, reproduce; "
            f"environment.ensure = lambda **_: pathlib.Path({str(PROGRAMS)!r}); "
            "sys.exit(reproduce.main(sys.argv[1:]))"
        )
        return [sys.executable, "-c", program, *arguments]

    def snakemake(self, *arguments: str, **variables: str) -> Finished:
        return self.call("snakemake", "--cores", "all", *arguments, **variables)

    def write(self, path: str, content: str) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_text(content)

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.path / path).read_text()
        assert text.count(old) == 1, f"{path}: {old!r} occurs {text.count(old)} times"
        (self.path / path).write_text(text.replace(old, new))


def copy_repository(folder: Path) -> Clone:
    copy = folder / "clone"
    for part in PARTS:
        source, target = ROOT / part, copy / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "site.yaml"))
        else:
            shutil.copy2(source, target)
    (folder / "home").mkdir()
    return Clone(copy, folder / "home")


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return copy_repository(tmp_path)


@pytest.fixture(scope="session")
def new_clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Clone]:
    """For what needs several, or one for several tests."""
    return lambda: copy_repository(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def finished_clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which the experiment `test` has run undisturbed, from the data to the report."""
    clone = copy_repository(tmp_path_factory.mktemp("finished"))
    done = clone.call(*clone.reproduce("test"), timeout=1200)
    assert done.status == 0, done.output
    clone.write("output.txt", done.output)
    return clone
