"""expo: an experiment framework for Self-Explanation Policy Optimization (arXiv 2507.02834).

In a notebook: `expo.load_run(directory)`, `expo.list_runs()`, `expo.evaluate(run=directory)`. See docs/notebooks.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expo.notebook import LoadedRun, evaluate, list_runs, load_run, train

__all__ = ["LoadedRun", "evaluate", "list_runs", "load_run", "train"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("expo")
        except PackageNotFoundError:  # it runs from a folder
            return "not installed"
    if name in __all__:
        import expo.notebook  # here: the command line starts without pandas

        return getattr(expo.notebook, name)
    raise AttributeError(f"module 'expo' has no attribute {name!r}")
