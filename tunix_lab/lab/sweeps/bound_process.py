"""Starts a command that does not outlive its parent: `python -m tunix_lab.lab.sweeps.bound_process PARENT_PID COMMAND…`.

When the parent ends, however it ends, the kernel sends the command SIGTERM, upon which a run saves and stops. Only Linux can do
that; elsewhere the command goes on to its end by itself.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def bound(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` for as long as this process lives."""
    return [sys.executable, "-m", "tunix_lab.lab.sweeps.bound_process", str(os.getpid()), *command]


def main(arguments: Sequence[str]) -> None:
    """Becomes the command."""
    parent, command = int(arguments[0]), list(arguments[1:])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we were bound to it
            sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
