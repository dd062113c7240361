"""Isolated environments for tools that cannot share ours (design: one file per tool family in ``envs/``).

``envs/<name>.txt`` is an ordinary pip requirements file; a comment line ``# pip-options: ...`` holds options that
pip accepts only on its command line, and a line ``# then: ...`` what a further call of pip installs afterwards. An
environment lives in ``.venvs/<name>-<hash of that file>/`` below the repository (``RESTOOL_ENVS`` names another root),
and counts only when its stamp is there, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from restool import files
from restool.core.errors import ToolEnvironmentError, nearest

STAMP = "restool-stamp.json"
_OPTIONS = "# pip-options:"
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
_THEN = "# then:"


def names() -> list[str]:
    """The environments that ``build`` can make."""
    return sorted(path.stem for path in _definitions().glob("*.txt"))


def path(name: str) -> Path:
    """Folder of environment ``name``, built or not; another content of its file gives another folder."""
    digest = hashlib.sha256(_definition(name).read_bytes()).hexdigest()[:12]
    return root() / f"{name}-{digest}"


def root() -> Path:
    """Where environments live: ``RESTOOL_ENVS``, else ``.venvs`` of the repository."""
    return Path(os.environ.get("RESTOOL_ENVS") or _definitions().parent / ".venvs")


def stamp(name: str) -> Path:
    """The file that exists exactly when ``name`` is completely built."""
    return path(name) / STAMP


def python(name: str) -> Path:
    """Interpreter of environment ``name``; `ToolEnvironmentError` if it has not been built."""
    if not stamp(name).exists():
        raise ToolEnvironmentError(f"environment '{name}' is not built; make it with: restool env build {name}")
    return _interpreter(path(name))


def build(name: str, *, report: Callable[[str], None] = lambda line: None) -> Path:
    """Make environment ``name`` if it is not there yet; return its interpreter.

    Safe against concurrent builders (a lock beside the folder) and against being killed (a folder without a
    stamp is made anew). pip runs with the user's own configuration.
    """
    target = path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _is_whole(target):
            report(f"building environment '{name}' in {target}")
            shutil.rmtree(target, ignore_errors=True)
            _install(name, target)
            packages = _run([str(_interpreter(target)), "-m", "pip", "freeze", "--all"], name).splitlines()
            files.write_json(
                target / STAMP,
                {
                    "name": name,
                    "file": _definition(name).read_text(),
                    "python": sys.version.split()[0],
                    "packages": packages,
                },
            )
    return _interpreter(target)


def variables() -> dict[str, str]:
    """The variables of this process for a program in another environment: all but those that are for our interpreter.

    Among these PYTHONDONTWRITEBYTECODE: with it each process would compile the tool's thousands of modules again,
    which takes longer than Ray gives a process to start.
    """
    return {key: value for key, value in os.environ.items() if key not in _OURS}


def packages(name: str) -> dict[str, str]:
    """Installed versions of a built environment, read from its stamp."""
    python(name)
    rows = files.read_json(stamp(name))["packages"]
    pairs = (row.split("==", 1) for row in rows if "==" in row)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def pins(name: str) -> dict[str, str]:
    """Package → version that the definition of environment ``name`` asks for."""
    rows = (line.split("==") for line in _definition(name).read_text().splitlines() if "==" in line and line[0] != "#")
    return {package.partition("[")[0].strip().lower(): version.strip() for package, version in rows}


def _install(name: str, target: Path) -> None:
    _run([sys.executable, "-m", "venv", str(target)], name)
    pip = [str(_interpreter(target)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    options = [option for line in _marked(name, _OPTIONS) for option in line.split()]
    _run([*pip, *options, "-r", str(_definition(name))], name)
    for line in _marked(name, _THEN):
        _run([*pip, *line.split()], name)


def _marked(name: str, mark: str) -> list[str]:
    """The rest of every comment line that begins with ``mark``."""
    lines = _definition(name).read_text().splitlines()
    return [line.removeprefix(mark) for line in lines if line.startswith(mark)]


def _is_whole(target: Path) -> bool:
    """Stamped, and its interpreter still starts (it does not after an upgrade removed the base Python)."""
    if not (target / STAMP).exists():
        return False
    try:
        json.loads((target / STAMP).read_text())["packages"]
        subprocess.run([_interpreter(target), "-c", ""], check=True, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:  # a busy machine is no reason to take a tool away from those who use it
        return True
    except (OSError, ValueError, LookupError, subprocess.SubprocessError):
        return False
    return True


def _interpreter(target: Path) -> Path:
    return target / "bin" / "python"


def _run(command: list[str], name: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=variables(), check=False)
    except OSError as error:
        raise ToolEnvironmentError(f"cannot build environment '{name}': {error}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        cause = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no message")
        raise ToolEnvironmentError(f"cannot build environment '{name}' from {_definition(name)}: {cause.strip()}")
    return done.stdout


def _definition(name: str) -> Path:
    file = _definitions() / f"{name}.txt"
    if not file.exists():
        raise ToolEnvironmentError(f"no environment '{name}'{nearest(name, names())}; there are: {', '.join(names())}")
    return file


def _definitions() -> Path:
    """``envs/`` of the working directory if this is the repository, else the one beside the package's source."""
    here = Path.cwd() / "envs"
    source = Path(__file__).resolve().parents[2] / "envs"
    return here if (here / "bfcl.txt").exists() else source
