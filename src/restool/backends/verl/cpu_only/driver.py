"""Patience for a machine with few cores: in the process that starts Ray, which gives a new node 30 seconds to come up
and its agents 15 seconds to say which ports they have taken.

Ray has no setting for these two. Its other deadlines have one: see ``ENVIRONMENT``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray._private import services
from ray._private.parameter import RayParams

from restool.backends.verl import ports
from restool.backends.verl.cpu_only import require_versions

_WAIT_S = 600.0
_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


def be_patient() -> None:
    """Make Ray's question after a new node wait for the answer, and give its agents ports to begin with."""
    require_versions()
    ask, begin, describe = services.get_node, services.start_raylet, RayParams.__init__

    def get_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

    def with_ports(self: RayParams, *arguments: Any, **options: Any) -> None:
        describe(self, *arguments, **options)
        _give_ports(self)

    def start_raylet(*arguments: Any, **options: Any) -> Any:
        node, session = arguments[2], Path(arguments[11])
        for name in _PORTS:  # the files that the agents would write, and write again
            (session / f"{name}_{node}").write_text(str(options[name]))
        return begin(*arguments, **options)

    services.get_node, services.start_raylet = get_node, start_raylet
    RayParams.__init__ = with_ports  # type: ignore[method-assign]


def at_start(node: RayParams, _head: bool) -> None:
    """Ray's hook in its command ``ray start`` (RAY_START_HOOK)."""
    be_patient()
    _give_ports(node)


def _give_ports(node: RayParams) -> None:
    for name, port in zip(_PORTS, ports.free(len(_PORTS)), strict=True):
        setattr(node, name, getattr(node, name) or port)
