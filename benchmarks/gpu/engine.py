"""Part A: the transformers engine and every algorithm on the device."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.place import Check, NotRun, Place, gap, metrics_of, needs
from expo.config import compose_config, conf_dir
from expo.jobs.fit import make_run
from expo.jobs.wiring import load_model
from expo.model.scoring import TokenBatch, score, token_batch

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


def some_rows(device: torch.device, rows: int = 4, prompt: int = 24, completion: int = 40) -> TokenBatch:
    """Return rows of pairs that share a prompt, of various lengths."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(10, 700, (count,), generator=generator).tolist()

    prompts = [ids(prompt + 3 * (i // 2)) for i in range(0, rows, 2) for _ in range(2)]
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
    ("model.lora_rank=4",), ("trainer.packing=true",), ("algorithm.updates_per_rollout=2",),
    ("trainer.precision=bf16-mixed", "algorithm.kl_coef=0.05", "model.float32_head=true"), ("optimizer=adamw_8bit",),
    ("model.lora_rank=4", "model.load_in_4bit=true"),
)  # fmt: skip


def resume(place: Place) -> Mapping[str, Any]:
    """Compare a run with one that stopped half way."""
    overrides = ("algorithm=exp_grpo", "trainer.max_steps=4")
    whole = ladder_run(place, "whole", *overrides)
    ladder_run(place, "parts", *overrides, "trainer.stop_after=2")
    worst = gap(whole, ladder_run(place, "parts", *overrides))
    assert worst < (1e-2 if place.gpu else 1e-12), f"a run that stopped and went on differs by {worst:.2g}"
    return {"largest difference": worst}


def out_of_memory(place: Place) -> Mapping[str, Any]:
    """Let a run need more memory than there is: it has to end with one line."""
    if not place.gpu:
        raise NotRun("needs a GPU")
    cfg = place.config(
        "algorithm=exp_grpo",
        f"model.path={place.shapes[0]}",
        "trainer.max_steps=1",
        "positives.filters=[]",
        "rollout.max_completion_tokens=256",
        "trainer.micro_batch_size=64",
        "trainer.problems_per_step=8",
        "positives.bank=false",
    )
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(16e9 / total)
    try:
        code = make_run(replace(cfg, output_dir=str(place.folder / "oom")))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert code == 1, f"exit code {code} where memory was to run out"
    return {}


ALGORITHMS = sorted(file.stem for file in (conf_dir() / "algorithm").glob("*.yaml"))
CHECKS: dict[str, Check] = {
    "the CPU's numbers": agreement,
    "bf16 gradients": bf16,
    "gradient checkpointing": checkpointing,
    **{f"two steps of {name}": of_algorithm(name) for name in ALGORITHMS},
    **{" ".join(overrides): of_option(number, *overrides) for number, overrides in enumerate(OPTIONS)},
    "stop and go on": resume,
    "out of memory": out_of_memory,
}
