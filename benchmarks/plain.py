"""Compare what `expo evaluate` says of a model with plain transformers' `generate`, on the same problems.

`python -m benchmarks.plain RUN [GSM8K_FILE]`: RUN is the directory of an evaluation of SmolLM2 with
`prompts.template_system=false`, on GSM8K, or without a file on experiments/real_lm's sums. Prompts are written here by
hand, `generate` samples, and answers are read and judged here: GSM8K's by math-verify, sums by comparing numbers.

What experiments/real_lm/README.md tells was made by `expo evaluate`, each with prompts.template_system=false, of

  model=hf model.path=outputs/bases/sums dataset=function dataset.name=sums
    dataset.function=experiments.real_lm.sums.sums dataset.answer_kind=exact dataset.eval_split=table
    'dataset.columns={solution: solution, level: level}'
    dataset.eval_levels=[3] dataset.limit=100 "prompts.solve='{question}'" rollout.max_completion_tokens=72 'k=[1,2]'
  model=smollm2-135m dataset=gsm8k dataset.path=../shared/data/gsm8k/test.jsonl dataset.part=all dataset.limit=100
    rollout.max_completion_tokens=160 'k=[1]'
"""

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
import yaml
from math_verify import parse, verify
from transformers import AutoModelForCausalLM

from expo.config.model import is_gguf, located
from expo.model.policy import load_tokenizer

Judge = Callable[[str, str], bool]  # of a question and the answer in a completion's last box
ROWS = 25  # at a time
SCORED = 20  # of expo's completions
END = "<|im_end|>"
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
BOXED = "\n\nReason step by step, and put your final answer within \\boxed{}."


def gsm8k(path: str) -> Judge:
    """Return the judge by the answers of a file of GSM8K."""
    rows = map(json.loads, Path(path).read_text().splitlines())
    golds = {row["question"].strip(): row["answer"].split("####")[1].strip().replace(",", "") for row in rows}
    return lambda question, answer: verify(parse(golds[question.strip()]), parse(rf"\boxed{{{answer}}}"))


def sums(question: str, answer: str) -> bool:
    """Return whether an answer is the sum that is asked for."""
    return answer.strip() == str(sum(int(term) for term in question.partition(":")[0].split("+")))


def in_box(completion: str) -> str:
    """Return what stands in a completion's last box; "" without one."""
    found: list[str] = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", completion)
    return found[-1] if found else ""


def loaded(source: str) -> tuple[Any, Any]:
    """Return the model, by transformers alone, and its tokenizer."""
    file = {"gguf_file": Path(source).name} if is_gguf(source) else {}
    model: Any = AutoModelForCausalLM.from_pretrained(
        Path(source).parent if file else source, dtype=torch.float32, **file
    )
    return model.eval(), load_tokenizer(source)  # expo's: transformers splits the digits of SmolLM2's file otherwise


@torch.no_grad()
def worst_logp(
    model: Any, tokenizer: Any, prompts: Sequence[str], rows: Sequence[dict[str, Any]], temperature: float
) -> tuple[float, int]:
    """Return the largest difference between a completion's log-probability as expo tells it and as the model has it,
    over those whose text gives its tokens again, and how many these are."""
    apart = []
    for prompt, row in zip(prompts, rows, strict=False):
        asked = tokenizer(prompt)["input_ids"]
        said = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        said += [] if row["truncated"] else [tokenizer.convert_tokens_to_ids(END)]
        if len(said) == row["tokens"]:
            logits = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
            ours = (logits / temperature).log_softmax(-1)[range(len(said)), said].sum().item()
            apart.append(abs(ours - row["logp"]))
    return max(apart), len(apart)


@torch.no_grad()
def generated(
    model: Any, tokenizer: Any, prompts: Sequence[str], temperature: float, tokens: int
) -> list[tuple[str, int]]:
    """Return a completion of each prompt, and its tokens with the one that ends it."""
    tokenizer.padding_side, made = "left", []
    end = tokenizer.convert_tokens_to_ids(END)
    for start in range(0, len(prompts), ROWS):
        batch = tokenizer(list(prompts[start : start + ROWS]), return_tensors="pt", padding=True)
        ids = model.generate(
            **batch, do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=tokens,
            eos_token_id=end, pad_token_id=end,
        )  # fmt: skip
        for row in ids[:, batch.input_ids.shape[1] :].tolist():
            length = row.index(end) + 1 if end in row else len(row)
            made.append((tokenizer.decode(row[:length], skip_special_tokens=True), length))
    return made


def means(rows: Sequence[dict[str, Any]], values: Sequence[float]) -> np.ndarray:
    """Return the mean of each problem: those of two evaluations are in the same order."""
    of: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        of.setdefault(row["problem"], []).append(value)
    return np.array([np.mean(some) for some in of.values()])


def told(values: np.ndarray) -> str:
    """Return a mean with its 95 % interval over problems."""
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def main(arguments: list[str]) -> int:
    run = Path(arguments[0])
    judge, more = (gsm8k(arguments[1]), BOXED) if arguments[1:] else (sums, "")
    conf = yaml.safe_load((run / "config.yaml").read_text())
    rows = pyarrow.parquet.read_table(run / "completions" / "eval.parquet").to_pylist()
    prompts = [CHAT.format(row["question"] + more) for row in rows]
    torch.manual_seed(0)
    limit, temperature = conf["rollout"]["max_completion_tokens"], conf["evaluation"]["temperature"]
    model, tokenizer = loaded(located(conf["model"]["path"]))
    worst, count = worst_logp(model, tokenizer, prompts[:SCORED], rows, temperature)
    print(f"log-probabilities of {count} of expo's completions: at most {worst:.1e} nats from the model's")
    made = generated(model, tokenizer, prompts, temperature, limit)
    right = [float(judge(row["question"], in_box(text))) for row, (text, _) in zip(rows, made, strict=True)]
    pairs: dict[str, tuple[list[float], list[float]]] = {
        "pass@1": ([float(row["verdict"] == "correct") for row in rows], right),
        "tokens": ([row["tokens"] for row in rows], [length for _, length in made]),
        "boxed": ([float(bool(in_box(row["completion"]))) for row in rows], [float(bool(in_box(t))) for t, _ in made]),
    }
    apart = False
    unlike = sum(judge(row["question"], in_box(row["completion"])) != (row["verdict"] == "correct") for row in rows)
    print(f"of expo's {len(rows)} completions, {unlike} are judged otherwise here")
    for name, (ours, plain) in pairs.items():
        mine, theirs = means(rows, ours), means(rows, plain)
        difference = told(mine - theirs)
        print(f"{name}: expo {told(mine)}, plain {told(theirs)}, difference {difference}, {len(mine)} problems")
        apart |= abs((mine - theirs).mean()) > 1.96 * (mine - theirs).std(ddof=1) / math.sqrt(len(mine))
    return int(apart)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
