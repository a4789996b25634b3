"""Evaluate a policy: n samples per problem, verdicts, pass@k overall and per level, every completion kept."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from expo.evaluation.files import join, kept_rows, save_rows, seconds_of
from expo.evaluation.tally import Tally
from expo.ground.problem import Problem
from expo.ground.progress import telling
from expo.model.prompts import Prompts
from expo.rollout.engine import Engine, Request, Sampling
from expo.rollout.noise import EVALUATE, NoiseKey
from expo.step.rewards import Reward, Rollout, rewards_of
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier

log = logging.getLogger(__name__)
PART_ROWS = 2**14  # completions that are made, judged and kept at a time


@dataclass(frozen=True)
class Evaluation:
    """One row per completion, and their scalars (`pass@4`, `pass@4/level5`, each also with `_lo` and `_hi`)."""

    rows: list[dict[str, Any]]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Evaluator:
    """Evaluation of any engine's policy: problems, sampling, verifier and k."""

    problems: Sequence[Problem]
    verifier: Verifier
    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    samples: int
    k: Sequence[int]
    seed: int
    reward: Reward | None = None  # of one's own: measured beside the verdicts
    validation: Sequence[Problem] = ()  # by which a checkpoint is chosen

    def evaluate(self, engine: Engine) -> Evaluation:
        rows, tally = self._rows(engine, self.sampling, self.samples), Tally(self.samples)
        tally.add(rows)
        return Evaluation(rows, tally.metrics(self.k))

    def validate(self, engine: Engine) -> dict[str, float]:
        """Return the scalars of an evaluation on the validation problems, `validation/…`; {} where there are none."""
        metrics = replace(self, problems=self.validation).evaluate(engine).metrics if self.validation else {}
        return {f"validation/{name}": value for name, value in metrics.items()}

    def evaluate_into(self, engine: Engine, path: Path, code: str, fresh: bool = False) -> Tally:
        """Evaluate part by part, so that memory stays flat, and write all rows to `path`. Parts are kept beside it
        until then, and not made again unless `fresh`, or judged by other `code`: the same command goes on after a
        kill."""
        tally, size, parts = Tally(self.samples), max(PART_ROWS // self.samples, 1), []
        for other in path.parent.glob(f".{path.stem}-*.parquet"):
            if not other.name.startswith(f".{path.stem}-{code}-"):
                log.warning("%s: judged by other code (expo's, or a judge of yours); it is made again", other)
                other.unlink()
        for start in range(0, len(self.problems), size):
            problems = self.problems[start : start + size]
            part = path.with_name(f".{path.stem}-{code}-{start:08d}.parquet")
            rows = None if fresh else kept_rows(part, problems, self.samples)
            if rows is not None:
                tally.earlier_s += seconds_of(part)
            else:
                began = time.monotonic()
                with telling(f"problems {start + 1} to {start + len(problems)} of {len(self.problems)}"):
                    rows = self._rows(engine, self.sampling, self.samples, start, problems)
                save_rows(rows, part, time.monotonic() - began)
            tally.add(rows)
            parts.append(part)
        join(parts, path)
        return tally

    def greedy(self, engine: Engine) -> list[dict[str, Any]]:
        """Return one row per problem: the completion of the most likely tokens."""
        most_likely = replace(self.sampling, temperature=1.0, top_p=1.0, top_k=1)
        return self._rows(engine, most_likely, 1)

    def _rows(
        self, engine: Engine, sampling: Sampling, n: int, start: int = 0, problems: Sequence[Problem] | None = None
    ) -> list[dict[str, Any]]:
        """Return n rows of each problem. Args: start, the position of the first of `problems` among all problems."""
        problems = self.problems if problems is None else problems
        prompts = [tuple(ids) for ids in self.prompts.solve_ids(self.tokenizer, problems) for _ in range(n)]
        requests = [Request(p, NoiseKey(self.seed, EVALUATE, 0, start * n + i)) for i, p in enumerate(prompts)]
        completions = engine.generate(requests, sampling)
        texts = self.tokenizer.batch_decode([c.ids for c in completions], skip_special_tokens=True)
        owners = [problem for problem in problems for _ in range(n)]
        rollouts = [
            Rollout(p, text, verdict, len(c.ids), c.truncated, 0, score)
            for p, text, (verdict, score), c in zip(
                owners, texts, self.verifier.score(texts, owners), completions, strict=True
            )
        ]
        rewards = rewards_of(self.reward, rollouts) if self.reward is not None else [None] * len(texts)
        return [
            {
                "problem": p.id,
                "level": p.level,
                "subject": p.subject,
                "question": p.question,
                "answer": p.answer,
                "sample": i % n,
                "completion": r.text,
                "final": self.verifier.extraction.of(r.text),
                "verdict": r.verdict.value,
                "tokens": r.tokens,
                "truncated": r.truncated,
                "logp": sum(c.logp),
                **({} if self.reward is None else {"reward": reward}),
                **({"sound": r.verdict is Verdict.CORRECT and p.oracle(p.question, r.text).sound} if p.oracle else {}),
            }
            for i, (p, r, c, reward) in enumerate(zip(owners, rollouts, completions, rewards, strict=True))
        ]
