"""P7: vLLM's engine on the device: its numbers by format, sleep and wake, LoRA, a process of its own, and its
end."""

import os
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from unittest.mock import patch

import psutil
import torch

from benchmarks.gpu.place import Check, NotRun, Place, needs
from expo.config import Config, EngineError, VLLMConf
from expo.jobs.wiring import load_model
from expo.model.scoring import score, token_batch
from expo.rollout.engine import Completion, Request, Sampling
from expo.rollout.noise import NoiseKey
from expo.rollout.transformers_engine import TransformersEngine
from expo.rollout.vllm_engine import VLLMEngine

TOKENS = 48
PLAIN, GREEDY = Sampling(1.0, 1.0, 0, TOKENS), Sampling(1.0, 1.0, 1, TOKENS)
CYCLES = 5


def setting(place: Place, *overrides: str) -> Config:
    """Return the config of a run with vLLM. Raises NotRun where there is none."""
    needs("vllm")
    path = place.shapes[0]
    eager = () if place.gpu else ("rollout.eager=true",)
    return place.config(
        "algorithm=grpo",
        "rollout=vllm",
        f"model.path={path}",
        f"rollout.max_completion_tokens={TOKENS}",
        "rollout.batch_size=64",
        *eager,
        *overrides,
    )


def started(cfg: Config, model: Any, tokenizer: Any) -> closing[VLLMEngine]:
    """Return an engine that is closed in the end."""
    assert isinstance(cfg.rollout, VLLMConf)
    return closing(VLLMEngine(cfg.rollout, model, tokenizer))


def requests(count: int = 32) -> list[Request]:
    """Return requests of various prompts."""
    generator = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(10, 700, (12 + i % 7,), generator=generator).tolist()) for i in range(count // 2)]
    return [Request(prompts[i // 2], NoiseKey(0, 0, 0, i)) for i in range(count)]


def move(model: torch.nn.Module, size: float) -> None:
    """Change every weight that is trained, as an update does."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * size)


def sampler_gap(model: Any, made: list[Completion]) -> float:
    """Return the mean |log π_engine - log π| of the tokens, in nats."""
    batch = token_batch([c.prompt for c in made], [c.ids for c in made], 0, model.device)
    with torch.no_grad():
        ours = score(model.eval(), batch)[batch.mask.bool()].cpu()
    return (ours - torch.tensor([logp for c in made for logp in c.logp])).abs().mean().item()


def of_format(dtype: str, eager: bool) -> Check:
    """Return the check that the engine's log-probabilities in a format are the policy's, before and after a change of
    weights."""

    def formats(place: Place) -> Mapping[str, Any]:
        cfg = setting(place, f"rollout.dtype={dtype}", f"rollout.eager={str(eager or not place.gpu).lower()}")
        model, tokenizer, _ = load_model(cfg)
        with started(cfg, model, tokenizer) as engine:
            gaps = {"sampler": sampler_gap(model, engine.generate(requests(), PLAIN)), "probe": engine.probe_gap()}
            move(model, 0.02)
            engine.sync()  # raises where the weights did not arrive
            gaps |= {
                "sampler after a step": sampler_gap(model, engine.generate(requests(), PLAIN)),
                "probe after a step": engine.probe_gap(),
            }
        assert all(found < (2e-3 if dtype == "float32" else 0.1) for found in gaps.values()), gaps
        return gaps

    return formats


def cycles(place: Place) -> Mapping[str, Any]:
    """Let the engine sleep, wake and take weights five times: its text has to be the policy's, and no memory may be
    lost."""
    cfg = setting(place, "rollout.dtype=float32")
    model, tokenizer, _ = load_model(cfg)
    plain = TransformersEngine(cfg.rollout, model, tokenizer)
    free, same = [], []
    with started(cfg, model, tokenizer) as engine:
        assert engine.sleeps or not place.gpu, "the engine cannot sleep"
        for _ in range(CYCLES):
            engine.sleep()
            move(model, 0.02)
            engine.wake()
            engine.sync()
            theirs, ours = engine.generate(requests(), GREEDY), plain.generate(requests(), GREEDY)
            same.append(sum(a.ids[:8] == b.ids[:8] for a, b in zip(theirs, ours, strict=True)) / len(ours))
            free.append(torch.cuda.mem_get_info()[0] / 1e9 if place.gpu else 0.0)
    assert min(same) > 0.8, f"greedy text is the policy's in {same}"
    assert free[0] - free[-1] < 0.5, f"free GB after each cycle: {free}"
    return {"share of rows with the policy's text": same, "free GB": free}


def adapter(place: Place) -> Mapping[str, Any]:
    """Send a LoRA adapter alone."""
    cfg = setting(place, "model.lora_rank=8", "rollout.dtype=float32")
    model, tokenizer, _ = load_model(cfg)
    with started(cfg, model, tokenizer) as engine:
        move(model, 0.05)
        engine.sync()
        found = sampler_gap(model, engine.generate(requests(), PLAIN))
    assert found < 5e-3, found
    return {"sampler": found}


def of_its_own(place: Place) -> Mapping[str, Any]:
    """Let the engine run in a process of its own, and kill it: whoever generates gets an error, and does not wait."""
    cfg = setting(place, "rollout=vllm_server", "rollout.dtype=float32")
    model, tokenizer, _ = load_model(cfg)
    with started(cfg, model, tokenizer) as engine:
        move(model, 0.02)
        engine.sync()
        found = sampler_gap(model, engine.generate(requests(), PLAIN))
        for process in engine.llm.llm_engine.engine_core.resources.engine_manager.processes:
            psutil.Process(process.pid).kill()
        try:
            engine.generate(requests(), PLAIN)
        except EngineError as error:
            return {"sampler": found, "killed": str(error)}
    raise AssertionError("a killed engine generated")


def of_runner(second: bool) -> Check:
    """Return the check that one of vLLM's two model runners has the policy's numbers, in a process of its own."""

    def runner(place: Place) -> Mapping[str, Any]:
        cfg = setting(place, "rollout=vllm_server", "rollout.dtype=float32")
        if not place.gpu:
            raise NotRun("a CPU has the first one alone")
        model, tokenizer, _ = load_model(cfg)
        chosen = {"VLLM_USE_V2_MODEL_RUNNER": str(int(second))}
        with patch.dict(os.environ, chosen), started(cfg, model, tokenizer) as engine:
            move(model, 0.02)
            engine.sync()
            found = sampler_gap(model, engine.generate(requests(), PLAIN))
            name = engine.llm.collective_rpc("expo_runner")[0]
        assert found < 2e-3, found
        return {"runner": name, "sampler": found}

    return runner


def checks(place: Place) -> dict[str, Check]:
    """Return the checks of this part."""
    return {
        "float32, eager": of_format("float32", True),
        "float32, compiled": of_format("float32", False),
        "bfloat16, compiled": of_format("bfloat16", False),
        "sleep, wake and weights": cycles,
        "a LoRA adapter": adapter,
        "the second model runner": of_runner(True),
        "the first model runner": of_runner(False),
        "a process of its own, killed": of_its_own,
    }
