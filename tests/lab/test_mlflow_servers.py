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

from tunix_lab.cli.sync import sync
from tunix_lab.cli.ui import ui
from tunix_lab.errors import EnvironmentProblem
from tunix_lab.lab.record.journal import Journal, read_metrics
from tunix_lab.lab.tracking.cursor import CURSOR, Cursor, save_cursor
from tunix_lab.lab.tracking.problems import explain
from tunix_lab.lab.tracking.store import parse_store
from tunix_lab.lab.tracking.sync import follow, follower_problem, is_complete, push, start_follower

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
    assert "20 points wait: tracking server" in capfd.readouterr().out


@pytest.mark.parametrize(
    "before_host", ["me:secret-token", "secret-token", "secret-token:", "secret-token:x-oauth-basic", ":secret-token"]
)
def test_what_stands_before_the_host_is_neither_shown_nor_stored(make_run, before_host):
    store = parse_store(f"https://{before_host}@host:5000/")
    assert store.shown == "https://host:5000"
    assert "secret" not in store.key
    for text in (f"{store.uri}/api gave up", "no user secret-token here"):
        assert "secret-token" not in explain(store, RuntimeError(text)) and "name" in explain(store, RuntimeError("a name"))
    run_dir = make_run()
    save_cursor(run_dir, store, Cursor())
    assert "secret-token" not in (run_dir / CURSOR).read_text()
    for scheme in ("postgresql://", "https:///", ""):
        with pytest.raises(EnvironmentProblem) as caught:
            parse_store(f"{scheme}{before_host}@:host/mlflow")
        assert "secret-token" not in str(caught.value) and ":host/mlflow" in str(caught.value)


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


class Late(QuietHandler):
    """Gives up on the first request of each kind to make something, and carries it out only when it is `released`."""

    def answer(self, body):
        late = self.path.endswith(("/runs/create", "/logged-models")) and self.path not in self.server.seen
        if late:
            self.server.seen.add(self.path)
            self.reply(503, b"{}")
            self.server.late.append((self.path, body, dict(self.headers)))
            return
        self.reply(*self.upstream(self.server.upstream, self.command, self.path, body, dict(self.headers)))

    @staticmethod
    def upstream(port, command, path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(command, path, body, {name: value for name, value in headers.items() if name != "Connection"})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content, response.headers["Content-Type"] or "application/json"


@pytest.mark.slow
def test_what_a_server_makes_too_late_is_not_there_twice(make_run, query, store_file):
    from tunix_lab.lab.tracking.ui import serve

    run_dir, late = make_run(), []
    with serve(parse_store(f"sqlite:///{store_file}")) as base:
        port = int(base.rsplit(":", 1)[1])
        with serving(Late, seen=set(), late=late, upstream=port) as uri, Journal.open(run_dir) as journal:
            journal.checkpoint(1, "checkpoints/1", "1" * 64, 10)
            journal.metrics(1, {"train/loss": 1.0})
            assert [push(run_dir, uri).outcome for _ in range(3)] == ["pending", "pending", "running"]
            for path, body, headers in late:
                Late.upstream(port, "POST", path, body, headers)
            assert query("SELECT count(*) FROM runs") == query("SELECT count(*) FROM logged_models") == [(2,)]
            journal.metrics(2, {"train/loss": 0.5})
            journal.finish("finished")
            journal.close()
            assert push(run_dir, uri).outcome == "complete"
    for table in ("runs", "logged_models"):
        assert query(f"SELECT count(*) FROM {table} WHERE lifecycle_stage = 'active'") == [(1,)]
    assert query("SELECT key, step, value FROM metrics ORDER BY step") == [("train/loss", 1, 1.0), ("train/loss", 2, 0.5)]


ADDRESSES = {
    "port": ("http://secret@127.0.0.1:9", "refuses the connection"),
    "host": ("http://me:secret@no-such-host.invalid:5000", "has no address"),
    "password": ((401, b"You are not authenticated.", "text/plain"), "does not accept the user name and password"),
    "name": ((403, b"Invalid Host header - possible DNS rebinding attack detected", "text/plain"), "--allowed-hosts"),
    "another server": ((404, b"<h1>Not Found</h1>", "text/html"), "not as an MLflow server does"),
    "another page": ((200, b"<h1>Welcome</h1>", "text/html"), "not as an MLflow server does"),
    "another API": ((404, b'{"detail": "Not Found"}', "application/json"), "not as an MLflow server does"),
    "TLS": ("https", "do not agree on TLS"),
    "scheme": ("postgresql://me:secret@127.0.0.1/mlflow", "a database is for `mlflow server` alone"),
}


class Answering(QuietHandler):
    def answer(self, body):
        self.reply(*self.server.given)


@pytest.mark.parametrize("kind", ADDRESSES)
def test_a_bad_address_is_one_message_and_training_goes_on(make_run, kind, monkeypatch, tmp_path):
    given, words = ADDRESSES[kind]
    answer = given if isinstance(given, tuple) else (200, b"{}", "application/json")
    with serving(Answering, given=answer) as served, Journal.open(make_run()) as journal:
        uri = given if isinstance(given, str) and given != "https" else served.replace("//", "//me:secret@")
        uri = uri.replace("http:", "https:") if given == "https" else uri
        follower = start_follower(journal.run_dir, uri)
        for step in range(1, 6):
            journal.metrics(step, {"train/loss": 1 / step})
        deadline = time.monotonic() + 60
        while follower_problem(journal.run_dir) is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        follower.kill()
        follower.wait()
        said = [follower_problem(journal.run_dir)]
        monkeypatch.setenv("TUNIX_LAB_HOME", str(tmp_path))
        monkeypatch.setenv("TUNIX_LAB_TRACKING_URI", uri)
        for command in (sync, ui):
            with pytest.raises(EnvironmentProblem) as caught:  # exit code 3
                command()
            said.append(str(caught.value))
        assert all(words in text and "secret" not in text and "\n" not in text for text in said), said
        assert journal.run_id and [step for _, step, _ in read_metrics(journal.run_dir)] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_server_that_fails_in_the_middle_ends_with_every_point_once(make_run, query, store_file, tmp_path):
    from tunix_lab.lab.tracking.ui import serve

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
