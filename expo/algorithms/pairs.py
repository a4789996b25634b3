"""DPO's pairs on disk: made once, read again by a resumed run and by runs that differ only in how they learn from them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch

from expo.config import UserError
from expo.config.errors import first_line
from expo.data.problem import Problem
from expo.rollout.engine import Completion
from expo.step.experience import Candidate, Experience, Timer
from expo.step.signed import AGAIN, check_signed, is_signed, write_signed
from expo.verifier.answers import Verdict

# What columns were called in files of version 0.1.
FORMER = {"asked": "prompt", "logp_given_asked": "logp_given_qa"}
KINDS = ("candidates", "positives")
COST = b"cost"


@dataclass(frozen=True)
class PairStore:
    """One parquet file per round, one row per problem. Those of the initial policy are in `initial`, shared between runs.

    Beside each file stands its SHA-256, without which, or with another, it is not read.
    """

    initial: Path
    own: Path
    fresh: bool = False  # make everything again

    def path(self, step: int) -> Path:
        return (self.own if step else self.initial) / f"pairs-step{step:06d}.parquet"

    def load(self, step: int, problems: list[Problem]) -> Experience | None:
        """Return the round that begins at `step`, or None where it has not been made.

        Raises UserError where it was changed, or cannot be read.
        """
        path = self.path(step)
        if self.fresh or not is_signed(path):
            return None
        check_signed(path, "pairs")
        try:
            return self._read(path, step, problems)
        except MemoryError:  # of Arrow, too: not the file's fault
            raise
        except (OSError, pa.ArrowException, LookupError, ValueError, TypeError) as error:
            raise UserError(
                f"pairs={path}: cannot be read ({type(error).__name__}: {first_line(error)}); {AGAIN}"
            ) from error

    def _read(self, path: Path, step: int, problems: list[Problem]) -> Experience:
        table = pa.parquet.read_table(path)
        rows, cost = table.to_pylist(), json.loads(table.schema.metadata[COST])
        if [row["problem"] for row in rows] != [p.id for p in problems]:
            raise UserError(f"pairs={path}: of other problems than this run's; {AGAIN}")
        flat = [(row, r) for row in rows for r in row["rollouts"]]
        candidates, positives = ([_candidate(i, c) for i, row in enumerate(rows) for c in row[kind]] for kind in KINDS)
        correct = torch.tensor([[float(r["verdict"] == Verdict.CORRECT) for r in row["rollouts"]] for row in rows])
        # Files of before rewards could be chosen have none.
        rewards = torch.tensor(
            [[r.get("reward", float(r["verdict"] == Verdict.CORRECT)) for r in row["rollouts"]] for row in rows]
        )
        return Experience(
            problems, [tuple(row["prompt"]) for row in rows], step,
            completions=[Completion(tuple(row["prompt"]), r["ids"], r["logp"], r["truncated"]) for row, r in flat],
            texts=[r["text"] for _, r in flat], verdicts=[Verdict(r["verdict"]) for _, r in flat],
            correct=correct, unaided=rewards, rewards=rewards, candidates=candidates, positives=positives,
            generated_tokens=cost["generated_tokens"], timer=Timer(cost["seconds"]),
            shared_s=0.0 if step else sum(cost["seconds"].values()),  # later rounds are the run's own
        )  # fmt: skip

    def save(self, step: int, e: Experience, pairs: list[tuple[Candidate, Completion] | None]) -> None:
        """Write a round; `pairs` are per problem."""
        rows = [
            {
                "problem": problem.id,
                "question": problem.question,
                "prompt": list(e.prompts[i]),
                "candidates": [_fields(c) for c in e.candidates if c.problem == i],
                "positives": [_fields(c) for c in e.positives if c.problem == i],
                "rollouts": [
                    {"ids": c.ids, "logp": c.logp, "truncated": c.truncated, "text": e.texts[r], "verdict": e.verdicts[r].value, "reward": e.rewards.view(-1)[r].item()}
                    for r in range(i * e.group_size, (i + 1) * e.group_size)
                    for c in [e.completions[r]]
                ],
                "paired": pairs[i] is not None,
            }
            for i, problem in enumerate(e.problems)
        ]  # fmt: skip
        # What they cost goes with them: whoever reads them has had them made.
        cost = json.dumps({"generated_tokens": e.generated_tokens, "seconds": e.timer.seconds})
        write_signed(pa.Table.from_pylist(rows).replace_schema_metadata({COST: cost}), self.path(step))


def _candidate(problem: int, fields: dict[str, Any]) -> Candidate:
    named = {FORMER.get(name, name): value for name, value in fields.items()}
    prompt = named.pop("prompt")
    return Candidate(problem, **named, prompt=None if prompt is None else tuple(prompt))


def _fields(c: Candidate) -> dict[str, Any]:
    return {name: value for name, value in asdict(c).items() if name != "problem"}
