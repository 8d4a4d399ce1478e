"""Taking turns: the processes of a comparison stay alive, and only the one that is asked works.

Standard library only, since it runs in every peer's environment. A line on the standard input, what
to do, is answered by one JSON line on the standard output: how long it took. The end of the input
ends the process. Whatever else a library prints goes to the standard error.
"""

import ctypes
import json
import os
import resource
import sys
import time


class Turns:
    """One process's side of the conversation."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def wait(self) -> str | None:
        """What is to be done next; ``None`` if nothing more."""
        return sys.stdin.readline().strip() or None

    def answer(self, **found) -> None:
        """Write one line."""
        self._answers.write(json.dumps(found) + "\n")


class Clock:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds, and the process's peak of memory so far."""
        return {
            "seconds": time.perf_counter() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }


def keep_freed_memory() -> None:
    """Without it every large temporary is mapped and unmapped anew, and its pages fault in."""
    libc, trim_threshold, mmap_max = ctypes.CDLL("libc.so.6"), -1, -4
    if not (libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1)):
        raise RuntimeError("mallopt failed")
