"""`expo verify`: what the verifier says of an answer, and why."""

import re
from typing import Any

from rich.console import Console
from rich.table import Table

from expo.config import ANSWER_KINDS, UserError, VerifierConf, take_options
from expo.ground.problem import Problem
from expo.verifier.answers import fast_verdict, kind_for
from expo.verifier.kinds import doubt
from expo.verifier.pool import Verifier
from expo.verifier.spelling import bare

USAGE = "usage: expo verify GOLD ANSWER... [kind=auto] (each in quotes; without \\boxed{} around it)"


def main(arguments: list[str]) -> int:
    """Print kind, what both state and the verdict. Returns the exit code. Raises UserError for an unknown kind."""
    if len(arguments) < 2:
        raise UserError(f"verify: a right answer and at least one other are compared; {USAGE}")
    given = [a for a in arguments if a.startswith("kind=")]
    options, _ = take_options(given, kind="auto")
    gold, *answers = [a for a in arguments if a not in given]
    kind = options["kind"]
    if settings := [a for a in arguments if re.match(r"(verifier|dataset|prompts)[.=]", a)]:
        raise UserError(
            f"{settings[0]}: expo verify compares bare answers, by kind=…, and takes no settings; try a judge or a "
            "place of your own with expo train … model=random_tiny trainer.max_steps=1"
        )
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


def _stated(form: Any, text: str) -> str:
    stated = None if form is None else form(text)
    return "" if stated is None else str(stated)
