"""`tunix-lab resume`: go on with an interrupted run."""

from typing import Annotated

import typer


def resume(run: Annotated[str, typer.Argument(help="Run id, or its beginning or end.", show_default=False)]) -> None:
    """Go on with an interrupted run, to the bytes it would have ended with."""
    from tunix_lab.spec import LabSettings, find_home, load

    settings = LabSettings()
    home = find_home(settings)

    from tunix_lab.lab.record.run_state import read_manifest
    from tunix_lab.lab.resume import run_to_resume
    from tunix_lab.lab.runner import run as run_spec
    from tunix_lab.lab.summary import print_result

    run_dir = run_to_resume(home, run)
    loaded = load(run_dir / "resolved.yaml", [], home)
    out = home / read_manifest(run_dir)["out"]
    print_result(run_spec(loaded, home, settings, out=out, resumed=run_dir), loaded.spec)
