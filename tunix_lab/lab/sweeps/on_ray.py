"""Workers of a sweep on a Ray cluster, for when one machine is not enough.

Ray only finds places for the workers, and starts one again whose node is lost; that node's locks are gone, so its trials wait.
"""

import dataclasses
import importlib.util
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunix_lab.errors import EnvironmentProblem, Stopped
from tunix_lab.lab.sweeps.node import Ended, Interrupted, orders
from tunix_lab.lab.sweeps.ray_cluster import connected
from tunix_lab.lab.sweeps.results import SettingResult
from tunix_lab.lab.sweeps.worker import TUNIX_LAB, noted_signals
from tunix_lab.spec import LabSettings

_LOOK_SECONDS = 0.5
_RETRIES = 20  # of each worker: a sweep may take days on nodes that come and go
# What MLflow's client needs beside the address of a server.
_CREDENTIALS = tuple(f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS", "SERVER_CERT_PATH"))

End = list[SettingResult] | Ended | None
"""How a worker ended: with the ranking, early, or because it was stopped."""


def sweep_on_ray(
    sweep_dir: Path,
    home: Path,
    settings: LabSettings,
    workers: int,
    resources: dict[str, Any],
    *,
    jobs: int = 1,
    command: Sequence[str] = TUNIX_LAB,
) -> list[SettingResult]:
    """Has `workers` workers with `resources` each work on a sweep until its trials have ended, and returns the ranking.

    The other arguments are those of `Worker`. Raises Stopped as it does, and EnvironmentProblem if no worker can work.
    """
    with (
        connected() as nodes,
        orders(sweep_dir, home, worker_variables(settings, nodes), jobs=jobs, command=tuple(command)) as given,
        noted_signals() as received,
    ):
        _say(f"workers on Ray: {workers}, nodes: {nodes}")
        ends = list(_ends(dataclasses.asdict(given), workers, resources, received))
    for end in ends:
        if isinstance(end, list):
            return end
    goes_on = f"`tunix-lab sweep --join {sweep_dir.name}` or the same command goes on"
    if received:
        raise Stopped(f"stopped by {signal.Signals(received[0]).name}; {goes_on}", 128 + received[0])
    early = {end.message: end.exit_code for end in ends if isinstance(end, Ended)}
    stopped = Stopped("\n".join(["no worker is left", *early]))
    raise stopped if stopped.exit_code in early.values() else EnvironmentProblem(str(stopped))


def worker_variables(settings: LabSettings, nodes: int) -> dict[str, str]:
    """Environment of the workers. They get it as an argument: Ray writes that of a "runtime environment" to its logs."""
    on_server = (settings.tracking_uri or "").startswith(("http://", "https://"))
    prefixes = ("TUNIX_LAB_", "JAX_", "XLA_FLAGS", *(_CREDENTIALS if on_server else ()))
    variables = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    if nodes > 1 and settings.replicates and not on_server:
        _say("machines cannot share MLflow's SQLite file: `tunix-lab sync` brings the runs there afterwards")
        variables["TUNIX_LAB_SYNC"] = "off"
    return variables


def _ends(given: dict[str, Any], workers: int, resources: dict[str, Any], received: Sequence[int]) -> Iterator[End]:
    """Starts the workers and tells how each ends; passes signals on to them."""
    import ray

    def sweep_worker(given: dict[str, Any]) -> Any:
        # A local function, whose types are not ours, is sent as code, and can speak where there is no tunix_lab.
        if importlib.util.find_spec("tunix_lab") is None:
            return f"{platform.node()} cannot work on the sweep: tunix_lab is not installed there"
        from tunix_lab.lab.sweeps.node import Orders, follow

        return follow(Orders(**given))

    options = {"max_retries": _RETRIES, "retry_exceptions": [Interrupted], "scheduling_strategy": "SPREAD", **resources}
    task = ray.remote(**options)(sweep_worker)
    waiting, passed = [task.remote(given) for _ in range(workers)], 0
    try:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_LOOK_SECONDS)
            for ref in done:
                end = _end(ref)
                if waiting and isinstance(end, Ended):
                    _say(end.message)
                yield end
            if waiting and len(received) > passed:
                passed = len(received)
                _say("stopping the workers, whose trials save first; once more ends them at once")
                for ref in waiting:
                    ray.cancel(ref, force=passed > 1)
    finally:
        for ref in waiting:
            ray.cancel(ref)


def _end(ref: Any) -> End:
    import ray

    try:
        found: Any = ray.get(ref)
    except (Interrupted, ray.exceptions.TaskCancelledError):
        return None
    except ray.exceptions.RayTaskError:  # a bug, whose traceback is wanted
        raise
    except ray.exceptions.RayError as error:
        return Ended(3, f"a worker was lost too often: {str(error).splitlines()[0]}")
    return Ended(3, found) if isinstance(found, str) else found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
