"""An LLM judge of single steps, behind any OpenAI-compatible endpoint (the paper's Figure 2 used one)."""

import os
import re
from collections.abc import Sequence

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from expo.config import UserError
from expo.data.problem import Problem
from expo.prompts import Prompts
from expo.schema import JudgeConf


def judge_steps(
    conf: JudgeConf, prompts: Prompts, problems: Sequence[Problem], completions: Sequence[str]
) -> list[float | None]:
    """The share of right steps in each completion, None where the judge's reply has no such numbers.

    Raises UserError where the endpoint cannot be reached or refuses.
    """
    client = InferenceClient(base_url=conf.base_url, api_key=os.environ.get(conf.key_variable, "none"))
    shares: list[float | None] = []
    for problem, completion in zip(problems, completions, strict=True):
        messages = [{"role": "user", "content": prompts.judge_text(problem, completion)}]
        try:
            reply = client.chat_completion(messages, model=conf.model, temperature=0.0, max_tokens=2048)
        except (HfHubHTTPError, InferenceTimeoutError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"diagnose.judge.base_url={conf.base_url}: the judge does not answer ({reason}); check the address, "
                f"diagnose.judge.model={conf.model} and the key in {conf.key_variable}"
            ) from error
        shares.append(parse_share(reply.choices[0].message.content or ""))
    return shares


def parse_share(reply: str) -> float | None:
    """N / (N + M) of the last "right: N, wrong: M"."""
    found = re.findall(r"right:\s*(\d+)\D+wrong:\s*(\d+)", reply, re.IGNORECASE)
    if not found:
        return None
    right, wrong = map(int, found[-1])
    return right / (right + wrong) if right + wrong else None
