"""`expo demo`: the table of experiments/demo, its curves and its report, in one folder."""

import os
from pathlib import Path

from expo.commands import report, table
from expo.config import make_folder, take_options

USAGE = "usage: expo demo [seeds=N] [output=FOLDER] [HYDRA OVERRIDES...]; runs that are finished are not made again"


def main(arguments: list[str]) -> int:
    """Make the table's missing runs, then the page about it. Returns the exit code."""
    options, more = take_options(arguments, seeds="1", output="outputs/demo")
    output = Path(options["output"])
    make_folder(output, "output")
    here = [f"results={output}", f"output_dir={output / 'runs'}", f"jobs={os.cpu_count() or 1}"]
    return table.main(["demo", f"seeds={options['seeds']}", *here, *more]) or report.main([str(output)])
