"""A small project on disk, and `tunix-lab` run in it as a user runs it: in processes of its own."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tunix_lab.lab.record.journal import read_metrics

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from tunix_lab.cli.main import main; main()"]

SPEC = """
name: {name}
model: {{family: gemma3, size: nano, init: {init}}}
tokenizer: {{path: data/tokenizer}}
algorithm: {algorithm}
data: {data}
optimizer: {{learning_rate: 1.0e-3, schedule: {{kind: cosine, warmup_steps: 4}}}}
training: {{max_steps: 24, batch_size: 8, micro_batch_size: 4, eval_every: 6, eval_batch_size: 16}}
checkpoint: {{every: 4, keep_last: 2}}
samples: {{every: 8, count: 4, max_new_tokens: 8, scorer: "tunix_lab.tasks.arithmetic:exact_match"}}
tracking: {{experiment: stories}}
"""
CHAT = "{kind: chat, train: data/arithmetic/sft/train.jsonl, validation: data/arithmetic/sft/validation.jsonl, max_length: 64}"
PAIRS = (
    "{kind: preference, train: data/arithmetic/preference/train.jsonl, validation: data/arithmetic/preference/validation.jsonl}"
)

RL_SPEC = """
name: {name}
model: {{family: gemma3, size: pico, num_layers: 1, init: {{kind: random}}}}
tokenizer: {{path: data/tokenizer}}
algorithm:
  kind: {kind}
  rollout: {{max_new_tokens: 6, max_prompt_length: 40}}
  rewards: {{functions: [{{function: "judging:vowels"}}, {{function: "judging:brief", weight: 0.5}}]}}
data: {{kind: prompts, train: data/arithmetic/sft/train.jsonl, validation: data/arithmetic/sft/validation.jsonl}}
optimizer: {{learning_rate: 1.0e-2}}
training: {{max_steps: 8, batch_size: 2, eval_every: 4, eval_batch_size: 32}}
checkpoint: {{every: 2, keep_last: 2}}
samples: {{every: 4, count: 2, max_new_tokens: 4}}
tracking: {{experiment: stories}}
"""
RL_REWARDS = (Path(__file__).parent / "judging.py").read_text()
SEVERAL = ("algorithm.num_iterations=2", "algorithm.rollout.prompts=4", "checkpoint.every=4")
"""Overrides for four updates of each rollout."""
# name -> (algorithm, overrides)
RL_KINDS = {
    "grpo": ("grpo", SEVERAL),
    "gspo": ("gspo", SEVERAL),
    "dapo": ("dapo", ("algorithm.overlong_buffer_length=2", "algorithm.max_sampling_rounds=2")),
    "drgrpo": ("drgrpo", ()),
    "rloo": ("rloo", ()),
    "ppo": ("ppo", SEVERAL),
    "grpo_lora": ("grpo", ("adapter={kind: lora, rank: 4, alpha: 8}",)),
    "ppo_lora": ("ppo", ("adapter={kind: lora, rank: 4, alpha: 8}", "algorithm.num_iterations=2")),
}


@dataclasses.dataclass(frozen=True)
class Project:
    """A project folder."""

    home: Path
    cache: Path

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNIX_LAB_") and name != "XLA_FLAGS"}
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "JAX_PLATFORMS": os.environ.get("TESTS_ON", "cpu")}
        return kept | quiet | {"TUNIX_LAB_HOME": str(self.home), "TUNIX_LAB_CACHE_DIR": str(self.cache)} | more

    def write_spec(self, name: str, *, init: str = "{kind: random}", algorithm: str = "{kind: sft}", data: str = CHAT) -> Path:
        path = self.home / "experiments" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SPEC.format(name=name, init=init, algorithm=algorithm, data=data))
        return path

    def rl_command(self, name: str, *overrides: str) -> list[str]:
        """Writes an experiment of `RL_KINDS` and the module of its rewards; returns the arguments that run it."""
        kind, own = RL_KINDS[name]
        path = self.home / "experiments" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(RL_SPEC.format(name=name, kind=kind))
        (self.home / "judging.py").write_text(RL_REWARDS)
        return ["run", str(path), *(f"--set={text}" for text in (*own, *overrides))]

    def start(self, *arguments: str, **more: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*COMMAND, *arguments], cwd=self.home, env=self.environment(**more), **pipes)

    def cli(self, *arguments: str, exit_code: int = 0, **more: str) -> str:
        """Runs `tunix-lab` to its end and returns what it printed, both streams."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=300)
        assert process.returncode == exit_code, f"exit code {process.returncode}\n{out}\n{err}"
        return out + err

    def reward_workers(self) -> list[psutil.Process]:
        """The processes that call reward functions for runs of this project."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(psutil.Error):
                if "tunix_lab.rl.reward_worker" in (process.info["cmdline"] or ()) and Path(process.cwd()) == self.home.resolve():
                    found.append(process)
        return found

    def runs(self) -> list[Path]:
        return sorted((self.home / "runs").iterdir(), key=lambda path: path.stat().st_ctime)

    def interrupt(self, process: subprocess.Popen, step: int, signum: int = signal.SIGKILL) -> int:
        """Sends a signal once step `step` is in the journal of the newest run, and returns the exit code."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            if (self.home / "runs").is_dir():
                steps = [s for path in self.runs() for _, s, values in read_metrics(path) if "train/loss" in values]
                if steps and steps[-1] >= step:
                    process.send_signal(signum)
                    process.communicate(timeout=120)
                    return process.returncode
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not reached\n{process.communicate(timeout=10)}")


def metrics_of(run: Path) -> dict[tuple[int, str], float]:
    """Every train and eval value of a run by step and name; throughput is no result."""
    found = {}
    for _, step, values in read_metrics(run):
        found |= {(step, name): value for name, value in values.items() if name.startswith(("train/", "eval/"))}
    return found
