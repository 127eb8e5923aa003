"""The files of a project that git does not know: small ones in a bundle, so that a run can be made again, others by hash."""

import dataclasses
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from tunix_lab.lab.record.redaction import Redactor, is_key_file

MAX_FILE = 1 << 20
MAX_BUNDLE = 20 << 20
MAX_HASHED = 256 << 20  # bytes read in all: what lies around may be a data set, and a run must not wait for it
MAX_LISTED = 1000


@dataclasses.dataclass(frozen=True)
class Untracked:
    """What was found.

    Attributes:
      files: a mapping each with `path`, `bytes`, `sha256` (None where too much would have to be read) and `bundled`.
      left_out: (path, reason) of those whose content must not be written.
      more: files beyond `MAX_LISTED`, which are only counted.
      bundle: a deterministic tar.gz of the bundled files; None if there are none.
    """

    files: list[dict[str, Any]]
    left_out: list[tuple[str, str]]
    more: int
    bundle: bytes | None


def bundle_untracked(top: Path, paths: Iterable[str], redactor: Redactor) -> Untracked:
    """Looks at the untracked files of a repository, in the order of their names.

    Args:
      top: folder of the repository.
      paths: of the files, relative to it.
      redactor: tells which of them hold secrets.
    """
    names = sorted(paths)
    files: list[dict[str, Any]] = []
    left_out: list[tuple[str, str]] = []
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    total = read = 0
    for path in names[:MAX_LISTED]:
        reason = _must_not(top, path)
        try:
            size = os.lstat(top / path).st_size if reason is None else 0
            small = size <= MAX_FILE and total + size <= MAX_BUNDLE
            content = _content(top / path) if reason is None and (small or read + size <= MAX_HASHED) else None
        except OSError as error:  # gone since git listed it, or not ours to read
            reason, content = f"cannot be read: {error.strerror}", None
        if reason is None and small and redactor.holds_secret(content):
            reason = "holds a secret"
        if reason is not None:
            left_out.append((path, reason))
            continue
        sha256 = None if content is None else hashlib.sha256(content).hexdigest()
        files.append({"path": path, "bytes": size, "sha256": sha256, "bundled": small})
        read += size
        if small:
            total += size
            members.append((_member(top / path, path, size), content))
    return Untracked(files, left_out, len(names[MAX_LISTED:]), _pack(members) if members else None)


def unpack(bundle: bytes, folder: Path) -> list[str]:
    """Writes the files of a bundle into `folder` and returns their paths. A path or a link that leads out of it is refused."""
    with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:gz") as archive:
        archive.extractall(folder, filter="data")
        return archive.getnames()


def _must_not(top: Path, path: str) -> str | None:
    """Why a file must not be looked at; None where it may."""
    if path.endswith("/"):
        return "another git repository"
    if is_key_file(path):
        return "a file for secrets"
    if (top / path).is_symlink():
        target = PurePosixPath(os.readlink(top / path))
        inside = not target.is_absolute() and (top / path).parent.joinpath(target).resolve().is_relative_to(top.resolve())
        return None if inside else "a link that leads out of the project"
    return None if (top / path).is_file() else "not a file"


def _content(path: Path) -> bytes:
    return os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()


def _member(file: Path, path: str, size: int) -> tarfile.TarInfo:
    """The entry of a file: its name, its content, and whether it can be executed; nothing of its owner or its times."""
    info = tarfile.TarInfo(path)
    if file.is_symlink():
        info.type, info.linkname, info.size = tarfile.SYMTYPE, os.readlink(file), 0
    else:
        info.size, info.mode = size, 0o755 if os.access(file, os.X_OK) else 0o644
    return info


def _pack(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for info, content in members:
            archive.addfile(info, None if info.issym() else io.BytesIO(content))
    return stream.getvalue()
