"""Load a GGUF file: its weights, rounded as they are, become plain ones, which are trained and saved as any others."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils
from transformers.utils import logging

from expo.config.model import is_gguf, located


def where(source: str) -> dict[str, str]:
    """Return a hub id, folder or GGUF file as arguments of `from_pretrained`."""
    if not is_gguf(source):
        return {"pretrained_model_name_or_path": source}
    file = Path(source).absolute()
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def load(path: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return the model of a file with plain weights, and the names of those that it lacks. Its config says as
    `expo_gguf` from which file it is, and how rounded. Args: path, as it is to be found again."""
    from transformers import GgufConfig

    source = located(path)
    with read_once(source):
        # Else a machine with a kernel for its blocks would keep them, which can be neither trained nor saved.
        blocks = GgufConfig(dequantize=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **where(source), **options, quantization_config=blocks, output_loading_info=True
        )
    model, loading = loaded
    model.config._name_or_path = model.name_or_path = path  # of which a LoRA adapter says that it is for it
    model.config.expo_gguf = f"{Path(source).name} ({rounding(source)})"
    return model, sorted(loading["missing_keys"])


def split_as_trained(tokenizer: Any, source: str) -> None:
    """Split text as the file says, where transformers passes over that: else `\n\n1` has other tokens."""
    if _field(source, "tokenizer.ggml.pre") in ("smollm", "starcoder"):
        digits, gpt2 = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])


def rounding(source: str) -> str:
    """Return the number format of most weights of a file, such as Q4_1; `unknown` where it does not say."""
    import gguf

    named = _field(source, "general.file_type")
    known = {kind.value: kind.name.partition("_")[2] for kind in gguf.LlamaFileType}
    return "unknown" if named is None else known.get(named, f"type {named}")


def _field(source: str, name: str) -> Any:
    import gguf

    field = gguf.GGUFReader(str(Path(source).absolute())).get_field(name)
    return None if field is None else field.contents()


@contextmanager
def read_once(source: str) -> Iterator[None]:
    """Let transformers read a GGUF file once within the context. It does so anew for config, tokenizer and weights, and
    looks up the names of a whole model for each of its modules: two thirds of the time that loading takes."""
    if not is_gguf(source):
        yield
        return
    import gguf

    reading: Any = modeling_gguf_pytorch_utils
    originals, bar = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}, reading.tqdm
    vars(gguf).update({name: cache(function) for name, function in originals.items()})
    reading.tqdm = logging.tqdm  # shown where transformers' others are
    try:
        yield
    finally:
        vars(gguf).update(originals)
        reading.tqdm = bar
