"""The one family of errors that a user can mend; each carries the exit code of the command line.

Whoever raises one writes a single message with the place and the remedy; the command line prints it without a traceback.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "make room there, or choose another disk",
    errno.EDQUOT: "make room within your quota, or choose another disk",
    errno.EFBIG: "the disk or a limit of this process takes no larger file",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "make it writable for this user, or choose another place",
    errno.EPERM: "make it writable for this user, or choose another place",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away, or choose another place",
    errno.EEXIST: "a file stands where a folder is needed: move it away, or choose another place",
    errno.EISDIR: "a folder stands where a file is needed: move it away, or choose another place",
}
# How the libraries that write for us (safetensors, tensorstore) name the system's error in their own.
_CODE = re.compile(r"\(os error (\d+)\)|os_error_code='(\d+)'")


class UserError(Exception):
    """A mistake in a spec, an argument or the data. Exit code 2."""

    exit_code = 2


class EnvironmentProblem(UserError):
    """A store, device, lock or disk that cannot be used. Exit code 3."""

    exit_code = 3


class TrainingFailed(UserError):
    """Training diverged or a guard stopped it. Exit code 4."""

    exit_code = 4


class Mismatch(UserError):
    """What was made again, or read back, is not what it must equal. Exit code 5."""

    exit_code = 5


class Stopped(BaseException):
    """The work ended early, after its state was saved.

    Exit code: 128 + the number of the signal that asked for it; 75, as `sysexits.h` has it for "try again", for everything else.
    """

    def __init__(self, reason: str, exit_code: int = 75):
        super().__init__(reason)
        self.exit_code = exit_code


def unwritable(error: Exception, place: str | Path | None = None) -> EnvironmentProblem | None:
    """A full, read-only or otherwise unusable place on disk, said for a person; None where `error` is of another kind.

    Args:
      error: an OSError, or that of a library which holds the system's code in its text.
      place: what was written; None takes the file that the error names.
    """
    found = None if isinstance(error, OSError) else _CODE.search(str(error))
    code = error.errno if isinstance(error, OSError) else int(found[1] or found[2]) if found else None
    if code not in _REMEDIES:
        return None
    place = place or (error.filename if isinstance(error, OSError) else None) or "a file"
    return EnvironmentProblem(f"{place}: cannot be written: {os.strerror(code)}; {_REMEDIES[code]}")


@contextlib.contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Within it, whatever keeps `place` from being written becomes an EnvironmentProblem that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = unwritable(error, place)
        if problem is None:
            raise
        raise problem from error
