"""A tiny random Qwen2 with a tokenizer of its own, for trying real data without a download."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from expo.ladder.policy import CHAT_TEMPLATE, SPECIAL_TOKENS


def bpe_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerBase:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    # Qwen2's own class, because that is what AutoTokenizer makes of any tokenizer saved beside a Qwen2 model.
    options: dict[str, Any] = {"merges": [tuple(merge) for merge in merges], "chat_template": CHAT_TEMPLATE}
    return Qwen2Tokenizer(vocab=bpe.get_vocab(), **options, **SPECIAL_TOKENS)


def random_tiny(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a random Qwen2 (about 0.2M parameters) with a byte-level BPE tokenizer: it carries text through a run."""
    tokenizer = bpe_tokenizer([BPE_TEXT], 768)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    return model, tokenizer


# Enough mathematical prose for a byte-pair encoding to find some merges; the bytes themselves cover everything else.
BPE_TEXT = r"""
Let $x$ be a real number such that $x^2 - 3x + 2 = 0$. Factoring the left-hand side, we get $(x - 1)(x - 2) = 0$, so
$x = 1$ or $x = 2$. Therefore the sum of all solutions is $1 + 2 = \boxed{3}$. What is the value of $\frac{1}{2} + \frac{1}{3}$?
We find a common denominator: $\frac{3}{6} + \frac{2}{6} = \frac{5}{6}$, so the answer is $\boxed{\frac{5}{6}}$. In triangle
$ABC$, we have $AB = 5$, $BC = 12$ and $AC = 13$. Since $5^2 + 12^2 = 13^2$, the triangle has a right angle, and its area is
$\frac{1}{2} \cdot 5 \cdot 12 = \boxed{30}$. How many positive integers less than 100 are divisible by 7? Each multiple of 7 can
be written as $7k$, and $7k < 100$ gives $k \le 14$. Thus there are $\boxed{14}$ such integers. Evaluate $\sqrt{16} + \log_2 8$.
Solve the problem step by step. End with the final answer in the form. Explain why the answer is correct, with a derivation.
The probability that a fair coin lands heads three times is $\left(\frac{1}{2}\right)^3 = \boxed{\frac{1}{8}}$. Find the
remainder when the number is divided by the integer. Note that the function is equal to the polynomial, so we have the following.
"""  # noqa: E501
