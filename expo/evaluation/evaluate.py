"""Evaluate a policy: n samples per problem, verdicts, pass@k overall and per level, every completion kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from transformers import PreTrainedTokenizerBase

from expo.data import ladder
from expo.data.problem import Problem
from expo.evaluation.pass_at_k import interval, pass_at_k
from expo.model.prompts import Prompts
from expo.rollout.engine import Engine, Request, Sampling
from expo.rollout.noise import EVALUATE, Key
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier


@dataclass(frozen=True)
class Evaluation:
    """One row per completion, and the scalars made of them (`pass@4`, `pass@4/level5`, each also with `_lo` and `_hi`)."""

    rows: list[dict[str, Any]]
    metrics: dict[str, float]

    def save(self, path: Path) -> None:
        """Write every completion as parquet."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(pa.Table.from_pylist(self.rows), path)


@dataclass(frozen=True)
class Evaluator:
    """Everything an evaluation needs but the engine."""

    problems: Sequence[Problem]
    verifier: Verifier
    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    samples: int
    k: Sequence[int]
    seed: int

    def evaluate(self, engine: Engine) -> Evaluation:
        """Sample, verify, count."""
        rows = self._rows(engine, self.sampling, self.samples)
        return Evaluation(rows, self._metrics([Verdict(row["verdict"]) for row in rows], rows))

    def greedy(self, engine: Engine) -> list[dict[str, Any]]:
        """Return one row per problem: the completion of the most likely tokens."""
        most_likely = replace(self.sampling, temperature=1.0, top_p=1.0, top_k=1)
        return self._rows(engine, most_likely, 1)

    def _rows(self, engine: Engine, sampling: Sampling, n: int) -> list[dict[str, Any]]:
        prompts = [tuple(ids) for ids in self.prompts.solve_ids(self.tokenizer, self.problems)]
        requests = [Request(prompts[i // n], Key(self.seed, EVALUATE, 0, i)) for i in range(n * len(prompts))]
        completions = engine.generate(requests, sampling)
        texts = self.tokenizer.batch_decode([c.ids for c in completions], skip_special_tokens=True)
        owners = [self.problems[i // n] for i in range(len(requests))]
        verdicts = self.verifier.verify(texts, [p.answer for p in owners])
        return [
            {
                "problem": p.id, "level": p.level, "subject": p.subject, "question": p.question, "answer": p.answer,
                "sample": i % n, "completion": text, "verdict": verdict.value, "tokens": len(c.ids),
                "truncated": c.truncated, "logp": sum(c.logp),
            }
            for i, (p, text, verdict, c) in enumerate(zip(owners, texts, verdicts, completions, strict=True))
        ]  # fmt: skip

    def _metrics(self, verdicts: Sequence[Verdict], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        correct = np.array([v is Verdict.CORRECT for v in verdicts]).reshape(-1, self.samples).sum(axis=1)  # [P]
        levels = np.array([p.level or 0 for p in self.problems])
        groups = {"": np.ones(len(levels), dtype=bool)} | {f"/level{g}": levels == g for g in sorted(set(levels) - {0})}
        metrics: dict[str, float] = {}
        for group, members in groups.items():
            for k in self.k:
                values = pass_at_k(self.samples, correct[members], k)
                metrics[f"pass@{k}{group}"] = float(values.mean())
                metrics[f"pass@{k}{group}_lo"], metrics[f"pass@{k}{group}_hi"] = interval(values)
        metrics["eval/length_mean"] = float(np.mean([r["tokens"] for r in rows]))
        metrics["eval/truncated_frac"] = float(np.mean([r["truncated"] for r in rows]))
        metrics["eval/unparseable_frac"] = verdicts.count(Verdict.UNPARSEABLE) / len(verdicts)
        if self.problems[0].subject == "ladder":
            # A right answer by wrong steps counts as correct, as it does on MATH; the ladder can tell, and says so.
            right = [
                ladder.check_steps(r["question"], r["completion"]).sound for r in rows if r["verdict"] == "correct"
            ]
            metrics["eval/correct_with_sound_steps_frac"] = float(np.mean(right)) if right else 0.0
        return metrics
