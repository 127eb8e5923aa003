"""Opens an MLflow store: the embedded SQLite file, made once and shared by many processes, or a server.

MLflow is imported here, inside functions, after its usage reports are switched off.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from tunix_lab.errors import EnvironmentProblem

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.entities import PagedList

_NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smb", "smb3", "smbfs", "lustre", "beegfs", "ceph", "glusterfs", "9p", "afs"}
# A request to a server that hangs costs this much, once: the pass ends at its first failure and is tried again later.
PATIENCE_SECONDS = 5.0
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the address may hold a password
}
_SQLITE = b"SQLite format 3\0"  # what such a file begins with


@dataclasses.dataclass(frozen=True)
class Store:
    """A tracking store by its address.

    Attributes:
      uri: `sqlite:///FILE` with an absolute path, or an http(s) address.
      sqlite_file: the database; None for a server.
    """

    uri: str
    sqlite_file: Path | None

    @property
    def key(self) -> str:
        """A short name of the store, without what may be secret in its address."""
        return hashlib.sha256(self.uri.encode()).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """The address without user and password, either of which may be a token; a browser may open it."""
        if self.sqlite_file is not None:
            return self.uri
        parts = urlsplit(self.uri)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def artifact_root(self) -> Path | None:
        """Folder of artifacts beside the database; None for a server, which has its own."""
        return None if self.sqlite_file is None else self.sqlite_file.parent / "mlartifacts"


def parse_store(tracking_uri: str) -> Store:
    """The store at `tracking_uri`, not opened.

    Raises:
      EnvironmentProblem: neither a SQLite file nor an http(s) address.
    """
    if tracking_uri.startswith("sqlite:///") and len(tracking_uri) > len("sqlite:///"):
        file = Path(tracking_uri.removeprefix("sqlite:///")).expanduser().absolute()
        return Store(f"sqlite:///{file}", file)
    try:
        parts = urlsplit(tracking_uri)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # no number, or none of a port
        usable = False
    if usable:
        return Store(tracking_uri.rstrip("/"), None)
    shown = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1", tracking_uri, flags=re.DOTALL)
    database = re.split(r"[+:]", tracking_uri)[0] in ("postgresql", "postgres", "mysql", "mssql")
    hint = "; a database is for `mlflow server` alone: give the address of that server" if database else ""
    raise EnvironmentProblem(
        f"tracking address {shown!r} cannot be used: it must be sqlite:///FILE or http(s)://HOST[:PORT]{hint} "
        "(TUNIX_LAB_TRACKING_URI; unset, runs go to mlflow.db in the project folder)"
    )


def check_address(tracking_uri: str) -> None:
    """Looks at an address without MLflow, before a run begins. Whether a server answers does not matter then.

    Raises:
      EnvironmentProblem: the address can never work: its form is wrong, or its file is no database or cannot be made.
    """
    file = parse_store(tracking_uri).sqlite_file
    if file is None:
        return
    remedy = "mend TUNIX_LAB_TRACKING_URI, or unset it"
    if file.is_dir():
        raise EnvironmentProblem(f"tracking store {file} is a folder, not a database; {remedy}")
    above = next(folder for folder in file.parents if folder.exists())
    if not above.is_dir():
        raise EnvironmentProblem(f"tracking store {file}: {above} is not a folder; {remedy}")
    if file.exists() and file.stat().st_size and _begin(file) != _SQLITE:
        raise EnvironmentProblem(f"tracking store {file} is not a database; {remedy}, or move the file away")


def _begin(file: Path) -> bytes:
    with open(file, "rb") as content:
        return content.read(len(_SQLITE))


def open_store(store: Store) -> "MlflowClient":
    """A client of `store`; a SQLite store is created or checked first. A server is not contacted.

    Raises:
      EnvironmentProblem: the database cannot be created, is no database, or has the schema of another MLflow.
      OSError: the database is locked or the disk is full, for now.
    """
    os.environ.update(QUIET)  # read by MLflow when it is imported
    from mlflow import MlflowClient

    if store.sqlite_file is not None:
        _prepare_sqlite(store.sqlite_file, store.uri)
    return MlflowClient(store.uri)


@contextlib.contextmanager
def impatient_requests(seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Within it, MLflow's requests do not retry and time out after `seconds` (its defaults block for four minutes)."""
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(round(seconds)),
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": str(round(2 * seconds)),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def all_pages(search: "Callable[..., PagedList[Any]]", **arguments: Any) -> Iterator[Any]:
    """What a search of MLflow finds, page by page; it alone stops after the first."""
    token = None
    while True:
        page = search(**arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _prepare_sqlite(file: Path, uri: str) -> None:
    """Creates the schema if it is missing, one process at a time: MLflow's own creation fails when two start together."""
    import sqlalchemy.exc
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    logging.getLogger("alembic").setLevel(logging.WARNING)  # else it prints a line for each of a hundred migrations
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(f"tracking store {file}: {error.strerror or error}") from error
    try:
        with open(file.with_name(file.name + ".lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            MlflowClient(uri).search_experiments(max_results=1)
            _write_ahead_log(file)
    except PermissionError as error:
        raise EnvironmentProblem(f"tracking store {file}: {error.strerror}") from error
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, MlflowException) as error:
        reason = str(error).splitlines()[0]
        if "out-of-date database schema" in reason:
            raise EnvironmentProblem(
                f"tracking store {file} was made by another version of MLflow: back it up, then `mlflow db upgrade {uri}`"
            ) from error
        if "locked" in reason or "disk" in reason:  # may pass
            raise OSError(f"tracking store {file}: {reason}") from error
        raise EnvironmentProblem(f"tracking store {file} cannot be used: {reason}; move it away or repair it") from error


def _write_ahead_log(file: Path) -> None:
    """Lets readers (the UI) and writers work side by side and halves the cost of a write; unsafe on network filesystems."""
    if _filesystem(file) in _NETWORK_FILESYSTEMS:
        return
    with contextlib.closing(sqlite3.connect(file, timeout=20)) as database:
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
        if mode != "wal":
            database.execute("PRAGMA journal_mode=WAL")


def _filesystem(file: Path) -> str:
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in file.resolve().parents if folder in mounts), "")
