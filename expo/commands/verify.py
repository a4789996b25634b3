"""`expo verify`: what the verifier says of an answer, and why."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from expo.config import ANSWER_KINDS, UserError, VerifierConf, compose_config, take_options
from expo.config.key import check_values, keep
from expo.ground.problem import Problem
from expo.verifier.answers import fast_verdict, kind_for
from expo.verifier.kinds import doubt
from expo.verifier.pool import Verifier
from expo.verifier.spelling import bare

USAGE = (
    "usage: expo verify GOLD ANSWER... [kind=auto | verifier=… prompts=…] (each in quotes; without \\boxed{} around it)"
)


def main(arguments: list[str]) -> int:
    """Print kind, what both state and the verdict. Returns the exit code. Raises UserError for an unknown kind."""
    if len(arguments) < 2:
        raise UserError(f"verify: a right answer and at least one other are compared; {USAGE}")
    given = [a for a in arguments if a.startswith("kind=")]
    options, _ = take_options(given, kind="auto")
    settings = [a for a in arguments if re.match(r"(verifier|prompts|dataset)[.=]", a)]
    if idle := [a for a in settings if a.startswith("dataset") or given]:
        raise UserError(f"{idle[0]}: expo verify takes kind=…, or verifier=… and prompts=… (verifier.kind=… with them)")
    for text in arguments:  # a slip would be judged as an answer
        name, equals, value = text.partition("=")
        group = name.partition(".")[0]
        near = difflib.get_close_matches(group, ("verifier", "prompts", "kind", "reward", "dataset"), 1, 0.75)
        if equals and near and text not in (*given, *settings):
            known = "expo verify has no such key" if near[0] == group else f"did you mean {near[0]}={value}?"
            raise UserError(f"{text}: {known}; it takes kind=…, or verifier=… and prompts=…")
    gold, *answers = [a for a in arguments if a not in (*given, *settings)]
    kind = options["kind"]
    if settings:
        return by_judge(settings, gold, answers)
    if kind not in ANSWER_KINDS:
        raise UserError(f"kind={kind}: no kind of answer; use one of {', '.join(ANSWER_KINDS)}")
    how = kind_for(gold, kind)
    stated = _stated(how.form, gold)
    print(f"{bare(gold)}: {how.name}" + (f", {stated}" if stated else "") + (" (given)" if kind != "auto" else ""))
    if kind == "auto" and (doubtful := doubt(gold)):
        print(doubtful)
    table = Table("answer", "states", "verdict", "by", box=None, pad_edge=False)
    with Verifier(VerifierConf()) as verifier:
        problem = Problem("", "", gold, kind=kind)
        for answer in answers:
            verdict = verifier.submit(verifier.extraction.stated(answer), problem).result()
            by = "math-verify" if fast_verdict(answer, gold, kind) is None else "its kind"
            table.add_row(bare(answer), _stated(how.form, answer), str(verdict), by)
    Console().print(table, markup=False)
    return 0


def by_judge(settings: Sequence[str], gold: str, texts: Sequence[str]) -> int:
    """Print what a judge says of completions, or of bare answers as `prompts.final` states them."""
    cfg = compose_config(settings)
    check_values(cfg)
    keep(rule for part in (cfg.verifier, cfg.prompts) if hasattr(part, "rules") for rule in part.rules(cfg))
    table = Table("answer", "is read as", "verdict", "score", box=None, pad_edge=False)
    with Verifier(cfg.verifier, final=cfg.prompts.final) as verifier:
        problem = Problem("", "", gold, columns={"answer": gold})
        if refused := verifier.judge.refuses(problem):
            raise UserError(f"{gold}: as a right answer of {' '.join(settings)}: {refused}")
        read = verifier.extraction.of
        for text in texts:
            completion = text if read(text) is not None else verifier.extraction.stated(text)
            judging = verifier.submit(completion, problem)
            verdict = judging.result()
            table.add_row(completion, read(completion) or "", str(verdict), f"{judging.score:g}")
    Console().print(table, markup=False)
    return 0


def _stated(form: Any, text: str) -> str:
    stated = None if form is None else form(text)
    return "" if stated is None else str(stated)
