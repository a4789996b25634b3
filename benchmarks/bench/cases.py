"""What `make bench` measures: a model's shape, the size of a step, and what is trained on."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from expo.config import ModelConf
from expo.model.policy import load_policy
from expo.model.small import BPE_TEXT, bpe_tokenizer

QUESTIONS = (
    "A shop sells pens at 3 dollars and books at 12 dollars. How much do 4 pens and 2 books cost?",
    "Let $x$ be a positive real number with $x^2 + 4x = 45$. Find $x$.",
    "How many positive integers less than 60 are divisible by neither 2 nor 3?",
    "A train travels 180 kilometres in 2 hours and then 90 kilometres in 1.5 hours. What is its mean speed, in "
    "kilometres per hour?",
    "Evaluate $\\log_2 32 + \\sqrt{49}$.",
    "The sides of a right triangle are 9, 40 and 41. What is the radius of its inscribed circle?",
    "Two fair dice are rolled. What is the probability that the sum is 8?",
    "Find the remainder when $7^{20}$ is divided by 5.",
)


@dataclass(frozen=True)
class Case:
    """One comparison. `micro` rows go through the update at a time, in both frameworks."""

    name: str
    told: str
    shape: dict[str, Any]
    model: str = ""  # a model whose own weights are used, instead of random ones of this shape
    tokens: int = 64  # of each completion, at most
    micro: int = 16
    threads: int = 2
    kl: float = 0.0
    lora_rank: int = 0
    problems: int = 8
    group: int = 8
    overrides: tuple[str, ...] = field(default=())  # of expo alone
    against: str = ""  # another case of expo's own, instead of TRL

    def json(self) -> str:
        """Return it as text for a process of its own."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> "Case":
        """Read `json`."""
        fields = json.loads(text)
        return cls(**fields | {"overrides": tuple(fields["overrides"])})


def shape_of(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    """Return the settings of a Qwen2 with so many numbers."""
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }  # fmt: skip


SMALL = Case("a", "1.1M parameters, vocabulary 768", shape_of(128, 512, 4, 4, 2, 768), threads=1)
MIDDLE = Case("b", "47M parameters, vocabulary 32,000", shape_of(512, 1792, 8, 8, 8, 32000))
LARGE = Case(
    "c", "Qwen2.5-0.5B cut to 4 layers: 196M, vocabulary 151,936", shape_of(896, 4864, 4, 14, 2, 151936),
    problems=2, group=4, micro=8,
)  # fmt: skip
SMOL = Case(
    "d", "SmolLM2-135M, 30 layers, vocabulary 49,152", shape_of(576, 1536, 30, 9, 3, 49152), model="smollm2-135m",
    tokens=96,
)  # fmt: skip
# The ladder's own settings: 16 problems of all levels, 8 rollouts each, so that rewards are mixed.
LADDER_GRPO = Case("ladder-grpo", "the ladder's policy, GRPO", {}, threads=1, overrides=("algorithm=grpo",))
LADDER_EXP = replace(
    LADDER_GRPO, name="ladder", told="the ladder's policy, ExP-GRPO against GRPO", overrides=("algorithm=exp_grpo",),
    against="ladder-grpo",
)  # fmt: skip
LADDER_GATED = replace(
    LADDER_EXP, name="ladder-gated", told="the same with positives.gate=all_wrong",
    overrides=("algorithm=exp_grpo", "positives.gate=all_wrong"),
)  # fmt: skip

CASES = {
    case.name: case
    for case in (
        SMALL,
        replace(SMALL, name="a-kl", told=f"{SMALL.told}, with KL", kl=0.04),
        MIDDLE,
        replace(MIDDLE, name="b-kl", told=f"{MIDDLE.told}, with KL", kl=0.04),
        LARGE,
        replace(LARGE, name="c-lora", told=f"{LARGE.told}, LoRA of rank 16", lora_rank=16),
        SMOL,
        replace(SMOL, name="d-lora", told=f"{SMOL.told}, LoRA of rank 16", lora_rank=16),
        LADDER_GRPO,
        LADDER_EXP,
        LADDER_GATED,
    )
}


def make_model(case: Case, folder: Path, texts: list[str]) -> None:
    """Save the case's own model; where it names none, one of its shape with random weights, and a tokenizer whose byte
    pairs are those of the texts."""
    if case.model:
        for part in load_policy(ModelConf(path=case.model)):
            part.save_pretrained(folder)
        return
    tokenizer = bpe_tokenizer(texts or [BPE_TEXT], min(case.shape["vocab_size"], 8192) - 6)
    torch.manual_seed(0)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    Qwen2ForCausalLM(Qwen2Config(**case.shape, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(file: Path, questions: list[str]) -> None:
    """Write problems as expo reads them; the answers matter to nobody: rewards are random."""
    file.write_text("".join(json.dumps({"question": q, "answer": "7"}) + "\n" for q in questions))
