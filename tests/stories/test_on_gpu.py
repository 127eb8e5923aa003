"""What holds on CPUs holds on a GPU: `TESTS_ON=cuda pytest tests/stories/test_on_gpu.py`, skipped elsewhere."""

import os

import pytest
from story_project import CHAT, Project

from tunix_lab.lab.record.journal import read_manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TESTS_ON", "cpu") == "cpu", reason="wants a GPU"),
]
HALF = ("--set", "model.dtype=bfloat16")


def verified(project: Project, spec: str, *overrides: str) -> str:
    """What `verify-resume` says of 6 updates of which a SIGKILL interrupts the fourth."""
    steps = ("--set", "checkpoint.every=2", "--steps", "6", "--kill-after", "3")
    return project.cli("verify-resume", spec, *steps, *overrides, TUNIX_LAB_SYNC="off")


def test_a_killed_run_ends_with_the_same_bytes(project: Project) -> None:
    """In bfloat16, where attention could be cuDNN's, whose backward pass adds in any order."""
    spec = project.write_spec("sft", data=CHAT)
    said = verified(project, str(spec), *HALF)
    assert "is the run that was not killed, bit for bit" in said
    manifest = read_manifest(project.runs()[0])
    assert manifest["hardware"]["platform"] == "gpu"
    assert "--xla_gpu_deterministic_ops=true" in manifest["environment"]["XLA_FLAGS"]


def test_answers_are_sampled_again(project: Project) -> None:
    project.rl_command("grpo")
    said = verified(project, "experiments/grpo.yaml", *HALF)
    assert "is the run that was not killed, bit for bit" in said
