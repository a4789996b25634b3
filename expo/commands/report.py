"""`expo report`: a page about runs, or about a table of experiments/."""

import glob
from dataclasses import replace
from pathlib import Path

from expo.config import UserError, make_folder, take_options
from expo.report.comparison import compared
from expo.report.page import write
from expo.report.reading import read_runs, read_table, table_request

USAGE = (
    "usage: expo report RUN_DIRECTORY... | TABLE [OPTIONS OF expo table] | RESULTS_FOLDER  [output=report.html]; "
    "a table is a name in experiments/ with results, as expo table leaves them; output_dir=FOLDER is where its runs are"
)


def main(arguments: list[str]) -> int:
    given, rest = take_options(arguments, output="")
    subjects, options = [s for s in rest if "=" not in s], [s for s in rest if "=" in s]
    if not subjects:
        raise UserError(f"report: nothing to report on; {USAGE}")
    if (request := table_request(subjects[0], options)) is not None:
        if len(subjects) > 1:
            raise UserError(f"{subjects[1]}: one table per page; leave it out, or give run directories only")
        page, runs = read_table(request, options)
        parts = filter(None, (request.title, request.variant))
        default = request.results or Path("outputs", "reports", "-".join(parts))
    else:
        subjects = [one for s in subjects for one in sorted(glob.glob(s)) or [s]]
        page, runs = read_runs([Path(s) for s in subjects])
        if options:
            raise UserError(f"{options[0]}: only a table takes it; of run directories, give output=… alone")
        default = Path(subjects[0])
    output = Path(given["output"] or (default / "report.html" if default.is_dir() else f"{default}.html"))
    make_folder(output.parent, "output")
    try:
        write(replace(page, compared=compared(runs)), runs, output)
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise UserError(f"output={output}: {why}; give another place as output=") from error
    print(f"report: {output} ({output.stat().st_size / 1024:.0f} KiB, {len(runs)} runs)")
    return 0
