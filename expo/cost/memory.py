"""Estimate the memory of one device of a run, by part, and its room on the disk."""

import math
from dataclasses import replace

from expo.config.explaining import frozen_copies
from expo.cost.machine import Device
from expo.cost.run import Work
from expo.model.scoring import LOGITS

# What a layer keeps for its backward pass, per token: bytes per hidden unit (the residual stream and its norms stay in
# float32), and tensors of the keys' and of the MLP's width. Counted with torch's saved-tensor hooks on Qwen2 with SDPA,
# float32 and bf16-mixed, 2026-11-28.
KEPT_BYTES, KEPT_KEYS, KEPT_INNER = 32, 2, 4

ROWS = (1024, 512, 256, 128, 64, 32)  # that may be decoded at once; the first is vLLM's own default on a large GPU


def memory(work: Work, device: Device) -> dict[str, float]:
    """Return bytes by part at the moment that needs most, generating or the update, without parts that are there at
    other moments alone. `peak` is their sum."""
    constant = held(work, device)
    moments = (generating(work), updating(work))
    most = max(moments, key=lambda parts: sum(parts.values()))
    parts = {name: size for name, size in (constant | most).items() if size}
    return parts | {"peak": sum(parts.values())}


def settled(work: Work, device: Device) -> Work:
    """Return the run with what null leaves to the device: on a GPU, activations are computed again where they do not
    fit, and as many rows are decoded at once as do."""

    def having(again: bool | None, rows: int | None) -> Work:
        model = replace(cfg.model, gradient_checkpointing=again)
        return replace(work, cfg=replace(cfg, model=model, rollout=replace(cfg.rollout, batch_size=rows)))

    shares = work.cfg.trainer.shares_prompts(work.cfg, device.gpu)
    cfg = replace(work.cfg, trainer=replace(work.cfg.trainer, share_prompts=shares))
    again, rows = cfg.model.gradient_checkpointing, cfg.rollout.batch_size
    if again is None:
        kept = memory(having(False, rows), device)["peak"]
        again = device.gpu and not cfg.trainer.dropout and kept > device.memory
    if rows is None and device.gpu:
        peaks = {n: memory(having(again, n), device)["peak"] for n in ROWS}
        rows = next(n for n in ROWS if peaks[n] <= max(device.memory, peaks[ROWS[-1]]))
    return having(again, rows or cfg.rollout.at_once)


def held(work: Work, device: Device) -> dict[str, float]:
    """Return the bytes that stay allocated all the time, by part."""
    adapter = 4 * work.trained if work.cfg.model.lora_rank else 0  # in float32
    return {
        "weights": (work.held + adapter) / work.sharded,
        "optimizer": work.moments * work.trained / work.sharded,
        "frozen copies": work.copies,
        "reserved": device.reserved,
    }


def generating(work: Work) -> dict[str, float]:
    """Return the bytes allocated while completions are generated, by part."""
    s = work.shape
    engines = engine(work) if not work.elsewhere else {}
    rows = work.rows if work.cfg.rollout.in_place else 0
    casts = work.casts if work.cfg.rollout.in_place else 0.0
    full_copy = work.stored * s.parameters if work.sharded > 1 else 0.0
    return {
        "a whole copy to generate with": float(full_copy),
        "the engines' weights": engines.get("weights", 0.0),
        "casts to 16 bit": casts,
        "KV cache": engines.get("cache", 0.0),
        "logits": 4.0 * 4 * rows * s.head / s.hidden,
    }


def engine(work: Work, asleep: bool = False) -> dict[str, float]:
    """Return the bytes of the engines' own weights and caches. Args: asleep, whether the one that can sleep does."""
    s, cfg = work.shape, work.cfg
    longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_completion_tokens
    rows = work.rows if work.cfg.rollout.in_place else cfg.rollout.at_once
    cache = float(rows * longest * s.layers * 2 * s.kv_width * work.engine_bytes)
    awake = work.engines_beside + (0 if asleep else 1)
    if work.cfg.rollout.in_place:  # the trainer's own weights
        return {"weights": 0.0, "cache": awake * cache}
    return {"weights": float(awake * work.engine_bytes * s.parameters), "cache": awake * cache}


def updating(work: Work) -> dict[str, float]:
    """Return the bytes allocated in the update, by part."""
    s, cfg = work.shape, work.cfg
    number = 2 if work.computed == "bfloat16" else 4
    micro, group = cfg.trainer.micro_batch_size, max(1, cfg.algorithm.group_size)
    prompts = math.ceil(micro / group) if work.shares else micro
    positions = prompts * cfg.rollout.max_prompt_tokens + micro * cfg.rollout.max_completion_tokens
    per_layer = KEPT_BYTES * s.hidden + number * (KEPT_KEYS * s.kv_width + KEPT_INNER * s.inner)
    per_position = per_layer + 4 * s.layers * s.hidden if cfg.model.gradient_checkpointing else s.layers * per_layer
    each, sharded = 4 if cfg.model.lora_rank else work.stored, work.sharded > 1
    layer = 2 if work.mixed else work.stored  # bytes of a weight of a gathered layer
    gathered = (s.parameters - s.in_layers) * work.stored + 2 * s.in_layers / s.layers * layer if sharded else 0.0
    gradients = each * work.trained / work.sharded
    activations = float(positions * per_position)
    logits = 3.0 * 4 * min(LOGITS, micro * cfg.rollout.max_completion_tokens * s.head // s.hidden)
    # Layers that are read twice keep whole gradients until they were gone back through twice.
    if sharded and work.shares:
        gradients += min(each, layer) * (work.trained if cfg.model.lora_rank else s.in_layers)
    casts = work.casts if not sharded else 2.0 * s.head if work.mixed else 0.0  # layers are gathered in 16 bit
    if s.tied and not cfg.model.lora_rank:
        # The head's gradient comes first, the embedding's when casts, activations and logits are gone; either on top of
        # the sum of earlier micro-batches.
        several = work.rollouts + work.positives > micro
        last = (1 + several) * each * s.head - casts - activations - logits
        gradients += max(several * each * s.head, last)
    engines = {} if work.elsewhere or work.cfg.rollout.in_place else engine(work, asleep=work.sleeps)
    return {
        "gradients": gradients,
        "the engines' weights": engines.get("weights", 0.0),
        "KV cache": engines.get("cache", 0.0),
        "gathered layers": gathered,
        "casts to 16 bit": casts,
        "activations": activations,
        "logits": logits,
    }


def disk(work: Work) -> tuple[float, float]:
    """Return the bytes of a checkpoint, and the most that a run has on the disk at a time."""
    s = work.shape
    adapter = 4 * work.trained if work.cfg.model.lora_rank else 0
    copies = frozen_copies(work.cfg)[1] + work.cfg.algorithm.uses_average
    checkpoint = work.held * (1 + copies) + adapter + work.moments * work.trained
    final = adapter or work.stored * s.parameters
    best = checkpoint if work.cfg.trainer.on_collapse != "warn" else 0
    return checkpoint, max(2 * checkpoint, checkpoint + final) + best
