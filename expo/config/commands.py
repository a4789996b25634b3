"""Keys of `prompts=`, `logger=`, and of single commands: `pretrain`, `diagnose`."""

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from expo.config.key import Rules, key, option

if TYPE_CHECKING:
    from expo.config.run import Config


WITH_SOLUTION = """\
{question}

A correct solution of it:
{solution}

You have read and understood this solution. Now derive the same answer in your own words, step by step, and put your final \
answer within \\boxed{}."""  # noqa: E501


GO_ON = """\
{question}

Here is the beginning of a correct solution:
{beginning}

Go on from where it ends, without writing it again, reason step by step, and put your final answer within \\boxed{}."""
HINT_FROM_SOLUTION = """\
{question}

A correct solution of it:
{solution}

Write one short hint for a student who cannot solve this: the idea that the solution turns on. Do not state the answer or any \
intermediate result."""  # noqa: E501
ABSTRACT = """\
{question}

An explanation of its answer:
{explanation}

Write one short, abstract hint for a student who cannot solve this: the idea or the fact that the explanation turns on. Do not \
state the answer or any intermediate result."""  # noqa: E501


@option("prompts", "prompts", formerly="expo.prompts.Prompts", alone=False)
@dataclass
class PromptsConf:
    """Templates over {question} and others. Placeholders are replaced literally: LaTeX braces need no escaping."""

    _target_: str = "expo.model.prompts.Prompts"
    solve: str = key(MISSING, help="asks for a solution of {question}")
    explain: str = key(MISSING, help="shows {answer} and asks for an explanation of it")
    system: str | None = key(
        None,
        help='system message; null: none but the one that the chat template may write (prompts.template_system), "": '
        "an empty one. A row's own counts first",
    )
    template_system: bool = key(
        True,
        absent=True,
        help="keep the system message that some chat templates (Qwen2.5, SmolLM2) write where they are given none; "
        "false: no system message at all",
    )
    examples: int = key(
        0,
        low=0,
        high=64,
        absent=0,
        help="worked examples before each question that the policy is to solve or explain, as earlier turns; the "
        "same ones of the training part in every run on it, never the question itself",
    )
    template_options: dict[str, Any] = key(
        dict, absent={}, help="options of the chat template, such as {enable_thinking: false}"
    )
    date: str = key(
        "2024-07-26",
        absent="2024-07-26",
        help="the day, as YYYY-MM-DD, that a chat template is told which prints today's date: a prompt has to be the "
        "same tomorrow",
    )
    final: str = key(
        "\\boxed{{answer}}", help="how a completion states its final answer; its likelihood is the answer lift"
    )
    hint: str | None = key(
        None,
        help="asks for a hint to {answer}; null: a hint is the beginning of an explanation, and begins the completion",
    )
    solve_with_hint: str | None = key(None, help="asks for a solution and shows {hint}")
    with_solution: str | None = key(
        WITH_SOLUTION,
        absent=(None, WITH_SOLUTION),  # only the ladder may leave it out: see the rules of SelfDistillationConf
        help="shows {solution} to a teacher that scores; null: the ladder's, whose teacher sees the answer instead "
        "(prompts.explain)",
    )
    # Only the ladder may leave these out: see the rules of PrefixConf.
    go_on: str | None = key(
        GO_ON,
        absent=(None, GO_ON),
        help="shows the {beginning} of a solution and asks to go on from it (hints.instructed)",
    )
    hint_from_solution: str | None = key(
        HINT_FROM_SOLUTION,
        absent=(None, HINT_FROM_SOLUTION),
        help="shows {solution} and asks for a hint (hints.sees=solution); null: the ladder's",
    )
    abstract: str | None = key(
        ABSTRACT,
        absent=(None, ABSTRACT),
        help="shows an {explanation} and asks for a hint (hints.stages=2); null: the ladder's",
    )
    paraphrase: str | None = key(None, help="asks for {solution} in the policy's own words")
    judge: str | None = key(None, identity=False, help="asks a judge whether each step of {completion} is right")

    def rules(self, cfg: "Config") -> Rules:
        yield (
            "{question}" in self.solve,
            "prompts.solve: has no {question}; put {question} where the question goes",
        )
        yield (
            "{question}" in self.explain and "{answer}" in self.explain,
            "prompts.explain: needs both {question} and {answer}; put them where question and answer go",
        )
        yield (
            self.template_system or self.system is None,
            f"prompts.template_system=false: without effect beside prompts.system={self.system!r}, in whose place no "
            "template writes its own; leave it out, or set prompts.system=null",
        )
        yield (
            _is_day(self.date),
            f"prompts.date={self.date}: is no day; write it as YYYY-MM-DD, such as prompts.date=2024-07-26",
        )
        yield (
            "{answer}" in self.final,
            f"prompts.final={self.final}: has no {{answer}}; put {{answer}} where the answer goes",
        )

    def doubts(self, cfg: "Config") -> Rules:
        for f in fields(self):
            yield (
                LINE_END.search(str(getattr(self, f.name))) is None,
                f"prompts.{f.name}: has a backslash and an n where a line may be meant to end, and the model reads "
                "them as they are; "
                r"a shell makes the end of a line of $'\n'",
            )


# As it is typed, and no LaTeX command.
LINE_END = re.compile(
    r"\\n(?!(?:abla|atural|e|earrow|eg|eq|ewline|exists|geq|i|leq|less|mid|onumber|ot|otin|parallel|prec|sim|"
    r"subseteq|succ|supseteq|u|warrow)(?![a-z]))"
)


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


@option("logger", "none")
@dataclass
class LoggerConf:
    """metrics.jsonl only, which is always written."""

    _target_: str = ""

    def packages(self) -> Mapping[str, str]:
        """Return the modules that the logger needs beyond expo's own, and the packages that bring them."""
        return {}

    def needs_here(self, cfg: "Config") -> Rules:
        needed = self.packages()
        for module, package in needed.items():
            yield (
                importlib.util.find_spec(module) is not None,
                f"logger._target_={self._target_}: the package {package} is not installed; install it with "
                f"pip install {' '.join(needed.values())}, or use logger=none",
            )

    def of_table(self, table: str, arm: str, tags: Sequence[str]) -> list[str]:
        """Return the overrides that sort a run of a table: nothing where the logger has no such keys."""
        return []


@dataclass
class WandbConf:
    """Where W&B puts a run."""

    project: str = key("expo", help="W&B project")
    entity: str | None = key(None, help="W&B team or user; null: your default one")
    mode: str = key("offline", choices=("offline", "online", "disabled"), help="upload later, while running, or never")
    group: str | None = key(None, help="W&B group; `expo table` sets the table's name")
    job_type: str | None = key(None, help="W&B job type; `expo table` sets the arm")
    tags: list[str] = key([], help="W&B tags")


@option("logger", "wandb", formerly="expo.loggers.loggers.Wandb")
@dataclass
class WandbLoggerConf(LoggerConf):
    """Weights & Biases, beside metrics.jsonl."""

    _target_: str = "expo.loggers.trackers.Wandb"
    wandb: WandbConf = key(WandbConf, help="where W&B puts the run")

    def of_table(self, table: str, arm: str, tags: Sequence[str]) -> list[str]:
        quoted = ",".join(f"'{tag}'" for tag in tags)
        return [f"logger.wandb.group={table}", f"logger.wandb.job_type={arm}", f"logger.wandb.tags=[{quoted}]"]


@option("logger", "tensorboard", formerly="expo.loggers.loggers.TensorBoard")
@dataclass
class TensorBoardLoggerConf(LoggerConf):
    """TensorBoard, beside metrics.jsonl: event files in `tensorboard/` of the run directory."""

    _target_: str = "expo.loggers.trackers.TensorBoard"

    def packages(self) -> Mapping[str, str]:
        return {"tensorboard": "tensorboard"}


@option("logger", "csv", formerly="expo.loggers.loggers.Csv")
@dataclass
class CsvLoggerConf(LoggerConf):
    """metrics.csv beside metrics.jsonl, in `csv/` of the run directory."""

    _target_: str = "expo.loggers.trackers.Csv"


@dataclass
class MlflowConf:
    """Where MLflow puts a run."""

    experiment: str = key("expo", help="MLflow experiment")
    tracking_uri: str | None = key(
        None,
        help="MLflow server or store; null: $MLFLOW_TRACKING_URI, or else the SQLite file mlflow.db in `output_dir`",
    )
    group: str | None = key(None, help="tag `group`; `expo table` sets the table's name")
    job_type: str | None = key(None, help="tag `job_type`; `expo table` sets the arm")


@option("logger", "mlflow", formerly="expo.loggers.mlflow_logger.Mlflow")
@dataclass
class MlflowLoggerConf(LoggerConf):
    """MLflow, beside metrics.jsonl."""

    _target_: str = "expo.loggers.mlflow_logger.Mlflow"
    mlflow: MlflowConf = key(MlflowConf, help="where MLflow puts the run")

    def packages(self) -> Mapping[str, str]:
        database = {"sqlalchemy": "sqlalchemy", "alembic": "alembic"}
        local = (self.mlflow.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:").startswith("sqlite:")
        return {"mlflow": "mlflow-skinny"} | (database if local else {})

    def rules(self, cfg: "Config") -> Rules:
        yield (
            urlsplit(self.mlflow.tracking_uri or "").password is None,
            "logger.mlflow.tracking_uri: has a password, which would be in config.yaml; leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI",
        )

    def of_table(self, table: str, arm: str, tags: Sequence[str]) -> list[str]:
        return [f"logger.mlflow.group={table}", f"logger.mlflow.job_type={arm}"]


@dataclass
class PretrainConf:
    """`expo pretrain`: the ladder's base policy from nothing."""

    max_steps: int = key(3000, above=0, help="optimizer steps")
    learning_rate: float = key(2.5e-3, above=0, high=10, help="largest learning rate of the cosine schedule")
    tokens_per_batch: int = key(6000, above=0, help="tokens per optimizer step")
    warmup_steps: int = key(300, low=0, help="steps on levels 1 and 2 only")
    hidden_size: int = key(96, above=0, high=2**16, help="width of the model")
    layers: int = key(4, above=0, high=2**10, help="depth of the model")
    heads: int = key(
        4, above=0, help="attention heads; vLLM on a CPU needs heads of 32, 64 or more: 3 for a width of 96"
    )
    start: str | None = key(
        None, help="model to begin from, such as `ladder` (set pretrain.warmup_steps=0, too); null: from nothing"
    )
    output: str = key("outputs/pretrain", help="folder of the finished model")

    def rules(self, cfg: "Config") -> Rules:
        yield (
            self.start is None or (self.hidden_size, self.layers, self.heads) == (96, 4, 4),
            f"pretrain.start={self.start}: has its own width, depth and heads; leave pretrain.hidden_size, layers "
            "and heads out",
        )
        yield (
            self.hidden_size % (2 * self.heads) == 0,
            f"pretrain.hidden_size={self.hidden_size}: not a multiple of twice pretrain.heads={self.heads}; "
            "set for example pretrain.hidden_size=96 pretrain.heads=4",
        )


@dataclass
class PlanConf:
    """`expo plan`: what a run would take on devices that are not at hand."""

    device: str = key(
        "h100",
        choices=("a100", "h100", "h200", "here"),
        help="kind of device; here: this machine's GPU, or else its CPU, measured first",
    )
    devices: list[int] = key([1, 2, 4, 8, 16, 32, 64], above=0, help="numbers of devices to plan for")
    price: float | None = key(None, above=0, help="price of a device for an hour, in any currency; null: not known")
    prompt_tokens: int | None = key(
        None, above=0, help="mean tokens of a prompt, for seconds; null: rollout.max_prompt_tokens"
    )
    completion_tokens: int | None = key(
        None, above=0, help="mean tokens of a completion, for seconds; null: rollout.max_completion_tokens"
    )

    def rules(self, cfg: "Config") -> Rules:
        yield (
            len(self.devices) > 0,
            f"plan.devices={self.devices}: names no number of devices; set for example plan.devices=[1,8]",
        )


@dataclass
class JudgeConf:
    """An LLM judge of single steps, through any OpenAI-compatible endpoint."""

    base_url: str | None = key(None, help="address of the endpoint; null: no judge")
    model: str = key("", help="name of the judging model")
    key_variable: str = key("OPENAI_API_KEY", help="environment variable that holds the key")


@dataclass
class DiagnoseConf:
    """`expo diagnose`: the two properties of a good positive, measured."""

    problems: int = key(100, above=0, help="problems per level")
    samples: int = key(4, above=0, high=2**16, help="completions of each kind per problem")
    judge: JudgeConf = key(JudgeConf, help="an LLM judge of single steps")
