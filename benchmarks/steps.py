"""Training steps: CPU seconds and peak memory of an update, and what the host alone costs.

    python benchmarks/steps.py                     # all rows
    python benchmarks/steps.py sft dpo --rounds 5

Prints a JSON line per row and quantity. Batches are full (no padding) and the same every step. Memory is what a fresh process
grows by, from its imports to the end of its row, compilation included. The `host_…` rows train a model so small that its
arithmetic is next to nothing: "main thread" is the Python of the loop and the dispatch, "step" also what XLA's threads spend on
many small operations.
"""

from harness import arguments, compared, in_turns, say, workers

SUPERVISED = {"model": "small", "rows": 8, "length": 256}
PAIRS = {"model": "small", "rows": 4, "prompt": 128, "answer": 128}
HOST = {"rows": 2, "length": 16}

# Row -> job, its options, and those of this project alone.
ROWS = {
    "sft": ("sft", SUPERVISED, {}),
    "lora": ("lora", SUPERVISED, {}),
    "dpo": ("dpo", PAIRS, {}),
    "orpo": ("orpo", PAIRS, {}),
    "distill": ("distill", SUPERVISED, {}),
    "host_6_layers": ("sft", {"model": "tiny", **HOST}, {}),
    "host_26_layers": ("sft", {"model": "deep", **HOST}, {"scan_layers": True}),
}


def measure(sides, row: str, rounds: int) -> None:
    job, options, own = ROWS[row]
    is_host = row.startswith("host")
    steps = 200 if is_host else 1
    with workers(sides) as pair:
        for worker, extra in zip(pair, (own, {}), strict=True):
            worker.prepare(job, **options, **extra)
        ours, peer = in_turns(pair, lambda worker: worker.run(steps), rounds)
        if is_host:
            for what, field in (("main thread", "thread_s"), ("step", "cpu_s")):
                times = ([found[field] * 1e3 / steps for found in side] for side in (ours, peer))
                say(compared(f"{row}: {what}", "CPU ms", *times, shape=options, settings=own))
            return
        say(compared(f"{row}: step", "CPU s", *([found["cpu_s"] for found in side] for side in (ours, peer)), shape=options))
        say(compared(f"{row}: peak memory", "MB", *([worker.peak_mb()] for worker in pair), shape=options))


def main() -> None:
    given, sides = arguments(__doc__, list(ROWS), rounds=7)
    for row in given.rows:
        measure(sides, row, given.rounds)


if __name__ == "__main__":
    main()
