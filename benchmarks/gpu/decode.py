"""P3: decoding with transformers: milliseconds for each token by number of rows, as it is and as a CUDA graph."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from benchmarks.gpu.place import Check, Place, least
from benchmarks.gpu.update import large
from expo.cost import seconds
from expo.cost.machine import Device, this_machine
from expo.cost.run import Work
from expo.cost.shape import shape_of
from expo.jobs.wiring import load_model, make_engine
from expo.model.modes import causal_lm, computing
from expo.rollout import transformers_engine
from expo.rollout.decoding import OneFormatCache, decoding, head_logits, roomy_cache
from expo.rollout.engine import Request, Sampling
from expo.rollout.noise import SOLVE, NoiseKey

ROWS = {"cuda": (1024, 256, 64), "cpu": (8, 4, 2)}
LENGTHS = {"cuda": (128, 64), "cpu": (12, 8)}  # of the prompt, and the tokens that are decoded
TOLD = {1024: 50, 256: 30, 64: 27}  # ms for each token, as it is: an estimate


@cache
def loaded(place: Place) -> tuple[Any, Any, Device]:
    """Load the largest shape, for all checks of this part."""
    prompt, tokens = LENGTHS[place.device]
    model, tokenizer, _ = load_model(large(place))
    cfg = large(
        place, f"rollout.batch_size={max(ROWS[place.device])}", f"rollout.max_completion_tokens={tokens}",
        f"rollout.max_prompt_tokens={prompt}",
    )  # fmt: skip
    return make_engine(cfg, model, tokenizer), cfg, this_machine(0)


def there(place: Place) -> tuple[Any, Any, Device]:
    return loaded(Place(place.device, place.folder.parent / "loaded"))


def requests(place: Place, rows: int) -> list[Request]:
    """Return requests for groups of eight."""
    generator = torch.Generator().manual_seed(0)
    prompt, _ = LENGTHS[place.device]
    prompts = [tuple(torch.randint(10, 700, (prompt,), generator=generator).tolist()) for _ in range(-(-rows // 8))]
    return [Request(prompts[row // 8], NoiseKey(0, SOLVE, 0, row)) for row in range(rows)]


def of_rows(rows: int, cache_of: Callable[[Any, int], DynamicCache] = roomy_cache) -> Check:
    """Return the check that rows are decoded as in a run. Args: cache_of, which cache."""

    def decode(place: Place) -> Mapping[str, Any]:
        engine, cfg, machine = there(place)
        asked, tokens = requests(place, rows), LENGTHS[place.device][1]
        sampling = Sampling(1.0, 1.0, 0, tokens)
        place.peak_gb()
        with patch.object(transformers_engine, "roomy_cache", cache_of):
            spent = least(place, lambda: engine.generate(asked, sampling), 1)
        work = Work(cfg, shape_of(causal_lm(engine.model).config), 1)
        planned = seconds.decoding(work, machine, rows, -(-rows // 8))
        return {
            "predicted": {"ms a token, expo plan": 1e3 * planned / tokens, "ms a token": TOLD.get(rows)},
            "ms a token": 1e3 * spent / tokens,
            "tokens/s": rows * tokens / spent,
            "peak GB": place.peak_gb(),
        }

    return decode


class KeysAsTheyCome(DynamicCache):
    """The cache without `OneFormatCache`: keys in float32 beside 16-bit values, and with them the values."""


def as_they_come(config: Any, room: int) -> DynamicCache:
    """Return a cache that holds keys as rotary embeddings make them."""
    made = KeysAsTheyCome(config=config)
    made.layers = roomy_cache(config, room).layers
    return made


class Fixed(DynamicLayer):
    """A layer of the cache of one size, written at a place that a tensor holds: a CUDA graph can replay it."""

    def __init__(self, layer: Any, room: int, at: Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers = [
            torch.cat([states, states.new_zeros(*states.shape[:2], room, states.shape[3])], dim=2)
            for states in (layer.keys, layer.values)
        ]
        self.at = at

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the states of one token; returns all, those to come too, which the mask hides."""
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self.at, states)
        return self.buffers[0], self.buffers[1]


@torch.no_grad()
def greedy(engine: Any, asked: list[Request], tokens: int, gpu: bool) -> tuple[Tensor, Callable[[], None]]:
    """Decode the likeliest tokens with everything in place; on a GPU as one graph. Returns the tokens `[B, tokens]` so
    far, and what decodes one more. Within the contexts in which a model decodes."""
    decoder, head = causal_lm(engine.model).get_decoder(), engine.model.get_output_embeddings()
    logits, cache_, mask = engine._prefill(asked, tokens)
    at = torch.tensor([mask.shape[1]], device=mask.device)
    place = mask.sum(dim=1, keepdim=True)
    seen = torch.cat([mask, mask.new_zeros(len(mask), tokens)], dim=1).bool()[:, None, None]
    fixed = OneFormatCache(config=engine.model.config)
    fixed.layers = [Fixed(layer, tokens, at) for layer in cache_.layers]
    token = logits.argmax(dim=-1, keepdim=True)
    made = torch.zeros(len(mask), mask.shape[1] + tokens + 1, dtype=torch.long, device=mask.device)
    made.index_copy_(1, at, token)

    def step() -> None:
        seen.index_fill_(3, at, True)
        out = decoder(input_ids=token, attention_mask=seen, position_ids=place, past_key_values=fixed, use_cache=True)
        token.copy_(head_logits(head, out.last_hidden_state[:, -1]).argmax(dim=-1, keepdim=True))
        at.add_(1)
        place.add_(1)
        made.index_copy_(1, at, token)

    if not gpu:
        return made, step
    kept = [t.clone() for t in (at, place, token, seen)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # first outside of it: what is made once, such as autocast's casts, is no part of it
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for now, then in zip((at, place, token, seen), kept, strict=True):
        now.copy_(then)
    return made, graph.replay


def of_graph(rows: int) -> Check:
    """Return the check that rows are decoded in place, as a graph on a GPU, and that their tokens are the engine's."""

    def decode(place: Place) -> Mapping[str, Any]:
        engine, _, _ = there(place)
        asked, (prompt, tokens) = requests(place, rows), LENGTHS[place.device]
        theirs = engine.generate(asked, Sampling(1.0, 1.0, 1, tokens))
        training = engine.model.training
        engine.model.eval()
        place.peak_gb()
        with torch.no_grad(), decoding(), computing(engine.model):
            made, step = greedy(engine, asked, tokens, place.gpu)

            def some(count: int = tokens - 4) -> None:
                for _ in range(count):
                    step()

            step()
            step()
            step()
            spent = least(place, some, 1, warm=False)
        engine.model.train(training)
        ours = made[:, prompt : prompt + tokens].tolist()
        same = sum(a[: len(b.ids)] == b.ids for a, b in zip(ours, theirs, strict=True)) / rows
        assert same > (0.5 if place.gpu else 0.99), f"{same:.0%} of the rows have the engine's tokens"
        return {
            "predicted": {"ms a token": "9 to 10 at 256 rows"},
            "ms a token": 1e3 * spent / (tokens - 4),
            "rows with the engine's tokens": same,
            "peak GB": place.peak_gb(),
        }

    return decode


def checks(place: Place) -> dict[str, Check]:
    """Return the checks of this part."""
    most, middle, few = ROWS[place.device]
    return {
        f"{middle} rows": of_rows(middle),
        f"{middle} rows, in place" + (", a graph" if place.gpu else ""): of_graph(middle),
        f"{most} rows": of_rows(most),
        f"{few} rows": of_rows(few),
        f"{few} rows, in place" + (", a graph" if place.gpu else ""): of_graph(few),
        f"{middle} rows, keys in float32": of_rows(middle, as_they_come),
    }
