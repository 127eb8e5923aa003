"""The one family of errors that a user can mend; each carries the exit code of the command line.

Whoever raises one writes a single message with the place and the remedy; the command line prints it without a traceback.
"""

import signal


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
    """A signal ended the work after its state was saved; the exit code is 128 + the signal's number."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command goes on from the checkpoint")
        self.exit_code = 128 + signum
