"""A process that has imported what runs need, and forks itself for each run of a sweep on the CPU (Linux).

`python -m expo.jobs.warm DESCRIPTOR` is started by `expo.runs.processes.run_expo`, and has one run at a time. A GPU's
driver does not outlive a fork, so that runs on GPUs start from nothing.
"""

import gc
import os
import signal
import sys
from multiprocessing.connection import Connection

import pandas  # noqa: F401  pyarrow imports it when it writes rows

import expo.algorithms.grpo
import expo.data.formats
import expo.jobs.fit
import expo.jobs.score  # noqa: F401
from expo.cli import main as run


def main() -> None:
    """Fork for each run that is asked for, one at a time, and send its exit code; end when the one who asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is forwarded to the run
    gc.collect()
    gc.freeze()
    with Connection(int(sys.argv[1])) as asking:
        while True:
            try:
                arguments, log = asking.recv()
            except EOFError:
                return
            if not (forked := os.fork()):
                break
            asking.send(os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]))
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if log is not None:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    sys.argv = ["expo", *arguments]
    run()


if __name__ == "__main__":
    main()
