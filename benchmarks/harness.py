"""Measures two sides in turns (A B A B …), each in a process of its own that is kept alive, and says medians of CPU seconds.

CPU seconds (user and system) are compared, not wall time, because machines are shared. Imports and compilation lie outside what
is timed, unless they are what is measured.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

Record = dict[str, Any]
Pair = tuple["Worker", "Worker"]


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
      name: in the results.
      python: the interpreter of its environment.
      module: of this folder, with its `JOBS`.
    """

    name: str
    python: str
    module: str


class Worker:
    """A process that does one side's work when asked; `imported` is what loading its module took."""

    def __init__(self, side: Side, environment: Mapping[str, str] | None = None):
        path = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
        # Neither the compiler's log nor an accelerator: both sides run on the CPU.
        settings = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
        self._process = subprocess.Popen(
            [side.python, str(HERE / "worker.py"), side.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "BENCHMARK_STDERR" in os.environ else subprocess.DEVNULL,
            text=True,
            env=os.environ | settings,
        )
        self.side = side
        self.imported = self._answer()["import"]

    def prepare(self, job: str, **options: Any) -> Record:
        """Builds a job and lets it compile; gives the seconds that it took."""
        return self._ask(prepare=job, options=options)

    def run(self, n: int = 1) -> Record:
        """Does n units of the job's work; gives the seconds that they took, and what the job says of them."""
        return self._ask(run=n)

    def peak_mb(self) -> float:
        """The most memory that the process held since its module was imported, beyond what it held then, in MB."""
        return self._ask(memory=True)["peak_bytes"] / 1e6

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, **request: Any) -> Record:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Record:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.side.name} ended with {self._process.wait()}; BENCHMARK_STDERR=1 shows why")
        return json.loads(line)


@contextmanager
def workers(sides: tuple[Side, Side], environment: Mapping[str, str] | None = None) -> Iterator[Pair]:
    """A fresh worker of each side, ended on leaving."""
    started: list[Worker] = []
    try:
        for side in sides:
            started.append(Worker(side, environment))
        yield started[0], started[1]
    finally:
        for worker in started:
            worker.close()


def in_turns(pair: Pair, measure: Callable[[Worker], float | Record], rounds: int) -> tuple[list[Any], list[Any]]:
    """`rounds` measurements of each, A B A B …"""
    results: tuple[list[Any], list[Any]] = [], []
    for _ in range(rounds):
        for worker, found in zip(pair, results, strict=True):
            found.append(measure(worker))
    return results


def compared(row: str, unit: str, ours: list[float], peer: list[float], *, better: str = "less", **details: Any) -> Record:
    """One line of results.

    Args:
      row: what was measured.
      unit: of the numbers.
      ours: the measurements of this project.
      peer: those of the other, in the same order.
      better: "less" or "more"; decides what `times_better` divides by what.
      **details: shapes and settings.
    """
    a, b = statistics.median(ours), statistics.median(peer)
    by_turn = [x / y for x, y in zip(ours, peer, strict=True)]
    return {
        "row": row,
        "unit": unit,
        "ours": _rounded(a),
        "tunix": _rounded(b),
        "ratio": _rounded(a / b),
        "ratio_by_turn": [_rounded(min(by_turn)), _rounded(max(by_turn))],
        "times_better": _rounded(a / b if better == "more" else b / a),
        "rounds": len(ours),
        **details,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def say(record: Record) -> None:
    """Prints one JSON line."""
    print(json.dumps(record), flush=True)


def arguments(description: str, rows: list[str], rounds: int) -> tuple[argparse.Namespace, tuple[Side, Side]]:
    """The command line that all benchmarks share, and the two sides, this project first."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(rows)}; none given: all")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side (default {rounds})")
    parser.add_argument("--python", default=sys.executable, help="of this project's environment")
    parser.add_argument("--tunix-python", default=str(ROOT / ".venv-tunix/bin/python"), help="of google-tunix's")
    given = parser.parse_args()
    unknown = [row for row in given.rows if row not in rows]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(rows)}")
    given.rows = given.rows or rows
    return given, (Side("ours", given.python, "peer_ours"), Side("tunix", given.tunix_python, "peer_tunix"))
