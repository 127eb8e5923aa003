"""What an attempt begins with is kept, and told where a later one has something else."""

from pathlib import Path

import tunix_lab
from tunix_lab.lab.record.attempt import changed, origin_of, origins, tell_changes
from tunix_lab.lab.record.environment import package_digest
from tunix_lab.lab.record.git_state import GitState
from tunix_lab.lab.record.journal import Journal

HARDWARE = {"platform": "cpu", "device_kind": "cpu", "device_count": 1, "process_count": 1, "jax": {"enable_x64": False}}


def test_what_can_change_numbers_is_in_it(monkeypatch):
    base = origin_of(GitState(commit="a" * 40), HARDWARE, "seed: 0")
    assert (
        base["git.commit"] == "a" * 40 and base["git.patch"] == "" and base["versions.jax"] and base["jax.enable_x64"] == "False"
    )
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    others = {
        "git.commit": origin_of(GitState(commit="b" * 40), HARDWARE, "seed: 0"),
        "git.patch": origin_of(GitState(commit="a" * 40, patch=b"x"), HARDWARE, "seed: 0"),
        "spec": origin_of(GitState(commit="a" * 40), HARDWARE, "seed: 1"),
        "hardware.device_kind": origin_of(GitState(commit="a" * 40), HARDWARE | {"device_kind": "H100"}, "seed: 0"),
    }
    for name, other in others.items():
        assert set(changed(base, other)) == {name, "environment.XLA_FLAGS"}


def test_no_secret_is_in_it(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "https://me:a-password@host")
    assert "a-password" not in str(origin_of(GitState(), HARDWARE, ""))


def test_the_source_of_all_rooms_counts():
    """The trainers and the mathematics too, not the lab alone."""
    assert package_digest() == package_digest(Path(tunix_lab.__file__).parent)


def attempts(run_dir: Path, *begun: dict[str, str] | None) -> None:
    for origin in begun:
        Journal.open(run_dir, origin).close()


def test_changes_are_told_once_there_are_some(tmp_path, capsys):
    attempts(tmp_path / "run", {"git.commit": "a", "versions.jax": "1"}, {"git.commit": "a", "versions.jax": "1"})
    tell_changes(tmp_path / "run")
    assert capsys.readouterr().err == ""
    attempts(tmp_path / "run", {"git.commit": "b", "versions.jax": "1", "environment.XLA_FLAGS": "x"})
    tell_changes(tmp_path / "run")
    said = capsys.readouterr().err
    assert "another git.commit: a, now b" in said and "another environment.XLA_FLAGS: none, now x" in said and "jax" not in said
    assert "--fresh starts anew" in said and list(origins(tmp_path / "run")) == [1, 2, 3]


def test_attempts_of_older_versions_say_nothing(tmp_path, capsys):
    attempts(tmp_path / "run", None, {"git.commit": "b"})
    tell_changes(tmp_path / "run")
    assert capsys.readouterr().err == "" and list(origins(tmp_path / "run")) == [2]
