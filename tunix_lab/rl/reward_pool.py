"""Reward functions in processes of their own, so that one that hangs, crashes or eats up memory does not take training with it.

The processes are this module's own: `concurrent.futures` cannot end a call that hangs; a pool whose workers share one pipe, such
as Pebble's, breaks when the kernel kills an idle one; and `multiprocessing` would run the user's main script again in each of
them. POSIX only.
"""

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.rl.reward_calls import Answers, Call, Outcome
from tunix_lab.rl.rewards import Rewards

_START_TIMEOUT_S = 60.0
"""For Python to start and import the modules of the functions."""


class RewardPool(Rewards):
    """Reward functions, named as `package.module:function`, that worker processes call.

    Workers start when they are first needed, and again after one was lost. However this process ends, they end with it. It is
    not for two threads at once.
    """

    def __init__(
        self,
        references: Sequence[str],
        *,
        home: str | Path = ".",
        workers: int = 1,
        timeout_s: float = 10.0,
        memory_mb: int | None = None,
        names: Sequence[str] | None = None,
        **options: Any,
    ):
        """Makes the pool; starts nothing.

        Args:
          references: the functions.
          home: project folder, whose modules can be imported too.
          workers: processes.
          timeout_s: seconds that one call may take; each worker is called for its share of the answers.
          memory_mb: most address space of a worker, in MiB; a call that wants more fails with MemoryError. None has no limit.
          names: of the functions; None takes what stands behind the colon.
          **options: those of `Rewards`.
        """
        super().__init__([each.partition(":")[2] for each in references] if names is None else names, **options)
        memory_bytes = None if memory_mb is None else memory_mb * 2**20
        self._start = {"references": list(references), "home": str(Path(home).resolve()), "memory_bytes": memory_bytes}
        self._size, self._timeout_s = workers, timeout_s
        self._workers: list[_Worker] = []

    @property
    def _parts(self) -> int:
        return self._size

    def close(self) -> None:
        """Ends all workers, whatever they do; the next call starts new ones."""
        for worker in list(self._workers):
            self._end(worker)

    def _runner(self, answers: Answers) -> Callable[[Sequence[Call], bool], Sequence[Outcome | None]]:
        def run(calls: Sequence[Call], stops: bool) -> list[Outcome | None]:
            outcomes: list[Outcome | None] = [None] * len(calls)
            waiting, died = collections.deque(range(len(calls))), set[int]()
            try:
                while waiting or any(worker.is_busy for worker in self._workers):
                    self._hand_out(calls, waiting, answers)
                    for number, outcome in self._come_in():
                        if isinstance(outcome, _Died) and number not in died:
                            died.add(number)  # it may have been an accident: the kernel frees memory by killing whomever
                            waiting.appendleft(number)
                            continue
                        outcomes[number] = outcome
                        if stops and outcome.failure is not None:
                            return outcomes
            finally:  # after a failure, an error or Ctrl-C: nobody waits for these calls any more
                for worker in [worker for worker in self._workers if worker.is_busy]:
                    self._end(worker)
            return outcomes

        return run

    def _hand_out(self, calls: Sequence[Call], waiting: "collections.deque[int]", answers: Answers) -> None:
        """Gives each worker that has nothing to do a call, and starts those that are missing."""
        for worker in [worker for worker in self._workers if not worker.is_busy]:
            if not waiting:
                return
            call = calls[waiting[0]]
            try:
                worker.give(waiting[0], call.function, answers.arguments(call.rows), self._timeout_s)
            except (BrokenPipeError, ConnectionResetError):
                self._end(worker)  # it was killed while it was idle; another takes its place
            else:
                waiting.popleft()
        n_starting = sum(worker.is_starting for worker in self._workers)
        for _ in range(min(self._size - len(self._workers), len(waiting) - n_starting)):
            self._workers.append(_Worker(self._start))

    def _come_in(self) -> Iterator[tuple[int, Outcome]]:
        """Waits until a worker has something to say or is late; gives the numbers of calls that ended, and their outcomes."""
        busy = [worker for worker in self._workers if worker.is_busy]
        ready = wait([worker.connection for worker in busy], max(0.0, min(w.deadline for w in busy) - time.monotonic()))
        for worker in busy:
            if worker.connection in ready:
                outcome = self._received(worker)
            elif time.monotonic() >= worker.deadline:
                self._end(worker)
                outcome = Outcome(failure=f"took longer than {_START_TIMEOUT_S if worker.is_starting else self._timeout_s:g} s")
            else:
                continue
            if worker.is_starting and outcome.failure is not None:
                raise UserError(f"rewards: importing {', '.join(self._start['references'])} {outcome.failure}")
            if not worker.is_starting:
                yield worker.call, outcome
            worker.is_starting = False

    def _received(self, worker: "_Worker") -> Outcome:
        """What a worker says, or that it has died."""
        try:
            message = json.loads(worker.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            how = worker.how_it_ended()
            self._end(worker)
            return _Died(failure=f"ended its process: {how}")
        if "broken" in message:
            self._end(worker)
            raise UserError(f"reward {message['broken']}")
        worker.is_busy = False
        return Outcome(message["values"], dict(message["faults"]), message["failure"])

    def _end(self, worker: "_Worker") -> None:
        worker.end()
        self._workers.remove(worker)


class _Died(Outcome):
    """The worker ended amid the call."""


class _Worker:
    """One worker process.

    Attributes:
      connection: our end of the pipe to it.
      call: number of the call that it was given last.
      is_busy: whether it is starting or in a call.
      is_starting: whether it has not said yet that it can be called.
      deadline: on the monotonic clock, by when it must be done with that.
    """

    def __init__(self, start: dict[str, Any]):
        self.connection, theirs = Pipe()
        self.call = -1
        self.is_busy = self.is_starting = True
        self.deadline = time.monotonic() + _START_TIMEOUT_S
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # it finds what this process would find
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunix_lab.rl.reward_worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what functions print goes where our messages go, not into our output
            env=os.environ | {"PYTHONPATH": path},
            process_group=0,  # it ends with all that it has started
        )
        theirs.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # if it is gone already, reading will tell
            self.connection.send(start)

    def give(self, number: int, function: int, arguments: dict[str, list[Any]], timeout_s: float) -> None:
        """Has it make a call."""
        self.connection.send({"function": function, "arguments": arguments})
        self.call, self.is_busy, self.deadline = number, True, time.monotonic() + timeout_s

    def how_it_ended(self) -> str:
        """What became of a process that has closed its end of the pipe."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "it closed the pipe to us"
        if code >= 0:
            return f"exit code {code}"
        hint = " (was it out of memory?)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"

    def end(self) -> None:
        """Kills the process, and what it has started, if there is still any of it."""
        with contextlib.suppress(ProcessLookupError):  # all gone
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()
