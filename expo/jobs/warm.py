"""A process that has imported what runs need, and forks itself for each run of a sweep on the CPU (Linux).

`python -m expo.jobs.warm DESCRIPTOR` is started by `expo.runs.processes.run_expo`, and has one run at a time. A GPU's
driver does not outlive a fork, so that runs on GPUs start from nothing.
"""

import gc
import os
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pandas  # noqa: F401  pyarrow imports it when it writes rows

import expo.algorithms.grpo
import expo.data.formats
import expo.jobs.fit
import expo.jobs.score  # noqa: F401
from expo.cli import main as run


def serve(asking: Connection) -> tuple[list[str], Path | None, str] | None:
    """Fork for each run that is asked for, one at a time, and send its exit code.

    Returns, in a fork, the run's arguments, the file for what it prints, and its working folder; None when the one who
    asks is gone.
    """
    with suppress(EOFError, OSError):
        while True:
            asked: tuple[list[str], Path | None, str] = asking.recv()
            if not (fork := os.fork()):
                return asked
            asking.send(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]))
    return None


def main() -> None:
    gc.collect()
    gc.freeze()
    with Connection(int(sys.argv[1])) as asking:
        asked = serve(asking)
    if asked is None:
        return
    arguments, log, folder = asked
    os.setsid()
    os.chdir(folder)  # that of who asks may be another one by now (hydra.job.chdir)
    if log is not None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    sys.argv = ["expo", *arguments]
    run()


if __name__ == "__main__":
    main()
