"""JAX's settings for everything that the lab computes; to be made before the first array."""

import importlib.metadata
import os

import jax

from tunix_lab.spec import LabSettings

_DETERMINISTIC = "xla_gpu_deterministic_ops"


def set_up_jax(settings: LabSettings) -> None:
    """Keeps compiled programs on disk, and has GPUs give the same bits each time."""
    use_compilation_cache(settings)
    demand_same_bits()


def use_compilation_cache(settings: LabSettings) -> None:
    """Keeps compiled programs on disk, the quick ones too: a resumed or repeated run starts without compiling."""
    jax.config.update("jax_compilation_cache_dir", str(settings.cache_dir / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def demand_same_bits() -> None:
    """Where there may be a GPU, has XLA add in one order and choose kernels by rule, not in any order and by a stopwatch.

    Who sets that flag in XLA_FLAGS keeps what they set; with "false" attention in half precision is cuDNN's (`models.attention`).
    """
    flags = os.environ.get("XLA_FLAGS", "")
    plugins = importlib.metadata.entry_points(group="jax_plugins").names
    if _DETERMINISTIC not in flags and any("cuda" in name or "rocm" in name for name in plugins):
        os.environ["XLA_FLAGS"] = f"{flags} --{_DETERMINISTIC}=true".strip()
