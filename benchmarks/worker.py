"""One side of a comparison, in a process that lives as long as the comparison: reads a request a line, writes an answer a line.

Started by `harness.Worker` with the name of the peer's module. Requests: {"prepare": job, "options": {…}} builds a job and runs
it until everything is compiled; {"run": n} times n units of it; {"memory": true} asks for the peak since the module was imported.
"""

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def memory(field: str) -> int:
    """Bytes of /proc/self/status: "VmRSS" now, "VmHWM" at the most. (`ru_maxrss` would count what came before exec.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def timed(function, *args):
    """What the function returns, and the seconds that it took: of this thread, of all threads, and on the clock."""
    began = time.perf_counter(), cpu_seconds(), time.thread_time()
    result = function(*args)
    taken = {
        "thread_s": time.thread_time() - began[2],
        "cpu_s": cpu_seconds() - began[1],
        "wall_s": time.perf_counter() - began[0],
    }
    return result, taken


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    peer, seconds = timed(importlib.import_module, sys.argv[1])
    before, run = memory("VmRSS"), None
    answers.write(json.dumps({"import": seconds}) + "\n")
    answers.flush()
    for line in sys.stdin:
        match json.loads(line):
            case {"prepare": job, "options": options}:
                run, answer = timed(lambda job=job, options=options: peer.JOBS[job](**options))
            case {"run": n}:
                details, answer = timed(run, n)
                answer |= details or {}
            case {"memory": True}:
                answer = {"peak_bytes": memory("VmHWM") - before}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # a learner's threads still wait for their next batch


if __name__ == "__main__":
    main()
