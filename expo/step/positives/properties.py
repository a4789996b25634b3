"""The two properties of a good positive (ExPO, arXiv 2507.02834, section 3), measured under one policy.

In-distribution: log π(c|q). Positive learning signal: the right answer is likelier after c than after the policy's own
completion, log π(a*|q, c) - log π(a*|q, c_own), the *answer lift*.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from expo.devices.ranks import ALONE, Ranks
from expo.model.prompts import Prompts
from expo.model.scoring import token_batch, token_logp
from expo.step.experience import Batch, Candidate, Group

Ids = Sequence[int]


@dataclass(frozen=True)
class Scorer:
    """Measures completions under the given model; draws nothing and leaves no gradient."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    micro_batch_size: int
    ranks: Ranks = ALONE

    def logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> Tensor:
        """Return log π(c|q), summed over tokens: `[N]`, in nats."""
        own = self._score(self.ranks.own(prompts), self.ranks.own(completions))[0].sum(dim=1)
        return torch.tensor(self.ranks.whole(own.tolist()))

    def token_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> list[list[float]]:
        """Return log π(c_t|q, c_<t) of every token of each of the N completions, in nats."""
        logp, mask = self._score(self.ranks.own(prompts), self.ranks.own(completions))
        return self.ranks.whole([row[there].tolist() for row, there in zip(logp, mask.bool(), strict=True)])

    def _score(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities `[N, L]` and where there are any."""
        device = next(self.model.parameters()).device
        batch = token_batch(prompts, completions, self.tokenizer.pad_token_id, device)
        training = self.model.training
        self.model.eval()
        logp = token_logp(self.model, batch, self.micro_batch_size)
        self.model.train(training)
        return logp.cpu(), batch.mask.cpu()

    def mean_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> Tensor:
        """Return log π(c|q) per token: `[N]`."""
        return self.logp(prompts, completions) / torch.tensor([len(c) for c in completions]).clamp(min=1)

    def answer_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids], answers: Sequence[str]) -> Tensor:
        """Return log π(a*|q, c): how likely the final statement of `answer` is after a completion's reasoning: `[N]`, in nats.

        The reasoning is the completion up to its own final statement, or all of it where it has none.
        """
        contexts = [[*q, *self.reasoning(c)] for q, c in zip(prompts, completions, strict=True)]
        return self.logp(contexts, [self.prompts.answer_ids(self.tokenizer, answer) for answer in answers])

    def reasoning(self, completion: Ids) -> list[int]:
        """Return the completion's tokens before its last final statement, without an end-of-sequence token."""
        ids = list(completion)
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids.pop()
        position = self.text(ids).rfind(self.prompts.final_marker)
        if position < 0:
            return ids
        low, high = 0, len(ids)  # the most tokens whose text ends at or before the statement begins
        while low < high:
            middle = (low + high + 1) // 2
            if len(self.text(ids[:middle]).rstrip()) <= position:
                low = middle
            else:
                high = middle - 1
        return ids[:low]

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))


def with_logp(scorer: Scorer, batch: Batch, found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with mean log π(c|q)."""
    means = scorer.mean_logp([batch.prompts[c.problem] for c in found], [c.ids for c in found]).tolist()
    return [replace(c, logp_given_q=mean) for c, mean in zip(found, means, strict=True)]


def with_logp_given_answer(scorer: Scorer, found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with the same under the prompt that shows the answer, for those that were written."""
    written = [c for c in found if c.prompt is not None]
    means = iter(scorer.mean_logp([c.prompt or () for c in written], [c.ids for c in written]).tolist())
    return [c if c.prompt is None else replace(c, logp_given_qa=next(means)) for c in found]


def with_lift(scorer: Scorer, batch: Batch, groups: Mapping[int, Group], found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with the answer lift over the first rollout of each problem, where there are rollouts."""
    if not found or not any(group.completions for group in groups.values()):
        return list(found)
    owners = sorted({c.problem for c in found})
    own = [groups[i].completions[0] for i in owners]
    prompts = [c.prompt for c in own] + [batch.prompts[c.problem] for c in found]
    answers = [batch.problems[i].answer for i in owners] + [batch.problems[c.problem].answer for c in found]
    completions = [c.ids for c in own] + [c.ids for c in found]
    logps = scorer.answer_logp(prompts, completions, answers).tolist()
    base = dict(zip(owners, logps[: len(owners)], strict=True))
    lifts = [logp - base[c.problem] for c, logp in zip(found, logps[len(owners) :], strict=True)]
    return [replace(c, answer_lift=lift) for c, lift in zip(found, lifts, strict=True)]
