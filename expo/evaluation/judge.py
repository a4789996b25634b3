"""An LLM judge of single steps, behind any OpenAI-compatible endpoint (the paper's Figure 2 used one)."""

import json
import os
import re
from collections.abc import Sequence
from urllib.request import Request, urlopen

from expo.config import UserError
from expo.data.problem import Problem
from expo.prompts import Prompts
from expo.schema import JudgeConf

TIMEOUT_S = 120  # for one reply


def judge_steps(
    conf: JudgeConf, prompts: Prompts, problems: Sequence[Problem], completions: Sequence[str]
) -> list[float | None]:
    """The share of right steps in each completion, None where the judge's reply has no such numbers.

    Raises UserError where the endpoint cannot be reached or refuses.
    """
    shares: list[float | None] = []
    for problem, completion in zip(problems, completions, strict=True):
        message = {"role": "user", "content": prompts.judge_text(problem, completion)}
        body = {"model": conf.model, "messages": [message], "temperature": 0.0, "max_tokens": 2048}
        request = Request(
            f"{str(conf.base_url).rstrip('/')}/chat/completions",
            json.dumps(body).encode(),
            {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {os.environ.get(conf.key_variable, 'none')}",
            },
        )
        try:
            with urlopen(request, timeout=TIMEOUT_S) as reply:
                text = json.load(reply)["choices"][0]["message"]["content"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"diagnose.judge.base_url={conf.base_url}: the judge does not answer ({error}); check the address, "
                f"diagnose.judge.model={conf.model} and the key in {conf.key_variable}"
            ) from error
        shares.append(parse_share(text or ""))
    return shares


def parse_share(reply: str) -> float | None:
    """N / (N + M) of the last "right: N, wrong: M"."""
    found = re.findall(r"right:\s*(\d+)\D+wrong:\s*(\d+)", reply, re.IGNORECASE)
    if not found:
        return None
    right, wrong = map(int, found[-1])
    return right / (right + wrong) if right + wrong else None
