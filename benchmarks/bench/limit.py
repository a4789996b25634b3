"""The least work that a step of GRPO needs."""

from dataclasses import dataclass
from typing import Any

from benchmarks.bench.cases import Case
from expo.cost.machine import Machine


@dataclass(frozen=True)
class Work:
    """The least that a step needs, whoever computes it.

    Each prompt is read once, to generate and to train. Matrix products alone are counted, without attention's. The head
    works where a token is drawn or scored. Each step of decoding reads all weights once; products of many rows read
    none.
    """

    prefill: float  # FLOPs of reading the prompts
    decode: float  # FLOPs of the tokens
    read: float  # bytes of weights read while decoding
    update: float  # FLOPs, forward and backward

    @classmethod
    def of(cls, case: Case, prompt_tokens: float, tokens: float) -> "Work":
        """Count it, from the tokens of the distinct prompts and of all completions of a step."""
        layers, head = _weights(case.shape)
        forward = 2 * (layers * (prompt_tokens + tokens) + head * tokens)
        # Backward: to the activations, and to the weights where they are trained. A reference reads forward.
        passes = (2 if case.lora_rank else 3) + (1 if case.kl else 0)
        return cls(
            2 * layers * prompt_tokens,
            2 * (layers + head) * tokens,
            4 * (layers + head) * case.tokens,
            passes * forward,
        )

    def rollout_seconds(self, machine: Machine) -> float:
        """Return the least seconds of the rollouts: decoding is bound by products or by reading, whichever takes
        longer."""
        return self.prefill / machine.flops + max(self.decode / machine.flops, self.read / machine.bytes)

    def update_seconds(self, machine: Machine) -> float:
        """Return the least seconds of the update."""
        return self.update / machine.flops


def _weights(shape: dict[str, Any]) -> tuple[int, int]:
    """Return the numbers in the matrices of all layers, and in the head."""
    hidden, heads, kv_heads = (shape[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    attention = 2 * hidden * hidden + 2 * hidden * hidden * kv_heads // heads
    layers = shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])
    return layers, hidden * shape["vocab_size"]
