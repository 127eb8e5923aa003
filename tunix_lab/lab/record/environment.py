"""The machine and the software of a run: what can change its numbers, or is needed to make it again. Loads no engine."""

import hashlib
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from tunix_lab.lab.record.redaction import Redactor

LOCK_FILES = ("requirements.lock", "uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pixi.lock", "conda-lock.yml")
_PACKAGES = (
    "tunix_lab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "qwix",
    "grain",
    "numpy",
    "tokenizers",
    "mlflow",
    "dvc",
)
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def environment() -> dict[str, Any]:
    """Versions, platform, processor and the settings that change numbers."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "versions": versions | {"python": platform.python_version()},
        "package": package_digest(),
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "count": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()},
        "environment": flags(),
    }


def is_flag(name: str) -> bool:
    """Whether an environment variable sets how numbers are computed."""
    return name in _FLAGS or name.startswith("JAX_")


def flags() -> dict[str, str]:
    """Those variables of this process."""
    return {name: os.environ[name] for name in sorted(os.environ) if is_flag(name)}


def installed() -> dict[str, str]:
    """Version of every installed distribution by its normalised name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name:  # the first one on the path is the one that is imported
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def env_lock() -> str:
    """The same as lines `name==version`, which pip installs."""
    return "".join(f"{name}=={version}\n" for name, version in installed().items())


def read_env_lock(text: str) -> dict[str, str]:
    """Versions by name from such lines."""
    return dict(line.split("==", 1) for line in text.splitlines() if "==" in line)


def lock_file_digests(home: Path) -> dict[str, str]:
    """sha256 of the lock files that the project has."""
    return {name: hashlib.sha256((home / name).read_bytes()).hexdigest() for name in LOCK_FILES if (home / name).is_file()}


def package_digest(folder: Path | None = None) -> str:
    """sha256 of the source of this package: names and bytes of its Python files. It says what an editable install really was.

    Args:
      folder: of the package; None takes the one that runs.
    """
    folder = Path(__file__).parents[2] if folder is None else folder
    hasher = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        hasher.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        hasher.update(hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()


def cpu_model() -> str:
    """The processor's name, as people know it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def command_line(redactor: Redactor) -> list[str]:
    """How this process was called; `redactor` takes secrets out."""
    program = Path(sys.argv[0]).name
    return ["tunix-lab" if program in ("-c", "tunix-lab") else program, *map(redactor.argument, sys.argv[1:])]
