"""Steps of reinforcement learning from prompts to update, with their phases: sampling, the reference's log-probs, the rest.

    python benchmarks/reinforcement.py
    python benchmarks/reinforcement.py grpo grpo_spread --rounds 3

GRPO: 4 prompts of 64 tokens, 4 answers each; PPO: 16 prompts, one answer each. Answers have 64 tokens; in `…_spread` up to 128
and 37 on average, as chance ends them. `…_cache` configures the cache for 1,024 positions. The rest of a step is training,
rewards and what is done on the host.
"""

from harness import arguments, compared, in_turns, say, workers

FULL = {"model": "small", "prompt": 64, "new": 64, "cache": 128, "top_p": None, "mean_length": None}
TOP_P = FULL | {"top_p": 0.95}
SPREAD = FULL | {"new": 128, "cache": 192, "mean_length": 37}
LARGE_CACHE = FULL | {"cache": 1024}
GROUPS, SINGLE = {"rows": 4, "answers": 4}, {"rows": 16}
ROWS = {
    "grpo": ("grpo", FULL | GROUPS),
    "grpo_top_p": ("grpo", TOP_P | GROUPS),
    "grpo_spread": ("grpo", SPREAD | GROUPS),
    "grpo_cache": ("grpo", LARGE_CACHE | GROUPS),
    "ppo": ("ppo", FULL | SINGLE),
    "ppo_spread": ("ppo", SPREAD | SINGLE),
}
PHASES = {"step": "cpu_s", "rollout": "rollout_cpu_s", "reference": "reference_cpu_s", "training": "training_cpu_s"}


def measure(sides, row: str, rounds: int) -> None:
    job, options = ROWS[row]
    # Lengths differ from step to step: several make a turn, and more are made before, so that all programs are compiled.
    steps, warm_up = (3, 12) if options["mean_length"] else (1, 2)
    with workers(sides) as pair:
        for worker in pair:
            worker.prepare(job, warm_up=warm_up, **options)
        found = in_turns(pair, lambda worker: worker.run(steps), rounds)
        for answer in (answer for side in found for answer in side):
            answer["training_cpu_s"] = answer["cpu_s"] - answer["rollout_cpu_s"] - answer["reference_cpu_s"]
        for phase, field in PHASES.items():
            seconds = ([answer[field] / steps for answer in side] for side in found)
            say(compared(f"{row}: {phase}", "CPU s", *seconds, shape=options))
        say(compared(f"{row}: peak memory", "MB", *([worker.peak_mb()] for worker in pair), shape=options))


def main() -> None:
    given, sides = arguments(__doc__, list(ROWS), rounds=3)
    for row in given.rows:
        measure(sides, row, given.rounds)


if __name__ == "__main__":
    main()
