"""What the lab sets of JAX where a GPU may be."""

import importlib.metadata
import os

import pytest

from tunix_lab.lab.jax_settings import demand_same_bits


@pytest.mark.parametrize(
    ("plugins", "before", "after"),
    [
        ([], None, None),
        (["tpu"], "--xla_dump_to=x", "--xla_dump_to=x"),
        (["xla_cuda13"], None, "--xla_gpu_deterministic_ops=true"),
        (["tpu", "xla_rocm7"], "--xla_dump_to=x", "--xla_dump_to=x --xla_gpu_deterministic_ops=true"),
        (["xla_cuda12"], "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
    ],
)
def test_same_bits_on_gpus(monkeypatch, plugins, before, after):
    found = importlib.metadata.EntryPoints(importlib.metadata.EntryPoint(name, "m", "jax_plugins") for name in plugins)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found.select(group=group))
    monkeypatch.setenv("XLA_FLAGS", before or "")  # and so it is put back afterwards
    if before is None:
        monkeypatch.delenv("XLA_FLAGS")
    demand_same_bits()
    assert os.environ.get("XLA_FLAGS") == after
