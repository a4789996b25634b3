"""Numbers of a run: rows, tokens, formats. `plan` gives what the config does not say."""

import math
from dataclasses import dataclass, replace
from typing import Any

from expo.config import AdamW8bitConf, Config, DatasetConf, UserError
from expo.config.algorithm import DPOConf
from expo.config.dataset import GeneratedConf
from expo.config.explaining import frozen_copies
from expo.cost.shape import Shape, shape

# Problems on the hub, by id, number of configs, split and levels.
SIZES: dict[tuple[object, ...], int] = {
    ("EleutherAI/hendrycks_math", 7, "train"): 7500,
    ("EleutherAI/hendrycks_math", 7, "test"): 5000,
    ("EleutherAI/hendrycks_math", 7, "train", 5): 2304,
    ("EleutherAI/hendrycks_math", 7, "test", 5): 1324,
    ("HuggingFaceH4/MATH-500", 0, "test"): 500,
    ("openai/gsm8k", 1, "train"): 7473,
    ("openai/gsm8k", 1, "test"): 1319,
    ("HuggingFaceH4/aime_2024", 0, "train"): 30,
    ("math-ai/aime25", 0, "test"): 30,
}
FIRST_LEVEL = 100  # problems that the ladder's first level has of any split; it has few more


def problems_of(data: DatasetConf, split: str, levels: list[Any], limit: int | None) -> tuple[int | None, bool]:
    """Return how many problems of a split a run takes at most, None where nothing tells, and whether that is exact."""
    if isinstance(data, GeneratedConf):
        of = levels or data.known_levels
        few = data.is_ladder and 1 in of and (limit or 0) > FIRST_LEVEL
        return limit and limit * (len(of) if data.is_ladder else 1), not few
    of_files = data.path is not None or data.eval_path is not None
    size = None if of_files else SIZES.get((data.hub_id, len(data.hub_configs), split, *levels))
    return min(filter(None, (limit, size)), default=None), size is not None


@dataclass(frozen=True)
class Work:
    """A run on a number of devices. Lengths are the longest that the config allows, unless `plan` gives means."""

    cfg: Config
    shape: Shape
    devices: int
    read: tuple[int, int] | None = None  # problems of files that were read: to train on, and held out

    @classmethod
    def of(cls, cfg: Config, devices: int | None = None) -> "Work":
        """Return the run on as many devices as given, or as its config says. Raises OSError where the
        model's config cannot be read."""
        if devices is not None:
            cfg = replace(cfg, trainer=replace(cfg.trainer, devices=devices, num_nodes=1))
        return cls(cfg, shape(cfg.model.path), cfg.trainer.devices * cfg.trainer.num_nodes)

    @property
    def prompt(self) -> int:
        return self.cfg.plan.prompt_tokens or self.cfg.rollout.max_prompt_tokens

    @property
    def completion(self) -> int:
        return self.cfg.plan.completion_tokens or self.cfg.rollout.max_completion_tokens

    @property
    def groups(self) -> int:
        return self.cfg.trainer.problems_per_step if self.cfg.algorithm.group_size else 0

    @property
    def rollouts(self) -> int:
        return self.groups * self.cfg.algorithm.group_size

    @property
    def trained_rollouts(self) -> int:
        """Return the rollouts of a step that are trained on; of DPO, the rows of its pairs."""
        return 2 * self.groups if isinstance(self.cfg.algorithm, DPOConf) else self.rollouts

    @property
    def generated(self) -> int:
        """Return the rollouts that a step generates at most: also what refills add, and what hints make again."""
        hints = self.cfg.hints
        again = self.groups * (self.cfg.algorithm.group_size - getattr(hints, "keep", 0)) if hints.gives_hints else 0
        return (self.rollouts + again) * self.rounds

    @property
    def rounds(self) -> int:
        """Return how many times a step asks for rollouts at most."""
        return 1 + getattr(self.cfg.algorithm, "refills", 0)

    @property
    def written(self) -> int:
        """Return the positives and hints that are written in a step, if each problem gets one."""
        samples: int = getattr(self.cfg.positives, "samples", 0)
        hints = getattr(self.cfg.hints, "stages", 1) if self.cfg.hints.writer else 0
        return self.cfg.trainer.problems_per_step * (samples + hints) * self.rounds

    @property
    def positives(self) -> int:
        """Return the positives that a step trains on in a pass of their own, if each problem has one."""
        learning = self.cfg.positives.positive_loss
        apart = learning.weight and not learning.joins_groups
        return self.cfg.trainer.problems_per_step if apart else 0

    def evaluated(self, command: str = "train") -> tuple[int | None, bool]:
        """Return how many problems an evaluation by a command takes, see `problems_of`."""
        data, made = self.cfg.dataset, isinstance(self.cfg.dataset, GeneratedConf)
        if command == "train" and self.read:
            return self.read[1], True
        if command != "train" and data.part == "train":
            return problems_of(data, data.split, data.levels, data.limit)
        levels = data.levels if data.eval_levels is None else data.eval_levels
        if command != "train" and not made and not (data.shares_file and data.part == "held_out"):
            return problems_of(data, data.eval_split, levels, data.limit)
        held_out = data.eval_limit or (100 if data.shares_file or made else None)
        if command != "train" and not made and data.limit:
            held_out = min(data.limit, held_out or data.limit)
        return problems_of(data, data.eval_split, levels, held_out)

    @property
    def sampled(self) -> int:
        """Return the completions of one evaluation; where nothing tells its problems, of 1,000."""
        cfg = self.cfg
        return ((self.evaluated()[0] or 1000) + cfg.dataset.validation) * (cfg.evaluation.samples or max(cfg.k))

    @property
    def length(self) -> str:
        """Say how many steps the run has, how many problems, and how many epochs they are, where that is known. Raises
        UserError where none is left to train on."""
        cfg, data = self.cfg, self.cfg.dataset
        dealt = cfg.trainer.max_steps * cfg.trainer.problems_per_step
        counted = self.read and (self.read[0], True)
        known, exact = counted or problems_of(data, data.split, data.levels, data.limit)
        if known is not None and known <= data.validation:
            why = "no problem is left to train on"
            raise UserError(f"dataset.validation={data.validation}: {why}; set it below {known}")
        exact = exact and self.rounds == 1
        epochs = "epochs not known: no dataset.limit"
        if known is not None:
            epochs = f"{'' if exact else 'at least '}{dealt / (known - data.validation):.3g} epochs"
        text = f"{cfg.trainer.max_steps} steps of {cfg.trainer.problems_per_step} problems, {dealt:,} in all ({epochs})"
        problems, exact = self.evaluated()
        completions = f"{'' if exact else 'at most '}{self.sampled:,} completions"
        if problems is None:
            completions = f"completions whose number is not known (no dataset.eval_limit; taken as {self.sampled:,})"
        return f"{text}; {self.evaluations} evaluations of {completions}"

    @property
    def evaluations(self) -> int:
        every = self.cfg.evaluation.every
        return 1 + self.cfg.evaluation.first + ((self.cfg.trainer.max_steps - 1) // every if every else 0)

    @property
    def share(self) -> float:
        """Return the share of all work that the busiest device has, where whole groups are dealt out."""
        units = max(self.groups, self.written, 1)
        return math.ceil(units / self.devices) / units

    @property
    def trained(self) -> int:
        rank = self.cfg.model.lora_rank
        return rank * self.shape.linear_sides if rank else self.shape.parameters

    @property
    def sharded(self) -> int:
        return self.devices if self.cfg.trainer.strategy == "fsdp" else 1

    @property
    def stored(self) -> int:
        """Return the bytes of a stored weight."""
        return 2 if self.cfg.model.dtype in ("bfloat16", "float16") else 4

    @property
    def held(self) -> float:
        """Return the bytes of all weights in memory, without an adapter. In 4 bits, 64 share a scale, rounded too."""
        s = self.shape
        if not self.cfg.model.load_in_4bit:
            return self.stored * s.parameters - (2.0 * self.matrices if self.base_in_16_bit else 0.0)
        return self.stored * (s.parameters - s.in_layers) + (0.5 + 1 / 64 + 4 / 64 / 256) * s.in_layers

    @property
    def matrices(self) -> int:
        """Return the weights that autocast would cast for each product: those of layers, and of a head of its own."""
        return self.shape.in_layers + (0 if self.shape.tied else self.shape.head)

    @property
    def base_in_16_bit(self) -> bool:
        """Return whether the matrices under a LoRA adapter are held as they are multiplied."""
        return self.mixed and self.cfg.model.lora_rank > 0 and self.sharded == 1

    @property
    def moments(self) -> int:
        """Return the bytes of the optimizer's state for each trained parameter."""
        each = 4 if self.cfg.model.lora_rank else self.stored
        return 2 if isinstance(self.cfg.optimizer, AdamW8bitConf) else 2 * each

    @property
    def computed(self) -> str:
        """Return the number format of matrix products."""
        half = self.cfg.trainer.precision == "bf16-mixed" or self.stored == 2
        return "bfloat16" if half else "float32"

    @property
    def engine_format(self) -> str:
        named = getattr(self.cfg.rollout, "dtype", None)
        return self.computed if named is None else "float32" if named == "float32" else "bfloat16"

    @property
    def engine_bytes(self) -> int:
        return 4 if self.engine_format == "float32" else 2

    @property
    def read_bytes(self) -> int:
        """Return the bytes per weight that a step of decoding moves. Autocast keeps casts of trained weights alone."""
        cast_anew = (
            self.cfg.rollout.in_place and self.mixed and self.cfg.model.lora_rank > 0 and not self.base_in_16_bit
        )
        return self.stored + 2 + 2 if cast_anew else self.engine_bytes

    @property
    def mixed(self) -> bool:
        """Return whether float32 weights are cast to 16 bit for each product."""
        return self.computed == "bfloat16" and self.stored == 4

    @property
    def casts(self) -> float:
        """Return the bytes of the casts that autocast keeps. A weight in 4 bits is unpacked for its own product."""
        s = self.shape
        plain = self.matrices if self.base_in_16_bit else s.in_layers if self.cfg.model.load_in_4bit else 0
        return 2.0 * (s.parameters - plain) if self.mixed else 0.0

    @property
    def sleeps(self) -> bool:
        """Return whether the engine leaves the device in the update: in place, or vLLM in the GPU trainer's process."""
        beside = getattr(self.cfg.rollout, "separate", False)
        return self.cfg.rollout.in_place or not (beside or self.cfg.trainer.accelerator == "cpu")

    @property
    def elsewhere(self) -> bool:
        """Return whether the engine has a GPU of its own."""
        return bool(getattr(self.cfg.rollout, "device", None))

    @property
    def engines_beside(self) -> int:
        """Return the engines of vLLM for a frozen model. They do not sleep."""
        if self.cfg.rollout.in_place:
            return 0
        cfg = self.cfg
        writers = {cfg.hints.writer, None if cfg.positives.from_bank(cfg.algorithm) else cfg.positives.writer}
        return len(writers & {"reference", "snapshot"} | ({"snapshot"} if cfg.algorithm.uses_snapshot else set()))

    @property
    def shares(self) -> bool:
        """Return whether the update reads a prompt once for its group, as far as the config decides it."""
        t, m = self.cfg.trainer, self.cfg.model
        shared = t.shares_prompts(self.cfg, gpu=False)  # `settled` has set it for a GPU
        return shared and not t.packing and not m.gradient_checkpointing and m.attention in ("sdpa", "eager")

    @property
    def copies(self) -> float:
        """Return the bytes of the whole copies of the weights that stay in memory beside the policy. Under autocast,
        frozen ones hold their matrices in 16 bit, but for a reference from which rounds begin anew."""
        initial, earlier = frozen_copies(self.cfg)
        casts = self.mixed and not self.cfg.model.load_in_4bit and not self.base_in_16_bit
        half = self.held - (2.0 * self.matrices if casts else 0.0)
        first = self.held if self.cfg.algorithm.uses_snapshot else half
        return initial * first + earlier * half + self.cfg.algorithm.uses_average * self.held

    @property
    def rows(self) -> int:
        own = max(math.ceil(n * self.share) for n in (self.rollouts, self.written, 1))
        return min(self.cfg.rollout.at_once, max(own, math.ceil(self.sampled / self.devices)))
