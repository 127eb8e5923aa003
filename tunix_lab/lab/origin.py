"""Where a run starts: the folders of its starting weights and of its tokenizer, and what tells their content from another's."""

from pathlib import Path

from tunix_lab.lab.versioning import dvc_digest, output_folder
from tunix_lab.models.hub import TOKENIZER_FILES, fetch
from tunix_lab.spec.algorithm import Distill, Ppo, Teacher
from tunix_lab.spec.experiment import ExperimentSpec
from tunix_lab.spec.model import ExperimentInit, HubInit, Init, PathInit, RandomInit
from tunix_lab.spec.rl import CriticInit


def base_folder(spec: ExperimentSpec, home: Path) -> Path | None:
    """The folder of the starting weights, fetched if they are the hub's; None for random ones."""
    return _folder(spec.model.init, home)


def teacher_folder(spec: ExperimentSpec, home: Path) -> Path | None:
    """The folder of the teacher's weights and tokenizer, fetched if they are the hub's; None where there is no teacher."""
    return _folder(spec.algorithm.teacher, home) if isinstance(spec.algorithm, Distill) else None


def critic_folder(spec: ExperimentSpec, home: Path) -> Path | None:
    """The folder of the weights that a critic of its own starts from, fetched if they are the hub's; None where it has none."""
    source = _critic(spec)
    return None if source is None else _folder(source, home)


def _critic(spec: ExperimentSpec) -> CriticInit | None:
    return spec.algorithm.critic.init if isinstance(spec.algorithm, Ppo) else None


def _folder(source: Init | Teacher, home: Path) -> Path | None:
    match source:
        case RandomInit():
            return None
        case ExperimentInit(name=name):
            return output_folder(home, name)
        case PathInit(path=path):
            return home / path
        case HubInit(repo=repo, revision=revision):
            return fetch(repo, revision).folder


def tokenizer_folder(spec: ExperimentSpec, home: Path) -> Path:
    """The folder that the spec names, or that of the starting weights; of a hub's model, only the tokenizer is fetched."""
    match spec.tokenizer.path, spec.model.init:
        case str(path), _:
            return home / path
        case None, ExperimentInit(name=name):
            return output_folder(home, name)
        case None, PathInit(path=path):
            return home / path
        case None, HubInit(repo=repo, revision=revision):
            return fetch(repo, revision, files=TOKENIZER_FILES).folder
    raise AssertionError("a spec with random weights names its tokenizer; see spec.checks")


def base_name(spec: ExperimentSpec, home: Path) -> tuple[str | None, str | None]:
    """What the starting weights are called: (repository, commit) of the hub, or (folder in the project, None); None: random."""
    return _name(spec.model.init, home)


def teacher_name(spec: ExperimentSpec, home: Path) -> tuple[str | None, str | None]:
    """What the teacher's weights are called, likewise; None where there is no teacher."""
    return _name(spec.algorithm.teacher, home) if isinstance(spec.algorithm, Distill) else (None, None)


def critic_name(spec: ExperimentSpec, home: Path) -> tuple[str | None, str | None]:
    """What the critic's starting weights are called, likewise; None where they are the actor's, or there is no critic."""
    source = _critic(spec)
    return (None, None) if source is None else _name(source, home)


def _name(source: Init | Teacher, home: Path) -> tuple[str | None, str | None]:
    match source:
        case RandomInit():
            return None, None
        case ExperimentInit(name=name):
            return output_folder(home, name).relative_to(home).as_posix(), None
        case PathInit(path=path):
            return path, None
        case HubInit(repo=repo, revision=commit):
            return repo, commit


def base_identity(spec: ExperimentSpec, folder: Path | None) -> str | None:
    """Tells the starting weights from all others; None for random ones.

    Of a folder it is the digest of every byte, as DVC shows it. A commit of the hub is such a digest already, of files that the
    cache keeps under their own hashes, so gigabytes are not read again to learn less.
    """
    return _identity(spec.model.init, folder)


def teacher_identity(spec: ExperimentSpec, folder: Path | None) -> str | None:
    """Tells the teacher from all others, as `base_identity` does the starting weights; None where there is no teacher."""
    return _identity(spec.algorithm.teacher, folder) if isinstance(spec.algorithm, Distill) else None


def critic_identity(spec: ExperimentSpec, folder: Path | None) -> str | None:
    """Tells the critic's own starting weights from all others; None where it has none."""
    source = _critic(spec)
    return None if source is None else _identity(source, folder)


def _identity(source: Init | Teacher, folder: Path | None) -> str | None:
    match source:
        case HubInit(repo=repo, revision=commit):
            return f"hub:{repo}@{commit}"
    return None if folder is None else dvc_digest(folder)
