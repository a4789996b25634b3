"""DPO's rounds on disk: groups with their rollouts and positives, made once, read again by a resumed run and by runs
that differ only in how they learn from them. `expo.algorithms.dpo` picks the pairs anew from what is read."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from expo.config import UserError
from expo.ground.problem import Problem
from expo.rollout.engine import Completion
from expo.step.experience import Candidate, Experience, Group, Timer
from expo.step.signed import AGAIN, is_signed, read_signed, write_signed
from expo.verifier.answers import Verdict

# What columns were called in files of version 0.1.
FORMER = {"asked": "prompt", "logp_given_asked": "logp_given_qa"}
KINDS = ("candidates", "positives")
ANEW = "fresh=true begins the run anew: its policy is no longer the one that made them"
COST, CODE = b"cost", b"own_code"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairStore:
    """Rounds of DPO, from which `DPO.pair` picks: one parquet file per round, one row per problem. The round of step 0,
    of the initial policy, is in `initial`, shared between runs with the same `code`; later ones are in `own`. Without
    its SHA-256 beside it a file is made again, with a wrong one it is refused."""

    initial: Path
    own: Path
    fresh: bool = False  # make everything again
    code: Mapping[str, str] = field(default_factory=dict)  # of the user's own, such as a judge, see `own_code`

    def path(self, step: int) -> Path:
        return (self.own if step else self.initial) / f"pairs-step{step:06d}.parquet"

    def load(self, step: int, problems: list[Problem], goes_on: bool = False) -> Experience | None:
        """Return the round that begins at `step`, or None where it is not on disk. Raises UserError where it was
        changed, or cannot be read. Args: goes_on, whether a run takes it up again that began with it."""
        path = self.path(step)
        if self.fresh or not is_signed(path):
            return None

        def parse(table: pa.Table) -> Experience | None:
            rows, cost = table.to_pylist(), json.loads(table.schema.metadata[COST])
            judged_by = table.schema.metadata.get(CODE)  # older files do not tell
            # A resumed run keeps its pairs, and its first line tells: its policy is no longer the initial one.
            if step == 0 and not goes_on and judged_by is not None and json.loads(judged_by) != self.code:
                log.warning("%s: made with other code of yours (a judge, a reward); it is made again", path)
                return None
            if [row["problem"] for row in rows] != [p.id for p in problems]:
                raise UserError(f"pairs={path}: of other problems than this run's; {AGAIN}")
            groups = [_group(row, problem) for row, problem in zip(rows, problems, strict=True)]
            shared_s = 0.0 if step else sum(cost["seconds"].values())  # later rounds are the run's own
            return Experience(
                groups, step, generated_tokens=cost["generated_tokens"], timer=Timer(cost["seconds"]), shared_s=shared_s
            )

        return read_signed(path, "pairs", parse, ANEW if goes_on else AGAIN)

    def save(self, step: int, e: Experience) -> None:
        rows = [
            {
                "problem": group.problem.id,
                "question": group.problem.question,
                "prompt": list(group.prompt),
                "candidates": [asdict(c) for c in group.candidates],
                "positives": [asdict(c) for c in group.positives],
                "rollouts": [
                    {"ids": c.ids, "logp": c.logp, "truncated": c.truncated, "text": t, "verdict": v.value, "reward": r}
                    for c, t, v, r in zip(group.completions, group.texts, group.verdicts, group.rewards, strict=True)
                ],
            }
            for group in e.groups
        ]
        # What they cost goes with them: whoever reads them has had them made.
        cost = json.dumps({"generated_tokens": e.generated_tokens, "seconds": e.timer.seconds})
        metadata = {COST: cost, CODE: json.dumps(self.code)}
        write_signed(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), self.path(step))


def _group(row: dict[str, Any], problem: Problem) -> Group:
    prompt, rollouts = tuple(row["prompt"]), row["rollouts"]
    verdicts = [Verdict(r["verdict"]) for r in rollouts]
    # Files of before rewards could be chosen have none.
    rewards = [r.get("reward", float(v is Verdict.CORRECT)) for r, v in zip(rollouts, verdicts, strict=True)]
    completions = [Completion(prompt, r["ids"], r["logp"], r["truncated"]) for r in rollouts]
    candidates, positives = ([_candidate(c) for c in row[kind]] for kind in KINDS)
    return Group(
        problem, prompt, completions, [r["text"] for r in rollouts], verdicts, rewards,
        candidates=candidates, positives=positives,
    )  # fmt: skip


def _candidate(fields: dict[str, Any]) -> Candidate:
    named = {FORMER.get(name, name): value for name, value in fields.items()}
    prompt = named.pop("prompt")
    return Candidate(**named, prompt=None if prompt is None else tuple(prompt))
