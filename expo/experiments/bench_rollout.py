"""`make bench-rollout`: tokens per second of the transformers engine and of vLLM's, in one process, in turns.

`python -m expo.experiments.bench_rollout MODEL_FOLDER... [output=FILE]`; a folder of `qwen2.5-0.5b` stands for random weights of
that shape.
"""

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, set_seed

from expo.experiments.cost import SHAPES
from expo.models import ladder_tokenizer
from expo.policy import load_policy
from expo.randomness import Key
from expo.rollout.engine import Engine, Request, Sampling
from expo.rollout.transformers_engine import TransformersEngine
from expo.rollout.vllm_engine import VLLMEngine
from expo.run import device_name, git_commit
from expo.schema import VLLMConf

TURNS = 5
RANDOM = "qwen2.5-0.5b"


def cases(models: list[str]) -> Iterator[tuple[str, Any, Any, int, int]]:
    """Name, model, tokenizer, rows and tokens per row."""
    for path in models:
        if path == RANDOM:
            set_seed(0)
            config = Qwen2Config(**SHAPES["Qwen/Qwen2.5-0.5B-Instruct"][1])
            yield f"random weights, shape of {RANDOM}", Qwen2ForCausalLM(config), ladder_tokenizer(), 16, 32
        else:
            yield path, *load_policy(path), 128, 64


def measure(engine: Engine, requests: list[Request], sampling: Sampling) -> float:
    """Generated tokens per second of one call."""
    started = time.perf_counter()
    done = engine.generate(requests, sampling)
    return sum(len(c.ids) for c in done) / (time.perf_counter() - started)


def main(arguments: list[str]) -> int:
    output = next(
        (a.partition("=")[2] for a in arguments if a.startswith("output=")), "experiments/bench_rollout/summary.json"
    )
    results = []
    for name, model, tokenizer, rows, tokens in cases([a for a in arguments if "=" not in a]):
        model = model.eval()
        conf = VLLMConf(batch_size=rows, max_prompt_tokens=64, max_completion_tokens=tokens, eager=True)
        prompts = [
            tuple((7 * row + i) % 100 + 6 for i in range(40)) for row in range(rows // 8)
        ]  # groups of 8, as in training
        requests = [Request(prompts[i // 8], Key(0, 0, 0, i)) for i in range(rows)]
        sampling = Sampling(1.0, 1.0, 0, tokens)
        engines: dict[str, Engine] = {
            "hf": TransformersEngine(model, tokenizer, rows),
            "vllm": VLLMEngine(model, tokenizer, conf),
        }
        speeds: dict[str, list[float]] = {key: [] for key in engines}
        for turn in range(TURNS + 1):  # the first warms up
            for key, engine in engines.items():
                speed = measure(engine, requests, sampling)
                if turn:
                    speeds[key].append(round(speed, 1))
        started = time.perf_counter()
        engines["vllm"].sync()
        synced = time.perf_counter() - started
        ratios = [v / h for v, h in zip(speeds["vllm"], speeds["hf"], strict=True)]
        results.append({
            "model": name, "parameters": model.num_parameters(), "rows": rows, "tokens": tokens, "tokens_per_s": speeds,
            "vllm_to_hf": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}, "verified_sync_s": synced,
        })  # fmt: skip
        for engine in engines.values():
            engine.close()
        del engines, engine, model
        gc.collect()
    record = {
        "command": f"python -m expo.experiments.bench_rollout {' '.join(arguments)}", "device": device_name(), "cores": os.cpu_count(),
        "commit": git_commit(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "results": results,
    }  # fmt: skip
    Path(output).write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
