"""The two properties of a good positive (ExPO, arXiv 2507.02834, section 3), measured under one policy.

In-distribution: log π(c|q). Positive learning signal: the right answer is likelier after c than after the policy's own
completion, log π(a*|q, c) - log π(a*|q, c_own), the *answer lift*.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from expo.policy import token_batch, token_logp
from expo.prompts import Prompts

Ids = Sequence[int]


@dataclass(frozen=True)
class Scorer:
    """Measures completions under the given model; draws nothing and leaves no gradient."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    micro_batch_size: int

    def logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> Tensor:
        """log π(c|q), summed over tokens: `[N]`, in nats."""
        return self._score(prompts, completions)[0].sum(dim=1)

    def token_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> list[list[float]]:
        """log π(c_t|q, c_<t) of every token of each of the N completions, in nats."""
        logp, mask = self._score(prompts, completions)
        return [row[there].tolist() for row, there in zip(logp, mask.bool(), strict=True)]

    def _score(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Log-probabilities `[N, L]` and where there are any."""
        device = next(self.model.parameters()).device
        batch = token_batch(prompts, completions, self.tokenizer.pad_token_id, device)
        training = self.model.training
        self.model.eval()
        logp = token_logp(self.model, batch, self.micro_batch_size)
        self.model.train(training)
        return logp.cpu(), batch.mask.cpu()

    def mean_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids]) -> Tensor:
        """log π(c|q) per token: `[N]`."""
        return self.logp(prompts, completions) / torch.tensor([len(c) for c in completions]).clamp(min=1)

    def answer_logp(self, prompts: Sequence[Ids], completions: Sequence[Ids], answers: Sequence[str]) -> Tensor:
        """log π(a*|q, c): how likely the final statement of `answer` is after a completion's reasoning: `[N]`, in nats.

        The reasoning is the completion up to its own final statement, or all of it where it has none.
        """
        contexts = [[*q, *self.reasoning(c)] for q, c in zip(prompts, completions, strict=True)]
        return self.logp(contexts, [self.prompts.answer_ids(self.tokenizer, answer) for answer in answers])

    def reasoning(self, completion: Ids) -> list[int]:
        """The completion's tokens before its last final statement, without an end-of-sequence token."""
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
