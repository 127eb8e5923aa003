"""Sweeps whose trials are small real processes: shared, killed, failed, stopped and continued."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from sweep_project import RATES, SPEC, TRIAL, log, make, make_home, said, statuses, wait_for

from tunix_lab.errors import Stopped, UserError
from tunix_lab.lab.record.journal import read_events, read_metrics, run_status
from tunix_lab.lab.sweeps.queue import Queue
from tunix_lab.lab.sweeps.space import Space
from tunix_lab.lab.sweeps.sweep import Plan, find_sweep, prepare
from tunix_lab.lab.sweeps.worker import Worker
from tunix_lab.spec import LabSettings, SpecError, load, spec_hash

DRIVER = """
import sys
from pathlib import Path
from tunix_lab.errors import Stopped, UserError
from tunix_lab.lab.sweeps.worker import Worker
from tunix_lab.spec import LabSettings

home, sweep, script, jobs = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
try:
    Worker(sweep, home, LabSettings(), jobs=jobs, command=[sys.executable, "-c", script]).work()
except Stopped as stopped:
    sys.exit(stopped.exit_code)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    return make_home(tmp_path, monkeypatch)


@pytest.fixture
def processes():
    """Worker processes that tests start; none outlives its test."""
    started = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def work(home, sweep_dir, jobs=1):
    return Worker(sweep_dir, home, LabSettings(), jobs=jobs, command=[sys.executable, "-c", TRIAL]).work()


def start(home, sweep_dir, processes, jobs=1):
    arguments = [str(home), str(sweep_dir), TRIAL, str(jobs)]
    process = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stderr=subprocess.DEVNULL)
    processes.append(process)
    return process


def test_every_trial_runs_once_and_is_ranked(home, capfd):
    sweep_dir = make(home, seeds=2)
    results = work(home, sweep_dir, jobs=2)
    assert [(result.values["optimizer.learning_rate"], result.mean) for result in results] == [
        ("2.0", pytest.approx(0.005)),
        ("1.0", pytest.approx(1.005)),
        ("3.0", pytest.approx(1.005)),
    ]
    assert results[0].std == pytest.approx(0.01 / 2**0.5)
    assert sorted(said(home, "begins")) == [str(number) for number in range(6)] == sorted(said(home, "ends"))
    state = run_status(sweep_dir)
    assert state.status == "finished"
    assert {"sweep/trials": 6, "sweep/finished": 6, "sweep/failed": 0, "sweep/best": pytest.approx(0.005)} == state.latest
    assert [step for _, step, _ in read_metrics(sweep_dir)][-1] == 6
    assert {event["number"] for event in read_events(sweep_dir) if event["kind"] == "trial"} == set(range(6))
    assert "trial 3: optimizer.learning_rate=2.0 seed=1" in capfd.readouterr().err


def test_the_same_command_finds_its_sweep_and_runs_nothing_again(home):
    sweep_dir = make(home)
    work(home, sweep_dir)
    assert make(home) == sweep_dir
    work(home, sweep_dir)
    assert len(said(home, "begins")) == 3 and run_status(sweep_dir).attempt == 2
    assert make(home, ("optimizer.learning_rate=1.0,2.0",)) != sweep_dir
    assert make(home, fresh=True) != sweep_dir
    assert find_sweep(home, sweep_dir.name[-4:]) == sweep_dir


def test_a_failed_trial_stops_no_other_and_is_tried_again_on_request(home):
    sweep_dir = make(home)
    (home / "control/fail-0").touch()
    (home / "control/die-1").touch()
    results = work(home, sweep_dir)
    assert [result.count("failed") for result in results] == [0, 1, 1]
    first, second, third = Queue(sweep_dir).entries()
    assert first.outcome.message == "exit code 4: loss is nan" and first.outcome.exit_code == 4
    assert "SIGKILL" in second.outcome.message and second.outcome.exit_code == -signal.SIGKILL
    assert third.status == "finished" and run_status(sweep_dir).status == "finished"

    (home / "control/fail-0").unlink()
    work(home, sweep_dir)
    assert said(home, "begins") == ["0", "1", "2"]  # only on request
    assert [trial.number for trial in Queue(sweep_dir).retry_failed()] == [0, 1]
    work(home, sweep_dir)
    assert said(home, "begins") == ["0", "1", "2", "0", "1"]
    assert statuses(sweep_dir) == ["finished", "failed", "finished"]
    assert (sweep_dir / "trials/0000/outcome-1.json").exists()


def test_no_secret_that_a_trial_says_reaches_the_records_of_the_sweep(home, monkeypatch):
    secret = "plain-value-of-a-token"
    monkeypatch.setenv("MY_SERVICE_TOKEN", secret)
    program = f"print('x' * 5000 + {secret!r}, flush=True); print({secret!r} + ' refused'); exit(4)"
    sweep_dir = make(home, ("optimizer.learning_rate=1.0",))
    Worker(sweep_dir, home, LabSettings(), command=[sys.executable, "-c", program]).work()
    (entry,) = Queue(sweep_dir).entries()
    assert entry.outcome.message == "exit code 4: <redacted> refused"
    assert (sweep_dir / "sweep.csv").exists() and (sweep_dir / "sweep.json").exists()
    holding = [path.name for path in sweep_dir.rglob("*") if path.is_file() and secret in path.read_text(errors="replace")]
    assert holding == ["log.txt"]


def test_a_secret_cut_by_the_length_of_a_message_is_known_as_one(home, monkeypatch):
    secret = "plain-value-of-a-token"
    monkeypatch.setenv("MY_SERVICE_TOKEN", secret)
    sweep_dir = make(home, ("optimizer.learning_rate=1.0",))
    program = f"print('x' * 290 + {secret!r} + 'y' * 5000); exit(4)"
    Worker(sweep_dir, home, LabSettings(), command=[sys.executable, "-c", program]).work()
    (entry,) = Queue(sweep_dir).entries()
    assert "xxx<redacte" in entry.outcome.message and "plain" not in entry.outcome.message


@pytest.mark.parametrize(
    ("overrides", "axes", "named"),
    [
        (["tracking.tags.note=plain-value-of-a-token"], RATES, "--set tracking.tags.note holds"),
        (["tracking.tags.api_token=opaque"], RATES, "--set tracking.tags.api_token holds"),
        ([], ("model.init.from=plain-value-of-a-token,x",), "--grid model.init.from holds"),
        ([], RATES, "spec.yaml: tracking.tags.note holds"),
    ],
)
def test_a_secret_among_the_values_of_a_sweep_is_refused(home, monkeypatch, overrides, axes, named):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "plain-value-of-a-token")
    if not overrides and axes is RATES:
        (home / "spec.yaml").write_text(SPEC.replace("sweeps}", "sweeps, tags: {note: a plain-value-of-a-token}}"))
    with pytest.raises(UserError) as caught:
        prepare(home / "spec.yaml", overrides, Space("grid", axes), home, LabSettings())
    assert named in str(caught.value) and "plain-value" not in str(caught.value) and "opaque" not in str(caught.value)
    assert caught.value.exit_code == 2 and not (home / "runs").exists()


def test_a_sweep_of_failures_has_failed(home):
    sweep_dir = make(home, ("optimizer.learning_rate=1.0",))
    (home / "control/fail-0").touch()
    work(home, sweep_dir)
    state = run_status(sweep_dir)
    assert (state.status, state.message) == ("failed", "all 1 trials failed")


def test_an_exit_code_of_0_is_no_proof(home):
    sweep_dir = make(home, ("optimizer.learning_rate=1.0",))
    Worker(sweep_dir, home, LabSettings(), command=[sys.executable, "-c", "pass"]).work()
    (entry,) = Queue(sweep_dir).entries()
    assert entry.status == "failed" and "left no metrics.json" in entry.outcome.message


def test_workers_share_the_trials_and_none_runs_twice_at_once(home, processes):
    (home / "control/seconds").write_text("0.15")
    sweep_dir = make(home, ("optimizer.learning_rate=1.0,2.0,3.0,4.0,5.0,6.0",), seeds=2)
    workers = [start(home, sweep_dir, processes, jobs=2) for _ in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert sorted(said(home, "begins"), key=int) == [str(number) for number in range(12)]
    parents = {entry["pid"] for entry in read_events(sweep_dir) if entry["kind"] == "attempt"}
    assert len(parents) == 1  # one of them held the journal
    assert json.loads((sweep_dir / "sweep.json").read_text())["settings"][0]["n"] == 2
    assert run_status(sweep_dir).status == "finished"


def test_a_killed_worker_takes_its_trial_with_it_and_another_goes_on(home, processes):
    sweep_dir = make(home, ("optimizer.learning_rate=1.0,2.0",))
    (home / "control/hold-0").touch()
    (home / "control/slow").touch()  # saving takes a while, in which nobody else may begin
    first = start(home, sweep_dir, processes)
    wait_for(lambda: said(home, "begins") == ["0"])
    second = start(home, sweep_dir, processes)
    wait_for(lambda: statuses(sweep_dir) == ["running", "finished"])
    first.kill()
    wait_for(lambda: said(home, "saved") == ["0"])  # the trial's process was told by the kernel
    wait_for(lambda: said(home, "goes on") == ["0"])  # by the second worker
    (home / "control/hold-0").unlink()
    assert second.wait(30) == 0
    times = {(number, what): at for number, what, _, at in log(home)}
    assert times["0", "saved"] <= times["0", "goes on"] and said(home, "begins") == ["0", "1"]
    assert run_status(sweep_dir).status == "finished" and run_status(sweep_dir).attempt == 2
    assert (sweep_dir / "sweep.png").stat().st_size > 5000


def test_a_run_that_outlived_its_worker_counts(home):
    sweep_dir = make(home, ("optimizer.learning_rate=1.0",))
    out = sweep_dir / "trials/0000/out"
    out.mkdir()
    (out / "metrics.json").write_text('{"eval": {"loss": 0.5}}')
    (out / "run.json").write_text('{"run_id": "small-0"}')
    assert work(home, sweep_dir)[0].mean == 0.5 and said(home, "begins") == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_same_command_goes_on(home, processes, signum):
    sweep_dir = make(home, seeds=1)
    (home / "control/hold-1").touch()
    worker = start(home, sweep_dir, processes, jobs=1)
    wait_for(lambda: "1" in said(home, "begins"))
    worker.send_signal(signum)
    assert worker.wait(20) == 128 + signum
    assert said(home, "saved") == ["1"] and run_status(sweep_dir).status == "killed"
    assert statuses(sweep_dir) == ["finished", "waiting", "waiting"]
    (home / "control/hold-1").unlink()
    work(home, make(home))
    assert said(home, "begins") == ["0", "1", "2"] and said(home, "goes on") == ["1"]


def test_the_warning_of_a_batch_system_to_a_trial_alone_is_no_failure(home, processes):
    sweep_dir = make(home)
    (home / "control/hold-1").touch()
    worker = start(home, sweep_dir, processes)
    wait_for(lambda: "1" in said(home, "begins"))
    (trial,) = (pid for number, what, pid, _ in log(home) if (number, what) == ("1", "begins"))
    os.kill(trial, signal.SIGUSR1)
    assert worker.wait(20) == 75
    assert said(home, "saved") == ["1"] and statuses(sweep_dir) == ["finished", "waiting", "waiting"]


def test_sigterm_after_the_warning_of_a_batch_system_waits_for_the_trials(home, processes):
    sweep_dir = make(home)
    (home / "control/hold-0").touch()
    (home / "control/slow").touch()
    worker = start(home, sweep_dir, processes)
    wait_for(lambda: said(home, "begins") == ["0"])
    worker.send_signal(signal.SIGUSR1)
    time.sleep(0.4)  # the trial is saving
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 128 + signal.SIGUSR1
    assert said(home, "saved") == ["0"] and statuses(sweep_dir) == ["waiting"] * 3


def test_a_time_budget_of_a_trial_ends_the_worker_and_is_no_failure(home):
    sweep_dir = make(home)
    (home / "control/budget-1").touch()
    with pytest.raises(Stopped, match=r"stopped by its time budget \(8h\)[^\0]*or the same command goes on") as caught:
        work(home, sweep_dir)
    assert caught.value.exit_code == 75 and statuses(sweep_dir) == ["finished", "waiting", "waiting"]
    (home / "control/budget-1").unlink()
    work(home, sweep_dir)
    assert said(home, "goes on") == ["1"] and statuses(sweep_dir) == ["finished"] * 3


def test_an_edit_of_the_spec_does_not_reach_a_sweep_that_has_begun(home):
    sweep_dir = make(home, ("training.batch_size=4,8",))
    overrides = Queue(sweep_dir).trials()[0].overrides()
    before = spec_hash(load(home / "spec.yaml", overrides, home).spec)
    (home / "spec.yaml").write_text(SPEC.replace("max_steps: 4", "max_steps: 8"))
    assert spec_hash(load(sweep_dir / "resolved.yaml", overrides, home).spec) == before
    assert make(home, ("training.batch_size=4,8",)) != sweep_dir  # another spec is another sweep


def test_more_random_trials_extend_the_sweep(home):
    axes = ("optimizer.learning_rate=1.0..3.0",)
    sweep_dir = make(home, axes, method="random", settings=2)
    work(home, sweep_dir)
    assert make(home, axes, method="random", settings=4) == sweep_dir
    work(home, sweep_dir)
    assert statuses(sweep_dir) == ["finished"] * 4
    assert make(home, axes, method="random", settings=2) == sweep_dir and Plan.read(sweep_dir).space.settings == 4


def test_tpe_in_shared_workers(home, processes):
    pytest.importorskip("optuna")
    sweep_dir = make(home, ("optimizer.learning_rate=0.5..6.0",), method="tpe", settings=14)
    workers = [start(home, sweep_dir, processes) for _ in range(2)]
    assert [worker.wait(90) for worker in workers] == [0, 0]
    entries = Queue(sweep_dir).entries()
    assert [entry.trial.setting for entry in entries] == list(range(14))
    assert min(entry.outcome.metrics["eval/loss"] for entry in entries) < 0.3
    assert len({entry.trial.values["optimizer.learning_rate"] for entry in entries}) == 14


def test_mistakes_are_told_before_anything_is_made(home):
    with pytest.raises(SpecError) as caught:
        make(home, ("optimizer.learning_rate=1.0,fast,-1", "training.bach_size=4,8", "training.max_steps=4"))
    lines = str(caught.value).splitlines()
    assert lines == [
        "--grid training.bach_size=4: training.bach_size: unknown field (did you mean 'batch_size'?)",
        "--grid training.bach_size=8: training.bach_size: unknown field (did you mean 'batch_size'?)",
        "--grid optimizer.learning_rate=fast: optimizer.learning_rate: must be a number, got 'fast'",
        "--grid optimizer.learning_rate=-1: optimizer.learning_rate: must be greater than 0, got -1",
    ]
    assert not (home / "runs").exists()


def test_the_mistakes_of_a_range_are_those_of_its_ends(home):
    with pytest.raises(SpecError, match=r"--random optimizer.learning_rate=-1.0: optimizer.learning_rate: must be greater"):
        make(home, ("optimizer.learning_rate=-1.0..1.0",), method="random", settings=1)
    assert not (home / "runs").exists()


def test_missing_data_is_told_once_before_anything_runs(home):
    (home / "data/train.jsonl").unlink()
    with pytest.raises(UserError, match="train.jsonl does not exist"):
        make(home)
    assert not list((home / "runs").glob("*"))


def test_joining_a_run_that_is_no_sweep(home, make_run):
    make_run("small-20261123-080000-3a61")
    with pytest.raises(UserError, match="is a run, not a sweep"):
        find_sweep(home, "small-20261123")


def test_no_signal_handler_is_left(home):
    before = signal.getsignal(signal.SIGINT)
    sweep_dir = make(home, ("optimizer.learning_rate=1.0",))
    (home / "control/hold-0").touch()
    os.kill(os.getpid(), 0)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    with pytest.raises(Stopped):
        work(home, sweep_dir)
    assert signal.getsignal(signal.SIGINT) is before
