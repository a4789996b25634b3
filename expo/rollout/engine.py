"""What a rollout engine is: token ids in, token ids and sampler log-probabilities out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expo.model.prompts import turn_end
from expo.rollout.noise import NoiseKey


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `top_k=0` and `top_p=1` are off."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One completion that is asked for: prompt in token ids, key of the row's sampling noise, index of its problem."""

    prompt: tuple[int, ...]
    key: NoiseKey
    problem: int = 0  # the index of its problem, for whoever asks


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled completion. `ids` ends in the end-of-sequence token unless `truncated`; `logp` are the sampler's
    log-probabilities of each token, by the distribution sampled from, under `prompt`."""

    prompt: tuple[int, ...]
    ids: list[int]
    logp: list[float]
    truncated: bool
    problem: int = 0  # the request's


# Told of the rows that have just ended; returns what else is wanted now.
Follow = Callable[[Mapping[int, Completion]], Sequence[Request]]


class Engine:
    """Generates with the policy's current weights. Only `generate` must be written: an engine that shares the policy's
    weights has nothing to sync or to free."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, follow: Follow | None = None
    ) -> list[Completion]:
        """Return one completion per request, in order. A row's completion does not depend on the other rows' noise.

        What `follow` asks for when rows of `requests` end is generated in the same call, where the engine can, beside
        the rows that have not ended. Its completions come after those of `requests`, in the order asked for.
        """
        raise NotImplementedError

    def sync(self) -> None:
        """Bring the engine's weights up to the policy's."""

    def sleep(self) -> None:
        """Leave the device to the trainer's update, as far as the engine can."""

    def wake(self) -> None:
        """Take the device again, before `sync`."""

    def close(self) -> None:
        """Free what the engine holds."""


class EngineAround(Engine):
    """Engine that passes every call on to the `engine` within."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, follow: Follow | None = None
    ) -> list[Completion]:
        return self.engine.generate(requests, sampling, follow)

    def sync(self) -> None:
        self.engine.sync()

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()

    def close(self) -> None:
        self.engine.close()


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a completion: an instruct model may end its turn in several ways."""
    configured = model.generation_config.eos_token_id
    eos = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, turn_end(tokenizer), *eos} - {None})
