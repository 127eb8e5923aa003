"""What a process costs before its first step is done: imports, and the time to the first update with a cold and a warm cache.

    python benchmarks/startup.py
    python benchmarks/startup.py deep_warm --rounds 3

Every measurement is a process of its own. Both sides keep their compiled programs in a folder (`JAX_COMPILATION_CACHE_DIR`, all
of them); "cold" begins with an empty one, "warm" with what the same work left there. A first step is everything behind the
imports: the model with random weights, the trainer, compilation, one update.
"""

import tempfile

from harness import Side, Worker, arguments, compared, say

DEEP = {"model": "deep", "rows": 2, "length": 16, "warm_up": 1}
SMALL = {"model": "small", "rows": 8, "length": 256, "warm_up": 1}
# Row -> options of the step, and those of this project alone.
ROWS = {
    "import": ({}, {}),
    "deep_cold": (DEEP, {"scan_layers": True}),
    "deep_warm": (DEEP, {"scan_layers": True}),
    "small_cold": (SMALL, {}),
    "small_warm": (SMALL, {}),
}


def first_step(side: Side, folder: str, options: dict) -> float:
    """CPU seconds from the end of the imports to the end of the first update."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    worker = Worker(side, cache)
    try:
        return worker.prepare("sft", **options)["cpu_s"]
    finally:
        worker.close()


def imported(side: Side) -> float:
    """CPU seconds of importing all that these benchmarks use of a library."""
    worker = Worker(side)
    worker.close()
    return worker.imported["cpu_s"]


def measure(sides: tuple[Side, Side], row: str, rounds: int) -> None:
    options, own = ROWS[row]
    with tempfile.TemporaryDirectory() as warm_ours, tempfile.TemporaryDirectory() as warm_tunix:
        jobs = list(zip(sides, (warm_ours, warm_tunix), (options | own, options), strict=True))
        if row.endswith("warm"):
            for side, folder, given in jobs:
                first_step(side, folder, given)
        results: tuple[list[float], list[float]] = [], []
        for _ in range(rounds):
            for (side, folder, given), found in zip(jobs, results, strict=True):
                if row == "import":
                    found.append(imported(side))
                elif row.endswith("warm"):
                    found.append(first_step(side, folder, given))
                else:
                    with tempfile.TemporaryDirectory() as empty:
                        found.append(first_step(side, empty, given))
    say(compared(row if row == "import" else f"{row}: first step", "CPU s", *results, shape=options, settings=own))


def main() -> None:
    given, sides = arguments(__doc__, list(ROWS), rounds=3)
    for row in given.rows:
        measure(sides, row, given.rounds)


if __name__ == "__main__":
    main()
