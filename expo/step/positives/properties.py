"""The two properties of a good positive (ExPO, arXiv 2507.02834, section 3), measured under one policy.

In-distribution: log π(c|q). Positive learning signal: the right answer is likelier after c than after the policy's own
completion, log π(a*|q, c) - log π(a*|q, c_own), the *answer lift*.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from expo.ground.ranks import ALONE, Ranks
from expo.model.modes import causal_lm, in_evaluation
from expo.model.prompts import Prompts
from expo.model.scoring import token_batch, token_logp
from expo.rollout.engine import eos_ids
from expo.step.experience import Candidates, Group

Ids = Sequence[int]
OWN = 4  # rollouts of a problem of which the answer lift takes the median: a single odd one would decide it
SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")


@dataclass(frozen=True)
class Scorer:
    """Measures completions under the given model; draws nothing and leaves no gradient."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    micro_batch_size: int
    ranks: Ranks = ALONE

    @cached_property
    def ends(self) -> list[int]:
        return eos_ids(causal_lm(self.model), self.tokenizer)

    def logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> Tensor:
        """Return log π(c|q), summed over tokens: `[N]`, in nats."""
        own_logp = self._score(self.ranks.own(prompts), self.ranks.own(completions))[0].sum(dim=1)
        return torch.tensor(self.ranks.whole(own_logp.tolist()))

    def token_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> list[list[float]]:
        """Return log π(c_t|q, c_<t) of every token of each of the N completions, in nats."""
        logp, mask = self._score(self.ranks.own(prompts), self.ranks.own(completions))
        return self.ranks.whole([row[on_tokens].tolist() for row, on_tokens in zip(logp, mask.bool(), strict=True)])

    def _score(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities `[N, L]`, and the mask of the tokens that have one."""
        device = next(self.model.parameters()).device
        batch = token_batch(prompts, completions, self.tokenizer.pad_token_id, device)
        with in_evaluation(self.model):
            logp = token_logp(self.model, batch, self.micro_batch_size)
        return logp.cpu(), batch.mask.cpu()

    def mean_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> Tensor:
        """Return log π(c|q) per token: `[N]`."""
        return self.logp(prompts, completions) / torch.tensor([len(c) for c in completions]).clamp(min=1)

    def answer_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids], answers: Sequence[str]) -> Tensor:
        """Return log π(a*|q, c) of the final statement after a completion's reasoning: `[N]`, in nats. It is written as
        the completion writes its own: with the white space, or whatever else, that its tokens join to it."""
        reasoned = [self.reasoning(c) for c in completions]
        contexts = [[*q, *ids] for q, (ids, _) in zip(prompts, reasoned, strict=True)]
        stated = [
            self.prompts.answer_ids(self.tokenizer, answer, before)
            for answer, (_, before) in zip(answers, reasoned, strict=True)
        ]
        return self.logp(contexts, stated)

    def reasoning(self, completion: Ids) -> tuple[list[int], str]:
        """Return the tokens before a completion's last final statement, and the text between. Without one, all is
        reasoning; of a completion that was cut off, all up to its last whole sentence or step."""
        ids = list(completion)
        ended = bool(ids) and ids[-1] in self.ends
        if ended:
            ids.pop()
        text = self.text(ids)
        position = text.rfind(self.prompts.final_marker)
        if position >= 0:
            reasoning_ids = self._within(ids, position)
            return reasoning_ids, text[len(self.text(reasoning_ids)) : position]
        if not ended and (ends := [m.end() for m in SENTENCE_END.finditer(text)]):
            ids = self._within(ids, ends[-1])
        return ids, "" if self.text(ids)[-1:].isspace() else " "

    def _within(self, ids: list[int], position: int) -> list[int]:
        """Return the most tokens whose text, without white space at its end, ends at or before a position."""
        low = bisect_right(range(1, len(ids) + 1), position, key=lambda n: len(self.text(ids[:n]).rstrip()))
        while low and len(self.text(ids[:low])) > position:  # white space that a token shares with what follows
            low -= 1
        return ids[:low]

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))


def with_logp(scorer: Scorer, groups: Mapping[int, Group], candidates: Candidates) -> Candidates:
    rows = [(groups[i].prompt, c.ids) for i, some in candidates.items() for c in some]
    means = iter(scorer.mean_logp([q for q, _ in rows], [ids for _, ids in rows]).tolist())
    return {i: [replace(c, logp_given_q=next(means)) for c in some] for i, some in candidates.items()}


def with_logp_given_answer(scorer: Scorer, candidates: Candidates) -> Candidates:
    """Return the candidates with mean log π(c|q, a*), under the prompt that shows the answer, where one was written."""
    written = [(c.prompt, c.ids) for some in candidates.values() for c in some if c.prompt is not None]
    means = iter(scorer.mean_logp([prompt for prompt, _ in written], [ids for _, ids in written]).tolist())
    return {
        i: [c if c.prompt is None else replace(c, logp_given_qa=next(means)) for c in some]
        for i, some in candidates.items()
    }


def with_lift(scorer: Scorer, groups: Mapping[int, Group], candidates: Candidates) -> Candidates:
    """Return the candidates with the answer lift over the median of each problem's first rollouts without a hint."""
    groups = {i: group.unaided for i, group in groups.items()}
    if not candidates or not any(group.completions for group in groups.values()):
        return candidates
    rollouts = [
        (c.prompt, c.ids, groups[i].problem.answer) for i in sorted(candidates) for c in groups[i].completions[:OWN]
    ]
    theirs = [(groups[i].prompt, c.ids, groups[i].problem.answer) for i, some in candidates.items() for c in some]
    prompts, completions, answers = zip(*rollouts, *theirs, strict=True)
    logps = iter(scorer.answer_logp(prompts, completions, answers).tolist())
    base = {i: median([next(logps) for _ in groups[i].completions[:OWN]]) for i in sorted(candidates)}
    return {i: [replace(c, answer_lift=next(logps) - base[i]) for c in some] for i, some in candidates.items()}
