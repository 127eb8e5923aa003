"""Where a command works: the project folder and the tracking store that the settings name."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Project:
    """A project folder and the address of its tracking store."""

    home: Path
    tracking_uri: str


def open_project() -> Project:
    """The project of the current folder and environment.

    Raises:
      UserError: a setting is wrong.
    """
    from tunix_lab.spec.settings import LabSettings, find_home, tracking_uri

    settings = LabSettings()
    home = find_home(settings)
    return Project(home, tracking_uri(settings, home))
