"""Which run may go on, and what is said of those that may not."""

import pytest

from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.resume import run_to_resume

KILLED = {"inputs": {"tokenizer": "a"}}


def test_a_killed_run_may_go_on(make_run, tmp_path):
    run_dir = make_run(**KILLED)
    Journal.open(run_dir).close()
    assert run_to_resume(tmp_path, run_dir.name[-4:]) == run_dir


@pytest.mark.parametrize(
    ("manifest", "status", "said"),
    [
        (KILLED, "finished", "has finished: there is nothing to resume"),
        (KILLED | {"kind": "evaluate"}, None, "is no training run but kind 'evaluate'"),
        ({}, None, "was begun by an older version"),
    ],
)
def test_others_may_not(make_run, tmp_path, manifest, status, said):
    run_dir = make_run(**manifest)
    with Journal.open(run_dir) as journal:
        journal.finish(status or "killed")
    with pytest.raises(UserError, match=said):
        run_to_resume(tmp_path, run_dir.name)


def test_a_running_one_is_left_alone(make_run, tmp_path):
    run_dir = make_run(**KILLED)
    with Journal.open(run_dir), pytest.raises(EnvironmentProblem, match=r"running already as .* \(pid \d+ on "):
        run_to_resume(tmp_path, run_dir.name)
