"""Estimate seconds of a step and of a run, by part. Rows are at their longest, or as `plan` says; all groups train."""

import math

from expo.cost.machine import Device
from expo.cost.run import Work

ADAM_BYTES = 44  # per trained float32 parameter: reads and writes of gradient, clipping, both moments, and the weight
BETWEEN_MACHINES = 8  # guess: how much slower a device sends to another machine's, 400 Gbit/s each
SAMPLED_BYTES = 40  # per logit: what sampling by inversion reads and writes


def seconds(work: Work, device: Device) -> dict[str, float]:
    cfg = work.cfg
    written = decoding(work, device, work.written, work.written)
    if cfg.positives.from_bank(cfg.algorithm):  # written ahead, whole batches at a time
        rows = max(work.written, cfg.rollout.at_once * work.devices)
        written = decoding(work, device, rows, rows) * work.written / rows
    parts = {
        "rollouts": decoding(work, device, work.generated, work.groups),
        "explanations": written,
        "update": update(work, device),
        "sync": sync(work, device),
    }
    if getattr(cfg.rollout, "ahead", 0):
        parts["beside the update"] = -min(parts["rollouts"] + written, parts["update"])
    return {name: spent for name, spent in parts.items() if spent}


def run_seconds(work: Work, device: Device) -> float:
    problems = work.sampled // max(1, work.cfg.evaluation.samples or max(work.cfg.k))
    evaluation = decoding(work, device, work.sampled, problems)
    return work.cfg.trainer.max_steps * sum(seconds(work, device).values()) + work.evaluations * evaluation


def tokens(work: Work) -> float:
    """Return the tokens that the run generates: at most, where `plan` gives no mean."""
    steps = work.cfg.trainer.max_steps * (work.generated + work.written)
    return float(work.completion * (steps + work.evaluations * work.sampled))


def decoding(work: Work, device: Device, rows: int, prompts: int) -> float:
    """Return the seconds of generating so many rows behind so many prompts, on the busiest device. Each token of a
    batch takes launches, reads of all weights and of the cache, and products, one after the other."""
    if not rows:
        return 0.0
    s, engine = work.shape, "transformers" if work.cfg.rollout.in_place else "vllm"
    own, own_prompts = math.ceil(rows / work.devices), math.ceil(prompts / work.devices)
    batches = math.ceil(own / work.cfg.rollout.at_once)
    at_once = own / batches
    rate, reading = device.rate(work.engine_format), device.bandwidth * device.reading
    read_once = 2 * own_prompts * work.prompt * s.in_layers / (rate * device.training)
    cached = (work.prompt + work.completion / 2) * s.layers * 2 * s.kv_width * work.engine_bytes
    token = (
        s.layers * device.layer_s[engine]
        + (s.in_layers + s.head) * work.read_bytes / reading
        + at_once * cached / reading
        + 2 * at_once * (s.in_layers + s.head) / (rate * device.thin)
        + at_once * (s.head / s.hidden) * SAMPLED_BYTES / reading
    )
    return read_once + batches * work.completion * token


def update(work: Work, device: Device) -> float:
    """Return the seconds of all updates of a step: passes, the optimizer, and what devices send each other."""
    cfg, s = work.cfg, work.shape
    computing = work.share * update_flops(work) / (device.rate(work.computed) * device.training)
    stepping = ADAM_BYTES * work.trained / work.sharded / (device.bandwidth * device.reading)
    rows = work.trained_rollouts + work.positives
    micro_batches = math.ceil(rows * work.share / cfg.trainer.micro_batch_size)
    sent = (1 - 1 / work.devices) * work.stored
    layer = 0.5 if work.mixed else 1.0  # of what a stored weight takes, where it is gathered: in 16 bit
    # An all-reduce sends a number twice. Sharded layers are gathered forward and backward, twice where prompts are
    # shared; gradients are spread.
    gathered = (4 if work.shares else 2) + (1 if cfg.algorithm.uses_reference and cfg.model.lora_rank else 0)
    unsharded = s.parameters - s.in_layers + layer * s.in_layers
    exchanged = 2 * work.trained if work.sharded == 1 else micro_batches * (gathered * unsharded + work.trained)
    updates = getattr(cfg.algorithm, "updates_per_rollout", 1)
    return float(updates * (computing + stepping + sent * exchanged / link(work, device)))


def update_flops(work: Work) -> float:
    cfg, s = work.cfg, work.shape
    group = max(1, cfg.algorithm.group_size)
    together = min(cfg.trainer.micro_batch_size, group) if work.shares else 1  # rows behind one prompt
    passes = (2 if cfg.model.lora_rank else 3) + bool(cfg.model.gradient_checkpointing) + cfg.algorithm.forward_passes
    scored = work.trained_rollouts * work.completion + work.positives * work.completion
    read = scored + work.trained_rollouts * work.prompt / together + work.positives * work.prompt
    # Multiplications per token, with all keys before it.
    attention = 2 * s.layers * s.heads_width * (work.prompt + work.completion / 2)
    return float(passes * (2 * read * (s.in_layers + attention) + 2 * scored * s.head))


def link(work: Work, device: Device) -> float:
    """Return the bytes per second between the devices of a run: eight of them are taken to be in one machine."""
    return device.link if work.devices <= 8 else device.link / BETWEEN_MACHINES


def sync(work: Work, device: Device) -> float:
    """Return the seconds until the engine has the new weights."""
    size = work.shape.parameters * work.stored
    gathered = (1 - 1 / work.sharded) * size / link(work, device)
    if work.cfg.rollout.in_place:
        return gathered
    return gathered + 4 * size / device.bandwidth  # read and written, summed on both sides
