"""`python kill_in_phase.py PHASE NUMBER ARGUMENTS…` is `tunix-lab ARGUMENTS…`, killed when PHASE comes for the NUMBERth time.

Kills from outside rarely hit what takes milliseconds in a small model; these hit it every time.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

PHASES: dict[str, tuple[str, str, bool]] = {
    # phase -> module.Class, its method, whether it is killed behind the call instead of before it
    "rollout": ("tunix_lab.rl.rollout.vanilla_rollout.VanillaRollout", "generate", True),  # sampled, and told to nobody
    "reward": ("tunix_lab.rl.reward_pool._Worker", "give", True),  # the function is running
    "logps": ("tunix_lab.rl.rl_cluster.RLCluster", "get_ref_per_token_logps", True),
    "critic": ("tunix_lab.rl.trainer.CriticTrainer", "follow", False),  # the actor is a step ahead of its critic
    "update": ("tunix_lab.rl.trainer.RLTrainer", "_tell_later", False),  # both have moved, and nothing is told
    "told": ("tunix_lab.rl.rl_learner.RLLearner", "told", True),  # the rollout is on disk, its metrics are not
    "sync": ("tunix_lab.rl.rollout.vanilla_rollout.VanillaRollout", "update_params", True),
    "save": ("tunix_lab.sft.checkpoint_manager.CheckpointManager", "save", True),  # being written in the background
}


def arm(phase: str, number: int) -> None:
    """Plants the kill."""
    import importlib

    path, method, is_behind = PHASES[phase]
    module, _, name = path.rpartition(".")
    owner = vars(importlib.import_module(module))[name]
    original: Callable[..., Any] = getattr(owner, method)
    calls = [0]

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number and not is_behind:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*args, **kwargs)
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, method, killed)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.argv[:3] = ["tunix-lab"]
    from tunix_lab.cli.main import main

    main()
