"""Keys of single commands: `pretrain`, `plan`, `diagnose`."""

from dataclasses import dataclass

from expo.config.key import Config, Rules, key


@dataclass
class PretrainConf:
    """`expo pretrain`: the ladder's base policy from nothing."""

    max_steps: int = key(3000, above=0, help="optimizer steps")
    learning_rate: float = key(2.5e-3, above=0, high=10, help="largest learning rate of the cosine schedule")
    tokens_per_batch: int = key(6000, above=0, help="tokens per optimizer step")
    warmup_steps: int = key(300, low=0, help="steps on levels 1 and 2 only")
    hidden_size: int = key(96, above=0, high=2**16, help="width of the model")
    layers: int = key(4, above=0, high=2**10, help="depth of the model")
    heads: int = key(4, above=0)
    """attention heads; vLLM on a CPU needs heads of 32, 64 or more: 3 for a width of 96"""
    start: str | None = key(None)
    """model to begin from, such as `ladder` (set pretrain.warmup_steps=0, too); null: from nothing"""
    output: str = key("outputs/pretrain", help="folder of the finished model")

    def rules(self, cfg: Config) -> Rules:
        if self.start is not None and (self.hidden_size, self.layers, self.heads) != (96, 4, 4):
            why = "has its own width, depth and heads"
            yield f"pretrain.start={self.start}: {why}; leave pretrain.hidden_size, layers and heads out"
        if self.hidden_size % (2 * self.heads) != 0:
            yield (
                f"pretrain.hidden_size={self.hidden_size}: not a multiple of twice pretrain.heads={self.heads}; "
                "set for example pretrain.hidden_size=96 pretrain.heads=4"
            )


@dataclass
class PlanConf:
    """`expo plan`: what a run would take on devices that are not at hand."""

    device: str = key("h100", choices=("a100", "h100", "h200", "here"))
    """kind of device; here: this machine's GPU, or else its CPU, measured first"""
    devices: list[int] = key([1, 2, 4, 8, 16, 32, 64], above=0, help="numbers of devices to plan for")
    price: float | None = key(None, above=0, help="price of a device for an hour, in any currency; null: not known")
    prompt_tokens: int | None = key(None, above=0)
    """mean tokens of a prompt, for seconds; null: rollout.max_prompt_tokens"""
    completion_tokens: int | None = key(None, above=0)
    """mean tokens of a completion, for seconds; null: rollout.max_completion_tokens"""

    def rules(self, cfg: Config) -> Rules:
        if len(self.devices) <= 0:
            yield f"plan.devices={self.devices}: names no number of devices; set for example plan.devices=[1,8]"


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
    shuffled: bool = key(False)
    """also explain another problem's answer: a control for every problem, also those solved without it"""
    judge: JudgeConf = key(JudgeConf, help="an LLM judge of single steps")
