"""Shapes of known models, and models of these shapes with random weights: `model=random_shape`."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from expo.config import RandomShapeConf, UserError
from expo.model.policy import prepared
from expo.model.small import BPE_TEXT, bpe_tokenizer

# Shapes of models whose configs cannot be downloaded everywhere, as their config.json has them.
_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "tie_word_embeddings",
)  # fmt: skip
_ROWS: tuple[tuple[Any, ...], ...] = (
    ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", 896, 4864, 24, 14, 2, 151936, True),
    ("Qwen/Qwen2.5-1.5B-Instruct", "qwen2", 1536, 8960, 28, 12, 2, 151936, True),
    ("Qwen/Qwen2.5-3B-Instruct", "qwen2", 2048, 11008, 36, 16, 2, 151936, True),
    ("Qwen/Qwen2.5-7B-Instruct", "qwen2", 3584, 18944, 28, 28, 4, 152064, False),
    ("meta-llama/Llama-3.2-1B-Instruct", "llama", 2048, 8192, 16, 32, 8, 128256, True),
    ("meta-llama/Llama-3.2-3B-Instruct", "llama", 3072, 8192, 28, 24, 8, 128256, True),
    ("meta-llama/Llama-3.1-8B-Instruct", "llama", 4096, 14336, 32, 32, 8, 128256, False),
    ("tiny", "qwen2", 64, 128, 2, 2, 1, 768, True),
)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (kind, dict(zip(_FIELDS, values, strict=True))) for name, kind, *values in _ROWS
}
NAMES = {
    "0.5B": "Qwen/Qwen2.5-0.5B-Instruct",
    "1.5B": "Qwen/Qwen2.5-1.5B-Instruct",
    "3B": "Qwen/Qwen2.5-3B-Instruct",
    "7B": "Qwen/Qwen2.5-7B-Instruct",
    "1B": "meta-llama/Llama-3.2-1B-Instruct",
    "8B": "meta-llama/Llama-3.1-8B-Instruct",
}
LEARNED = 8192  # tokens of the tokenizer: the others of a large vocabulary stand for no text


def config_of(path: str) -> Any:
    """Return the config of a known model by hub id or name (`0.5B`), cut to four layers (`0.5B:4`); None for others."""
    name, _, layers = path.partition(":")
    kind, options = SHAPES.get(NAMES.get(name, name), ("", {}))
    if not kind:
        return None
    if layers and not layers.isdecimal():
        return None
    cut = {"num_hidden_layers": int(layers)} if layers else {}
    return AutoConfig.for_model(kind, **options | cut, max_position_embeddings=4096)


def random_shape(conf: RandomShapeConf) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a model of a known shape with random weights, the same for every seed. Raises UserError for other shapes."""
    config = config_of(conf.path)
    if config is None:
        raise UserError(
            f"model.path={conf.path}: no shape that is known; use one of {', '.join((*NAMES, 'tiny'))}, with :4 "
            "behind it for four layers"
        )
    tokenizer = bpe_tokenizer([BPE_TEXT], min(config.vocab_size, LEARNED) - 6)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    with torch.random.fork_rng():  # of GPUs, too: its weights may be made there
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, conf.dtype), attn_implementation=conf.attention
        )
    return prepared(model, conf), tokenizer
