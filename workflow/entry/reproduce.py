"""./reproduce-paper: set up, run one experiment through Snakemake, say where the report is.

Standard library only; everything else is installed by the first step.
"""

from __future__ import annotations

import difflib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import environment
import lock

ROOT = environment.ROOT
LOCK = ROOT / "results" / ".lock"
HELP = """usage: ./reproduce-paper [EXPERIMENT] [SNAKEMAKE FLAGS]

Sets everything up in .venv, runs an experiment from the data to the report, and says where the report is.
Interrupted, the same command goes on where it stopped.

experiments:
{experiments}

examples:
  ./reproduce-paper                            the default, quick: tiny model, CPU
  ./reproduce-paper -n                         only list what would be done
  ./reproduce-paper paper --profile slurm      the paper's matrix on a Slurm cluster
  ./reproduce-paper quick --config 'overrides=["training.rl.steps=10"]'

environment:
  RESTOOL_PYTHON       the Python (3.11 or newer) to use
  RESTOOL_MIRROR       folder with the public data files, tried before the network
  MLFLOW_TRACKING_URI  where results are imported; default sqlite:///results/mlflow.db
"""
DEFAULT = "quick"
STOPPED = "Stopped. The same command goes on from here."
CORES = ("-c", "--cores", "-j", "--jobs")
CONFIG = ("-C", "--config")


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP.format(experiments=_listing()), end="")
        return 0
    experiment, flags = _split(arguments)
    if problem := _unknown(experiment):
        return _fail(problem)
    try:
        held = [] if looks(flags) else [lock.acquire(LOCK, shlex.join(["./reproduce-paper", *arguments]))]
        programs = environment.ensure(with_tests=False)
    except (lock.Occupied, environment.SetupError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot write here: {error}")
    return _run(programs, experiment, flags, held)


def looks(flags: list[str]) -> bool:
    """Whether nothing is run with these flags, so that it may be asked while another call is at work."""
    return bool(lock.LOOKS.intersection(flags))


def _run(programs: Path, experiment: str, flags: list[str], held: list[int]) -> int:
    command = [str(programs / "snakemake"), *_with_experiment(flags, experiment)]
    if not any(flag.startswith(CORES) for flag in flags):
        command += ["--cores", "all"]
    status = _call(command, held)
    if status == 0 and not looks(flags):
        print(_where(programs, experiment))
    return status


def _call(command: list[str], held: list[int]) -> int:
    """Run Snakemake in the foreground; it holds the lock too, for as long as it lives. Returns its exit status."""
    settings = {"PYTHONUNBUFFERED": "1", "PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, pass_fds=held)

    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        """A terminal's Ctrl-C reaches Snakemake and its jobs by itself; other signals are ours to hand down."""
        received.append(number)
        if number != signal.SIGINT:
            process.send_signal(signal.SIGINT)
            for pid in lock.processes_of(os.environ[lock.VARIABLE]) if held else []:
                if pid != process.pid:
                    lock.send(pid, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    status = process.wait()
    if received and status:
        print(f"\n{STOPPED}", file=sys.stderr)
        return 128 + received[0]
    return 128 - status if status < 0 else status


def _with_experiment(flags: list[str], experiment: str) -> list[str]:
    """Snakemake takes one --config: put the experiment into the one that is there, or add one."""
    for position, flag in enumerate(flags):
        if flag in CONFIG:
            return [*flags[: position + 1], f"experiment={experiment}", *flags[position + 1 :]]
    return [*flags, "--config", f"experiment={experiment}"]


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    return DEFAULT, arguments


def _names() -> list[str]:
    return sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))


def _unknown(experiment: str) -> str | None:
    names = _names()
    if experiment in names:
        return None
    close = difflib.get_close_matches(experiment, names, n=1, cutoff=0.5)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    return f"unknown experiment '{experiment}'{hint}; there are: {', '.join(names)}"


def _listing() -> str:
    titles = {}
    for name in _names():
        lines = (ROOT / "configs" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        title = next((line.split(":", 1)[1].strip().strip("\"'") for line in lines if line.startswith("title:")), "")
        titles[name] = title
    width = max(map(len, titles))
    return "\n".join(f"  {name:<{width}}  {title}" for name, title in titles.items())


def _where(programs: Path, experiment: str) -> str:
    return (
        f"\nreport: results/{experiment}/report.html (open it in a browser)\n"
        f"MLflow: {os.path.relpath(programs)}/restool mlflow {experiment}   (the methods side by side)"
    )


def _fail(problem: str) -> int:
    print(f"restool: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print(f"\n{STOPPED}", file=sys.stderr)
        sys.exit(130)
