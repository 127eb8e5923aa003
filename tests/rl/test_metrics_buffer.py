"""Metrics wait for the step that they belong to, and are reduced as they say."""

import numpy as np

from tunix_lab.rl.metrics_buffer import MetricsBuffers
from tunix_lab.sft.metrics_logger import Mode


def test_each_metric_has_its_own_reduction():
    buffers = MetricsBuffers()
    buffers.add({"length": (2, np.max), "reward": 1.0}, "train", 0)
    buffers.add({"length": (10, np.max), "reward": 2.0, "prompts": ["a", "b"]}, "train", 0)
    assert buffers.take(Mode.TRAIN, 1) == {"length": 10.0, "reward": 1.5}  # texts are for the external logger
    assert buffers.take(Mode.TRAIN, 1) == {}


def test_a_metric_waits_for_its_step():
    buffers, seen = MetricsBuffers(), []
    buffers.external_logger = lambda buffer: seen.append((buffer.mode, buffer.global_steps, sorted(buffer.metrics)))
    buffers.add({"later": 7.0}, "train", 7)
    buffers.add({"now": 1.0}, "train", 1)
    buffers.add({"other": 1.0}, "eval", 1)
    assert buffers.take(Mode.TRAIN, 2) == {"now": 1.0}
    assert buffers.take(Mode.TRAIN, 6) == {}
    assert buffers.take(Mode.TRAIN, 7) == {"later": 7.0}
    assert seen == [("train", 2, ["now"]), ("train", 7, ["later"])]
    assert buffers.take(Mode.EVAL, 1) == {"other": 1.0}  # before any of training, too
