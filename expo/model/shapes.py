"""Shapes of known models, and models of these shapes with random weights: `model=random_shape`."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from expo.config import RandomShapeConf, UserError
from expo.model.policy import prepared
from expo.model.small import BPE_TEXT, bpe_tokenizer

# Shapes of models whose configs cannot be downloaded everywhere, as their config.json has them.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Qwen/Qwen2.5-3B-Instruct": ("qwen2", {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}),
}  # fmt: skip
NAMES = {
    "0.5B": "Qwen/Qwen2.5-0.5B-Instruct",
    "1.5B": "Qwen/Qwen2.5-1.5B-Instruct",
    "3B": "Qwen/Qwen2.5-3B-Instruct",
    "7B": "Qwen/Qwen2.5-7B-Instruct",
    "1B": "meta-llama/Llama-3.2-1B-Instruct",
    "8B": "meta-llama/Llama-3.1-8B-Instruct",
}
SHAPES["tiny"] = ("qwen2", {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 768, "tie_word_embeddings": True})  # fmt: skip
LEARNED = 8192  # tokens of the tokenizer: the others of a large vocabulary stand for no text


def config_of(path: str) -> Any:
    """Return the config of a known model by hub id or by name, `0.5B`; cut to four layers, `0.5B:4`. None where it is not known."""
    name, _, layers = path.partition(":")
    kind, options = SHAPES.get(NAMES.get(name, name), ("", {}))
    if not kind:
        return None
    if layers and not layers.isdigit():
        return None
    cut = {"num_hidden_layers": int(layers)} if layers else {}
    return AutoConfig.for_model(kind, **options | cut, max_position_embeddings=4096)


def random_shape(conf: RandomShapeConf) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a model of a known shape with random weights, the same for every seed. Raises UserError for a shape that is not known."""
    config = config_of(conf.path)
    if config is None:
        raise UserError(
            f"model.path={conf.path}: no shape that is known; use one of {', '.join((*NAMES, 'tiny'))}, with :4 behind it for four layers"
        )
    tokenizer = bpe_tokenizer([BPE_TEXT], min(config.vocab_size, LEARNED) - 6)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    with torch.random.fork_rng():  # of GPUs, too: its weights may be made there
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, conf.dtype), attn_implementation=conf.attention
        )
    return prepared(model, conf), tokenizer
