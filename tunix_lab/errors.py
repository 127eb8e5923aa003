"""The one family of errors that a user can mend; each carries the exit code of the command line.

Whoever raises one writes a single message with the place and the remedy; the command line prints it without a traceback.
"""


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
