"""Errors that end a command with one line instead of a stack trace."""

import errno

from yaml import MarkedYAMLError

# The disk's fault, not the program's -> what to do about it.
DISK = {
    errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EROFS: "make the disk writable",
    errno.EFBIG: "raise the limit of a file's size", errno.EIO: "look after the disk",
}  # fmt: skip


class UserError(Exception):
    """The user's mistake: one line that names the key, the value and the remedy. The command exits with code 2."""


class EngineError(Exception):
    """The rollout engine has stopped, or its weights are not the policy's. The run ends; its checkpoints are good."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; its class where it has none. Of YAML, what is wrong, and where."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return (str(error).splitlines() or [type(error).__name__])[0]
