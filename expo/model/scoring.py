"""Score completions under a model without a `[B, T, V]` tensor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from expo.ground.progress import counting
from expo.model.modes import causal_lm, computing, is_sharded

# So many logits, 0.5 GiB in float32, there are at a time. Of no more in all, they are kept for the backward pass.
LOGITS = 2**27
# A further pass costs as much as so many tokens of padding, or more.
FEW = 256


@dataclass(frozen=True)
class TokenBatch:
    """Prompt + completion rows, right-padded, so that causal attention needs no mask and padding changes nothing."""

    input_ids: Tensor  # [B, L]
    mask: Tensor  # [B, L - 1], 1 where the *next* token belongs to the completion
    prompts: Tensor  # [B], which prompt it is: rows of one prompt have one number
    prompt_lengths: Tensor  # [B], tokens; a mask may leave out the first tokens of a completion, too

    @property
    def lengths(self) -> Tensor:
        """Return the tokens of prompt and completion together: `[B]`."""
        positions = torch.arange(2, self.mask.shape[1] + 2, device=self.mask.device)
        return (self.mask.bool() * positions).amax(dim=1)

    @property
    def targets(self) -> Tensor:
        """Return the tokens scored at each position: `[B, L - 1]`."""
        return self.input_ids[:, 1:]

    def rows(self, index: Tensor) -> "TokenBatch":
        """Return the chosen rows, cut to the longest of them."""
        width = int(self.lengths[index].max())
        ids, mask = self.input_ids[index, :width], self.mask[index, : width - 1]
        return TokenBatch(ids, mask, self.prompts[index], self.prompt_lengths[index])


def token_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> TokenBatch:
    """Pack B prompts and completions, given as token ids, into a TokenBatch."""
    width = max((len(p) + len(c) for p, c in zip(prompts, completions, strict=True)), default=1)
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros(len(prompts), width - 1)
    numbers: dict[tuple[int, ...], int] = {}
    which = torch.tensor([numbers.setdefault(tuple(p), len(numbers)) for p in prompts], dtype=torch.long)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor([*prompt, *completion])
        mask[i, len(prompt) - 1 : end - 1] = 1
    return TokenBatch(*(t.to(device) for t in (ids, mask, which, torch.tensor([len(p) for p in prompts]))))


def score(
    model: nn.Module,
    batch: TokenBatch,
    temperature: float = 1.0,
    packed: bool = False,
    shared: bool = False,
    with_entropy: bool = False,
) -> Tensor:
    """Return the log-probability of each completion token: `[B, L - 1]` float32, zero off the mask. With `with_entropy`
    also the entropy of each next-token distribution at `temperature`, in nats: `[2, B, L - 1]`.

    The logits are divided by `temperature`, the one that the rollouts were sampled with, so that ratios compare the
    distributions that acted. Where there are more than LOGITS, they exist for some positions at a time and are
    recomputed in the backward pass. With `packed`, the decoder reads all rows end to end as one, told apart by their
    position ids: no padding is computed. With `shared`, it reads a prompt that several rows have once, where the model
    can; only rounding differs.
    """
    causal = causal_lm(model)
    scorer = causal.score_tokens if is_sharded(causal) else partial(score_tokens, causal)
    with computing(model):
        return cast(Tensor, scorer(batch, temperature, packed, shared, with_entropy))


def score_tokens(
    causal: Any, batch: TokenBatch, temperature: float, packed: bool, shared: bool, with_entropy: bool
) -> Tensor:
    """Compute `score`, in the current number format."""
    rows = hidden_before(causal, batch, packed, shared)
    wanted, head = batch.mask.bool(), causal.get_output_embeddings()
    chunk, logits = (_entropy_chunk, LOGITS // 2) if with_entropy else (_score_chunk, LOGITS)
    logp = by_chunks(chunk, head, (rows, batch.targets[wanted]), logits, temperature)
    spread = [torch.zeros_like(batch.mask).masked_scatter(wanted, row) for row in (logp if with_entropy else [logp])]
    return torch.stack(spread) if with_entropy else spread[0]


def _score_chunk(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = head(hidden).float()  # [N, V]
    if temperature != 1:
        logits = logits / temperature
    return -cross_entropy(logits, targets, reduction="none")


def _entropy_chunk(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return log-probability and entropy -Σ p log p of each token: `[2, N]`."""
    logp = (head(hidden).float() / temperature).log_softmax(dim=-1)  # [N, V]
    return torch.stack([logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(dim=-1)])


def hidden_before(causal: Any, batch: TokenBatch, packed: bool, shared: bool) -> Tensor:
    """Return the last hidden state before each completion token, row by row: `[tokens, H]`."""
    decoder = causal.get_decoder()
    wanted = batch.mask.bool()
    # Devices that share the weights have to go the same way, whatever their rows.
    pays = is_sharded(causal) or len(batch.prompts.unique()) < len(batch.prompts)
    if shared and not packed and can_share(causal) and pays:
        return _behind_shared_prompts(decoder, batch)
    if packed:
        positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
        real = positions < batch.lengths.unsqueeze(1)  # [B, L]
        joined = {
            "input_ids": batch.input_ids[real].unsqueeze(0),
            "position_ids": positions[real].unsqueeze(0),
        }
        hidden: Tensor = decoder(**joined, use_cache=False).last_hidden_state[0]  # [tokens, H]
        return hidden[pad(wanted, (0, 1))[real]]
    states: Tensor = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return states[:, :-1][wanted]


def by_chunks(
    function: Callable[..., Tensor], head: Any, rows: tuple[Tensor, ...], logits: int, *others: Any
) -> Tensor:
    """Apply `function(head, *rows, *others)` to chunks of rows with at most so many logits, computed again in the
    backward pass. Args: rows, tensors of one length; what `function` returns has its last dimension over them."""
    size, count = max(1, logits // head.weight.shape[0]), len(rows[0])
    if count <= size:
        return function(head, *rows, *others)
    parts = [[r[i : i + size] for r in rows] for i in range(0, count, size)]
    return torch.cat([checkpoint(function, head, *part, *others, use_reentrant=False) for part in parts], dim=-1)


class Beside(NamedTuple):
    """Scores of the same tokens by student and teacher: three tensors `[B, T]`, 0 off the mask."""

    logp: Tensor  # log p_S of each token
    teacher_logp: Tensor  # log p_T of it, without gradient
    divergence: Tensor  # between the two next-token distributions


def score_beside(
    policy: nn.Module,
    batch: TokenBatch,
    teacher: AbstractContextManager[nn.Module],
    seen: TokenBatch,
    divergence: Callable[[Tensor, Tensor], Tensor],
    temperature: float,
    packed: bool = False,
    shared: bool = False,
) -> Beside:
    """Score completions under the policy and a teacher that sees another prompt, with their divergence; as in `score`,
    without a `[B, T, V]` tensor. Args: teacher, a context that gives the model; seen, the same completions in the same
    rows behind the teacher's prompts; divergence, of log-probabilities `[N, V]`, both at `temperature`."""
    with teacher as other, torch.no_grad(), computing(other):
        theirs = causal_lm(other)
        hidden = (theirs.hidden_before if is_sharded(theirs) else partial(hidden_before, theirs))(seen, packed, shared)
    causal = causal_lm(policy)
    beside = causal.beside_tokens if is_sharded(causal) else partial(beside_tokens, causal)
    with computing(policy):
        logp, teacher_logp, apart = beside(
            batch, theirs.get_output_embeddings(), hidden, divergence, temperature, packed, shared
        )
    return Beside(logp, teacher_logp.detach(), apart)


def beside_tokens(
    causal: Any,
    batch: TokenBatch,
    teacher_head: nn.Module,
    teacher_hidden: Tensor,
    divergence: Callable[[Tensor, Tensor], Tensor],
    temperature: float,
    packed: bool,
    shared: bool,
) -> list[Tensor]:
    """Compute `score_beside` from the teacher's hidden states `[tokens, H]`, in the current number format."""
    rows, wanted = hidden_before(causal, batch, packed, shared), batch.mask.bool()
    inputs = (rows, teacher_hidden, batch.targets[wanted])
    scores = by_chunks(
        _beside_chunk, causal.get_output_embeddings(), inputs, LOGITS // 4, teacher_head, divergence, temperature
    )  # [3, tokens]
    return [torch.zeros_like(batch.mask).masked_scatter(wanted, row) for row in scores]


def _beside_chunk(
    head: nn.Module,
    hidden: Tensor,
    teacher_hidden: Tensor,
    targets: Tensor,
    teacher_head: nn.Module,
    divergence: Callable[[Tensor, Tensor], Tensor],
    temperature: float,
) -> Tensor:
    student = (head(hidden).float() / temperature).log_softmax(dim=-1)  # [N, V]
    with torch.no_grad():
        teacher = (teacher_head(teacher_hidden).float() / temperature).log_softmax(dim=-1)
    logp, teacher_logp = (p.gather(-1, targets.unsqueeze(-1)).squeeze(-1) for p in (student, teacher))
    return torch.stack([logp, teacher_logp, divergence(student, teacher)])


def can_share(causal: Any) -> bool:
    """Return whether a model reads a prompt once for several rows: it takes a mask, and keeps keys in training."""
    config = causal.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    full = all(kind == "full_attention" for kind in kinds) and (kinds or not getattr(config, "sliding_window", None))
    checkpointing = causal.is_gradient_checkpointing and causal.training
    return bool(full) and config._attn_implementation in ("sdpa", "eager") and not checkpointing


def _behind_shared_prompts(decoder: Any, batch: TokenBatch) -> Tensor:
    """Return the hidden state before each completion token `[tokens, H]`; a prompt's gradient is of all its rows."""
    device, before = batch.input_ids.device, batch.prompt_lengths
    numbers, owner = batch.prompts.unique(return_inverse=True)  # [P], [B]
    first = torch.stack([(owner == p).nonzero()[0, 0] for p in range(len(numbers))])
    width, longest = int(before.max()), max(2, int((batch.lengths - before).max()))
    cache = DynamicCache(config=decoder.config)
    prompts = batch.input_ids[first, :width]
    of_prompts = decoder(input_ids=prompts, past_key_values=cache, use_cache=True).last_hidden_state  # [P, W, H]
    cache.batch_select_indices(owner)
    place = before.unsqueeze(1) + torch.arange(longest - 1, device=device)  # [B, C - 1]
    ids = batch.input_ids.gather(1, place.clamp(max=batch.input_ids.shape[1] - 1))
    of_prompt = torch.arange(width, device=device) < before.view(-1, 1, 1, 1)  # [B, 1, 1, W]
    causal = torch.ones(longest - 1, longest - 1, dtype=torch.bool, device=device).tril()
    mask = torch.cat([of_prompt.expand(-1, 1, longest - 1, -1), causal.expand(len(owner), 1, -1, -1)], dim=-1)
    # mask [B, 1, C - 1, W + C - 1]
    if decoder.config._attn_implementation == "eager":  # adds its mask to the scores
        lowest = torch.finfo(of_prompts.dtype).min
        mask = torch.zeros(mask.shape, dtype=of_prompts.dtype, device=device).masked_fill(~mask, lowest)
    after = decoder(
        input_ids=ids, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
    ).last_hidden_state
    hidden = torch.cat([of_prompts[owner, before - 1].unsqueeze(1), after], dim=1)  # [B, C, H]
    row, column = batch.mask.bool().nonzero(as_tuple=True)  # also where a mask leaves tokens out
    scored: Tensor = hidden[row, column - before[row] + 1]
    return scored


def micro_batches(batch: TokenBatch, rows: Tensor, size: int) -> Iterator[tuple[Tensor, TokenBatch]]:
    """Yield the given rows, at most `size` at a time: rows of one prompt next to each other, and prompts with rows of
    like length, so that little padding is computed. A micro-batch has fewer rows where that saves an eighth of its
    tokens, and at least FEW.
    """
    if not len(rows):
        return
    lengths = batch.lengths
    rows = rows.to(lengths.device)
    longest = torch.zeros_like(lengths).scatter_reduce(0, batch.prompts, lengths, "amax")  # by prompt
    for order in (lengths, batch.prompts, longest[batch.prompts]):  # the last counts most
        rows = rows[order[rows].argsort(stable=True)]
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        for chosen in some.split(_by_width(lengths[some].tolist(), batch.prompts[some].tolist())):
            yield chosen, batch.rows(chosen)


def _by_width(lengths: Sequence[int], prompts: Sequence[int]) -> list[int]:
    """Return the size of each micro-batch, given the rows' lengths, which grow by prompt; no prompt is parted."""
    widest = list(accumulate(lengths, max))
    padded = len(lengths) * widest[-1]
    costs = {
        n: n * widest[n - 1] + (len(lengths) - n) * widest[-1]
        for n in range(1, len(lengths))
        if prompts[n] != prompts[n - 1]
    }
    cut = min(costs, key=costs.__getitem__, default=0)
    if not cut or padded - costs[cut] < max(padded / 8, FEW):
        return [len(lengths)]
    return [*_by_width(lengths[:cut], prompts[:cut]), *_by_width(lengths[cut:], prompts[cut:])]


@torch.no_grad()
def token_logp(model: nn.Module, batch: TokenBatch, micro_batch_size: int) -> Tensor:
    """Return `score` of a whole batch at temperature 1, by micro-batches and without a gradient: `[B, L - 1]`."""
    logp, done = torch.zeros_like(batch.mask), 0
    with counting(len(logp)) as at:
        for rows, part in micro_batches(batch, torch.arange(len(logp)), micro_batch_size):
            logp[rows, : part.mask.shape[1]] = score(model, part)
            at(done := done + len(rows))
    return logp
