"""Rollouts with transformers, in-process, on the trainer's own weights."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from expo.config import RolloutConf
from expo.ground.progress import counting
from expo.model.modes import as_initial, causal_lm, computing, in_evaluation
from expo.rollout.decoding import decoding, head_logits, roomy_cache
from expo.rollout.engine import Completion, Engine, Follow, Request, Sampling, eos_ids
from expo.rollout.noise import uniforms


class TransformersEngine(Engine):
    """Engine on the policy's own weights in memory, with transformers. A prompt that several requests share is read
    once; finished rows leave the batch; each row draws from noise of its own."""

    def __init__(self, conf: RolloutConf, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.pad_id, self.batch_size = model, tokenizer.pad_token_id, conf.at_once
        self.eos_ids = torch.tensor(eos_ids(model, tokenizer))

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, follow: Follow | None = None
    ) -> list[Completion]:
        """See `Engine.generate`. What `follow` asks for waits until all `requests` have ended."""
        # Rows of like length side by side: less padding, and equal prompts stay together.
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].prompt))
        done: dict[int, Completion] = {}
        with decoding(), computing(self.model), in_evaluation(self.model), counting(len(order)) as at:
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                decoded = self._decode([requests[i] for i in chosen], sampling, at, start)
                done |= zip(chosen, decoded, strict=True)
        completions = [done[i] for i in range(len(requests))]
        more = follow(dict(enumerate(completions))) if follow else []
        return completions + (self.generate(more, sampling) if more else [])

    def _decode(
        self, requests: list[Request], sampling: Sampling, at: Callable[[float], None], before: int = 0
    ) -> list[Completion]:
        """Return the completions. Args: at, a function that is told how many are done, `before` ones among them."""
        device = self.model.device
        decoder, head = causal_lm(self.model).get_decoder(), self.model.get_output_embeddings()
        ends = self.eos_ids.to(device)
        # On a CPU float32, so that the completions of finished runs stay; see `sample`.
        numbers = np.float64 if device.type == "cuda" else np.float32
        noise = torch.from_numpy(uniforms([r.key for r in requests], sampling.max_tokens, numbers)).to(device)  # [B, T]
        rows = torch.arange(len(requests), device=device)  # rows still decoding
        logits, cache, mask = self._prefill(requests, sampling.max_tokens)
        tokens = torch.full((len(requests), sampling.max_tokens), self.pad_id, device=device)
        logps = torch.zeros(len(requests), sampling.max_tokens, device=device)
        lengths = torch.full((len(requests),), sampling.max_tokens, device=device)
        ended = torch.zeros(len(requests), dtype=torch.bool, device=device)
        for t in range(sampling.max_tokens):
            at(before + len(requests) * t / sampling.max_tokens)
            token, logp = sample(logits, noise[rows, t], sampling)
            tokens[rows, t], logps[rows, t] = token, logp
            finished = torch.isin(token, ends)
            if finished.any():
                ended[rows[finished]], lengths[rows[finished]] = True, t + 1
                keep = ~finished
                if not keep.any():
                    break
                cache.batch_select_indices(keep.nonzero().squeeze(1))
                rows, token, mask = rows[keep], token[keep], mask[keep]
            if t + 1 == sampling.max_tokens:
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            out = decoder(
                input_ids=token.unsqueeze(1),
                attention_mask=mask,
                position_ids=mask.sum(dim=1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits = head_logits(head, out.last_hidden_state[:, -1])
        return [
            Completion(r.prompt, ids[:n], logp[:n], not end, r.problem)
            for r, ids, logp, n, end in zip(
                requests, tokens.tolist(), logps.tolist(), lengths.tolist(), ended.tolist(), strict=True
            )
        ]

    def _prefill(self, requests: list[Request], room: int) -> tuple[Tensor, DynamicCache, Tensor]:
        """Read each distinct prompt once. Returns last logits `[B, V]`, the cache of B rows, and the mask `[B, L]`."""
        device = self.model.device
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(r.prompt for r in requests))}
        width = max(map(len, index))
        ids = torch.tensor([[self.pad_id] * (width - len(p)) + list(p) for p in index], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in index], device=device)
        out = causal_lm(self.model).get_decoder()(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=roomy_cache(self.model.config, room),
            use_cache=True,
        )
        logits = head_logits(self.model.get_output_embeddings(), out.last_hidden_state[:, -1])
        expand = torch.tensor([index[r.prompt] for r in requests], device=device)
        out.past_key_values.batch_select_indices(expand)
        return logits[expand], out.past_key_values, mask[expand]


class UnadaptedEngine(TransformersEngine):
    """Engine on a LoRA policy with its adapter off: the initial policy, at no memory of its own."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, follow: Follow | None = None
    ) -> list[Completion]:
        with as_initial(self.model):
            return super().generate(requests, sampling, follow)


def sample(logits: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting its cumulative distribution at the row's own noise, a uniform number.

    The sum is made in the format of the noise. Over 151,936 words in float32 it loses words of under 6e-8 behind its
    middle, and falls in places where a GPU adds up by blocks; in float64 neither is larger than 1e-15. Args: logits
    `[B, V]`; noise `[B]` in [0, 1). Returns (token `[B]`, its log-probability `[B]`) under the tempered and truncated
    distribution, which is the one that acted.
    """
    logits = logits.float()
    if sampling.top_k == 1:  # of words that are alike likely, the first: TopKLogitsWarper would keep them all
        return logits.argmax(dim=-1), torch.zeros_like(logits[:, 0])
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    logp = logits.log_softmax(dim=-1)
    cumulative = logp.to(noise.dtype).exp().cumsum_(dim=-1)
    # Scaled by the last entry, because rounding leaves it near, not at, 1; right=True skips tokens of probability zero.
    total = cumulative[:, -1:].contiguous()
    token = torch.searchsorted(cumulative, noise.unsqueeze(1) * total, right=True)
    last = torch.searchsorted(cumulative, total)  # the last token that can be drawn: the first to reach the whole
    token = torch.minimum(token, last)
    return token.squeeze(1), logp.gather(1, token).squeeze(1)
