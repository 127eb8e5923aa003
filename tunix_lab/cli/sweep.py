"""`tunix-lab sweep`: one experiment with many values and seeds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tunix_lab.lab.sweeps.space import Method, Space

_AXIS = {"metavar": "FIELD=…", "show_default": False}


def sweep(
    spec: Annotated[Path | None, typer.Argument(help="Spec file.", show_default=False)] = None,
    grid: Annotated[list[str], typer.Option("--grid", help="a,b,c: every combination; may be repeated.", **_AXIS)] = [],  # noqa: B006
    random: Annotated[list[str], typer.Option("--random", help="a,b,c or low..high[:log], drawn.", **_AXIS)] = [],  # noqa: B006
    tpe: Annotated[
        list[str], typer.Option("--tpe", help="The same, chosen by what earlier trials gave (needs Optuna).", **_AXIS)
    ] = [],  # noqa: B006 (never changed)
    trials: Annotated[int | None, typer.Option(min=1, help="Settings to try with --random or --tpe.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trials of each setting, from the spec's seed on.")] = 1,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Trials side by side.")] = 1,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="A.B=C", help="Override a field of all trials.", show_default=False)
    ] = [],  # noqa: B006 (never changed)
    join: Annotated[str | None, typer.Option(metavar="SWEEP", help="Work on this sweep instead of a spec.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed trials again.")] = False,
    ray: Annotated[int | None, typer.Option(min=1, metavar="N", help="N workers on a Ray cluster instead of one here.")] = None,
    ray_resources: Annotated[
        str, typer.Option("--ray-resources", metavar="A=X,…", help="What each of them needs: num_cpus=4,num_gpus=1.")
    ] = "num_cpus=1",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew even if this very sweep exists.")] = False,
) -> None:
    """Run an experiment with many values and seeds. Given again, it adds a worker, or goes on where it was stopped."""
    from tunix_lab.errors import TrainingFailed
    from tunix_lab.lab.sweeps.on_ray import sweep_on_ray
    from tunix_lab.lab.sweeps.queue import Queue
    from tunix_lab.lab.sweeps.ray_cluster import parse_resources, require_ray
    from tunix_lab.lab.sweeps.report import print_sweep
    from tunix_lab.lab.sweeps.sweep import find_sweep, prepare
    from tunix_lab.lab.sweeps.worker import Worker
    from tunix_lab.spec import LabSettings, find_home

    settings = LabSettings()
    home = find_home(settings)
    space = _space({"grid": grid, "random": random, "tpe": tpe}, trials, seeds)
    _check_target(spec, join, is_changed=bool(space.axes or overrides or fresh or trials or seeds > 1))
    resources = parse_resources(ray_resources)
    if ray:
        require_ray()
    sweep_dir = find_sweep(home, join) if join else prepare(spec, overrides, space, home, settings, fresh=fresh)
    if retry_failed:
        Queue(sweep_dir).retry_failed()
    if ray:
        results = sweep_on_ray(sweep_dir, home, settings, ray, resources, jobs=jobs)
    else:
        results = Worker(sweep_dir, home, settings, jobs=jobs).work()
    print_sweep(sweep_dir, results)
    failed = sum(result.count("failed") for result in results)
    if failed:
        raise TrainingFailed(f"{failed} trials failed; the same command with --retry-failed tries them again")


def _space(chosen: dict["Method", list[str]], trials: int | None, seeds: int) -> "Space":
    """What is to be tried. Raises UserError for two methods at once."""
    from tunix_lab.errors import UserError
    from tunix_lab.lab.sweeps.space import Space

    given = [method for method, axes in chosen.items() if axes]
    if len(given) > 1:
        raise UserError(f"sweep: choose one of {' and '.join('--' + method for method in given)}")
    method = given[0] if given else "grid"
    return Space(method, tuple(chosen[method]), trials, seeds)


def _check_target(spec: Path | None, join: str | None, *, is_changed: bool) -> None:
    """Raises UserError unless there is a spec or a sweep to join, which has its own values."""
    from tunix_lab.errors import UserError

    if (spec is None) == (join is None):
        raise UserError("sweep: give a spec file, or --join SWEEP")
    if join is not None and is_changed:
        raise UserError("sweep: --join takes its values from the sweep; it goes with -j, --ray and --retry-failed alone")
