"""JAX's settings for everything that the lab computes."""

import importlib.metadata
import os

import jax

from tunix_lab.spec import LabSettings

_DETERMINISTIC = "xla_gpu_deterministic_ops"


def set_up_jax(settings: LabSettings) -> None:
    """Keeps compiled programs on disk, the quick ones too: a resumed or repeated run starts without compiling.

    And has XLA compute the same bits each time on a GPU, where by itself it adds in any order and chooses kernels by a stopwatch;
    who sets that flag in XLA_FLAGS keeps what they set. To be called before the first array is made.
    """
    jax.config.update("jax_compilation_cache_dir", str(settings.cache_dir / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    flags = os.environ.get("XLA_FLAGS", "")
    if _DETERMINISTIC not in flags and _has_gpu_plugin():
        os.environ["XLA_FLAGS"] = f"{flags} --{_DETERMINISTIC}=true".strip()


def _has_gpu_plugin() -> bool:
    plugins = importlib.metadata.entry_points(group="jax_plugins").names
    return any("cuda" in name or "rocm" in name for name in plugins)
