"""What a run needs before it can start: the stages upstream that have to be made first, in their order, and their making."""

import sys
from pathlib import Path

from tunix_lab.errors import UserError
from tunix_lab.lab.sources import project_paths
from tunix_lab.lab.versioning import make_upstream, output_folder, stages
from tunix_lab.spec import ExperimentSpec, upstream, upstreams


def make_missing(spec: ExperimentSpec, home: Path) -> None:
    """Makes the outputs of upstream experiments that are not there, and says so first.

    Raises:
      UserError: something is missing that no stage makes.
      EnvironmentProblem: a stage failed.
    """
    for name in upstreams(spec):
        plan = missing_upstream(home, name)
        if plan or not output_folder(home, name).is_dir():
            role = "starts from" if name == upstream(spec) else "learns from"
            print(f"{spec.name} {role} the output of {name}, which is missing", file=sys.stderr)
            print(f"plan: dvc repro {name} ({' → '.join(plan)}), then {spec.name}", file=sys.stderr, flush=True)
            make_upstream(home, name)
    optional = [spec.tokenizer.path, None if spec.samples is None else spec.samples.prompts]
    for path in (home / name for name in (*optional, *project_paths(spec)) if name is not None):
        if not path.exists():
            raise UserError(
                f"{path} does not exist: `dvc repro {spec.name}` makes what the experiment needs, or mend its path in the spec"
            )


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
