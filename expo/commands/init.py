"""`expo init`: a study of one's own: a plan, a checked mapping of the data file's columns, and a README."""

import difflib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from expo.config import UserError, build, check, compose_config, make_folder, take_options
from expo.config.arguments import quoted
from expo.config.compose import PLUGINS_VARIABLE
from expo.config.dataset import columns_of
from expo.config.files import KINDS, NOT_OURS
from expo.tables.plan import known_tables
from expo.verifier.pool import Verifier

USAGE = (
    "usage: expo init FOLDER data=FILE.jsonl [question=COLUMN] [answer=COLUMN] [solution=COLUMN] [level=COLUMN] "
    "[answer_pattern=REGEX] [verifier=NAME] [verifier.function=…]; columns that are not given "
    "are guessed by their names"
)
# What columns are called in data sets that people have.
NAMES: Mapping[str, Sequence[str]] = {
    "question": ("question", "problem", "task", "prompt", "query", "instruction", "input"),
    "answer": (
        *("answer", "final_answer", "ground_truth", "result", "target", "label"),
        *("output", "gold", "expected", "reward_model"),
    ),
    "solution": ("completion", "solution", "reasoning", "rationale", "explanation", "cot"),
    "level": ("level", "difficulty"),
}
NEEDED = ("question", "answer")
WITHIN = {"reward_model": "reward_model.ground_truth"}  # verl's rows


def main(arguments: list[str]) -> int:
    """Make the folder. Returns the exit code. Raises UserError for an unusable file, and a folder that is there."""
    options, rest = take_options(
        arguments, data="", question="", answer="", solution="", level="", answer_pattern="", verifier=""
    )
    of_judge = [a for a in rest if a.startswith("verifier.")]
    rest = [a for a in rest if a not in of_judge]
    if len(rest) != 1 or "=" in rest[0]:
        raise UserError(f"init {' '.join(rest)}: not one folder; {USAGE}")
    folder, data = Path(rest[0]), options.pop("data")
    if (folder / "plan.yaml").exists():
        raise UserError(f"{folder}: has a plan.yaml already; give another folder, or edit that plan")
    if (folder / "README.md").exists():
        raise UserError(f"{folder}: has a README.md, which would be written over; give another folder")
    if not data:
        raise UserError("data: not given; give your file as data=mine.jsonl (.jsonl or .parquet)")
    pattern, verifier = options.pop("answer_pattern"), options.pop("verifier")
    overrides = [
        "dataset=custom",
        f"dataset.path={in_override(data)}",
        f"dataset.name={in_override(folder.resolve().name)}",
    ]
    columns = mapping(Path(data), options)
    overrides += [f"dataset.columns.{part}={in_override(column)}" for part, column in columns.items()]
    overrides += [f"dataset.answer_pattern={in_override(pattern)}"] if pattern else []
    overrides += [f"verifier={in_override(verifier)}", *of_judge] if verifier else of_judge
    if all(re.fullmatch(r"\(?[A-Za-z]\)?", answer) for answer in look(overrides)) and not verifier:
        overrides.append("verifier=choice")
        print("every answer is a letter: verifier=choice goes into the plan, which reads “(B) because …” as B; so:")
        look(overrides)
    make_folder(folder, "init")
    name, overrides_line = folder.resolve().name, shlex.join(overrides[1:])
    items = yaml.safe_dump(overrides, default_flow_style=True, width=10**6, allow_unicode=True).strip()[1:-1]
    (folder / "plan.yaml").write_text(PLAN.format(name=name, data=items))
    table = f"./{folder}" if str(folder) in known_tables() else folder
    own = f"export {PLUGINS_VARIABLE}={shlex.quote(named)}\n" if (named := os.environ.get(PLUGINS_VARIABLE)) else ""
    readme = README.format(name=name, folder=table, data=data, overrides=overrides_line, own=own)
    (folder / "README.md").write_text(readme)
    print(f"made {folder / 'plan.yaml'} and {folder / 'README.md'}; next: expo table {table}")
    return 0


def in_override(text: str) -> str:
    """Write a value so that Hydra reads it unchanged: quoted, unless it is a plain word."""
    return text if re.fullmatch(r"[\w./-]+", text) else quoted(text)


def mapping(path: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Map the parts of a problem that the file has to its columns: a given one, or else one with a telling name.

    Raises UserError where the file or a column is not there.
    """
    if not path.is_file() or not path.name.endswith(KINDS):
        raise UserError(f"data={path}: no .jsonl or .parquet file; give the path of one")
    if not os.access(path, os.R_OK):
        raise UserError(f"data={path}: {NOT_OURS}")
    columns = columns_of(path, set())
    if not columns:
        raise UserError(f"data={path}: no row with columns was found; each line must be a JSON object")
    chosen = {}
    for part, names in NAMES.items():
        column = given[part] or next((c for name in names for c in columns if c.lower() == name), "")
        if given[part] and given[part].partition(".")[0] not in columns and given[part] not in columns:
            near = next(iter(difflib.get_close_matches(given[part], columns, 1)), columns[0])
            raise UserError(f"{part}={given[part]}: {path} has only {', '.join(columns)}; did you mean {part}={near}?")
        if not column and part == "answer":  # TRL's rows: the solution ends in it
            column = next((c for c in columns if c.lower() == "solution"), "")
        if not column and part in NEEDED:
            raise UserError(f"{part}: which column of {path} is it? It has {', '.join(columns)}; give {part}=COLUMN")
        if column:
            chosen[part] = WITHIN.get(column, column)
    return chosen


def look(overrides: Sequence[str]) -> list[str]:
    """Read the file as a run would, print what becomes of its rows, and return the answers to train on.

    Raises UserError where nothing is left.
    """
    cfg = compose_config([*overrides, "model=random_tiny"])
    check(cfg)
    with Verifier(cfg.verifier) as verifier:
        reader = build(cfg.dataset, verifier)
        train, held_out = reader.train(), reader.evaluation()
    reader.account().show()
    mapped = ", ".join(o.removeprefix("dataset.columns.") for o in overrides if o.startswith("dataset.columns."))
    print(f"columns: {mapped}")
    kinds = {kind for source in reader.account().sources for kind in source.kinds}
    asking = [o for o in overrides if o.startswith("verifier")]
    verify = f"{shlex.join(['expo', 'verify', train[0].answer, 'ANSWER', *asking])} (docs/answers.md)"
    how = f"compared as {', '.join(sorted(kinds))}" if kinds and all(kinds) else "judged by verifier=…"
    print(f"answers are {how}; try: {verify}")
    print(f"to train on {len(train)}, held out {len(held_out)}")
    return [problem.answer for problem in train]


PLAN = """\
# Edit this plan: each arm is a line of the table, each scale a size at which it can be made.
# expo table {name} dry_run=true
title: "{name}: does a self-explanation help?"
columns: [pass@1, pass@4]
arms:
  grpo: {{label: GRPO, overrides: [algorithm=grpo]}}
  exp_grpo: {{label: ExP-GRPO, overrides: [algorithm=exp_grpo], against: grpo}}
scales:
  cpu: # a tiny random model that learns nothing: does everything work?
    overrides: [{data}, model=random_tiny, trainer.max_steps=2, trainer.problems_per_step=4, evaluation.every=0, rollout.max_completion_tokens=32]
    seeds: [0, 1]
  gpu1: # one GPU
    overrides: [{data}, model=hf, model.path=Qwen/Qwen2.5-0.5B-Instruct, trainer.precision=bf16-mixed, rollout=vllm, rollout.dtype=bfloat16]
    seeds: [0, 1, 2]
"""  # noqa: E501

README = """\
# {name}

A study on `{data}`. Start these commands in the folder that this path is relative to.

```bash
{own}expo table {folder} dry_run=true                # what would be run; first with a tiny random model
expo table {folder}                             # make it
expo report {folder}                            # one HTML page
```

`expo table {folder} scale=gpu1` makes the same with a real model on one GPU. A single run:

```bash
expo train algorithm=exp_grpo dataset=custom model=hf model.path=Qwen/Qwen2.5-0.5B-Instruct {overrides}
```

What you change is in `plan.yaml`: arms, seeds, scales. `expo train --help` lists algorithms, models and keys.
"""
