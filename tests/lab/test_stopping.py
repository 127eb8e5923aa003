"""Why a run ends early: its budget by arithmetic, files and signals by looking."""

import os
import signal
from pathlib import Path

import pytest

from tunix_lab.errors import EnvironmentProblem, Stopped
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.stopping import STOP_FILE, Budget, Stopping


class Manager:
    longest_save_s = 1.0
    failure = None


class Trainer:
    """Only what a stop looks at."""

    def __init__(self):
        self.checkpoint_manager = Manager()
        self.train_steps = 7
        self.asked = 0
        self.verifies = True
        self.can_pause = True

    def request_stop(self):
        self.asked += 1

    def verify_checkpoint(self):
        return self.verifies


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path


def test_budget_leaves_room_for_an_update_and_two_saves():
    """Updates of 10 s, the longest 14 s, saves of 3 s: in reserve are 2 · 14 + 2 · 3 + 2 = 36 s."""
    budget = Budget(100.0, began=1000.0)
    assert [budget.is_over(now, 3.0) for now in (1020, 1030, 1044, 1054, 1064)] == [False] * 5
    assert budget.is_over(1065, 3.0)
    assert str(Budget(8.5 * 3600, 0.0)) == "8h30m" and str(Budget(61, 0.0)) == "1m1s"


def test_budget_before_the_first_save():
    assert not Budget(100.0, began=0.0).is_over(37.0, None) and Budget(100.0, began=0.0).is_over(39.0, None)


def test_the_evaluation_before_the_first_update_counts(run_dir, monkeypatch):
    """Begun at 1000 s of a budget of 2000; an evaluation of 500 s: 2 · 500 + 2 · 1 + 2 are in reserve."""
    now = [1000.0]
    monkeypatch.setattr("tunix_lab.lab.stopping.time.time", lambda: now[0])
    monkeypatch.setattr("tunix_lab.lab.stopping.psutil.Process", lambda: Life)
    for moment, asked in ((1995.0, 0), (1996.5, 1)):
        trainer, stopping = Trainer(), Stopping(run_dir, None, 2000.0)
        now[0] = 1000.0
        stopping.begin()
        now[0] = 1500.0
        stopping.after_update(trainer)
        now[0] = moment
        stopping.after_update(trainer)
        assert trainer.asked == asked, moment


def test_updates_of_one_rollout_count_as_one(run_dir, monkeypatch):
    """Begun at 1000 s of a budget of 100; a rollout's updates end at 1010, 1020 and 1030: 2 · 30 + 2 · 1 + 2 are in reserve."""
    now = [1000.0]
    monkeypatch.setattr("tunix_lab.lab.stopping.time.time", lambda: now[0])
    monkeypatch.setattr("tunix_lab.lab.stopping.psutil.Process", lambda: Life)
    for end, asked in ((1030.0, 0), (1036.5, 1)):
        trainer, stopping = Trainer(), Stopping(run_dir, None, 100.0)
        now[0] = 1000.0
        stopping.begin()
        for moment, can_pause in ((1010.0, False), (1020.0, False), (1030.0, True), (end, True)):
            now[0], trainer.can_pause = moment, can_pause
            stopping.after_update(trainer)
        assert trainer.asked == asked, end


def test_it_says_when_it_will_stop(run_dir, capsys):
    for can_pause, when in ((True, "after this step"), (False, "after the last update of this rollout")):
        trainer, stopping = Trainer(), Stopping(run_dir, None, None)
        trainer.can_pause = can_pause
        (run_dir / STOP_FILE).touch()
        stopping.after_update(trainer)
        assert f"stopping {when}" in capsys.readouterr().err and trainer.asked == 1


class Life:
    create_time = staticmethod(lambda: 1000.0)


def test_an_attempt_knows_the_pace_of_the_one_before(run_dir):
    with Journal.open(run_dir) as journal:
        journal.event("pace", longest_s=600.0, save_s=40.0)
    stopping, trainer = Stopping(run_dir, None, 1000.0), Trainer()
    stopping.after_update(trainer)  # 2 · 600 s are more than there are
    assert trainer.asked == 1 and stopping.pace(trainer) == {"longest_s": 600.0, "save_s": 1.0}


def test_budget_of_nothing_stops_after_the_first_update(run_dir):
    trainer, stopping = Trainer(), Stopping(run_dir, None, 1.0)
    stopping.after_update(trainer)
    stopping.after_update(trainer)
    assert trainer.asked == 1
    with pytest.raises(Stopped, match=r"time budget \(1s\): step 7 is saved and verified; `tunix-lab resume") as stopped:
        stopping.raise_stopped(trainer)
    assert stopped.value.exit_code == 75


def test_a_stage_stops_when_its_dvc_is_gone(run_dir, monkeypatch):
    """DVC leaves its stages running when it is killed; the next `dvc repro` would start a twin in the same folders."""
    monkeypatch.setenv("DVC_STAGE", "train")
    trainer, stopping = Trainer(), Stopping(run_dir, None, None)
    stopping.after_update(trainer)
    assert trainer.asked == 0
    monkeypatch.setattr("tunix_lab.lab.stopping.os.getppid", lambda: 1)
    stopping.after_update(trainer)
    assert trainer.asked == 1
    with pytest.raises(Stopped, match="the end of the dvc process that started this stage") as stopped:
        stopping.raise_stopped(trainer)
    assert stopped.value.exit_code == 143


@pytest.mark.parametrize("which", ["of the run", "of the machine"])
def test_stop_files(run_dir, which):
    trainer, machine = Trainer(), run_dir / "preempted"
    stopping = Stopping(run_dir, machine, None)
    stopping.after_update(trainer)
    assert trainer.asked == 0
    (run_dir / STOP_FILE if which == "of the run" else machine).touch()
    stopping.after_update(trainer)
    assert trainer.asked == 1
    with pytest.raises(Stopped, match="the stop file"):
        stopping.raise_stopped(trainer)
    Stopping(run_dir, None, None)
    assert not (run_dir / STOP_FILE).exists()  # the next attempt is not stopped by it


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals(run_dir, signum):
    before = signal.getsignal(signum)
    trainer, stopping = Trainer(), Stopping(run_dir, None, None)
    with stopping.on_signals(trainer):
        os.kill(os.getpid(), signum)
        assert trainer.asked == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signum)
    assert signal.getsignal(signum) == before
    with pytest.raises(Stopped) as stopped:
        stopping.raise_stopped(trainer)
    assert stopped.value.exit_code == 128 + signum


def test_sigterm_after_the_warning_of_a_batch_system_lets_the_run_save(run_dir):
    trainer, stopping = Trainer(), Stopping(run_dir, None, None)
    with stopping.on_signals(trainer):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert trainer.asked == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        stopping.raise_stopped(trainer)
    assert stopped.value.exit_code == 128 + signal.SIGUSR1


def test_a_state_that_is_not_on_disk_is_not_called_saved(run_dir):
    trainer, stopping = Trainer(), Stopping(run_dir, None, 1.0)
    stopping.after_update(trainer)
    trainer.verifies = False
    with pytest.raises(EnvironmentProblem, match="the checkpoint of step 7 is damaged"):
        stopping.raise_stopped(trainer)
    trainer.checkpoint_manager.failure = "no checkpoint of step 7: the disk is full"
    with pytest.raises(EnvironmentProblem, match="after step 7, and no checkpoint of step 7: the disk is full"):
        stopping.raise_stopped(trainer)
