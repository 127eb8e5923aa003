"""Generation: tokens per CPU second of prefill and decoding, greedy and sampled, at several batch sizes.

    python benchmarks/decoding.py
    python benchmarks/decoding.py greedy_8 top_p_8 --rounds 3

A call with one new token is the prefill; decoding is what a call with `NEW` tokens takes beyond it. Prompts have `PROMPT` tokens,
answers run to their full length. The cache is configured for what a call needs, or (`…_cache`) for 1,024 positions.
"""

import statistics

from harness import arguments, compared, in_turns, say, workers

PROMPT, NEW, NEEDED, LARGE = 64, 64, 128, 1024
KINDS = {"greedy": (0.0, None), "temperature": (1.0, None), "top_p": (1.0, 0.95)}
# Row -> rows of the batch, temperature and top-p, positions of the cache, tokens generated.
ROWS = {"prefill": (8, "greedy", NEEDED, 1)}
ROWS |= {f"{kind}_{rows}": (rows, kind, NEEDED, NEW) for kind in KINDS for rows in (1, 8, 32)}
ROWS |= {"greedy_8_cache": (8, "greedy", LARGE, NEW)}


def measure(sides, row: str, rounds: int) -> None:
    rows, kind, cache, new = ROWS[row]
    temperature, top_p = KINDS[kind]
    options = {"model": "small", "rows": rows, "prompt": PROMPT, "cache": cache, "temperature": temperature, "top_p": top_p}
    calls = max(1, 16 // rows)
    prefill, prefill_peaks = calls_of(sides, options | {"new": 1}, max(calls, 4), rounds)
    if new == 1:
        speeds = ([rows * PROMPT / seconds for seconds in side] for side in prefill)
        say(compared(f"{row}: tokens", "per CPU s", *speeds, better="more", shape=options))
        return
    whole, peaks = calls_of(sides, options | {"new": new}, calls, rounds)
    before = [statistics.median(side) for side in prefill]
    speeds = ([rows * (new - 1) / (seconds - first) for seconds in side] for side, first in zip(whole, before, strict=True))
    say(compared(f"{row}: tokens", "per CPU s", *speeds, better="more", shape=options | {"new": new}))
    say(compared(f"{row}: peak memory", "MB", *peaks, shape=options | {"new": new}))


def calls_of(sides, options: dict, calls: int, rounds: int):
    """CPU seconds of a call, and the peak memory in MB, of each side."""
    with workers(sides) as pair:
        for worker in pair:
            worker.prepare("decode", **options)
        found = in_turns(pair, lambda worker: worker.run(calls), rounds)
        wanted = options["rows"] * options["new"] * calls
        for answer in (answer for side in found for answer in side):
            if not 0.9 * wanted <= answer["tokens"] <= wanted:
                raise RuntimeError(f"{wanted} tokens were wanted, {answer['tokens']} came")
        return [[answer["cpu_s"] / calls for answer in side] for side in found], [[worker.peak_mb()] for worker in pair]


def main() -> None:
    given, sides = arguments(__doc__, list(ROWS), rounds=5)
    for row in given.rows:
        measure(sides, row, given.rounds)


if __name__ == "__main__":
    main()
