"""What a run needs before it can start: the upstream stages that have to be made first, in their order."""

from pathlib import Path

from tunix_lab.lab.versioning import output_folder, stages


def missing_upstream(home: Path, experiment: str | None) -> list[str]:
    """Names of the stages that `dvc repro` of `experiment` will visit, first to last; [] where its output is there.

    Only what the stages say of each other in dvc.yaml is read; DVC itself decides which of them have to run.
    """
    if experiment is None or (output_folder(home, experiment) / "config.json").is_file():
        return []
    known = stages(home)
    outs = [(Path(_path(out)), name) for name, stage in known.items() for out in stage.get("outs", [])]
    order: list[str] = []

    def visit(name: str) -> None:
        for dep in known.get(name, {}).get("deps", []):
            for out, maker in outs:  # a dependency may lie inside an output folder
                if Path(_path(dep)).is_relative_to(out) and maker not in order:
                    visit(maker)
        if name not in order:
            order.append(name)

    visit(experiment)
    return order


def _path(entry: str | dict) -> str:
    """A dependency or output is a path, or a mapping from the path to its options."""
    return entry if isinstance(entry, str) else next(iter(entry))
