"""A run that starts from a model of the hub: fetched, trained, recorded, and made again when the hub is gone."""

import dataclasses
import json
from pathlib import Path

import pytest
from fake_hub import files_of, serve
from flax import nnx
from story_project import Project

from tunix_lab.lab.record.journal import run_status
from tunix_lab.models.catalog import save_model
from tunix_lab.sft.train_state import flat_params
from tunix_lab.spec import load

REPO = "lab/nano-gemma"
SHORT = ("--set", "tokenizer.path=null", "--set", "training.max_steps=2", "--set", "optimizer.schedule.warmup_steps=0")
QUIET = {"TUNIX_LAB_SYNC": "off"}


@pytest.fixture
def nano(tiny_decoder, data: Path, project: Project, tmp_path: Path) -> dict[str, bytes]:
    """A model of the size that the stories' spec says, and its tokenizer, as a repository holds them."""
    config = load(project.write_spec("sizes"), home=project.home).spec.model.decoder_config()
    model = tiny_decoder(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    save_model(flat_params(nnx.state(model)), config, tmp_path / "repository")
    return files_of(tmp_path / "repository") | files_of(data / "tokenizer")


@pytest.mark.slow
def test_a_run_from_the_hub(project: Project, nano: dict[str, bytes], tmp_path: Path) -> None:
    home = tmp_path / "hub_cache"
    with serve() as hub:
        commit = hub.add(REPO, nano)
        spec = project.write_spec("from_hub", init=f"{{kind: hub, repo: {REPO}, revision: '{commit}'}}")
        environment = hub.environment(home) | QUIET

        shown = project.cli("show-data", str(spec), "-n", "1", "--set", "tokenizer.path=null", **environment)
        assert "tokens" in shown
        assert not [path for _, path, _ in hub.asked if path.endswith(".safetensors")]  # a look at the data needs no weights

        project.cli("run", str(spec), *SHORT, **environment)
    (run,) = project.runs()
    assert run_status(run).status == "finished" and run_status(run).step == 2
    manifest = json.loads((run / "manifest.json").read_text())
    tags = manifest["tags"]
    assert (tags["lab.base_repo"], tags["lab.base_commit"]) == (REPO, commit)
    assert len(tags["lab.tokenizer"]) == 64 and not {"dvc.base", "dvc.tokenizer"} & tags.keys()
    assert manifest["params"]["model.init.revision"] == commit and manifest["params"]["tokenizer.path"] is None
    assert (run / "final/tokenizer.json").read_bytes() == nano["tokenizer.json"]
    weights = (run / "final/model.safetensors").read_bytes()
    assert len(weights) == len(nano["model.safetensors"]) and weights != nano["model.safetensors"]

    # The hub is gone: the same commit is in the cache, and so the same run can be made again.
    project.cli("run", str(spec), *SHORT, "--fresh", **environment)
    again = project.runs()[-1]
    assert again != run and (again / "final/model.safetensors").read_bytes() == weights


def test_a_mistake_is_told_before_anything_is_fetched(project: Project, tmp_path: Path) -> None:
    with serve() as hub:
        spec = project.write_spec("from_hub", init=f"{{kind: hub, repo: {REPO}, revision: main}}")
        environment = hub.environment(tmp_path / "hub_cache") | QUIET
        printed = project.cli("run", str(spec), exit_code=2, **environment)
        assert "model.init.revision: must be the full hash of a commit" in printed and hub.asked == []
        spec = project.write_spec("from_hub", init=f"{{kind: hub, repo: {REPO}, revision: {'a' * 40}}}")
        assert f"{REPO}: the hub has no such repository" in project.cli("run", str(spec), exit_code=2, **environment)
        assert hub.asked
