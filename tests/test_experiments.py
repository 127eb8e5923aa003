"""The pipeline of dvc.yaml and the pages of experiments/ say the same: what runs, from what, and what makes it run again."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tunix_lab.spec import LoadedSpec, load, upstream, upstreams
from tunix_lab.spec.data import HubSource

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "experiments").glob("*.yaml"))
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture(scope="module")
def stages() -> dict[str, dict[str, Any]]:
    return YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]


def family(file: Path) -> list[Path]:
    """A page and all that it extends, directly or not."""
    parents = YAML(typ="safe").load(file.read_text("utf-8")).get("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    return [file, *(ancestor for parent in parents for ancestor in family((file.parent / parent).resolve()))]


def paths(entries: list[Any]) -> set[str]:
    """Paths of deps, outs or params, which are strings or {path: options}."""
    return {path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)}


def covers(entries: list[Any], path: str) -> bool:
    """Whether one of the entries is the path or a folder around it."""
    return any(path == entry or path.startswith(f"{entry}/") for entry in paths(entries))


def loaded(page: Path) -> LoadedSpec:
    return load(page, home=ROOT)


def test_there_are_pages():
    assert {"pretrain_gemma", "sft_gemma", "dpo_gemma", "sft_pico_gemma", "distill_gemma", "distill_features_gemma"} <= {
        page.stem for page in PAGES
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_parses(file):
    assert isinstance(YAML(typ="safe").load(file.read_text("utf-8")), dict)


@every_page
def test_a_stage_runs_the_page(page, stages):
    name = loaded(page).spec.name
    command = shlex.split(stages[name]["cmd"])
    assert command[:3] == ["tunix-lab", "run", f"experiments/{page.name}"]
    assert command[3:] == ["--out", f"outputs/{name}"]


@every_page
def test_the_stage_runs_again_when_the_page_or_a_parent_changes(page, stages):
    params = stages[loaded(page).spec.name]["params"]
    for file in family(page):
        path = file.relative_to(ROOT).as_posix()
        assert {path: None} in params, f"{path} is not among the params, as a whole"  # `path:` tracks the whole file


@every_page
def test_the_stage_depends_on_what_the_page_reads(page, stages):
    spec = loaded(page).spec
    deps = stages[spec.name]["deps"]
    tokenizer = [] if spec.tokenizer.path is None else [spec.tokenizer.path]  # else that of what the experiment starts from
    for path in (spec.data.train, spec.data.validation, *tokenizer):
        assert covers(deps, path), path
    for name in upstreams(spec):
        assert f"outputs/{name}/final" in deps and name in stages
    made = {path for stage in stages.values() for path in paths(stage.get("outs", []))}
    assert [path for path in paths(deps) if not covers(sorted(made), path)] == []


@every_page
def test_the_stage_keeps_what_a_run_leaves(page, stages):
    name = loaded(page).spec.name
    stage = stages[name]
    assert f"outputs/{name}/final" in stage["outs"]
    assert {f"outputs/{name}/run.json": {"cache": False}} in stage["outs"]
    assert {f"outputs/{name}/metrics.json": {"cache": False}} in stage["metrics"]
    for curve in ("train", "eval"):
        assert {f"outputs/{name}/{curve}.csv": {"cache": False}} in stage["plots"]


@every_page
def test_the_output_is_evaluated(page, stages):
    """By a `foreach` stage; a preference experiment is measured against what it started from."""
    spec = loaded(page).spec
    stages_of = [stage for stage in stages.values() if "foreach" in stage and spec.name in stage["foreach"]]
    [stage] = [stage for stage in stages_of if shlex.split(stage["do"]["cmd"])[:2] == ["tunix-lab", "evaluate"]]
    if spec.data.kind == "preference":
        assert stage["foreach"][spec.name] == {"reference": upstream(spec)}
        assert "--reference outputs/${item.reference}" in stage["do"]["cmd"]


def test_every_training_stage_has_a_page(stages):
    running = {name for name, stage in stages.items() if shlex.split(stage.get("cmd", ""))[:2] == ["tunix-lab", "run"]}
    assert running == {page.stem for page in PAGES}


def test_params_of_the_pipeline_are_used(stages):
    """Every value of params.yaml stands in a command, and every command's value in params.yaml."""
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8"))
    written = json.dumps(stages)
    flat = {f"{section}.{key}" for section, keys in values.items() for key in keys}
    assert {name for name in flat if f"${{{name}}}" not in written} == set()
    for stage in stages.values():
        body = stage.get("do", stage)
        used = {name.partition(".")[0] for name in flat if f"${{{name}}}" in body["cmd"]}
        assert used <= paths(body["params"])


# ---- pages for models of the hub ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", sorted((ROOT / "experiments").glob("*/*.yaml")), ids=lambda page: f"{page.parent.name}-{page.stem}"
)
def test_pages_of_hub_models(page):
    """They begin with their command and check; weights and data are pinned to a commit. Pages under base/ are no experiments."""
    if page.parent.name == "base":
        return
    lines = page.read_text("utf-8").splitlines()
    assert lines[0] == f"# tunix-lab run {page.relative_to(ROOT)}" and lines[1].startswith(f"{lines[0]} --set ")
    overrides = shlex.split(lines[1])[5::2]
    for changed in ([], overrides):
        spec = load(page, changed, ROOT).spec
        assert spec.name == f"{page.parent.name}_{page.stem}" and len(spec.model.init.revision) == 40
        # Files of the project are made by the command that the page names.
        assert all(len(source.revision) == 40 for source in spec.data.sources("train") if isinstance(source, HubSource))
