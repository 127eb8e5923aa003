"""A tracking server that is dead, hangs, fails or loses answers: never in the way, and complete once it works."""

import http.client
import http.server
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tunix_lab.lab.journal import Journal
from tunix_lab.lab.mlflow_store import parse_store
from tunix_lab.lab.mlflow_sync import follow, is_complete, push

pytestmark = [pytest.mark.filterwarnings(f"ignore:::{package}") for package in ("mlflow", "alembic", "sqlalchemy")]


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """Answers every method through `answer`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

    def reply(self, status, body, content_type="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Failing(QuietHandler):
    def answer(self, body):
        self.reply(500, b'{"error_code": "INTERNAL_ERROR", "message": "out of memory"}')


class Hanging(QuietHandler):
    def answer(self, body):
        self.server.released.wait(60)
        self.close_connection = True


@contextmanager
def serving(handler, **attributes) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.released = threading.Event()
    for name, value in attributes.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def dead() -> Iterator[str]:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


SERVERS = {"dead": dead, "failing": lambda: serving(Failing), "hanging": lambda: serving(Hanging)}


@pytest.mark.parametrize("kind", SERVERS)
def test_tracker_dead(make_run, train, tracking_uri, empty_store, kind):
    run_dir = make_run()
    with Journal.open(run_dir) as journal:
        journal.metrics(1, {"train/loss": 1.0})
        with SERVERS[kind]() as uri:
            began = time.monotonic()
            for number in (1, 2):
                pushed = push(run_dir, uri)
                assert (pushed.outcome, pushed.points, pushed.pending) == ("pending", 0, number)
                assert pushed.problem
                journal.metrics(number + 1, {"train/loss": 0.5})  # training goes on
            assert time.monotonic() - began < 14  # twice the timeout of one request
    assert not is_complete(run_dir, uri)
    assert push(run_dir, tracking_uri).points == 3
    assert is_complete(run_dir, tracking_uri)


def test_a_follower_gives_up_on_a_dead_server_some_time_after_the_run(make_run, train, capfd):
    run_dir = make_run()
    train(run_dir)
    with dead() as uri:
        began = time.monotonic()
        assert not follow(run_dir, uri, drain_seconds=1.0)
        assert time.monotonic() - began < 20
    assert "20 points wait: API request to" in capfd.readouterr().out


def test_a_password_in_the_address_is_not_shown():
    store = parse_store("https://me:secret@host:5000/")
    assert store.shown == "https://me:***@host:5000"
    assert "secret" not in store.key


class Unreliable(QuietHandler):
    """Hands requests on to a real server, but loses one in ten before the work is done, and one answer in ten after it."""

    def answer(self, body):
        luck = self.server.luck.random()
        if luck < 0.1:
            self.reply(503, b"{}")
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        if luck > 0.9:
            self.reply(500, b"{}")
        else:
            self.reply(response.status, content, response.headers["Content-Type"] or "application/json")


@pytest.mark.slow
def test_a_server_that_fails_in_the_middle_ends_with_every_point_once(make_run, query, store_file, tmp_path):
    from tunix_lab.lab.ui import serve

    parent, run_dir = make_run(), make_run("dpo_nano-20261123-090000-beef", parent_run_id="dpo_nano-20261123-080000-3a61")
    for folder in (parent, run_dir):
        with Journal.open(folder) as journal:
            for step in range(1, 1501):
                journal.metrics(step, {"train/loss": 1 / step, "train/grad_norm": 1.0})
                if step % 500 == 0:
                    journal.checkpoint(step, f"checkpoints/{step}", f"{step:064d}", 10)
                    journal.metrics(step, {"eval/loss": 1 / step}, checkpoint=step)
            journal.samples(1500, [{"id": "p1", "prompt": "3+4?", "completion": "7"}])
    with (
        serve(parse_store(f"sqlite:///{store_file}")) as base,
        serving(Unreliable, luck=random.Random(0), upstream=int(base.rsplit(":", 1)[1])) as uri,
    ):
        outcomes = []
        for folder in (parent, run_dir):
            while not is_complete(folder, uri):
                outcomes.append(push(folder, uri).outcome)
                assert len(outcomes) < 100
    assert outcomes.count("pending") > 3
    for table, number in (("runs", 2), ("logged_models", 6), ("logged_model_metrics", 6), ("metrics", 2 * 3003)):
        assert query(f"SELECT count(*) FROM {table}") == [(number,)]
    assert query("SELECT DISTINCT status FROM runs") == [("FINISHED",)]
    assert len(list((tmp_path / "mlartifacts").rglob("latest.json"))) == 2
