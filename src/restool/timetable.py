"""How long jobs take side by side: list scheduling, as Snakemake's and Slurm's greedy schedulers do it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """``after``: names of tasks that must end first; those that are no task here have ended."""

    name: str
    hours: float
    gpus: int
    cores: int
    after: tuple[str, ...] = ()


def makespan(tasks: Sequence[Task], gpus: int, cores: int) -> float | None:
    """Hours until the last task ends, begun in the order given as soon as they may and fit.

    None if a task needs more GPUs than there are. One that needs more cores than there are gets all of them.
    """
    if any(task.gpus > gpus for task in tasks):
        return None
    by_name = {task.name: task for task in tasks}
    left = {task.name: len(set(task.after) & by_name.keys()) for task in tasks}
    then: dict[str, list[Task]] = {}
    for task in tasks:
        for name in set(task.after) & by_name.keys():
            then.setdefault(name, []).append(task)
    ready = [task for task in tasks if not left[task.name]]
    free_gpus, free_cores, now, ended = gpus, cores, 0.0, 0
    running: list[tuple[float, int, Task]] = []
    while ready or running:
        waiting = []
        for task in ready:
            if free_cores and task.gpus <= free_gpus and min(task.cores, cores) <= free_cores:
                free_gpus, free_cores = free_gpus - task.gpus, free_cores - min(task.cores, cores)
                heapq.heappush(running, (now + task.hours, id(task), task))
            else:
                waiting.append(task)
        ready = waiting
        now, _, last = heapq.heappop(running)
        ended += 1
        free_gpus, free_cores = free_gpus + last.gpus, free_cores + min(last.cores, cores)
        for task in then.get(last.name, []):
            left[task.name] -= 1
            if not left[task.name]:
                ready.append(task)
    if ended < len(tasks):
        raise ValueError(f"tasks wait for each other: {sorted(name for name, count in left.items() if count)[:3]}")
    return now
