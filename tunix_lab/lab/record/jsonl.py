"""Files of strict JSON lines that survive a kill: whole lines appended, whole files replaced."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by a file with `data`; a reader or a crash sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write or flush names no file


def open_for_append(path: Path) -> IO[bytes]:
    """Opens `path` without a buffer (one `write` call a line), after cutting off the torn last line of a killed writer."""
    file = open(path, "a+b", buffering=0)
    size = file.seek(0, os.SEEK_END)
    keep = size
    while keep > 0:
        begin = max(0, keep - 65536)
        file.seek(begin)
        newline = file.read(keep - begin).rfind(b"\n")
        if newline >= 0:
            keep = begin + newline + 1
            break
        keep = begin
    if keep < size:
        file.truncate(keep)
    return file


def to_line(value: Mapping[str, Any]) -> bytes:
    """`value` as one line of UTF-8; its numbers must be finite (see `strict`)."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"  # a lone surrogate becomes its JSON escape


def strict(value: Any, *, null: bool = False) -> Any:
    """`value` for strict JSON: a non-finite number becomes the text that `float` reads back, or None with `null`."""
    if isinstance(value, float) and not math.isfinite(value):
        if null:
            return None
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
