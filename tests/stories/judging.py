"""Rewards of the stories of reinforcement learning; what else they do is said by the environment.

STORY_REWARD is one of
  raise:N  the Nth call of `vowels` and all after it raise
  hang:N   … hang
  stop:N   the Nth call sends SIGTERM to the run
  some     a third of all answers raise
  huge     every second answer is worth 1e38
"""

import os
import signal
import time

_CALLS = [0]


def vowels(prompts, completions, **columns):
    _CALLS[0] += 1
    what, _, number = os.environ.get("STORY_REWARD", "").partition(":")
    if what == "stop" and _CALLS[0] == int(number):
        os.kill(os.getppid(), signal.SIGTERM)
    if what in ("raise", "hang") and _CALLS[0] >= int(number):
        time.sleep(3600 if what == "hang" else 0)
        raise RuntimeError("nobody can judge this")
    if what == "some" and any(sum(text.encode()) % 3 == 1 for text in completions):
        raise RuntimeError("one of these leaves one over three")
    if what == "huge":
        return [1e38 if i % 2 else 0.0 for i in range(len(completions))]
    return [sum(text.count(vowel) for vowel in "aeiou") / (1 + len(text)) for text in completions]


def brief(prompts, completions, **columns):
    return [1 / (1 + len(text)) for text in completions]
