"""List scheduling against counts that can be made by hand, and against bounds that always hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restool.timetable import Task, makespan


def test_tasks_wait_for_devices_and_for_each_other():
    chain = [Task("sft", 2, 1, 1), Task("a", 3, 1, 1, ("sft",)), Task("b", 3, 1, 1, ("sft",))]
    assert makespan(chain, gpus=1, cores=8) == 8
    assert makespan(chain, gpus=2, cores=8) == 5
    assert makespan(chain, gpus=2, cores=1) == 8
    assert makespan(chain[1:], gpus=2, cores=8) == 3, "sft has ended already"
    assert makespan([Task("large", 1, 8, 1)], gpus=4, cores=8) is None
    assert makespan([Task("greedy", 1, 0, 64)], gpus=0, cores=2) == 1
    assert makespan([], gpus=0, cores=1) == 0
    with pytest.raises(ValueError, match="wait for each other"):
        makespan([Task("a", 1, 0, 1, ("b",)), Task("b", 1, 0, 1, ("a",))], 0, 1)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4), st.booleans()), max_size=12), st.integers(4, 8))
def test_never_faster_than_the_work_or_the_longest_task_and_never_slower_than_one_by_one(rows, gpus):
    tasks = []
    for k, (hours, devices, follows) in enumerate(rows):
        tasks.append(Task(str(k), hours, devices, 1, (str(k - 1),) if follows and k else ()))
    work = sum(task.hours * task.gpus for task in tasks) / gpus
    found = makespan(tasks, gpus, cores=100)
    assert max(work, max((t.hours for t in tasks), default=0)) <= found <= sum(task.hours for task in tasks)
