"""Connects to a Ray cluster; Ray is imported inside functions, since it is an optional part."""

import contextlib
import importlib.util
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tunix_lab.errors import EnvironmentProblem, UserError

_ANSWER_SECONDS = 10.0


def require_ray() -> None:
    """Raises EnvironmentProblem where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise EnvironmentProblem("--ray needs Ray, which is not installed: pip install 'tunix_lab[ray]'")


def parse_resources(text: str) -> dict[str, Any]:
    """What a worker needs, as Ray takes it, from `num_cpus=4,num_gpus=1`; other names are resources that nodes declare."""
    amounts = {}
    for part in text.split(","):
        name, _, amount = (piece.strip() for piece in part.partition("="))
        try:
            amounts[name] = float(amount)
        except ValueError:
            amounts[name] = -1.0
        if not name or not amounts[name] >= 0 or (amounts[name] > 1 and not amounts[name].is_integer()):
            raise UserError(f"--ray-resources: must look like num_cpus=4,num_gpus=1 or num_gpus=0.5, got {part!r}")
    own = {name: amounts.pop(name) for name in ("num_cpus", "num_gpus", "memory") if name in amounts}
    return {"num_cpus": 1.0, **own, "resources": amounts}


@contextlib.contextmanager
def connected() -> Iterator[int]:
    """Within it there is Ray; gives the number of its nodes. A connection that the caller has made is used, and stays.

    It is that of RAY_ADDRESS, else the cluster that this machine is part of, else one of this machine alone.
    """
    require_ray()
    import ray

    if ray.is_initialized():
        yield _nodes()
        return
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(logging_level="warning")
        except (ConnectionError, RuntimeError) as error:  # the latter: another version of Ray or Python
            hint = "a cluster that wants a token needs RAY_AUTH_MODE=token here too"
            raise EnvironmentProblem(f"Ray cannot be used: {error} ({hint})") from error
        signal.signal(signal.SIGTERM, before)  # it puts its own there
        yield _nodes()
    finally:
        ray.shutdown()


def _nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


def _check_address(address: str) -> None:
    """Raises EnvironmentProblem for a cluster that does not answer: `ray.init` would wait for it for minutes."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.port is not None:  # else it is "auto" or "local"
            socket.create_connection((parts.hostname, parts.port), _ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
