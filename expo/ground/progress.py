"""Progress of what takes minutes: a bar on a terminal, a line each minute without one. Nothing where no command asks
for it."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SAY_EVERY_S = 60
_told: ContextVar[str | None] = ContextVar("told", default=None)


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Show the progress counted within the context, under this name."""
    before = _told.set(what)
    try:
        yield
    finally:
        _told.reset(before)


@contextmanager
def counting(total: int) -> Iterator[Callable[[float], None]]:
    """Give the function that takes how many of `total` completions are done, which may be a fraction."""
    if (what := _told.get()) is None:
        yield lambda done: None
        return
    started = said = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    watched = sys.stderr.isatty() and "EXPO_SWEEP" not in os.environ
    with Progress(*columns, console=Console(stderr=True), disable=not watched, transient=True) as bar:
        task = bar.add_task(what, total=total)

        def at(done: float) -> None:
            nonlocal said
            bar.update(task, completed=int(done))
            if not watched and time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                left = f", at most {(said - started) * (total / done - 1) / 60:.0f} min left" if done >= 1 else ""
                print(f"{what}: {done:.0f} of {total} completions{left}", flush=True)

        yield at
