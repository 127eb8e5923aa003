"""What a run must not depend on: the tracking server, the number of devices, other runs of its process."""

import subprocess
import sys

import numpy as np
import pytest
from story_project import Project, metrics_of

from tunix_lab.lab.record.journal import read_metrics, run_status

pytestmark = pytest.mark.slow

SHORT = ("--set", "training.max_steps=6", "--set", "optimizer.schedule.warmup_steps=2")


def test_dead_server_neither_stops_nor_loses_a_run(project: Project) -> None:
    spec = project.write_spec("offline")
    nobody = {"TUNIX_LAB_TRACKING_URI": "http://127.0.0.1:9", "TUNIX_LAB_SYNC_DRAIN_SECONDS": "0"}
    printed = project.cli("run", str(spec), *SHORT, **nobody)
    (run,) = project.runs()
    assert run_status(run).status == "finished" and f"tunix-lab sync {run.name}" in printed
    assert (run / "final/model.safetensors").is_file()
    project.cli("sync", run.name, exit_code=3, **nobody)
    points = sum(len(values) for _, _, values in read_metrics(run))
    assert f"{run.name}: {points} points pushed (complete)" in project.cli("sync", run.name)
    assert f"{run.name}: 0 points pushed (complete)" in project.cli("sync", run.name)


def test_same_losses_on_one_and_on_eight_devices(project: Project) -> None:
    spec = project.write_spec("devices")
    project.cli("run", str(spec), *SHORT, TUNIX_LAB_SYNC="off")
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "TUNIX_LAB_SYNC": "off"}
    project.cli("run", str(spec), *SHORT, "--fresh", "--set", "mesh={fsdp: 2, tp: 4}", **eight)
    one, many = (metrics_of(run) for run in project.runs())
    assert one.keys() == many.keys()
    for key in one:
        if key[1].endswith("loss"):
            np.testing.assert_allclose(many[key], one[key], atol=1e-5, err_msg=str(key))
    printed = project.cli("run", str(spec), *SHORT, "--fresh", "--set", "training.micro_batch_size=2", exit_code=2, **eight)
    assert "training.micro_batch_size" in printed and "Traceback" not in printed  # 2 rows on 8 devices


def test_runs_of_one_process_do_not_mix(project: Project) -> None:
    spec = project.write_spec("twins")
    program = f"""
from pathlib import Path
from tunix_lab.lab.runner import run
from tunix_lab.spec import LabSettings, load
home = Path({str(project.home)!r})
for seed in (0, 1, 0):
    overrides = ["training.max_steps=6", "optimizer.schedule.warmup_steps=2", f"seed={{seed}}"]
    run(load({str(spec)!r}, overrides, home), home, LabSettings(), fresh=True)
"""
    environment = project.environment(TUNIX_LAB_SYNC="off")
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=project.home, check=True, capture_output=True)
    first, other, again = project.runs()
    assert metrics_of(first) == metrics_of(again) != metrics_of(other)
    weights = [(run / "final/model.safetensors").read_bytes() for run in (first, other, again)]
    assert weights[0] == weights[2] != weights[1]
