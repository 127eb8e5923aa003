"""The table of the README from the lines that the benchmarks printed.

    python benchmarks/table.py results.jsonl         # what the README shows
    python benchmarks/table.py results.jsonl --all

Of several lines of one row the last counts.
"""

import argparse
import json
import re
from pathlib import Path

# Row -> the goal for `times_better`, that is how many times less time or memory, or how many times more tokens.
GOALS = {f"{job}: {what}": goal for job in ("sft", "lora", "dpo", "orpo", "distill")
         for what, goal in (("step", 1 / 0.75), ("peak memory", 1 / 0.55))}  # fmt: skip
GOALS |= {f"host_{layers}_layers: {what}": 1 / 0.3 for layers in (6, 26) for what in ("main thread", "step")}
GOALS |= {"deep_cold: first step": 2.0, "deep_warm: first step": 1 / 0.3}
GOALS |= {"prefill: tokens": 2.5}
GOALS |= {f"{kind}_{rows}: tokens": goal for kind, goal in (("greedy", 1.4), ("temperature", 3.0), ("top_p", 7.0))
          for rows in (1, 8, 32)}  # fmt: skip
GOALS |= {"grpo: step": 2.0, "grpo_top_p: step": 4.0, "grpo_spread: step": 4.0}

# Left out unless all are wanted: memory of decoding, phases of the variants of a step.
MINOR = re.compile(
    r"(greedy|temperature|top_p)_\w+: peak memory|(grpo_top_p|grpo_cache|ppo_spread): (rollout|reference|training|peak memory)"
)

TITLE = "| what | unit | tunix_lab | google-tunix | times better | goal |\n|---|---|---:|---:|---:|---:|"


def line(record: dict) -> str:
    goal = GOALS.get(record["row"])
    shown = "" if goal is None else f"{goal:.2f}" if record["times_better"] >= goal else f"{goal:.2f} (missed)"
    numbers = (_shown(record["ours"]), _shown(record["tunix"]), f"{record['times_better']:.2f}")
    return f"| {record['row'].replace('_', ' ')} | {record['unit']} | {' | '.join(numbers)} | {shown} |"


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--all", action="store_true", help="also the minor rows")
    given = parser.parse_args()
    records = [json.loads(text) for path in given.files for text in path.read_text().splitlines()]
    last = {record["row"]: record for record in records}
    print(TITLE, *(line(record) for row, record in last.items() if given.all or not MINOR.fullmatch(row)), sep="\n")


if __name__ == "__main__":
    main()
