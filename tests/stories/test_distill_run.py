"""A student that learns from another experiment's output: from its spec to its record, killed and continued, and its refusals."""

import json
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file
from story_project import Project, metrics_of

from tunix_lab.lab.versioning import dvc_digest

pytestmark = pytest.mark.slow

FEATURES = "{kind: distill, teacher: {kind: experiment, name: big}, strategy: {kind: feature_projection, alpha: 0.5}}"


def test_distillation(project: Project) -> None:
    """Killed after fourteen of its steps the run goes on to the same bytes, projection included; the teacher is in its record."""
    project.cli("run", str(project.write_spec("big")), "--out", "outputs/big", TUNIX_LAB_SYNC="off")
    teacher = project.home / "outputs/big/final"
    before = dvc_digest(teacher)
    spec = project.write_spec("small", algorithm=FEATURES)
    spec.write_text(spec.read_text().replace("size: nano", "size: pico"))
    arguments = ("run", str(spec), "--out", "outputs/small")
    project.cli(*arguments, TUNIX_LAB_SYNC="off")
    killed = Project(project.home.parent / "killed", project.cache)
    (killed.home / "outputs").mkdir(parents=True)
    (killed.home / "data").symlink_to(project.home / "data")
    (killed.home / "outputs/big").symlink_to(project.home / "outputs/big")
    assert killed.interrupt(killed.start(*arguments, TUNIX_LAB_SYNC="off"), step=14) == -signal.SIGKILL
    assert "resuming after step" in killed.cli(*arguments, TUNIX_LAB_SYNC="off")
    weights = [load_file(home / "outputs/small/final/model.safetensors") for home in (project.home, killed.home)]
    for name, value in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], value, err_msg=name)
    assert weights[0]["model.embed_tokens.weight"].shape == (512, 64)  # the student alone, without what was trained beside it
    assert not any("projection" in name for name in weights[0])
    first, second = metrics_of(project.runs()[1]), metrics_of(killed.runs()[0])
    assert first == second
    assert {"train/soft_loss", "train/hard_loss", "eval/soft_loss", "eval/hard_loss"} <= {name for _, name in first}
    assert first[24, "train/soft_loss"] < first[1, "train/soft_loss"]
    manifest = json.loads((project.runs()[1] / "manifest.json").read_text())
    assert manifest["tags"]["dvc.teacher"] == before == dvc_digest(teacher)
    assert manifest["parent_run_id"] is None and manifest["algorithm"] == "distill"

    # what does not fit the teacher is one line, before any step
    said = project.cli(
        "run", str(spec), "--set", "algorithm.strategy={kind: feature_projection, teacher_layers: [0, 1, 9]}", exit_code=2
    )
    assert "algorithm.strategy: teacher_layers: there is no layer 9, only 0 to 5" in said and "Traceback" not in said


def test_a_missing_teacher_is_planned(project: Project) -> None:
    spec = project.write_spec("small", algorithm="{kind: distill, teacher: {kind: experiment, name: big}}")
    said = project.cli("run", str(spec), exit_code=2)
    assert "small learns from the output of big, which is missing" in said and "no DVC stage 'big' to make it" in said
