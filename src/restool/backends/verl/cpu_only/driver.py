"""Patience for a machine with few cores: in the process that starts Ray, which gives a node 30 seconds to come up.

Ray has no setting for that time. Its other deadlines have one: see ``ENVIRONMENT``.
"""

from __future__ import annotations

import time
from typing import Any

from ray._private import services

from restool.backends.verl.cpu_only import require_versions

_WAIT_S = 600.0


def be_patient() -> None:
    """Make Ray's question after a new node wait for the answer."""
    require_versions()
    ask = services.get_node

    def get_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

    services.get_node = get_node
