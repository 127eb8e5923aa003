"""Sweeps whose workers run on Ray: one machine as a cluster of two nodes. Most is skipped where Ray is not installed."""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sweep_project import TRIAL, log, make, make_home, said, statuses, wait_for

import tunix_lab
from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.journal import run_status
from tunix_lab.lab.sweeps.node import Ended, follow, orders, refusal
from tunix_lab.lab.sweeps.on_ray import worker_variables
from tunix_lab.lab.sweeps.ray_cluster import connected, parse_resources
from tunix_lab.spec import LabSettings

RATES = ("optimizer.learning_rate=1.0,2.0,3.0,4.0,5.0,6.0",)
COMMAND = (sys.executable, "-c", TRIAL)
# A driver in a process of its own, as the command line is one.
DRIVER = """
import sys
from pathlib import Path
from tunix_lab.errors import Stopped, UserError
from tunix_lab.lab.sweeps.on_ray import sweep_on_ray
from tunix_lab.spec import LabSettings

home, sweep, script, workers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
try:
    results = sweep_on_ray(sweep, home, LabSettings(), workers, {"num_cpus": 1}, command=(sys.executable, "-c", script))
    print("best", results[0].values, results[0].mean)
except (Stopped, UserError) as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

# A cluster of two nodes, one of which can be lost; another takes its place.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(node, allow_graceful=False)
    print("lost", flush=True)
    node = cluster.add_node(num_cpus=1)
cluster.shutdown()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    return make_home(tmp_path, monkeypatch)


# ---- without Ray ---------------------------------------------------------------------------------------------------------


def test_without_ray_it_says_what_to_install_before_anything_is_made(home, monkeypatch, capsys):
    from tunix_lab.cli.main import main

    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.setattr(sys, "argv", ["tunix-lab", "sweep", str(home / "spec.yaml"), "--grid", RATES[0], "--ray", "2"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 3
    assert "--ray needs Ray, which is not installed: pip install 'tunix_lab[ray]'" in capsys.readouterr().err
    assert not (home / "runs").exists()
    with pytest.raises(EnvironmentProblem), connected():
        pass


def test_resources():
    assert parse_resources("num_cpus=1") == {"num_cpus": 1, "resources": {}}
    assert parse_resources("num_gpus=0.5, memory=2000") == {"num_cpus": 1, "num_gpus": 0.5, "memory": 2000, "resources": {}}
    assert parse_resources("num_cpus=4,TPU=8") == {"num_cpus": 4, "resources": {"TPU": 8}}
    for wrong in ("", "num_gpus", "num_gpus=many", "=1", "num_gpus=-1", "num_cpus=1.5", "num_cpus=nan", "num_cpus=inf"):
        with pytest.raises(UserError, match="--ray-resources: must look like num_cpus=4,num_gpus=1"):
            parse_resources(wrong)


def test_a_node_that_sees_something_else_is_refused(home, tmp_path):
    sweep_dir = make(home)
    with orders(sweep_dir, home, {}, jobs=1, command=COMMAND) as given:
        assert refusal(given) is None
        elsewhere = dataclasses.replace(given, lock=tmp_path / "not-mounted" / given.lock.name)
        assert "it does not see" in refusal(elsewhere)
        unlocked = sweep_dir / "LOCK-unlocked"  # as where locks do not reach from one machine to the other
        unlocked.touch()
        assert "trials would run twice" in refusal(dataclasses.replace(given, lock=unlocked))
        assert "resolved.yaml is another one" in refusal(dataclasses.replace(given, spec="0" * 64))
        assert "other code of tunix_lab" in refusal(dataclasses.replace(given, code="0" * 64))
        assert "tunix_lab 0.1.0 is installed there, and 9.9" in refusal(dataclasses.replace(given, version="9.9"))
        ended = follow(dataclasses.replace(given, version="9.9"))
        assert isinstance(ended, Ended) and ended.exit_code == 3 and sweep_dir.name in ended.message
        with open(given.lock, "ab") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert not given.lock.exists() and log(home) == []


def test_what_the_workers_get_of_the_environment(monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith(("TUNIX_LAB_", "JAX_", "XLA_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    plain = {"TUNIX_LAB_OFFLINE": "1", "JAX_PLATFORMS": "1", "XLA_FLAGS": "1"}
    for name in [*plain, "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"]:
        monkeypatch.setenv(name, "1")
    assert worker_variables(LabSettings(), 1) == plain and capsys.readouterr().err == ""
    assert worker_variables(LabSettings(), 2) == plain | {"TUNIX_LAB_SYNC": "off"}  # one SQLite file, several machines
    assert "`tunix-lab sync` brings the runs there afterwards" in capsys.readouterr().err
    on_server = LabSettings(tracking_uri="https://tracking.example.org", offline=False)
    assert worker_variables(on_server, 2) == plain | {"MLFLOW_TRACKING_PASSWORD": "1"}


def test_an_address_where_nobody_answers(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(EnvironmentProblem, match=r"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1"), connected():
        pass


# ---- on Ray --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two nodes with a processor each, in a process of its own."""
    pytest.importorskip("ray")
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    with process:
        yield Cluster(process, process.stdout.readline().strip())
        process.stdin.close()  # which ends it


@dataclasses.dataclass
class Cluster:
    process: subprocess.Popen
    address: str

    def lose_a_node(self):
        print("lose", file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "lost\n"


@pytest.fixture
def start(cluster):
    """`start(home, sweep_dir, workers)`: a driver in a process of its own; none outlives its test."""
    started = []

    def driver(home, sweep_dir, workers, **variables):
        environment = os.environ | {"RAY_ADDRESS": cluster.address} | variables
        arguments = [str(home), str(sweep_dir), TRIAL, str(workers)]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, *arguments], stderr=subprocess.PIPE, text=True, cwd=home, env=environment
            )
        )
        return started[-1]

    yield driver
    for process in started:
        process.kill()
        process.communicate()


def worker_of(sweep_dir, number):
    """Process id of the worker that took a trial last."""
    return int((sweep_dir / f"trials/{number:04d}/LOCK").read_text().split()[1])


def test_workers_on_two_nodes_share_the_trials_and_none_runs_twice(home, start):
    sweep_dir = make(home, RATES, seeds=2)
    (home / "control/hold-0").touch()
    driver = start(home, sweep_dir, 2, XLA_FLAGS="--of_the_driver", HF_TOKEN="of the driver")
    wait_for(lambda: "1" in said(home, "begins"), 60)  # by the other worker
    (home / "control/hold-0").unlink()
    (home / "control/seconds").write_text("0.1")
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 0, err
    assert sorted(said(home, "begins"), key=int) == [str(number) for number in range(12)] == sorted(said(home, "ends"), key=int)
    assert len({worker_of(sweep_dir, number) for number in range(12)}) == 2
    assert "workers on Ray: 2, nodes: 2" in err
    assert (sweep_dir / "trials/0011/log.txt").read_text() == "working --of_the_driver None\n"
    assert json.loads((sweep_dir / "sweep.json").read_text())["settings"][0]["n"] == 2
    assert run_status(sweep_dir).status == "finished"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_started_again_and_loses_nothing(home, start, signum):
    sweep_dir = make(home)
    (home / "control/hold-1").touch()
    driver = start(home, sweep_dir, 1)
    wait_for(lambda: "1" in said(home, "begins"), 60)
    first = worker_of(sweep_dir, 1)
    os.kill(first, signum)
    wait_for(lambda: said(home, "goes on") == ["1"], 60)
    (home / "control/hold-1").unlink()
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 0, err
    assert said(home, "begins") == ["0", "1", "2"] == said(home, "ends") and said(home, "saved") == ["1"]
    assert statuses(sweep_dir) == ["finished"] * 3 and run_status(sweep_dir).status == "finished"


def test_the_trial_of_a_lost_node_runs_elsewhere(home, start, cluster):
    sweep_dir = make(home)
    (home / "control/hold-0").touch()
    (home / "control/hold-1").touch()
    driver = start(home, sweep_dir, 2)
    wait_for(lambda: sorted(said(home, "begins")) == ["0", "1"], 60)
    cluster.lose_a_node()  # nothing can be saved there: Ray kills what its workers have started
    wait_for(lambda: len(said(home, "begins")) == 3, 60)
    lost = said(home, "begins")[2]
    first, second = (pid for number, what, pid, _ in log(home) if (number, what) == (lost, "begins"))
    assert not psutil.pid_exists(first) and psutil.pid_exists(second)
    for number in (0, 1):
        (home / f"control/hold-{number}").unlink()
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 0, err
    assert sorted(said(home, "begins")) == sorted(["0", "1", "2", lost]) and sorted(said(home, "ends")) == ["0", "1", "2"]
    assert run_status(sweep_dir).status == "finished"


def test_ctrl_c_saves_and_the_same_command_goes_on(home, start):
    sweep_dir = make(home)
    (home / "control/hold-0").touch()
    (home / "control/hold-1").touch()
    driver = start(home, sweep_dir, 3)  # the third worker finds no place
    wait_for(lambda: sorted(said(home, "begins")) == ["0", "1"], 60)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 128 + signal.SIGINT and "stopped by SIGINT; `tunix-lab sweep --join" in err
    assert sorted(said(home, "saved")) == ["0", "1"] and statuses(sweep_dir) == ["waiting"] * 3
    assert run_status(sweep_dir).status == "killed"
    for number in (0, 1):
        (home / f"control/hold-{number}").unlink()
    driver = start(home, sweep_dir, 2)
    assert driver.wait(60) == 0
    assert sorted(said(home, "goes on")) == ["0", "1"] and sorted(said(home, "begins")) == ["0", "1", "2"]


def test_nodes_with_other_code_are_refused(home, start, tmp_path):
    shutil.copytree(Path(tunix_lab.__file__).parent, tmp_path / "other/tunix_lab")
    with open(tmp_path / "other/tunix_lab/errors.py", "a") as file:
        file.write("# changed\n")
    sweep_dir = make(home)
    driver = start(home, sweep_dir, 2, PYTHONPATH=f"{tmp_path / 'other'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 3 and "other code of tunix_lab 0.1.0 is installed there" in err
    assert log(home) == [] and statuses(sweep_dir) == ["waiting"] * 3


def test_a_time_budget_of_a_trial_is_no_reason_to_start_again(home, start):
    sweep_dir = make(home)
    (home / "control/budget-0").touch()
    driver = start(home, sweep_dir, 1)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 75 and "stopped by its time budget (8h)" in err
    assert statuses(sweep_dir) == ["waiting"] * 3
