"""An LLM judge of single steps, behind any OpenAI-compatible endpoint (the paper's Figure 2 used one)."""

import json
import logging
import os
import re
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from expo.config import JudgeConf, UserError
from expo.ground.problem import Problem
from expo.model.prompts import Prompts

log = logging.getLogger(__name__)

TIMEOUT_S = 120  # for one reply
LONGEST_REPLY = 2**20  # bytes


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect: the key would go to whatever address the reply names."""

    def redirect_request(self, *args: Any) -> None:
        return None


OPENER = build_opener(_NoRedirect)


def judge_steps(
    conf: JudgeConf, prompts: Prompts, problems: Sequence[Problem], completions: Sequence[str]
) -> tuple[list[float | None], int]:
    """Return each completion's share of right steps, None without such a reply, and how many replies did not come.
    Raises UserError where the endpoint refuses the first; a later failure costs that one answer only."""
    shares: list[float | None] = []
    failed = 0
    for problem, completion in zip(problems, completions, strict=True):
        try:
            shares.append(parse_share(_ask(conf, prompts.judge_text(problem, completion))))
        except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            if not shares:
                raise UserError(
                    f"diagnose.judge.base_url={conf.base_url}: the judge does not answer ({error}); check the address, "
                    f"diagnose.judge.model={conf.model} and the key in {conf.key_variable}"
                ) from error
            log.warning("the judge gave no answer (%s); the completion counts as not judged", error)
            refused = isinstance(error, HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429)
            # Too long, say: it would be refused again.
            failed += isinstance(error, OSError | HTTPException) and not refused
            shares.append(None)
    return shares, failed


def _ask(conf: JudgeConf, text: str) -> str:
    body = {
        "model": conf.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0.0,
        "max_tokens": 2048,
    }
    key = os.environ.get(conf.key_variable, "none")
    request = Request(
        f"{str(conf.base_url).rstrip('/')}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with OPENER.open(request, timeout=TIMEOUT_S) as reply:
        return json.loads(reply.read(LONGEST_REPLY))["choices"][0]["message"]["content"] or ""


def parse_share(reply: str) -> float | None:
    """Return N / (N + M) of the last "right: N, wrong: M"."""
    counts = re.findall(r"right:\s*(\d+)\D+wrong:\s*(\d+)", reply, re.IGNORECASE)
    if not counts:
        return None
    right, wrong = map(int, counts[-1])
    return right / (right + wrong) if right + wrong else None
