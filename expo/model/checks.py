"""Checks of a loaded model before a run begins: does expo score and decode it rightly? The model itself is tried, on
its device."""

import torch
from torch import nn
from transformers import PreTrainedModel

from expo.config import UserError
from expo.model.formats import error_in_4bit
from expo.model.modes import causal_lm, computing, in_evaluation
from expo.model.scoring import score, token_batch

# What a model raises that cannot do what it is asked for.
UNABLE = (TypeError, ValueError, RuntimeError, LookupError, AttributeError)
# RoPE by which a token's place depends on how long the longest row beside it is.
BY_LENGTH = ("dynamic", "longrope")


def check_scoring(model: PreTrainedModel, path: str) -> None:
    """Refuse an architecture that scales or caps logits after the head: scores by the head alone would be wrong."""
    ids = torch.arange(1, 9, device=model.device).unsqueeze(0) % model.config.get_text_config().vocab_size
    causal = causal_lm(model)
    decoder, head = causal.get_decoder(), causal.get_output_embeddings()
    factor, same = [1.0], []
    hook = head.register_forward_pre_hook(lambda _, given: (factor[0] * given[0],))
    with hook, torch.no_grad(), computing(model), in_evaluation(model):
        for _ in range(2):
            ours = head(decoder(input_ids=ids, use_cache=False).last_hidden_state).float()
            theirs = model(input_ids=ids).logits.float()
            same.append(torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2))
            # Then with large logits: a cap leaves small ones, as a model without training has, nearly as they are.
            factor[0] = 100 / max(ours.abs().max().item(), 1e-3)
    if not all(same):
        raise UserError(
            f"model.path={path}: {type(model).__name__} changes its logits after the output head, which expo does "
            "not support; choose a Qwen2, Llama or similar model"
        )


@torch.no_grad()
def check_bits(model: nn.Module, path: str) -> None:
    """Refuse weights in 4 bits that bitsandbytes does not give back, up to rounding. On a CPU its 0.50 mixes the scales
    up in rows whose length is no multiple of 64, without a word."""
    held = [(p.device, state) for p in model.parameters() if (state := getattr(p, "quant_state", None)) is not None]
    shapes = {(tuple(state.shape), device) for device, state in held}
    for shape, device in sorted(shapes, key=str):
        off = error_in_4bit(torch.Size((min(shape[0], 64), *shape[1:])), device)
        if not off < 0.15:  # of normal numbers: 0.09
            raise UserError(
                f"model.load_in_4bit=true: bitsandbytes rounds weights of {' x '.join(map(str, shape))} "
                f"(model.path={path}) wrongly here: they are {off:.0%} off; set model.load_in_4bit=false, or use a GPU"
            )


@torch.no_grad()
def reads_rightly(model: nn.Module, *, packed: bool = False, shared: bool = False) -> bool:
    """Return whether rows that are read packed, or behind shared prompts, get the scores that they get one by one, also
    beside rows of other tokens. An architecture that takes no positions, or no mask, may ignore them without a word."""
    device, pairs = next(model.parameters()).device, []
    try:
        with in_evaluation(model):
            for other in ([1, 2, 3, 4], [4, 5, 1, 6]):
                rows = token_batch([other, [5, 6], other, [5, 6]], [other, [2, 4, 1], other[:2], [1]], 0, device)
                pairs.append((score(model, rows), score(model, rows, packed=packed, shared=shared)))
    except torch.OutOfMemoryError:
        raise  # which says nothing of the model
    except UNABLE:
        return False
    (plain, read), (plain_beside, read_beside) = pairs
    close = torch.allclose(plain, read, rtol=0, atol=rounding(model))
    # A mixture of experts rounds otherwise beside other tokens, however it is read.
    natural, leaked = ((a - b)[1::2].abs().max().item() for a, b in ((plain, plain_beside), (read, read_beside)))
    return close and leaked <= 4 * natural + 1e-6


@torch.no_grad()
def check_rounding(model: nn.Module, dtype: str, learning_rate: float) -> None:
    """Refuse weights in 16 bits where nearly all of Adam's steps, which are about the learning rate, would be rounded
    away, or made thousands of times too long."""
    if any(p.dtype == torch.float16 for p in model.parameters() if p.requires_grad):
        raise UserError(
            f"model.dtype={dtype}: the squares of most gradients, by which Adam divides, are 0 in float16; set "
            "model.dtype=float32 with trainer.precision=bf16-mixed, bfloat16, or model.lora_rank"
        )
    moved, asked = 0, 0
    for weight in (p for p in model.parameters() if p.requires_grad and p.dtype == torch.bfloat16):
        some = weight.flatten()[:: max(1, weight.numel() // SAMPLES)]
        moved, asked = moved + int(((some + learning_rate) != some).sum()), asked + some.numel()
    if asked and moved < FEWEST_MOVED * asked:
        raise UserError(
            f"model.dtype={dtype}: at optimizer.learning_rate={learning_rate:g} a step moves {moved / asked:.0%} of "
            "the weights, and is rounded away in all others; set model.dtype=float32 with "
            "trainer.precision=bf16-mixed, model.lora_rank, or a higher learning rate"
        )


SAMPLES = 256  # of each weight
FEWEST_MOVED = 0.2  # share of them


def check_packing(model: nn.Module, path: str) -> None:
    """Raise UserError for a model in which packed rows influence each other."""
    if not reads_rightly(model, packed=True):
        raise UserError(
            f"trainer.packing=true: {type(causal_lm(model)).__name__} (model.path={path}) scores packed rows "
            "otherwise than rows one by one; set trainer.packing=false"
        )


def row_limit(model: PreTrainedModel) -> int | None:
    """Return the most tokens of prompt and completion that a model has room for; None for no limit. By `dynamic` and
    `longrope` RoPE all tokens are placed otherwise once the longest row beside them passes a length: none may pass
    it."""
    conf = model.config.get_text_config()
    rope = getattr(conf, "rope_parameters", None) or {}
    kinds = [r for r in rope.values() if isinstance(r, dict)] or [rope]  # some have one for each kind of layer
    limits = [getattr(conf, "max_position_embeddings", None)]
    if any(r.get("rope_type") in BY_LENGTH for r in kinds):
        limits += [r.get("original_max_position_embeddings") for r in kinds]
        limits += [getattr(conf, "original_max_position_embeddings", None)]
    return min(filter(None, limits), default=None)


def rounding(model: nn.Module) -> float:
    """Return how many nats a score may be off by the number format alone: in bf16 a logit of 20 has steps of 1/8."""
    dtype = getattr(causal_lm(model), "compute_dtype", None) or next(model.parameters()).dtype
    return 1e-4 if dtype == torch.float32 else 0.5
