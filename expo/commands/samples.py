"""`expo samples`: completions of a run as they were written, in the terminal."""

from typing import Any

from rich.console import Console

from expo.config import UserError, take_options
from expo.runs.listing import kept, run_folder
from expo.runs.reading import completions_file, completions_in

USAGE = """\
usage: expo samples RUN [step=N] [problem=ID] [verdict=incorrect] [tokens>=90 ...] [n=5] [of=train|eval|greedy]
Any column of completions/*.parquet is a filter. Without step=, the last step that was kept; of=train: rollouts, of=eval: an evaluation; of=greedy: its most likely one."""  # noqa: E501
KINDS = ("train", "eval", "greedy")
VERDICTS = ("correct", "incorrect", "unparseable", "timeout")


def main(arguments: list[str]) -> int:
    """Print the rows. Returns the exit code. Raises UserError where there are none."""
    options, given = take_options([a.removeprefix("run=") for a in arguments], step="", n="5", of="")
    if not given:
        raise UserError(f"samples: no run given; {USAGE.splitlines()[0]}")
    run, *filters = given
    for name in ("step", "n"):
        if options[name] and not options[name].isdecimal():
            raise UserError(f"{name}={options[name]}: not a number; use {name}=1")
    if options["of"] not in ("", *KINDS):
        raise UserError(f"of={options['of']}: no such completions; use of=train, of=eval or of=greedy")
    directory = run_folder(run).dir
    trained = any((directory / "completions").glob("train-*.parquet"))
    kind = options["of"] or KINDS[0 if trained else 1]
    file = completions_file(directory, kind, int(options["step"]) if options["step"] else None)
    rows = completions_in(file)
    for asked in (f.removeprefix("verdict=") for f in filters if f.startswith("verdict=")):
        if asked not in VERDICTS:
            raise UserError(f"verdict={asked}: no such verdict; use one of {', '.join(VERDICTS)}")
    passing = kept(rows, filters, "completion", ", ".join(rows[0]) if rows else "")
    console = Console(highlight=False, soft_wrap=True)
    for row in passing[: int(options["n"])]:
        console.print(_about(row), markup=False, style="bold")
        for name in ("completion", "positive"):
            if row.get(name):
                text = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in row[name])
                console.print(f"  {name}: {text}".replace("\n", "\n    "), markup=False)
    if not passing and rows:
        problems = list(dict.fromkeys(str(row["problem"]) for row in rows))
        print(f"its problems are {', '.join(problems[:5])}{', …' if len(problems) > 5 else ''}")
    print(f"{min(len(passing), int(options['n']))} of {len(passing)} that fit, of {len(rows)} in {file}")
    return 0


def _about(row: dict[str, Any]) -> str:
    reward, tokens = row.get("reward"), row.get("tokens")
    verdict = (
        f"problem {row['problem']}",
        "" if row["level"] is None else f"level {row['level']}",
        f"right answer {row['answer']}",
        row["verdict"] or "no rollout",
        "" if reward is None else f"reward {reward:g}",
        "" if tokens is None else f"{tokens} tokens",
        "cut off" if row.get("truncated") else "",
        "hinted" if row.get("hinted") else "",
    )
    return " ".join(", ".join(filter(None, verdict)).split())
