"""A small Hugging Face hub on loopback: the part of its API that fetching a repository uses, and its ways to refuse."""

import dataclasses
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_TheSecretOfTheTests"


@dataclasses.dataclass
class Repo:
    """A repository: its files by commit, the newest commit last; `access` says who gets the files."""

    commits: dict[str, dict[str, bytes]]
    access: str = "public"  # or "gated", "private", "broken"

    def find(self, revision: str) -> str | None:
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


@dataclasses.dataclass
class FakeHub:
    """What the server holds, and what it was asked: (method, path, whether with the token).

    A dataset's name begins with "datasets/", as in the hub's addresses.
    """

    url: str
    repos: dict[str, Repo] = dataclasses.field(default_factory=dict)
    asked: list[tuple[str, str, bool]] = dataclasses.field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes], access: str = "public") -> str:
        """Commits files to a repository and returns the commit's hash."""
        commit = hashlib.sha1(json.dumps([name, sorted(files)]).encode() + b"".join(files.values())).hexdigest()
        self.repos.setdefault(name, Repo({}, access)).commits[commit] = files
        return commit

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """For a process that is to use this hub, with its cache under `home`; nothing of the user's own settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
        return kept | quiet | {"HF_ENDPOINT": self.url, "HF_HOME": str(home)} | more


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A hub for as long as the block lasts; after it nothing answers on its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self._known = token == f"Bearer {TOKEN}"
        self.server.hub.asked.append((self.command, path, self._known))
        if token is not None and not self._known:
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        info = re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = (info or file)[1]
        repo = self.server.hub.repos.get(name)
        if repo is None or (repo.access == "private" and not self._known):
            # The hub does not tell a stranger whether a private repository exists.
            return self._refuse(404 if self._known else 401, "RepoNotFound", "Invalid username or password.")
        if repo.access == "broken":
            return self._refuse(503, None, "down for maintenance")
        commit = repo.find((info[3] or "main") if info else file[2])
        if commit is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if info:
            return self._describe(name, commit, repo.commits[commit], info[2] == "tree")
        if repo.access == "gated":
            return self._refuse(403 if self._known else 401, "GatedRepo", "not in the authorized list")
        content = repo.commits[commit].get(file[3])
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        self._send(200, content, {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": commit})

    def _describe(self, name: str, commit: str, files: dict[str, bytes], tree: bool) -> None:
        """The listing of a commit, which also a gated repository shows to everyone."""
        if tree:
            listed = [{"type": "file", "path": path, "size": len(c), "oid": _blob(c)} for path, c in sorted(files.items())]
            return self._send(200, json.dumps(listed).encode(), {})
        siblings = [{"rfilename": path} for path in sorted(files)]
        self._send(200, json.dumps({"id": name, "modelId": name, "sha": commit, "siblings": siblings}).encode(), {})

    def _refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message} | ({} if code is None else {"X-Error-Code": code})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
