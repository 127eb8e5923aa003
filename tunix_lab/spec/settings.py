"""Facts of the machine, not of an experiment: folders, tracking store, network. Read from TUNIX_LAB_* variables."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tunix_lab.errors import UserError
from tunix_lab.spec.errors import nearest

PREFIX = "TUNIX_LAB_"
_PROJECT_MARKS = (".dvc", ".git", "pyproject.toml")

Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class LabSettings(BaseSettings):
    """Settings from the environment. Raises UserError for a variable that has a wrong value or that no setting reads.

    Attributes:
      home: the project folder; None: found by `find_home`.
      tracking_uri: where MLflow keeps runs; None: a database in the project folder, see `tracking_uri`.
      cache_dir: folder of caches (compiled programs among them).
      offline: never use the network.
      stop_file: a file whose existence asks every run to save and stop, as some platforms announce a preemption; None: none.
      sync: "auto" replicates every run to the tracking store while it trains; "off" leaves that to `tunix-lab sync`.
      sync_drain_seconds: how long the end of a run waits for its replication.
      trial: `<sweep id>/<number>` where the run is a trial of a sweep; `tunix-lab sweep` sets it.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    home: Folder | None = None
    tracking_uri: str | None = None
    cache_dir: Folder = Field(default_factory=lambda: Path.home() / ".cache" / "tunix_lab")
    offline: bool = False
    stop_file: Folder | None = None
    sync: Literal["auto", "off"] = "auto"
    sync_drain_seconds: Annotated[float, Ge(0)] = 20.0
    trial: str | None = None

    def __init__(self, **values: Any) -> None:
        # Pydantic ignores a mistyped variable without a word.
        _refuse_unknown(os.environ, type(self).model_fields)
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = [_explained(details) for details in error.errors()]
            raise UserError("\n".join(lines)) from None

    @property
    def replicates(self) -> bool:
        """Whether runs go to the tracking store while they train: not if that is off, or if it is remote and we are offline."""
        is_remote = (self.tracking_uri or "").startswith(("http://", "https://"))
        return self.sync == "auto" and not (self.offline and is_remote)


def find_home(settings: LabSettings | None = None) -> Path:
    """The project folder, absolute: the setting, else $DVC_ROOT, else the nearest folder upwards that looks like a project.

    Where nothing upwards does, it is the current folder. Raises UserError for a setting that names no folder.
    """
    settings = LabSettings() if settings is None else settings
    if settings.home is not None:
        if not settings.home.is_dir():
            raise UserError(f"{PREFIX}HOME: no such folder: {settings.home}")
        return settings.home
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"]).absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if any((folder / mark).exists() for mark in _PROJECT_MARKS):
            return folder
    return here


def tracking_uri(settings: LabSettings, home: Path) -> str:
    """Where MLflow keeps the runs of the project in `home`: the setting, else a SQLite file there."""
    return settings.tracking_uri or f"sqlite:///{home.absolute() / 'mlflow.db'}"


def _refuse_unknown(environment: Iterable[str], fields: Iterable[str]) -> None:
    known = [name.upper() for name in fields]
    given = [name.upper().removeprefix(PREFIX) for name in environment if name.upper().startswith(PREFIX)]
    lines = [f"{PREFIX}{name}: no such setting{_hint(name, known)}" for name in given if name not in known]
    if lines:
        raise UserError("\n".join(lines))


def _hint(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    every = ", ".join(f"{PREFIX}{other}" for other in known)
    return f"; there are {every}" if near is None else f" (did you mean {PREFIX}{near}?)"


def _explained(details: Any) -> str:
    name = str(details["loc"][0]) if details["loc"] else ""
    return f"{PREFIX}{name.removeprefix(PREFIX.lower()).upper()}: {details['msg']}, got {details['input']!r}"
