"""Samples of every kind, and the two properties of a good positive (paper Table 1, Figure 2) measured on them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from expo.config import DiagnoseConf
from expo.evaluation.kinds import KINDS, Samples
from expo.evaluation.llm_judge import judge_steps
from expo.ground.problem import Problem
from expo.ground.progress import telling
from expo.rollout.engine import Completion, Engine, Request
from expo.rollout.noise import DIAGNOSE, NoiseKey
from expo.step.experience import Batch, Group, Tools
from expo.step.positives.properties import Scorer
from expo.step.positives.sources import SHOWN
from expo.verifier.answers import Verdict

CONTROLS = {"wrong_answer": "wrong", "shuffled_answer": "shuffled"}  # kind of sample -> the answer that it is shown
STREAMS = ("own", "self_explanation", "wrong_answer", "shuffled_answer")  # of noise, by place


def sample(
    problems: list[Problem], engine: Engine, tools: Tools, samples: int, controls: Sequence[str] = ("wrong_answer",)
) -> Samples:
    """Return completions of every kind, verified, those of controls against the answer that they were shown."""
    prompts = [tuple(ids) for ids in tools.prompts.solve_ids(tools.tokenizer, problems)]
    batch = Batch(problems, prompts)
    own_samples = _generate(engine, tools, [p for p in prompts for _ in range(samples)], "own")
    rows = _rows("own", [(i, p) for i, p in enumerate(problems) for _ in range(samples)], own_samples, tools)
    verdicts = _verify(rows, tools)
    others = [_expert(i, p, tools) for i, p in enumerate(problems) if p.solution is not None]
    of_problem = [slice(i * samples, (i + 1) * samples) for i in range(len(problems))]
    groups = {
        i: Group(problems[i], prompts[i], own_samples[s], [row["completion"] for row in rows[s]], verdicts[s], [])
        for i, s in enumerate(of_problem)
    }
    for kind, shown in ({"self_explanation": "true"} | {kind: CONTROLS[kind] for kind in controls}).items():
        answers = [(i, SHOWN[shown](batch, groups, i, tools)) for i in range(len(problems))]
        explained = [(i, replace(problems[i], answer=answer)) for i, answer in answers if answer is not None]
        ids = tools.prompts.explain_ids(tools.tokenizer, [p for _, p in explained])
        # A wrong answer may be a long one: the length of the problem's prompts was checked with the true answer.
        asked = tools.fitting(dict(zip(explained, ids, strict=True)), 0, f"prompts of {kind} not used")
        written = _generate(engine, tools, [prompt for prompt in asked.values() for _ in range(samples)], kind)
        others += _rows(kind, [pair for pair in asked for _ in range(samples)], written, tools)
    _verify(others, tools)
    return rows + others


def _rows(kind: str, owners: Sequence[tuple[int, Problem]], written: Sequence[Completion], tools: Tools) -> Samples:
    texts = tools.texts([c.ids for c in written])
    return [
        {"kind": kind, "problem": i, "ids": c.ids, "completion": text, "truncated": c.truncated, "judged_as": p}
        for (i, p), c, text in zip(owners, written, texts, strict=True)
    ]


def _expert(i: int, problem: Problem, tools: Tools) -> dict[str, Any]:
    assert problem.solution is not None
    ids = tools.prompts.solution_ids(tools.tokenizer, problem.solution)
    row = {"kind": "expert", "problem": i, "ids": ids, "completion": problem.solution, "truncated": False}
    return row | {"judged_as": problem}


def _verify(rows: Samples, tools: Tools) -> list[Verdict]:
    """Add to each row whether its completion ends in its answer, and its length; return the verdicts."""
    owners = [row.pop("judged_as") for row in rows]
    verdicts = tools.verifier.verify([row["completion"] for row in rows], owners)
    for row, problem, verdict in zip(rows, owners, verdicts, strict=True):
        row |= {"answer": problem.answer, "verified": float(verdict is Verdict.CORRECT), "tokens": len(row["ids"])}
        row["verdict"] = verdict.value
    return verdicts


def _generate(engine: Engine, tools: Tools, prompts: list[tuple[int, ...]], kind: str) -> list[Completion]:
    stream = STREAMS.index(kind)
    keys = [NoiseKey(tools.seed, DIAGNOSE, stream, row) for row in range(len(prompts))]
    with telling(KINDS[kind]):
        return engine.generate([Request(p, key) for p, key in zip(prompts, keys, strict=True)], tools.sampling)


def add_measures(rows: Samples, problems: list[Problem], scorer: Scorer) -> None:
    """Add NLL under q alone, and the lift of the *true* answer over the median of the policy's own completions."""
    prompts = scorer.prompts.solve_ids(scorer.tokenizer, problems)
    solve, completions = [prompts[row["problem"]] for row in rows], [row["ids"] for row in rows]
    answers = [problems[row["problem"]].answer for row in rows]
    own_rows = defaultdict(list)
    with telling("likelihood of the samples"):
        logps = scorer.logp(solve, completions).tolist()
    with telling("likelihood of the answers"):
        answer_logps = scorer.answer_logp(solve, completions, answers).tolist()
    for row, logp, answer_logp in zip(rows, logps, answer_logps, strict=True):
        row |= {"nll": -logp, "nll_per_token": -logp / len(row["ids"]), "answer_logp": answer_logp}
        if row["kind"] == "own":
            own_rows[row["problem"]].append(answer_logp)
    for row in rows:
        problem = problems[row["problem"]]
        row["answer_lift"] = row["answer_logp"] - float(np.median(own_rows[row["problem"]]))
        row |= {"id": problem.id, "level": problem.level, "question": problem.question, "true_answer": problem.answer}


def check_steps(rows: Samples, problems: list[Problem], conf: DiagnoseConf, tools: Tools, earlier: Samples) -> int:
    """Add the share of right steps: by the data's oracle (in the policy's own style), by a judge, or None. Returns how
    many the judge did not answer. Args: earlier, rows of the same run that may be judged already."""
    shares: list[float | None] = [None] * len(rows)
    failed = 0
    if oracle := problems[0].oracle:
        shares = [None if row["kind"] == "expert" else oracle(row["question"], row["completion"]).share for row in rows]
    elif conf.judge.base_url:
        known = {(row["kind"], row["id"], row["completion"]): row["right_steps"] for row in earlier}
        shares = [known.get((row["kind"], row["id"], row["completion"])) for row in rows]
        asked = [i for i, share in enumerate(shares) if share is None]
        owners, texts = [problems[rows[i]["problem"]] for i in asked], [rows[i]["completion"] for i in asked]
        judged, failed = judge_steps(conf.judge, tools.prompts, owners, texts)
        for i, share in zip(asked, judged, strict=True):
            shares[i] = share
    for row, share in zip(rows, shares, strict=True):
        row["right_steps"] = share
    return failed
