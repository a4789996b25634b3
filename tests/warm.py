"""A Python that has already imported what takes expo seconds: for tests of what a process does, and not of how it
starts.

`python tests/warm.py FOLDER` imports, and then forks itself for each process that is asked for. `FOLDER/python` is what
tests take for their `sys.executable`: it hands over its arguments, descriptors, folder and environment, passes signals
on, and ends as the process ends; where it is killed, the process is, too. `FOLDER/expo` is the command. What is not `-m
expo` or has another environment than the tests have, such as the modules and folders that libraries are told of, gets a
Python of its own.
"""

import atexit
import gc
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from ast import literal_eval
from pathlib import Path

STARTER = r"""#!{python} -ISE
import os, signal, socket, struct, sys
kept = [fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{{fd}}")]
before, now = {before!r}, dict(os.environ)
other = {{name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}}
first = 1 + (sys.argv[1:2] == ["-P"])
words = sys.argv[first:first + 2]
paths = filter(None, now.get("PYTHONPATH", "").split(":"))
if all(path == {root!r} or not os.path.isdir(path + "/expo") for path in paths):  # it is this very expo
    other -= {{"PYTHONPATH"}}
if words[1:] == ["expo.jobs.warm"]:  # one more of our kind: runs of a sweep start from this one
    os._exit(0)
modules = ("expo", "expo.tables.launch", "expo.jobs.device", "joblib.externals.loky.backend.popen_loky_posix")
if any(name not in {free!r} and not name.startswith(("WANDB_", "LOKY_")) for name in other) or words[0] != "-m" or words[1] not in modules:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({place!r})
safe = first == 2 or bool(now.get("PYTHONSAFEPATH"))
told = repr((words[1], sys.argv[first + 2 :], safe, os.getcwd(), now, kept)).encode()
socket.send_fds(server, [struct.pack("I", len(told))], kept)
server.sendall(told)
(process,) = struct.unpack("i", server.recv(4, socket.MSG_WAITALL))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(process, number))
(code,) = struct.unpack("i", server.recv(4, socket.MSG_WAITALL))
if code < 0:
    if code not in (-signal.SIGKILL, -signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""  # noqa: E501


# What a process may be told that no module asks for while it is imported.
FREE = {
    "EXPO_SWEEP",
    "EXPO_PARENT",
    "EXPO_MEETING",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "NODE_RANK",
    "PYTEST_CURRENT_TEST",
    "PYTHONSAFEPATH",
    "HYDRA_FULL_ERROR",
    "COLUMNS",
    "LINES",
    "PATH",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
    # Of joblib, for its workers.
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ENABLE_IPC",
    "KMP_INIT_AT_FORK",
}


def write_starter(folder: Path) -> None:
    """Write the programs that ask for a process, with the environment that is imported in."""
    told = {"python": sys.executable, "before": dict(os.environ), "place": str(folder / "socket"), "free": FREE}
    (folder / "python").write_text(STARTER.format(**told, root=str(Path(__file__).parents[1])))
    (folder / "expo").write_text(f'#!/bin/sh\nexec {folder / "python"} -P -m expo "$@"\n')
    for program in ("python", "expo"):
        (folder / program).chmod(0o755)


def serve(folder: Path) -> None:
    """Fork for each process that is asked for, and tell how it ended; until standard input ends."""
    selector, listener = selectors.DefaultSelector(), socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                return
            if key.fileobj is listener:
                asked, _ = listener.accept()
                head, descriptors, *_ = socket.recv_fds(asked, 4, 64)
                (size,) = struct.unpack("I", head)
                told = literal_eval(asked.recv(size, socket.MSG_WAITALL).decode())
                process = os.fork()
                if not process:
                    for other in (*(k.fileobj for k in selector.get_map().values() if k.fd), asked, selector):
                        os.close(other) if isinstance(other, int) else other.close()  # type: ignore[union-attr]
                    become(*told, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                asked.sendall(struct.pack("i", process))
                over = os.pidfd_open(process)
                selector.register(over, selectors.EVENT_READ, (process, asked))
                selector.register(asked, selectors.EVENT_READ, over)
            elif isinstance(key.data, tuple):
                process, asked = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                selector.unregister(key.fd)
                os.close(key.fd)
                if asked.fileno() in selector.get_map():
                    asked.sendall(struct.pack("i", code))
                    selector.unregister(asked)
                asked.close()
            else:  # who asked is gone
                selector.unregister(key.fileobj)
                signal.pidfd_send_signal(key.data, signal.SIGKILL)


def become(
    module: str, arguments: list[str], safe: bool, folder: str, environment: dict[str, str], places: list[int], descriptors: list[int]  # noqa: E501
) -> None:  # fmt: skip
    """Be the process that was asked for, until its end."""
    os.setsid()
    apart = [os.dup(d) for d in descriptors]  # above all of the places, lest one overwrites another
    high = [os.dup2(d, 500 + i) for i, d in enumerate(apart)]
    for descriptor in (*descriptors, *apart):
        os.close(descriptor)
    for place, descriptor in zip(places, high, strict=True):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.chdir(folder)
    if "EXPO_PARENT" in environment:  # who watches over the starter, which ends with us
        environment["EXPO_PARENT"] = str(os.getppid())
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = str(Path(sys.argv[1]) / "python")
    sys.argv = [module, *arguments]
    sys.path[:0] = [folder] * (not safe) + [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    code: object = 0
    try:
        if module == "expo" and safe:  # else the working folder is for the processes that it starts, too
            cli.main()
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    del sys.path[0]
    import expo.jobs.fit
    import expo.tables.launch  # noqa: F401
    from expo import cli
    from expo.config import ModelConf
    from expo.model.policy import load_policy

    load_policy(ModelConf(path="ladder"))
    gc.collect()
    gc.freeze()
    serve(Path(sys.argv[1]))
