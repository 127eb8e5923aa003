"""A process that calls reward functions for `reward_pool`: `python -m tunix_lab.rl.reward_worker FD`. It never loads jax.

It hears pickled messages (of its parent, who alone writes to it) and answers in JSON: whatever a reward function may let in, such
as code of a model that it runs, can give a wrong number here, but not reach the parent.
"""

import importlib
import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from tunix_lab.rl.reward_calls import RewardFn, checked_call, described


def main(fd: int) -> None:
    """Serves until the parent closes the connection or ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    connection = Connection(fd)
    inbox: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    functions = _set_up(inbox.get(), lambda message: _say(connection, message))
    while functions is not None:
        task = inbox.get()
        outcome = checked_call(functions[task["function"]], task["arguments"])
        _say(connection, {"values": list(outcome.values), "faults": list(outcome.faults.items()), "failure": outcome.failure})


def _listen(connection: Connection, inbox: "queue.SimpleQueue[Mapping[str, Any]]") -> None:
    """Passes messages on; a thread of its own, so that the end of the parent ends this process also amid a call.

    The pool starts each worker in a process group of its own, so what a function has started ends too.
    """
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError, MemoryError):
        os.killpg(os.getpid(), signal.SIGKILL)


def _set_up(start: Mapping[str, Any], say: Callable[[dict[str, Any]], None]) -> list[RewardFn] | None:
    """The functions; None, after saying why, if they cannot be had."""
    if start["memory_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (start["memory_bytes"],) * 2)
    sys.path.append(start["home"])
    functions = []
    for reference in start["references"]:
        module, _, name = reference.partition(":")
        try:
            functions.append(getattr(importlib.import_module(module), name))
        except (Exception, SystemExit) as error:
            say({"broken": f"{reference}: importing it {described(error)}"})
            return None
    say({"values": [], "faults": [], "failure": None})  # ready
    return functions


def _say(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
