"""The ladder's base policy with fresh weights, and its tokenizer."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from expo.config.world import CLEAR, WorldConf
from expo.ladder.problems import words

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} {% if message['role'] == "
    "'assistant' %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS: dict[str, Any] = {
    "pad_token": "<|pad|>",
    "eos_token": "<|end|>",
    "unk_token": "<|unk|>",
    "additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"],
}


def ladder_tokenizer(world: WorldConf = CLEAR) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer: numbers and labels are single tokens, else the explain skill forms too slowly."""
    special = ["<|pad|>", "<|end|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>"]
    vocab = {word: i for i, word in enumerate([*special, *words(world)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **SPECIAL_TOKENS)


def ladder_model(
    seed: int, hidden_size: int = 96, layers: int = 4, heads: int = 4, world: WorldConf = CLEAR
) -> PreTrainedModel:
    """Return a Llama with fresh weights; of about 0.46M parameters by default."""
    tokenizer = ladder_tokenizer(world)
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=512 if world.verbose else 256,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
