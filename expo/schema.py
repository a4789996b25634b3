"""Typed configuration: every key, its default and its meaning. `expo.schema_learning` has what a run learns by. Imports nothing heavy."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from expo.schema_learning import AlgorithmConf, HintsConf, Needs, PositivesConf

Transfer = Enum("Transfer", ["file", "nccl"])
OnBad = Enum("OnBad", ["skip", "stop"])
ExpertStyle = Enum("ExpertStyle", ["own", "terse", "foreign"])


@dataclass
class ColumnsConf:
    """Column names of an arbitrary data set. An empty name: the data set has no such column."""

    question: str = "question"
    answer: str = "answer"
    solution: str = ""
    level: str = ""
    subject: str = ""


@dataclass
class DatasetConf:
    _target_: str = MISSING
    name: str = MISSING
    # Local .jsonl or .parquet to train on (for `expo evaluate`: to evaluate on). null: the hub.
    path: str | None = None
    # Local file for evaluation. null with `path` set: eval_limit problems of `path` (at most half) are held out of training.
    eval_path: str | None = None
    hub_id: str | None = None
    # One hub config per entry, concatenated.
    hub_configs: list[str] = field(default_factory=list)
    split: str = "train"
    eval_split: str = "test"
    # Difficulty levels to keep. []: all.
    levels: list[int] = field(default_factory=list)
    # Levels to evaluate on. null: the same as `levels`.
    eval_levels: list[int] | None = None
    # Levels that exist in the data set. []: it has none.
    known_levels: list[int] = field(default_factory=list)
    # Problems to train on (`expo evaluate`: to evaluate on), and to evaluate on during training. null: all. On the
    # ladder both are per level, and `expo evaluate` too takes eval_limit.
    limit: int | None = None
    eval_limit: int | None = None
    # A row without question or answer: skip it (counted and named in the log) or stop.
    on_bad_row: OnBad = OnBad.skip


@dataclass
class MathConf(DatasetConf):
    _target_: str = "expo.data.readers.MATH"


@dataclass
class Gsm8kConf(DatasetConf):
    _target_: str = "expo.data.readers.GSM8K"


@dataclass
class TableConf(DatasetConf):
    _target_: str = "expo.data.readers.Columns"
    columns: ColumnsConf = field(default_factory=ColumnsConf)


@dataclass
class LadderConf(DatasetConf):
    _target_: str = "expo.data.readers.Ladder"
    expert_style: ExpertStyle = ExpertStyle.terse


@dataclass
class ModelConf:
    _target_: str = "expo.policy.load_policy"
    # Hub id or local folder; `ladder` is the base policy shipped with expo.
    path: str = MISSING
    dtype: str = "float32"
    attention: str = "sdpa"
    # LoRA rank; 0 trains all weights.
    lora_rank: int = 0
    lora_alpha: int = 32
    gradient_checkpointing: bool = False


@dataclass
class RandomTinyConf(ModelConf):
    _target_: str = "expo.policy.random_policy"
    path: str = "random_tiny"


@dataclass
class RolloutConf:
    _target_: str = "expo.rollout.transformers_engine.TransformersEngine"
    temperature: float = 1.0
    top_p: float = 1.0
    # 0: off.
    top_k: int = 0
    max_prompt_tokens: int = 512
    max_completion_tokens: int = 1024
    # Rows decoded at once.
    batch_size: int = 256
    # Package that this engine needs beyond expo's own, and the extra that brings it.
    requires: str = ""
    extra: str = ""

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt that also holds a solution, or a part of one, no longer than a completion."""
        return self.max_prompt_tokens + self.max_completion_tokens


@dataclass
class VLLMConf(RolloutConf):
    """vLLM. `batch_size` is the most rows that it decodes at a time."""

    _target_: str = "expo.rollout.vllm_engine.VLLMEngine"
    # Precision of its copy of the weights. null: the policy's.
    dtype: str | None = None
    # In a process of its own, which gets the weights through a file (in memory, where there is /dev/shm).
    separate: bool = False
    # Which GPU that process gets, by the trainer's numbers. null: the trainer's own.
    device: int | None = None
    # How the weights get to that process: through a file (in memory), or from GPU to GPU by nccl.
    transfer: Transfer = Transfer.file
    # Share of the GPU's memory. null: what the weights and a full batch need.
    memory_share: float | None = None
    # Merge a LoRA adapter into the weights that are sent, instead of sending the adapter alone.
    merge_lora: bool = False
    # Without compiled graphs: starts sooner, decodes slower on a GPU.
    eager: bool = False
    # Verify every so many syncs that the engine's weights and log-probabilities are the policy's. 0: never.
    probe_every: int = 1
    # Mean difference allowed, nats per token. null: 1e-3 in float32, 0.05 in 16 bit.
    probe_tolerance: float | None = None


@dataclass
class EvaluationConf:
    # Steps between evaluations; one is always made before the first step and after the last. 0: only those two.
    every: int = 50
    # Samples per problem. null: the largest k.
    samples: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    # Evaluation draws its noise from this seed whatever `seed` is: all runs meet the same noise.
    seed: int = 0


@dataclass
class OptimizerConf:
    learning_rate: float = 1e-6
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    # Optimizer steps of linear warm-up, then constant.
    warmup_steps: int = 0
    max_grad_norm: float = 1.0


@dataclass
class TrainerConf:
    max_steps: int = 200
    problems_per_step: int = 16
    # Rows per forward and backward pass. Changes memory and speed, never the numbers.
    micro_batch_size: int = 16
    checkpoint_every: int = 50
    # Stop (status `stopped`) after this many steps; the same command without it goes on from there.
    stop_after: int | None = None
    # A non-finite loss or gradient: skip the update (counted) or stop.
    on_nonfinite: OnBad = OnBad.stop
    # auto, cpu or gpu; one device.
    accelerator: str = "auto"
    # 32-true or bf16-mixed.
    precision: str = "32-true"
    # Threads of this process for tensor work on the CPU. 0: torch's choice.
    threads: int = 0
    # Score rows end to end in one row instead of padding them; pays with model.attention=flash_attention_2.
    packing: bool = False


@dataclass
class VerifierConf:
    workers: int = 2
    # Wall-clock seconds for one answer, and memory of one worker process in MiB.
    timeout_s: float = 3.0
    memory_mb: int = 1024
    # A longer final answer is unparseable at once.
    max_answer_chars: int = 400


@dataclass
class LoggerConf:
    """metrics.jsonl only, which is always written."""


@dataclass
class WandbConf:
    project: str = "expo"
    entity: str | None = None
    # offline, online or disabled.
    mode: str = "offline"
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class WandbLoggerConf(LoggerConf):
    wandb: WandbConf = field(default_factory=WandbConf)


@dataclass
class PromptsConf:
    _target_: str = "expo.prompts.Prompts"
    solve: str = MISSING
    explain: str = MISSING
    system: str | None = None
    # How a completion states its final answer; answer lift is the likelihood of this text.
    final: str = "\\boxed{{answer}}"
    # Asks for a hint to {answer}, and shows {hint}. Null: a hint is the beginning of an explanation, and begins the completion.
    hint: str | None = None
    solve_with_hint: str | None = None
    # Asks for {solution} in the policy's own words.
    paraphrase: str | None = None
    # Asks a judge whether each step of {completion} is right.
    judge: str | None = None


@dataclass
class PretrainConf:
    max_steps: int = 3000
    learning_rate: float = 2.5e-3
    tokens_per_batch: int = 6000
    # Steps on levels 1 and 2 only.
    warmup_steps: int = 300
    # Width, depth and attention heads of the model. vLLM on a CPU needs heads of 32, 64 or more: 3 heads for a width of 96.
    hidden_size: int = 96
    layers: int = 4
    heads: int = 4
    output: str = "outputs/pretrain"


@dataclass
class JudgeConf:
    """An LLM judge of single steps, through any OpenAI-compatible endpoint. `base_url` null: none."""

    base_url: str | None = None
    model: str = ""
    # Name of the environment variable that holds the key.
    key_variable: str = "OPENAI_API_KEY"


@dataclass
class DiagnoseConf:
    # Problems per level, and completions of each kind per problem.
    problems: int = 100
    samples: int = 4
    judge: JudgeConf = field(default_factory=JudgeConf)


@dataclass
class Config:
    algorithm: AlgorithmConf = MISSING
    positives: PositivesConf = MISSING
    hints: HintsConf = MISSING
    dataset: DatasetConf = MISSING
    model: ModelConf = MISSING
    rollout: RolloutConf = MISSING
    trainer: TrainerConf = field(default_factory=TrainerConf)
    optimizer: OptimizerConf = field(default_factory=OptimizerConf)
    evaluation: EvaluationConf = field(default_factory=EvaluationConf)
    verifier: VerifierConf = field(default_factory=VerifierConf)
    logger: LoggerConf = field(default_factory=LoggerConf)
    prompts: PromptsConf = MISSING
    pretrain: PretrainConf = field(default_factory=PretrainConf)
    diagnose: DiagnoseConf = field(default_factory=DiagnoseConf)
    # The k of pass@k.
    k: list[int] = field(default_factory=lambda: [1, 4])
    seed: int = 0
    # Name of the arm in run directories, W&B and tables; the algorithm's YAML sets it.
    name: str = MISSING
    # That without which it would be another algorithm under this name; the algorithm's YAML sets it.
    needs: Needs = Needs.nothing
    # Where run directories are made.
    output_dir: str = "outputs"
    # Run again from nothing even where this very run is finished or has a checkpoint.
    fresh: bool = False
