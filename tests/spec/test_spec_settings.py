"""Settings from the environment, and the project folder."""

import os
from pathlib import Path

import pytest

from tunix_lab.errors import UserError
from tunix_lab.spec import LabSettings, find_home, tracking_uri


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("TUNIX_LAB_") or name == "DVC_ROOT":
            monkeypatch.delenv(name)


def test_defaults(tmp_path):
    settings = LabSettings()
    assert (settings.home, settings.offline, settings.sync, settings.sync_drain_seconds) == (None, False, "auto", 20.0)
    assert settings.cache_dir == Path.home() / ".cache" / "tunix_lab"
    assert tracking_uri(settings, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_variables(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNIX_LAB_HOME", "project")
    monkeypatch.setenv("TUNIX_LAB_CACHE_DIR", "~/caches")
    monkeypatch.setenv("TUNIX_LAB_TRACKING_URI", "http://localhost:5000")
    monkeypatch.setenv("TUNIX_LAB_OFFLINE", "1")
    monkeypatch.setenv("TUNIX_LAB_SYNC", "off")
    monkeypatch.setenv("TUNIX_LAB_SYNC_DRAIN_SECONDS", "2.5")
    settings = LabSettings()
    assert settings.home == tmp_path / "project" and settings.cache_dir == Path.home() / "caches"
    assert (settings.offline, settings.sync, settings.sync_drain_seconds) == (True, "off", 2.5)
    assert tracking_uri(settings, tmp_path) == "http://localhost:5000"


def test_an_empty_variable_is_no_setting(monkeypatch):
    monkeypatch.setenv("TUNIX_LAB_HOME", "")
    assert LabSettings().home is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TUNIX_LAB_OFLINE", "1", r"^TUNIX_LAB_OFLINE: no such setting \(did you mean TUNIX_LAB_OFFLINE\?\)$"),
        ("TUNIX_LAB_WHATEVER_IT_IS", "1", "^TUNIX_LAB_WHATEVER_IT_IS: no such setting; there are TUNIX_LAB_HOME, "),
        ("TUNIX_LAB_SYNC", "sometimes", "^TUNIX_LAB_SYNC: Input should be 'auto' or 'off', got 'sometimes'$"),
        ("TUNIX_LAB_OFFLINE", "maybe", "^TUNIX_LAB_OFFLINE: .*got 'maybe'$"),
        ("TUNIX_LAB_SYNC_DRAIN_SECONDS", "-1", "^TUNIX_LAB_SYNC_DRAIN_SECONDS: .*got '-1'$"),
    ],
)
def test_mistake(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        LabSettings()


def test_home_is_the_setting_then_dvc_then_the_nearest_project(monkeypatch, tmp_path):
    (tmp_path / "project" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").write_text("")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "project" / "deep" / "er")
    assert find_home() == tmp_path / "project"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "other"))
    assert find_home() == tmp_path / "other"
    assert find_home(LabSettings(home=tmp_path)) == tmp_path
    monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="^TUNIX_LAB_HOME: no such folder: "):
        find_home()
