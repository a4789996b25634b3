"""What a run does, in numbers: rows, tokens, formats. All that is not in the config is said by `plan`."""

import math
from dataclasses import dataclass

from expo.config import Config
from expo.config.explaining import frozen_copies
from expo.cost.shape import Shape, shape

EVALUATED = {
    "math": 5000,
    "math_level5": 1324,
    "math500": 500,
    "gsm8k": 1319,
    "aime24": 30,
    "aime25": 30,
}  # test splits


@dataclass(frozen=True)
class Work:
    """A run on a number of devices. Lengths are the longest that the config allows, unless `plan` gives means."""

    cfg: Config
    shape: Shape
    devices: int

    @classmethod
    def of(cls, cfg: Config, devices: int | None = None) -> "Work":
        """Raises OSError where the config of the model cannot be read."""
        return cls(cfg, shape(cfg.model.path), devices or cfg.trainer.devices * cfg.trainer.num_nodes)

    @property
    def prompt(self) -> int:
        """Return the tokens of a prompt."""
        return self.cfg.plan.prompt_tokens or self.cfg.rollout.max_prompt_tokens

    @property
    def completion(self) -> int:
        """Return the tokens of a completion."""
        return self.cfg.plan.completion_tokens or self.cfg.rollout.max_completion_tokens

    @property
    def groups(self) -> int:
        """Return the groups of rollouts of a step."""
        return self.cfg.trainer.problems_per_step if self.cfg.algorithm.group_size else 0

    @property
    def rollouts(self) -> int:
        """Return the rollouts of a step."""
        return self.groups * self.cfg.algorithm.group_size

    @property
    def written(self) -> int:
        """Return the positives that are written in a step, if each problem gets them."""
        return self.cfg.trainer.problems_per_step * self.cfg.positives.written_per_problem

    @property
    def positives(self) -> int:
        """Return the positives that a step trains on in a pass of their own, if each problem has one."""
        positives = self.cfg.positives
        apart = getattr(positives, "weight", 0) and not positives.joins_groups
        return self.cfg.trainer.problems_per_step if apart else 0

    @property
    def sampled(self) -> int:
        """Return the completions of one evaluation."""
        cfg = self.cfg
        problems = cfg.dataset.eval_limit or EVALUATED.get(cfg.dataset.name, 1000)
        return problems * (cfg.evaluation.samples or max(cfg.k))

    @property
    def evaluations(self) -> int:
        """Return the evaluations of the run."""
        every = self.cfg.evaluation.every
        return 2 + ((self.cfg.trainer.max_steps - 1) // every if every else 0)

    @property
    def share(self) -> float:
        """Return the share of all work that the busiest device has, where whole groups are dealt out."""
        units = max(self.groups, self.written, 1)
        return math.ceil(units / self.devices) / units

    @property
    def trained(self) -> int:
        """Return the parameters that are trained."""
        rank = self.cfg.model.lora_rank
        return rank * self.shape.linear_sides if rank else self.shape.parameters

    @property
    def sharded(self) -> int:
        """Return over how many devices the weights are shared out."""
        return self.devices if self.cfg.trainer.strategy == "fsdp" else 1

    @property
    def stored(self) -> int:
        """Return the bytes of a stored weight."""
        return 2 if self.cfg.model.dtype in ("bfloat16", "float16") else 4

    @property
    def computed(self) -> str:
        """Return the number format of matrix products."""
        mixed = self.cfg.trainer.precision == "bf16-mixed"
        return "bfloat16" if mixed or self.stored == 2 else "float32"

    @property
    def in_place(self) -> bool:
        """Return whether transformers generates, on the trainer's own weights."""
        return self.cfg.rollout.in_place

    @property
    def engine_bytes(self) -> int:
        """Return the bytes of a weight that decoding reads."""
        if self.in_place:
            return 2 if self.computed == "bfloat16" else 4
        named = getattr(self.cfg.rollout, "dtype", None)
        return {"bfloat16": 2, "float16": 2, "float32": 4}.get(named or "", self.stored)

    @property
    def copies(self) -> int:
        """Return the whole copies of the weights that stay in memory beside the policy."""
        return sum(frozen_copies(self.cfg))

    @property
    def rows(self) -> int:
        """Return the rows that a device decodes at once."""
        own = max(math.ceil(n * self.share) for n in (self.rollouts, self.written, 1))
        return min(self.cfg.rollout.batch_size, max(own, math.ceil(self.sampled / self.devices)))
