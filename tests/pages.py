"""What a page has in its blocks, and its commands, run one after the other."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def blocks(text: str) -> list[tuple[str, str, str]]:
    """The code blocks of a page: language, title, code."""
    return re.findall(r'```(\w+)(?: title="(.+?)")?\n(.*?)```', text, re.DOTALL)


# The commands, one after the other in one process, whose imports take longer than the runs.
DRIVER = """
import json, os, sys
from unittest import mock
from expo import cli
for change, arguments in json.load(sys.stdin):
    os.environ |= change
    with mock.patch.object(sys, "argv", ["expo", *arguments]):
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                sys.exit(f"expo {arguments}: {end.code}")
"""


def run(folder: Path, commands: list[str], expo_from: Path = ROOT) -> str:
    """Run the commands in the folder, one after the other; return what they print."""
    change, calls = {}, []
    for command in commands:
        first, *arguments = shlex.split(command)
        if first == "export":
            change |= dict(a.split("=") for a in arguments)
            continue
        assert first == "expo"
        calls.append([change, arguments])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(calls), cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(expo_from)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
