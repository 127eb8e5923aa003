"""Checkpoints on disk: cadence, retention, reports, and what is believed after damage."""

import gc
import logging
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tunix_lab.errors import UserError
from tunix_lab.sft.checkpoint_manager import CheckpointManager
from tunix_lab.sft.retention import Best, Retention
from tunix_lab.sft.train_state import digest

# Reading a damaged checkpoint leaves Orbax's other reads unfinished.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def params(step):
    return {"a": jnp.arange(6.0).reshape(2, 3) + step, "b": jnp.full(4, step, jnp.bfloat16)}


def moments(step):
    return {"mu": jnp.arange(5.0) * step, "count": jnp.asarray(step)}


def write(folder, *steps):
    manager = CheckpointManager(folder, ocp.CheckpointManagerOptions(max_to_keep=10))
    for step in steps:
        manager.save(step, params(step), moments(step), {"train_steps": step})
    manager.close()


def read(folder):
    manager = CheckpointManager(folder)
    try:
        return manager.restore(params(0), moments(0))
    finally:
        manager.close()
        gc.collect()  # so that what Orbax left unfinished is reported here, not in another test


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    write(folder, 1, 2)
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


def test_roundtrip(folder):
    step, restored, opt_state, record, variables = read(folder)
    assert variables == {}
    assert step == 2 == record["train_steps"]
    for name, array in params(2).items():
        assert restored[name].dtype == array.dtype
        np.testing.assert_array_equal(restored[name], array)
    np.testing.assert_array_equal(opt_state["mu"], moments(2)["mu"])
    assert record["params_digest"] == digest(params(2))


@pytest.mark.slow
def test_crash_safe_checkpoint(two_steps, tmp_path, caplog):
    """Whatever file of the newest step is cut short, that step is either skipped with a warning, or still right."""
    files = [path.relative_to(two_steps) for path in sorted((two_steps / "2").rglob("*")) if path.is_file()]
    skipped = 0
    for i, name in enumerate(files):
        folder = shutil.copytree(two_steps, tmp_path / str(i))
        size = (folder / name).stat().st_size
        with open(folder / name, "r+b") as file:
            file.truncate(size // 2)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            step, restored, opt_state, *_ = read(folder)
        np.testing.assert_array_equal(restored["a"], params(step)["a"], err_msg=str(name))
        np.testing.assert_array_equal(opt_state["mu"], moments(step)["mu"], err_msg=str(name))
        if step == 1:
            skipped += 1
            assert "of step 2 is unusable and skipped" in caplog.text and str(folder) in caplog.text
    assert skipped >= 3  # parameters, moments and record at least


def test_other_parameters_are_noticed(folder, caplog):
    """Files that read without an error but hold another step's parameters: the digest knows."""
    shutil.rmtree(folder / "2" / "params")
    shutil.copytree(folder / "1" / "params", folder / "2" / "params")
    assert read(folder)[0] == 1 and "its parameters have digest" in caplog.text


def test_flipped_bytes_are_noticed(folder, caplog):
    """Right length, wrong content."""
    data = [path for path in (folder / "2" / "params").rglob("*") if path.is_file() and path.parent.name == "d"]
    assert data
    for path in data:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    step, restored, *_ = read(folder)
    assert step == 1 and "step 2 is unusable" in caplog.text
    np.testing.assert_array_equal(restored["a"], params(1)["a"])


@pytest.mark.parametrize("item", ["opt_state", "record"])
def test_other_moments_and_records_are_noticed(folder, caplog, item):
    """Everything is verified, not the parameters alone: here another step's moments, or a record that was edited."""
    if item == "opt_state":
        shutil.rmtree(folder / "2" / item)
        shutil.copytree(folder / "1" / item, folder / "2" / item)
    else:
        (path,) = (path for path in (folder / "2" / item).rglob("*") if path.is_file() and b"train_steps" in path.read_bytes())
        path.write_bytes(path.read_bytes().replace(b'"train_steps": 2', b'"train_steps": 3'))
    assert read(folder)[0] == 1 and f"its {item} " in caplog.text and "not what was written" in caplog.text


def test_verify_reads_back_what_lies_on_disk(folder):
    manager = CheckpointManager(folder)
    assert manager.verify(2, params(0), moments(0))
    shutil.rmtree(folder / "2" / "opt_state")
    assert not manager.verify(2, params(0), moments(0))
    manager.close()


def small_disk(folder, megabytes):
    """A file system of so many megabytes at `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")


def big(step):
    """Two megabytes that no compression makes smaller."""
    return {"a": jnp.asarray(np.random.default_rng(step).standard_normal(500_000), jnp.float32)}


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, caplog, is_foreseen):
    """The checkpoint that does not fit is left out with a message, whether it is foreseen or found out while writing."""
    small_disk(tmp_path / "disk", 8)
    try:
        monkeypatch.setattr("tunix_lab.sft.checkpoint_manager.SPARE_BYTES", 0 if is_foreseen else -(10**9))
        failed = []
        manager = CheckpointManager(tmp_path / "disk", every=1, on_failed=lambda *told: failed.append(told))
        assert manager.save(1, big(1), moments(1), {})
        manager.wait()
        filling = tmp_path / "disk" / "filling"
        filling.write_bytes(bytes(5_000_000))
        began = manager.save(2, big(2), moments(2), {})
        manager.wait()
        assert began == (not is_foreseen) and [step for step, _ in failed] == [2] and manager.latest_step() == 1
        assert "no checkpoint of step 2" in caplog.text and "training goes on" in caplog.text and manager.failure is not None
        assert "Traceback" not in manager.failure and ("lacks" if is_foreseen else "No space left") in manager.failure
        assert not list((tmp_path / "disk").glob("*tmp*"))
        filling.unlink()
        assert manager.save(3, big(3), moments(3), {})
        manager.close()
        assert manager.failure is None and CheckpointManager(tmp_path / "disk").restore(big(0), moments(0))[0] == 3
    finally:
        gc.collect()
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


def test_a_restored_checkpoint_is_reported(folder):
    """Whoever wrote it may have been killed before it could; the damaged one is not."""
    shutil.rmtree(folder / "2" / "params")
    seen = []
    manager = CheckpointManager(folder, on_saved=lambda *told: seen.append(told))
    manager.restore(params(0), moments(0))
    manager.close()
    assert seen == [(1, folder / "1", digest(params(1)))]


@pytest.mark.parametrize("is_reopened", [False, True])
def test_the_last_and_the_best_are_kept(tmp_path, is_reopened):
    """Losses by step: 5 4 1 NaN 2 and none; kept are the last two and the best two. A resumed run knows the old ones' too."""

    def opened():
        manager = CheckpointManager(tmp_path, every=1, retention=Retention(2, Best("eval/loss", count=2)))
        manager.restore(params(0), moments(0))
        return manager

    manager = opened()
    for step, loss in enumerate([5.0, 4.0, 1.0, float("nan"), 2.0, None, None], start=1):
        manager.judge(step, {"eval/other": 0.0})
        if loss is not None:
            manager.judge(step, {"eval/loss": loss})
        manager.save(step, params(step), moments(step), {})
        if is_reopened:
            manager.close()
            manager = opened()
    manager.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [3, 5, 6, 7]


def test_higher_may_be_better(tmp_path):
    manager = CheckpointManager(tmp_path, every=1, retention=Retention(1, Best("eval/score", higher_is_better=True)))
    for step, score in enumerate([0.2, 0.9, 0.5], start=1):
        manager.judge(step, {"eval/score": score})
        manager.save(step, params(step), moments(step), {})
    manager.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [2, 3]


def test_interrupted_writes_are_ignored(folder):
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-1700000000000000")
    assert CheckpointManager(folder).latest_step() == 2
    assert read(folder)[0] == 2


def test_nothing_usable_is_an_error(folder):
    for step in (1, 2):
        shutil.rmtree(folder / str(step) / "params")
    with pytest.raises(UserError, match=r"none of the checkpoints \[1, 2\] can be restored.*delete the folder"):
        read(folder)


def test_another_model_is_an_error(folder):
    manager = CheckpointManager(folder)
    with pytest.raises(UserError, match="none of the checkpoints"):
        manager.restore({"a": jnp.zeros((2, 4)), "b": jnp.zeros(4, jnp.bfloat16)}, moments(0))
    with pytest.raises(UserError, match="none of the checkpoints"):
        manager.restore({"other": jnp.zeros(3)}, moments(0))
    manager.close()


def test_a_damaged_step_is_written_again(folder, caplog):
    """A run that resumes before a damaged checkpoint replaces it when it comes there again."""
    shutil.rmtree(folder / "2" / "params")
    manager = CheckpointManager(folder, every=1)
    assert manager.restore(params(0), moments(0))[0] == 1
    assert manager.latest_step() == 1 and manager.is_due(2)
    assert manager.save(2, params(2), moments(2), {"train_steps": 2})
    manager.close()
    caplog.clear()
    assert read(folder)[0] == 2 and not caplog.text


def test_other_variables(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save(1, params(1), moments(1), {}, {"dropout.count": jnp.asarray(7, jnp.uint32)})
    manager.wait()
    assert int(manager.restore(params(0), moments(0), {"dropout.count": jnp.asarray(0, jnp.uint32)})[4]["dropout.count"]) == 7
    with pytest.raises(UserError, match="none of the checkpoints"):  # a model with more variables is another model
        manager.restore(params(0), moments(0), {"other.count": jnp.asarray(0, jnp.uint32)})
    manager.close()


def test_without_a_folder_nothing_is_saved():
    manager = CheckpointManager(None, every=1)
    assert not manager.is_due(1) and not manager.save(1, params(1), moments(1), {})
    assert manager.restore(params(0), moments(0)) is None and manager.latest_step() is None
    manager.close()


def test_an_empty_folder_restores_nothing(tmp_path):
    assert read(tmp_path / "new") is None


def test_cadence_and_retention(tmp_path):
    manager = CheckpointManager(tmp_path, ocp.CheckpointManagerOptions(max_to_keep=2), every=2)
    for step in range(1, 8):
        if manager.is_due(step):
            assert manager.save(step, params(step), moments(step), {})
    assert not manager.save(6, params(6), moments(6), {})  # there already
    manager.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [4, 6]


def test_orbax_cadence(tmp_path):
    manager = CheckpointManager(tmp_path, ocp.CheckpointManagerOptions(save_interval_steps=5))
    due = [step for step in range(1, 12) if manager.is_due(step) and manager.save(step, params(step), moments(step), {})]
    manager.close()
    assert due == [1, 5, 10]  # Orbax always wants the first


def test_reports_come_when_a_checkpoint_is_complete(tmp_path):
    seen = []

    def on_saved(step, path, params_digest):
        assert (path / "params").is_dir() and path == tmp_path / str(step)
        seen.append((step, params_digest))

    manager = CheckpointManager(tmp_path, every=1, on_saved=on_saved)
    for step in (1, 2):
        manager.save(step, params(step), moments(step), {})
    manager.wait()
    manager.wait()
    manager.close()
    assert seen == [(step, digest(params(step))) for step in (1, 2)]
