"""Keys of `trainer=`, `evaluation`, `verifier` and `reward=`."""

import os
from dataclasses import dataclass
from typing import ClassVar

from expo.config.key import Config, Rules, compiles, key, option

# Tokens of a row, up to which a GPU reads a group's prompt once: until one has measured it. A dense mask costs it flash
# attention.
SHARED_ON_GPU = 512


@option("trainer", "trainer", alone=False)
class TrainerConf:
    """The size of a run, and what it runs on."""

    max_steps: int = key(200, above=0, high=10**8, help="steps of the run")
    problems_per_step: int = key(16, above=0, high=2**20, help="problems of a step")
    micro_batch_size: int = key(16, above=0, high=2**20, identity=False)
    """rows per forward and backward pass; changes memory and speed, and the numbers by rounding only"""
    checkpoint_every: int = key(50, above=0, identity=False, help="steps between checkpoints")
    save_final: bool = key(True, identity=False)
    """false: of a finished run only the numbers stay, and neither model nor checkpoint: for sweeps"""
    stop_after: int | None = key(None, above=0, identity=False)
    """stop (status `stopped`) after this many steps; the same command without it goes on from there"""
    on_nonfinite: str = key("stop", choices=("skip", "stop"), pairs=False)
    """a non-finite loss or gradient: skip the update (counted) or stop"""
    on_collapse: str = key("warn", choices=("warn", "stop", "rollback"), pairs=False, absent=("warn", "stop"))
    """a policy that goes bad beyond its own history (docs/reliability.md): say so, stop there, or go on from
    checkpoints/best.ckpt; warn and stop make one run, in one folder"""
    accelerator: str = key("auto", choices=("auto", "cpu", "gpu"), identity=False, help="devices of this kind")
    devices: int = key(1, above=0, high=1024, identity=False)
    """GPUs of this machine, or processes on the CPU, that share the work of each step; changes the numbers by rounding
    only"""
    num_nodes: int = key(1, above=0, high=4096, identity=False)
    """machines with so many devices each; start one process per device with torchrun"""
    strategy: str = key("ddp", choices=("ddp", "fsdp"), identity=False)
    """what each of several devices holds: ddp, all weights; fsdp, a share of weights, gradients and optimizer state"""
    precision: str = key("32-true", choices=("32-true", "bf16-mixed"))
    """number format of rollouts, scoring, update and evaluation; the weights keep theirs (model.dtype)"""
    threads: int = key(0, low=0, high=1024, identity=False)
    """threads of this process for tensors on the CPU; 0: torch's choice"""
    packing: bool = key(False, identity=False)
    """score rows end to end in one row instead of padding them; pays with model.attention=flash_attention_2"""
    share_prompts: bool | None = key(None, identity=False)
    """read a group's prompt once for all of its completions, where model and attention (sdpa, eager) can; changes the
    numbers by rounding only; null: not on a GPU where rows may have over 512 tokens, whose attention would take a dense
    mask"""
    dropout: bool = key(False, absent=False, pairs=False)
    """keep the model's own dropout in the passes that have a gradient, as SFT may want it: ratios and KL then have its
    noise, and numbers change with micro_batch_size, devices and packing; everything else is scored without"""

    def even_micro_batch(self, group_size: int) -> int:
        """Return the largest divisor of a step's rollouts that is no larger than `micro_batch_size`."""
        rows = self.problems_per_step * max(group_size, 1)
        return next(d for d in range(min(self.micro_batch_size, rows), 0, -1) if rows % d == 0)

    @property
    def shared(self) -> bool:
        """Return whether a prompt that several rows have may be read once for all of them, where the model can.

        Wiring has settled null by then (`shares_prompts`).
        """
        return self.share_prompts is not False

    def shares_prompts(self, cfg: Config, gpu: bool) -> bool:
        """Return whether groups' prompts are to be read once. Args: gpu, whether a GPU trains."""
        longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_completion_tokens
        return longest <= SHARED_ON_GPU or not gpu if self.share_prompts is None else self.share_prompts

    def rules(self, cfg: Config) -> Rules:
        if self.packing and self.share_prompts:
            yield "trainer.share_prompts=true: has no effect with trainer.packing=true; leave one of them out"
        several = self.devices * self.num_nodes > 1
        if not several and self.strategy != "ddp":
            why = "shares the weights out among devices, and there is one"
            yield f"trainer.strategy={self.strategy}: {why}; set trainer.devices, or trainer.strategy=ddp"

    def needs_here(self, cfg: Config) -> Rules:
        if self.num_nodes != 1 and "WORLD_SIZE" not in os.environ:
            start = f"torchrun --nnodes {self.num_nodes} --nproc-per-node {self.devices} -m expo train …"
            remedy = f"start one process per device with {start} (docs/scaling.md), or set trainer.num_nodes=1"
            yield f"trainer.num_nodes={self.num_nodes}: {remedy}"


@dataclass
class EvaluationConf:
    """Sampling of evaluations. All runs meet the same noise, whatever their `seed`."""

    every: int = key(50, low=0)
    """steps between evaluations; one is always made before the first step and after the last; 0: only those two"""
    first: bool = key(True, identity=False, help="false: no evaluation before the first step; no curve begins there")
    patience: int | None = key(None, above=0, absent=None)
    """end the run after so many evaluations in a row that are no better on the dataset.validation problems; null:
    never"""
    samples: int | None = key(None, above=0, high=2**20, help="samples per problem; null: the largest k")
    temperature: float = key(0.7, low=1e-3, high=100)
    """sampling temperature; `evaluation.greedy` is for the most likely tokens"""
    top_p: float = key(1.0, above=0, high=1, help="nucleus sampling: the most likely tokens of this total probability")
    top_k: int = key(0, low=0, help="only the k most likely tokens; 0: off")
    seed: int = key(0, low=0, high=2**63 - 1, help="seed of the evaluation's noise")
    greedy: bool = key(False, absent=False)
    """`expo evaluate`: one more completion of each problem, of the most likely tokens"""


ALONE = ("boxed", "last_number", "whole")  # values of `verifier.extract`, and those that take an argument
WITH_ARGUMENT = ("after", "tag", "regex")
ANSWER_KINDS = (
    "auto", "number", "quantity", "percentage", "money", "date", "time", "option", "words", "exact", "json", "list",
    "expression", "equation", "inequality", "interval", "matrix", "notation",
)  # fmt: skip


@option("verifier", "math")
class VerifierConf:
    """Judging of answers by their kind, in worker processes where that takes long."""

    judges_rows: ClassVar[bool] = False  # and not by the answer that an explanation was shown

    _target_: str = key("expo.verifier.judges.ByKind", absent="expo.verifier.judges.ByKind")
    """the judge: a class, built from these keys"""
    workers: int | None = key(None, above=0, high=1024, identity=False)
    """worker processes of each device; null: its share of the cores, at most 32"""
    timeout_s: float = key(3.0, above=0, high=3600)
    """CPU seconds of a worker process for one answer; five times as much wall-clock time (30 s at least), for what
    hangs"""
    memory_mb: int = key(1024, above=0, high=2**20, help="memory of one worker process, MiB")
    max_answer_chars: int = key(400, above=0, high=10**5, help="a longer final answer is unparseable at once")
    extract: str = key("boxed", absent="boxed")
    """where the final answer of a completion stands: boxed | last_number | whole | after:TEXT (the rest of the line) |
    tag:NAME | regex:PATTERN (the last match, of that the first group); prompts.solve has to ask for it, prompts.final
    to state it so"""
    kind: str = key("auto", absent="auto", choices=ANSWER_KINDS)
    """how answers are compared, for all problems; auto: by dataset.answer_kind"""

    def rules(self, cfg: Config) -> Rules:
        name, colon, argument = self.extract.partition(":")
        if not (name in ALONE if not colon else name in WITH_ARGUMENT and argument != ""):
            remedy = f"set one of {', '.join(ALONE)}, {', '.join(f'{name}:…' for name in WITH_ARGUMENT)}"
            yield f"verifier.extract={self.extract}: names no place of an answer; {remedy}"
        if name == "regex":
            yield from compiles(f"verifier.extract={self.extract}", argument)


@option("verifier", "regex")
class RegexVerifierConf(VerifierConf):
    """Judging of answers by a regular expression, which the row's answer is."""

    _target_: str = "expo.verifier.judges.Matching"


@option("verifier", "python", alone=False)
class PythonVerifierConf(VerifierConf):
    """Judging of answers by a function of one's own."""

    _target_: str = "expo.verifier.judges.ByFunction"
    function: str = key()
    """package.module.name of a function judge(answer, problem) that returns True, False, None for no answer, or a score
    from 0 to 1, which reward=partial learns from"""

    @property
    def judges_rows(self) -> bool:  # type: ignore[override]
        return self.function == "expo.verifier.reasoning.score"


@option("reward", "correct")
class RewardConf:
    """1 for a right answer, 0 for any other."""

    _target_: str = "expo.step.rewards.Correct"
    truncated: str = key("count", absent="count", choices=("count", "zero"))
    """a completion that was cut off and has an answer all the same: count it as any other, or give it 0"""


@option("reward", "partial")
class PartialConf(RewardConf):
    """1 for a right answer, and for any other the part of it that the judge's function returns."""

    _target_: str = "expo.step.rewards.Partial"
