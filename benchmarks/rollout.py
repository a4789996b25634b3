"""`make bench-rollout`: tokens per second of the transformers engine and of vLLM's, in one process, in turns.

`python -m benchmarks.rollout MODEL... [output=FILE]`; a MODEL is a folder, or a shape in `RANDOM` with random weights.
"""

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from expo.config import ModelConf, VLLMConf
from expo.ladder.policy import ladder_model, ladder_tokenizer
from expo.model.policy import load_policy
from expo.model.shapes import config_of
from expo.rollout.engine import Completion, Engine, Request, Sampling
from expo.rollout.noise import NoiseKey
from expo.rollout.transformers_engine import TransformersEngine
from expo.rollout.vllm_engine import VLLMEngine
from expo.runs.directory import device_name, git_commit

TURNS = 5


def qwen_model() -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config_of("0.5B"))
    return model


# Shape, rows and tokens per row. Heads of 32, which vLLM's attention on a CPU knows.
RANDOM: dict[str, tuple[Callable[[], Any], int, int]] = {
    "ladder": (lambda: ladder_model(0, heads=3), 128, 64),
    "ladder-large": (lambda: ladder_model(0, hidden_size=160, heads=5), 128, 64),
    "qwen2.5-0.5b": (qwen_model, 16, 32),
}


def cases(models: list[str]) -> Iterator[tuple[str, Any, Any, int, int]]:
    """Yield the name, model, tokenizer, rows and tokens per row."""
    for name in models:
        if name in RANDOM:
            make, rows, tokens = RANDOM[name]
            yield f"random weights, shape of {name}", make(), ladder_tokenizer(), rows, tokens
        else:
            yield name, *load_policy(ModelConf(path=name)), 128, 64


def measure(engine: Engine, requests: list[Request], sampling: Sampling) -> float:
    """Return the generated tokens per second of one call."""
    started = time.perf_counter()
    done = engine.generate(requests, sampling)
    return sum(len(c.ids) for c in done) / (time.perf_counter() - started)


def follow_ratios(engine: VLLMEngine, requests: list[Request], sampling: Sampling) -> list[float]:
    """Return the seconds of groups of 8 with an explanation that follows every other group, over those of two calls;
    nothing is judged.

    One token in 40 ends a row, so that rows are of all lengths.
    """
    kept, engine.eos_ids = engine.eos_ids, list(range(0, engine.model.config.vocab_size, 40))
    explain = {
        i: Request((*requests[8 * i].prompt[::-1],), NoiseKey(1, 0, 0, i)) for i in range(0, len(requests) // 8, 2)
    }

    def followed() -> None:
        missing = [8] * (len(requests) // 8)

        def follow(ended: Mapping[int, Completion]) -> list[Request]:
            for row in ended:
                missing[row // 8] -= 1
            return [explain[i] for i in {row // 8 for row in ended} & explain.keys() if not missing[i]]

        engine.generate(requests, sampling, follow)

    def in_two_calls() -> None:
        engine.generate(requests, sampling)
        engine.generate(list(explain.values()), sampling)

    ratios = []
    for turn in range(TURNS + 1):  # the first warms up
        seconds = {}
        for way in (followed, in_two_calls) if turn % 2 else (in_two_calls, followed):
            started = time.perf_counter()
            way()
            seconds[way] = time.perf_counter() - started
        if turn:
            ratios.append(seconds[followed] / seconds[in_two_calls])
    engine.eos_ids = kept
    return ratios


def spread(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def main(arguments: list[str]) -> int:
    output = next(
        (a.partition("=")[2] for a in arguments if a.startswith("output=")), "experiments/bench_rollout/summary.json"
    )
    results = []
    for name, model, tokenizer, rows, tokens in cases([a for a in arguments if "=" not in a]):
        model = model.eval()
        conf = VLLMConf(batch_size=rows, max_prompt_tokens=64, max_completion_tokens=4 * tokens, eager=True)
        prompts = [
            tuple((7 * row + i) % 100 + 6 for i in range(40)) for row in range(rows // 8)
        ]  # groups of 8, as in training
        requests = [Request(prompts[i // 8], NoiseKey(0, 0, 0, i)) for i in range(rows)]
        sampling = Sampling(1.0, 1.0, 0, tokens)
        vllm = VLLMEngine(conf, model, tokenizer)
        engines: dict[str, Engine] = {"hf": TransformersEngine(conf, model, tokenizer), "vllm": vllm}
        speeds: dict[str, list[float]] = {key: [] for key in engines}
        for turn in range(TURNS + 1):  # the first warms up
            for key, engine in engines.items():
                speed = measure(engine, requests, sampling)
                if turn:
                    speeds[key].append(round(speed, 1))
        started = time.perf_counter()
        vllm.sync()
        synced = time.perf_counter() - started
        ratios = [v / h for v, h in zip(speeds["vllm"], speeds["hf"], strict=True)]
        results.append(
            {
                "model": name,
                "parameters": model.num_parameters(),
                "rows": rows,
                "tokens": tokens,
                "tokens_per_s": speeds,
                "vllm_to_hf": spread(ratios),
                "followed_to_two_calls_s": spread(follow_ratios(vllm, requests, Sampling(1.0, 1.0, 0, 4 * tokens))),
                "verified_sync_s": synced,
            }
        )
        for engine in engines.values():
            engine.close()
        del engines, engine, vllm, model
        gc.collect()
    record = {
        "command": f"python -m benchmarks.rollout {' '.join(arguments)}",
        "device": device_name(),
        "cores": os.cpu_count(),
        "commit": git_commit("benchmarks"),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "results": results,
    }
    Path(output).write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
