"""P1: is it right? Numbers of the device against a CPU's, every way to read a row, the sampler, algorithms, options."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import scipy.stats
import torch

from benchmarks.gpu.place import Check, NotRun, Place, gap, metrics_of, needs
from benchmarks.gpu.varlen import varlen, varlen_kernel
from expo.config import compose_config
from expo.jobs.fit import make_run
from expo.jobs.wiring import load_model
from expo.model.scoring import TokenBatch, score, token_batch
from expo.rollout.engine import Sampling
from expo.rollout.noise import SOLVE, NoiseKey, uniforms
from expo.rollout.transformers_engine import sample

LADDER = (
    "dataset=ladder",
    "dataset.levels=[2]",
    "trainer.max_steps=2",
    "evaluation.every=0",
    "dataset.eval_limit=2",
    "trainer.problems_per_step=4",
    "rollout.max_completion_tokens=96",
    "k=[1]",
)


def some_rows(
    device: torch.device, rows: int = 4, prompt: int = 24, completion: int = 40, group: int = 2
) -> TokenBatch:
    """Return rows of groups that share a prompt, of various lengths."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(10, 700, (count,), generator=generator).tolist()

    prompts = [own for i in range(0, rows, group) for own in [ids(prompt + 3 * (i // group))] for _ in range(group)]
    return token_batch(prompts, [ids(completion - i) for i in range(rows)], 0, device)


def cut(place: Place) -> str:
    """Return the smallest shape, cut to four layers."""
    return f"{place.shapes[0]}:4"


def agreement(place: Place) -> Mapping[str, Any]:
    """Score the same rows on the CPU and on the device, in float32."""
    model, _, _ = load_model(place.config("algorithm=grpo", f"model.path={cut(place)}"))
    with torch.no_grad():
        there = score(model, some_rows(model.device)).cpu()
        here = score(model.cpu(), some_rows(torch.device("cpu")))
    worst = (there - here).abs().max().item()
    assert worst < 1e-3, f"log-probabilities of the CPU and of {place.device} differ by {worst:.2g}"
    return {"largest difference, nats": worst}


def gradients(place: Place, *overrides: str) -> torch.Tensor:
    """Return the gradient of the mean log-probability, as one vector."""
    model, _, _ = load_model(place.config("algorithm=grpo", f"model.path={cut(place)}", *overrides))
    score(model, some_rows(model.device), shared=True).mean().backward()
    return torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None])


def bf16(place: Place) -> Mapping[str, Any]:
    """Compare gradients in bf16-mixed with float32's."""
    whole, half = gradients(place), gradients(place, "trainer.precision=bf16-mixed")
    cosine = torch.nn.functional.cosine_similarity(whole, half, dim=0).item()
    assert cosine > 0.95, f"gradients in bf16 point elsewhere: cosine {cosine:.3f}"
    return {"cosine": cosine, "norms": [whole.norm().item(), half.norm().item()]}


def ways_to_read(place: Place) -> Mapping[str, Any]:
    """Compare scores and gradients of rows that are read one by one, behind a shared prompt by a mask, and behind it by
    varlen attention."""
    half = ("trainer.precision=bf16-mixed",) if place.gpu else ()  # its kernel knows no float32
    model, _, _ = load_model(place.config("algorithm=grpo", f"model.path={cut(place)}", *half))
    batch, found = some_rows(model.device, 8), {}

    def read(shared: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        scores = score(model, batch, shared=shared)
        scores.mean().backward()
        return scores.detach(), torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])

    plain, gradient = read(False)
    ways: dict[str, AbstractContextManager[None]] = {
        "shared": nullcontext(),
        "varlen": varlen(varlen_kernel(place.gpu)),
    }
    for name, way in ways.items():
        with way:
            scores, other = read(True)
        worst, cosine = (scores - plain).abs().max().item(), torch.cosine_similarity(other, gradient, dim=0).item()
        found[name] = {"largest difference, nats": worst, "cosine of gradients": cosine}
        assert worst < (0.5 if place.gpu else 1e-4), f"{name}: scores differ by {worst:.2g} nats"
        assert cosine > (0.95 if place.gpu else 0.9999), f"{name}: gradients point elsewhere: cosine {cosine:.4f}"
    return found


def sampler(place: Place) -> Mapping[str, Any]:
    """Draw words of a large vocabulary, most of which are rare, and test how often each of some sets of them comes."""
    words, rows, rounds, sets = (151936, 256, 64, 32) if place.gpu else (2000, 256, 8, 8)
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(words, generator=generator)).to(place.device)
    numbers = np.float64 if place.gpu else np.float32  # as the engine does
    chances = logits.double().softmax(0)
    which = (chances.cumsum(0) * sets).long().clamp(max=sets - 1)  # about as likely as each other
    expected = torch.zeros(sets, dtype=torch.float64, device=place.device).index_add_(0, which, chances)
    counted = torch.zeros_like(expected)
    plain = Sampling(1.0, 1.0, 0, 1)
    for number in range(rounds):
        keys = [NoiseKey(0, SOLVE, number, row) for row in range(rows)]
        noise = torch.from_numpy(uniforms(keys, 1, numbers)).to(place.device)[:, 0]
        drawn, _ = sample(logits.expand(rows, -1), noise, plain)
        counted += torch.bincount(which[drawn], minlength=sets)
    there = expected > 0  # a likely word fills more than a set
    expected, counted, sets = rows * rounds * expected[there], counted[there], int(there.sum())
    chi2 = ((counted - expected) ** 2 / expected).sum().item()
    most = float(scipy.stats.chi2.ppf(1 - 1e-4, sets - 1))
    assert chi2 < most, f"χ² of {sets} sets of words is {chi2:.1f}; beyond {most:.1f} once in 10,000"
    return {"predicted": {"χ²": sets - 1}, "χ²": chi2, "draws": rows * rounds}


def checkpointing(place: Place) -> Mapping[str, Any]:
    """Compare gradients with and without gradient checkpointing."""
    plain, kept = gradients(place), gradients(place, "model.gradient_checkpointing=true")
    worst = ((plain - kept).norm() / plain.norm()).item()
    assert worst < 1e-4, f"gradient checkpointing changes the gradient by {worst:.2g}"
    return {"relative difference": worst}


def ladder_run(place: Place, name: str, *overrides: str) -> list[dict[str, Any]]:
    """Make a run of the ladder on the device. Returns its metrics."""
    folder = place.folder / name
    cfg = compose_config(
        [*LADDER, f"output_dir={folder}", f"trainer.accelerator={'gpu' if place.gpu else 'cpu'}", *overrides]
    )
    code = make_run(cfg)
    assert code == 0, f"exit code {code}"
    return metrics_of(folder)


def of_algorithm(name: str) -> Check:
    """Return the check that an algorithm takes two steps."""

    def steps(place: Place) -> Mapping[str, Any]:
        rows = ladder_run(place, name, f"algorithm={name}")
        return {"loss": [row["loss/total"] for row in rows if "loss/total" in row]}

    return steps


def of_option(number: int, *overrides: str) -> Check:
    """Return the check that ExP-GRPO takes two steps with an option."""

    def steps(place: Place) -> Mapping[str, Any]:
        if {"optimizer=adamw_8bit", "model.load_in_4bit=true"} & set(overrides):
            needs("bitsandbytes")
        if "model.load_in_4bit=true" in overrides and not place.gpu:
            raise NotRun("needs a GPU: a CPU's rows have to be of 64")
        ladder_run(place, f"option{number}", "algorithm=exp_grpo", *overrides)
        return {}

    return steps


OPTIONS = (
    ("trainer.precision=bf16-mixed", "algorithm.kl_coef=0.05", "model.float32_head=true"), ("model.lora_rank=4",),
    ("model.lora_rank=4", "model.load_in_4bit=true"), ("optimizer=adamw_8bit",),
)  # fmt: skip


def resume(place: Place) -> Mapping[str, Any]:
    """Compare a run with one that stopped half way."""
    overrides = ("algorithm=exp_grpo", "trainer.max_steps=4")
    whole = ladder_run(place, "whole", *overrides)
    ladder_run(place, "parts", *overrides, "trainer.stop_after=2")
    worst = gap(whole, ladder_run(place, "parts", *overrides))
    assert worst < (1e-2 if place.gpu else 1e-12), f"a run that stopped and went on differs by {worst:.2g}"
    return {"largest difference": worst}


ALGORITHMS = ("exp_grpo", "grpo", "exp_dpo_online", "opsd", "grpo_sft_gt_cot")  # one of each kind of loss


def checks(place: Place) -> dict[str, Check]:
    """Return the checks of this part."""
    return {
        "scores are the CPU's": agreement,
        "gradients in 16 bit": bf16,
        "shared, plain and varlen": ways_to_read,
        "the sampler": sampler,
        "gradient checkpointing": checkpointing,
        **{f"two steps of {name}": of_algorithm(name) for name in ALGORITHMS},
        **{" ".join(overrides): of_option(number, *overrides) for number, overrides in enumerate(OPTIONS)},
        "stop and go on": resume,
    }
