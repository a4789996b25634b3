"""Whether torch.compile makes an update quicker here: seconds of forward and backward, eager and compiled, in turns."""

import statistics
import time

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from expo.bench.cases import CASES

TURNS = 6

if __name__ == "__main__":
    for name, rows in (("a", 16), ("b", 8)):
        torch.set_num_threads(CASES[name].threads)
        decoder = Qwen2ForCausalLM(Qwen2Config(**CASES[name].shape)).get_decoder()
        compiled = torch.compile(decoder, dynamic=True)
        seconds: dict[str, list[float]] = {"eager": [], "compiled": []}
        for _ in range(TURNS + 1):
            ids = torch.randint(5, 700, (rows, 128))
            for kind, model in (("eager", decoder), ("compiled", compiled)):
                started = time.perf_counter()
                model(input_ids=ids, use_cache=False).last_hidden_state.pow(2).mean().backward()
                seconds[kind].append(time.perf_counter() - started)
                decoder.zero_grad()
        first = seconds["compiled"][0]
        found = ", ".join(f"{kind} {statistics.median(own[1:]):.3f} s" for kind, own in seconds.items())
        print(f"({name}) {found}; the first compiled step {first:.0f} s", flush=True)
