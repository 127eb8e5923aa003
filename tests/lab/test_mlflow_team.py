"""A team's server, PostgreSQL behind it: several writers at once, both killed and started again, and every point exactly once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import team_server

from tunix_lab.lab.record.journal import read_events, read_manifest
from tunix_lab.lab.record.run_state import read_metric_lines
from tunix_lab.lab.tracking.cursor import CURSOR
from tunix_lab.lab.tracking.sync import is_complete, push

REASON = team_server.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

# A trainer without a model: what it journals, and the follower that it starts, are the real ones.
WRITER = """
import pathlib, sys, time
from tunix_lab.lab.record.journal import Journal
from tunix_lab.lab.tracking.sync import start_follower
run_dir, stop, seed = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
uri, ending = sys.argv[4:]
step, journal = 0, Journal.open(run_dir)
with journal:
    start_follower(run_dir, uri)
    while not stop.exists():
        step += 1
        journal.metrics(step, {"train/loss": seed + 1 / step, "train/grad_norm": 0.5})
        if step % 200 == 0:
            journal.checkpoint(step, f"checkpoints/{run_dir.name}/{step}", f"{seed:032d}{step:032d}", 10)
            journal.metrics(step, {"eval/loss": seed + 2 / step}, checkpoint=step)
            journal.samples(step, [{"id": "p1", "prompt": "3+4?", "completion": str(step)}])
        time.sleep(0.02)
    if ending == "failed":
        raise RuntimeError("no more fuel")
"""
ENDINGS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED", "slow": "FINISHED"}


def _wait_for(database, more: int, seconds: float = 120) -> None:
    """Until `more` points have arrived from now on."""
    count = lambda: database.rows("SELECT count(*) FROM metrics")[0][0]  # noqa: E731
    before, deadline = count(), time.monotonic() + seconds
    while count() < before + more:
        assert time.monotonic() < deadline, "no points arrive"
        time.sleep(0.2)


def _expected(run_dirs: list[Path]) -> set[tuple]:
    """(our run id, key, step, value) of every point that the journals hold."""
    points = set()
    for run_dir in run_dirs:
        lines = list(read_metric_lines(run_dir))
        points |= {(run_dir.name, name, line.step, value) for line in lines for name, value in line.values.items()}
    return points


def test_a_team_loses_nothing_while_server_and_database_die(make_run, tmp_path):
    stop = tmp_path / "stop"
    run_dirs = {
        ending: make_run(f"dpo_nano-20261123-08000{i}-000{i}", experiment=f"team-{i % 2}") for i, ending in enumerate(ENDINGS)
    }
    with team_server.postgres() as database, team_server.server(database.uri, tmp_path) as server:
        # All at once: two writers each find that their experiment is missing.
        writers = {
            ending: subprocess.Popen([sys.executable, "-c", WRITER, str(run_dir), str(stop), str(i), server.uri, ending])
            for i, (ending, run_dir) in enumerate(run_dirs.items())
        }
        try:
            _wait_for(database, 400)
            server.kill()
            time.sleep(3)
            server.start()
            _wait_for(database, 400)
            database.stop()
            time.sleep(3)
            database.start()
            _wait_for(database, 400)
            writers["killed"].send_signal(signal.SIGKILL)
            server.kill()  # and once more, while the runs end
        finally:
            stop.touch()
            codes = {ending: writer.wait(60) for ending, writer in writers.items()}
        assert codes == {"finished": 0, "failed": 1, "killed": -signal.SIGKILL, "slow": 0}
        server.start()
        _complete(list(run_dirs.values()), server.uri)
        for ending in ("finished", "killed"):  # a copy of the run directory elsewhere knows nothing of what was pushed
            (run_dirs[ending] / CURSOR).unlink()
            assert push(run_dirs[ending], server.uri).outcome == "complete"
        _assert_whole(database, run_dirs, server)


def _complete(run_dirs: list[Path], uri: str) -> None:
    """Waits for the followers, which outlive their writers."""
    deadline = time.monotonic() + 180
    while not all(is_complete(run_dir, uri) for run_dir in run_dirs):
        logs = "\n".join((run_dir / "sync/follower.log").read_text() for run_dir in run_dirs)
        assert time.monotonic() < deadline, logs
        time.sleep(0.5)


def _assert_whole(database, run_dirs: dict[str, Path], server) -> None:
    named = "SELECT value, run_uuid, status FROM runs JOIN tags USING (run_uuid) WHERE key = 'lab.run_id'"
    runs = database.rows(named)
    statuses = {run_id: status for run_id, _, status in runs}
    assert statuses == {run_dir.name: ENDINGS[ending] for ending, run_dir in run_dirs.items()}
    assert len(runs) == len(run_dirs) == database.rows("SELECT count(*) FROM runs")[0][0]
    assert sorted(name for (name,) in database.rows("SELECT name FROM experiments")) == ["Default", "team-0", "team-1"]

    ours = {uuid: run_id for run_id, uuid, _ in runs}
    points = [(ours[uuid], *rest) for uuid, *rest in database.rows("SELECT run_uuid, key, step, value FROM metrics")]
    assert len(points) == len(set(points)) and set(points) == _expected(list(run_dirs.values()))
    assert len(points) > 1600

    for run_dir in run_dirs.values():
        uuid = next(uuid for uuid, run_id in ours.items() if run_id == run_dir.name)
        params = dict(database.rows(f"SELECT key, value FROM params WHERE run_uuid = '{uuid}'"))
        assert params["optimizer.learning_rate"] == "0.0003"
        inputs = "SELECT d.name, d.digest FROM inputs i JOIN datasets d ON d.dataset_uuid = i.source_id WHERE i.destination_id = "
        datasets = {(entry["name"], entry["digest"]) for entry in read_manifest(run_dir)["datasets"]}
        found = database.rows(inputs + f"'{uuid}'")
        assert len(found) == len(datasets) and set(found) == datasets
        saved = [event["step"] for event in read_events(run_dir) if event["kind"] == "checkpoint"]
        models = database.rows(f"SELECT name FROM logged_models WHERE source_run_id = '{uuid}' AND lifecycle_stage = 'active'")
        assert len(saved) == len(models) and saved
        artifacts = next(server.artifacts.glob(f"*/{uuid}/artifacts"))
        assert json.loads((artifacts / "manifest.json").read_text())["run_id"] == run_dir.name
        for name in ("samples/latest.json", "samples/history.jsonl"):
            assert (artifacts / name).read_bytes() == (run_dir / name).read_bytes()
    assert database.rows("SELECT value FROM tags WHERE key = 'lab.message'") == [("RuntimeError: no more fuel",)]
