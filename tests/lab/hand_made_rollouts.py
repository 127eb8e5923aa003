"""Rollouts made by hand: 2 prompts, 2 answers each, with the tokens of a small tokenizer where one is given."""

from typing import Any

import numpy as np

from tunix_lab.rl.trajectories import Trajectories

PROMPTS = ("What is 1 + 1?", "What is 2 + 3?")
ANSWERS = (("2", "3"), ("6", "It is 5"))
RIGHT = ("2", "5")


def rollout(step: int = 0, mode: str = "train", tokenizer: Any = None, **changes: Any) -> Trajectories:
    """Rewards 1 + 0.5, 0 + 0.5, 0 + 0.5 and 1 + 0; the last answer is cut off and trains nothing."""

    def ids(text: str) -> np.ndarray:
        return np.asarray([7, *map(ord, text)] if tokenizer is None else tokenizer.encode(text), np.int32)

    flat = [text for texts in ANSWERS for text in texts]
    answers = [ids(text) for text in flat]
    logps = [np.linspace(-0.05, -4.0, len(answer), dtype=np.float32) for answer in answers]
    values: dict[str, Any] = {
        "step": step,
        "mode": mode,
        "groups": [0, 0, 1, 1],
        "prompts": [prompt for prompt in PROMPTS for _ in range(2)],
        "completions": flat,
        "prompt_ids": [ids(prompt) for prompt in PROMPTS for _ in range(2)],
        "completion_ids": answers,
        "finish_reasons": ["stop", "stop", "stop", "length"],
        "trained": [True, True, True, False],
        "sampler_logps": logps,
        "trainer_logps": None if mode == "eval" else [value + np.float32(1e-5) for value in logps],
        "rewards": {"exact_match": [1.0, 0.0, 0.0, 1.0], "shape": [0.5, 0.5, 0.5, 0.0]},
        "reward": [1.5, 0.5, 0.5, 1.0],
        "advantages": [
            np.full(0 if mode == "eval" else len(answer), value, np.float32)
            for answer, value in zip(answers, [1.0, -1.0, -1.0, 1.0], strict=True)
        ],
        "columns": {"answer": [right for right in RIGHT for _ in range(2)], "hard": [False, False, True, True]},
    }
    return Trajectories(**values | changes)
