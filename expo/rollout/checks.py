"""Does an engine generate as the trainer scores?"""

import torch
from transformers import PreTrainedModel

from expo.config import UserError
from expo.config.errors import first_line
from expo.model.checks import UNABLE, rounding
from expo.model.modes import causal_lm, in_evaluation
from expo.model.scoring import score, token_batch
from expo.rollout.engine import Engine, Request, Sampling
from expo.rollout.noise import SOLVE, NoiseKey

PROMPTS = [(1, 2, 3), (4, 5, 1, 2, 3), (1, 2, 3)]  # of two lengths, and one of them twice
TOKENS = 8


@torch.no_grad()
def check_decoding(engine: Engine, model: PreTrainedModel, path: str) -> None:
    """Raise UserError where the transformers engine cannot decode a model, or not with the trainer's probabilities."""
    kind = type(causal_lm(model)).__name__
    requests = [Request(prompt, NoiseKey(0, SOLVE, 0, i)) for i, prompt in enumerate(PROMPTS)]
    try:
        completions = engine.generate(requests, Sampling(1.0, 1.0, 0, TOKENS))
    except torch.OutOfMemoryError:
        raise  # which says nothing of the model
    except UNABLE as error:
        raise UserError(
            f"model.path={path}: {kind} cannot be decoded with rollout=hf ({type(error).__name__}: "
            f"{first_line(error)}); use rollout=vllm"
        ) from error
    rows = token_batch([c.prompt for c in completions], [c.ids for c in completions], 0, model.device)
    with in_evaluation(model):
        scored = score(model, rows)[rows.mask.bool()]
    sampled = torch.tensor([logp for c in completions for logp in c.logp], device=scored.device)
    if not torch.allclose(sampled, scored, rtol=0, atol=max(1e-3, rounding(model))):
        raise UserError(
            f"model.path={path}: {kind} gives tokens another probability when rollout=hf decodes them, by up to "
            f"{(sampled - scored).abs().max().item():.2g} nats; use rollout=vllm"
        )
