"""Follow docs/tutorial.md literally, as a new user would, and put what its commands print under them.

python experiments/new_user/follow.py FOLDER            run everything in an empty folder, write the transcript into the
page
python experiments/new_user/follow.py FOLDER --small    the same with 2 training steps, and leave the page alone (CI)
"""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r'```(\w+)(?: title="(.+?)")?\n(.*?)```\n', re.DOTALL)
SMALL = {
    r"max_steps([:=] ?)40": r"max_steps\g<1>2",
    r"max_steps=60": "max_steps=3",
    r"problems=20": "problems=2",
    r"max_steps_60": "max_steps_3",
}
MOST_LINES, FIRST_LINES = 26, 6  # of an output that is shown; the first of a longer one


def main(folder: Path, small: bool) -> None:
    """Run the page. Raises SystemExit where a command fails."""
    page = PAGE.read_text()
    folder.mkdir(parents=True)
    parts, at, started = [], 0, time.monotonic()
    for block in BLOCK.finditer(page):
        kind, title, code = block.groups()
        if small:
            for full, short in SMALL.items():
                code = re.sub(full, short, code)
        parts.append(page[at : block.start()] + ("" if kind == "text" else block[0]))
        at = block.end()
        if kind in ("python", "yaml"):
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(code)
        elif kind == "bash":
            parts.append(shown(said(code, folder)))
    parts.append(page[at:])
    print(f"all commands of {PAGE.name} ran in {time.monotonic() - started:.0f} s")
    if not small:
        minutes = (time.monotonic() - started) / 60
        made = (
            f"What the commands print was printed on {time.strftime('%Y-%m-%d')} by `python "
            f"experiments/new_user/follow.py`, in {minutes:.0f} minutes on {machine()}."
        )
        text = re.sub(r"\n{3,}", "\n\n", "".join(parts))
        PAGE.write_text(re.sub(r"What the commands print was printed on.*", made, text))


def said(code: str, folder: Path) -> str:
    """Run a bash block and return what it prints. Exits where it fails."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "150",
        "PYTHONPATH": str(PAGE.parents[1]),
    }
    print(f"$ {code.strip()}", flush=True)
    done = subprocess.run(
        ["bash", "-e", "-c", code],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"exit code {done.returncode}")
    return done.stdout


def shown(output: str) -> str:
    """Return an output as a block of the page, its middle left out where it is long."""
    lines = [line.rstrip() for line in output.splitlines()]
    if len(lines) > MOST_LINES:
        lines = [*lines[:FIRST_LINES], "…", *lines[FIRST_LINES - MOST_LINES :]]
    return "\n```text\n" + "\n".join(lines) + "\n```\n" if any(lines) else ""


def machine() -> str:
    """Return the processor and its cores."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return f"{(names or [platform.machine()])[0]}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--small" in sys.argv)
