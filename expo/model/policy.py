"""Load a Hugging Face causal LM, and score completions without a `[B, T, V]` tensor."""

import copy
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file

from expo.config import LADDER, ModelConf, RandomTinyConf, UserError
from expo.config.errors import first_line
from expo.devices.shares import like, own_share
from expo.model import small

# So many logits, 0.5 GiB in float32, there are at a time. Of no more in all, they are kept for the backward pass.
LOGITS = 2**27


def load_policy(conf: ModelConf) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM and its tokenizer by hub id, local folder, or `ladder`.

    Raises UserError where there is none, or where its weights are not whole: what a file lacks, transformers makes up.
    """
    path = conf.path
    source = str(LADDER) if path == "ladder" else path
    options: dict[str, Any] = {"dtype": conf.dtype, "attn_implementation": conf.attention}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=conf.revision)
        model, lacking = _whole_model(source, conf.revision, options)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"model.path={path}: its weights hold more than tensors, and could execute code: they are not loaded; get its safetensors"
        ) from error
    except Exception as error:  # of whatever library reads the file that is damaged
        if "does not support an attention implementation" in str(error):
            raise UserError(f"model.attention={conf.attention}: {path} has none; set model.attention=eager") from error
        raise UserError(
            f"model.path={path}: cannot be loaded ({type(error).__name__}: {first_line(error)}); "
            "check the hub id, your network and login, or the files of the folder"
        ) from error
    if lacking:
        raise UserError(f"model.path={path}: its files lack {len(lacking)} weights ({lacking[0]}); get the whole model")
    if flaw := _flaw(model, tokenizer):
        raise UserError(f"model.path={path}: {flaw}")
    if tokenizer.chat_template is None:
        raise UserError(f"model.path={path}: its tokenizer has no chat template; choose an instruct model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.hub_commit = hub_commit(source, conf.revision)
    return prepared(model, conf), tokenizer


def prepared(model: Any, conf: ModelConf) -> PreTrainedModel:
    """Return a model for training as the config says: with a LoRA adapter, with gradient checkpointing."""
    if conf.lora_rank:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=conf.lora_rank, lora_alpha=conf.lora_alpha, target_modules="all-linear")
        model = get_peft_model(model, lora, revision=conf.revision)
    if conf.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    # from_pretrained returns evaluation mode, and Lightning keeps it: without this, dropout would be off in training.
    trained: PreTrainedModel = model.train()
    return trained


def _whole_model(source: str, revision: str | None, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return a model with its saved adapter merged, where it has one, and the names of the weights that its files lack.

    A new adapter, or training without one, then begins from the very model that was saved.
    """
    if find_adapter_config_file(source, revision=revision) is None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, **options, output_loading_info=True
        )
        model, loading = loaded
        return model, sorted(loading["missing_keys"])
    from peft import PeftConfig, PeftModel

    adapter = PeftConfig.from_pretrained(source, revision=revision)
    base, lacking = _whole_model(str(adapter.base_model_name_or_path), adapter.revision, options)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        model = _merged(PeftModel.from_pretrained(base, source, revision=revision))
    model.begun_from_adapter = True  # which a further adapter alone does not tell: see `save_policy`
    return model, lacking


@torch.no_grad()
def _merged(adapted: Any) -> Any:
    """Return the model of an adapter with the adapter in its weights. Raises ValueError where that makes another model of it.

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
            found = try_to_load_from_cache(source, name, revision=revision) if not Path(source).is_dir() else None
            if isinstance(found, str):
                return Path(found).parent.name
    return None


def save_policy(policy: PreTrainedModel, folder: Path) -> None:
    """Save a policy as a Hugging Face folder; with LoRA its adapter alone. Do nothing more with it after that.

    An adapter on a model into which another one was merged would be loaded onto the wrong base: there, the whole model is saved.
    """
    if causal_lm(policy) is not policy and getattr(causal_lm(policy), "begun_from_adapter", False):
        policy = cast(Any, policy).merge_and_unload()
    policy.save_pretrained(folder)


@torch.no_grad()
def _flaw(model: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what is wrong with a loaded model, None where nothing is."""
    bad = next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
    if bad:
        return f"{bad} has values that are no numbers (NaN or inf); take an earlier checkpoint of it"
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
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


@contextmanager
def as_it_began(policy: nn.Module, begun: nn.Module) -> Iterator[None]:
    """Give a policy the weights of `begun`, the same model loaded anew, within the context; its own come back to the bit."""
    weights = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    own = {name: own_share(p.detach()).to("cpu", copy=True) for name, p in weights.items()}
    initial = dict(begun.named_parameters())
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(like(initial[name], weight))
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                own_share(weight).copy_(own[name])


@contextmanager
def computing(model: nn.Module) -> Iterator[None]:
    """Compute in the number format that the model was told by `compute_in`, the same wherever it rolls out, scores or is evaluated.

    Autocast keeps its casts of the weights no longer than the context: an update in between is seen.
    """
    causal = causal_lm(model)
    dtype, device = getattr(causal, "compute_dtype", None), next(model.parameters()).device.type
    # Casts of sharded weights would keep all layers in memory, where one is gathered at a time.
    with torch.autocast(device, dtype, cache_enabled=not is_sharded(causal)) if dtype else nullcontext():
        yield


def compute_in(model: nn.Module, precision: str) -> None:
    """Let a model, and copies that are made of it, compute as `trainer.precision` says: the weights stay what they are."""
    causal_lm(model).compute_dtype = torch.bfloat16 if precision == "bf16-mixed" else None


@contextmanager
def in_own_format(model: nn.Module) -> Iterator[None]:
    """Compute in the format of the weights themselves within the context."""
    causal = causal_lm(model)
    dtype, causal.compute_dtype = getattr(causal, "compute_dtype", None), None
    try:
        yield
    finally:
        causal.compute_dtype = dtype


@dataclass(frozen=True)
class TokenBatch:
    """Prompt + completion rows, right-padded, so that causal attention needs no mask and padding changes nothing."""

    input_ids: Tensor  # [B, L]
    mask: Tensor  # [B, L - 1], 1 where the *next* token belongs to the completion
    prompts: Tensor  # [B], which prompt it is: rows of one prompt have one number

    @property
    def lengths(self) -> Tensor:
        """Return the tokens of prompt and completion together: `[B]`."""
        positions = torch.arange(2, self.mask.shape[1] + 2, device=self.mask.device)
        return (self.mask.bool() * positions).amax(dim=1)

    @property
    def prompt_lengths(self) -> Tensor:
        """Return the tokens of each prompt: `[B]`; 1 where the completion is empty, and nothing is scored."""
        return self.mask.bool().int().argmax(dim=1) + 1

    @property
    def targets(self) -> Tensor:
        """Return the tokens scored at each position: `[B, L - 1]`."""
        return self.input_ids[:, 1:]

    def rows(self, index: Tensor) -> "TokenBatch":
        """Return the chosen rows, cut to the longest of them."""
        width = int(self.lengths[index].max())
        return TokenBatch(self.input_ids[index, :width], self.mask[index, : width - 1], self.prompts[index])


def token_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> TokenBatch:
    """Pack B prompts and completions, given as token ids, into a TokenBatch."""
    width = max((len(p) + len(c) for p, c in zip(prompts, completions, strict=True)), default=1)
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros(len(prompts), width - 1)
    numbers: dict[tuple[int, ...], int] = {}
    which = torch.tensor([numbers.setdefault(tuple(p), len(numbers)) for p in prompts], dtype=torch.long)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        ids[i, :end] = torch.tensor([*prompt, *completion])
        mask[i, len(prompt) - 1 : end - 1] = 1
    return TokenBatch(ids.to(device), mask.to(device), which.to(device))


def score(
    model: nn.Module, batch: TokenBatch, temperature: float = 1.0, packed: bool = False, shared: bool = False
) -> Tensor:
    """Return the log-probability of each completion token: `[B, L - 1]` float32, zero off the mask.

    The logits are divided by `temperature`, the one that the rollouts were sampled with, so that ratios compare the
    distributions that acted. Where there are more than LOGITS, they exist for some positions at a time and are recomputed
    in the backward pass.
    With `packed`, the decoder reads all rows end to end as one, told apart by their position ids: no padding is computed.
    With `shared`, it reads a prompt that several rows have once, where the model can; only rounding differs.
    """
    causal = causal_lm(model)
    with computing(model):
        if is_sharded(causal):
            return cast(Tensor, causal.score_tokens(batch, temperature, packed, shared))
        return score_tokens(causal, batch, temperature, packed, shared)


def is_sharded(causal: Any) -> bool:
    """Return whether this device holds only a share of a model's weights: `expo.devices.sharded` has given it a `score_tokens`."""
    return hasattr(causal, "score_tokens")


def score_tokens(causal: Any, batch: TokenBatch, temperature: float, packed: bool, shared: bool) -> Tensor:
    """Return what `score` does, in the number format of the moment."""
    decoder = causal.get_decoder()
    wanted = batch.mask.bool()
    # Devices that share the weights have to go the same way, whatever their rows.
    pays = is_sharded(causal) or len(batch.prompts.unique()) < len(batch.prompts)
    if shared and not packed and can_share(causal) and pays:
        rows = _behind_shared_prompts(decoder, batch)
    elif packed:
        positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
        there = positions < batch.lengths.unsqueeze(1)  # [B, L]
        joined = {"input_ids": batch.input_ids[there].unsqueeze(0), "position_ids": positions[there].unsqueeze(0)}
        hidden = decoder(**joined, use_cache=False).last_hidden_state[0]  # [tokens, H]
        rows = hidden[pad(wanted, (0, 1))[there]]
    else:
        rows = decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state[:, :-1][wanted]
    targets = batch.targets[wanted]
    head = causal.get_output_embeddings()
    size = max(1, LOGITS // head.weight.shape[0])
    if len(rows) <= size:
        parts = [_score_chunk(head, rows, targets, temperature)]
    else:
        parts = [
            checkpoint(_score_chunk, head, rows[i : i + size], targets[i : i + size], temperature, use_reentrant=False)
            for i in range(0, len(rows), size)
        ]
    return torch.zeros_like(batch.mask).masked_scatter(wanted, torch.cat(parts))


def can_share(causal: Any) -> bool:
    """Return whether a model can read a prompt once for several completions: it takes a mask of its own, and keeps keys in training."""
    config = causal.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    whole = all(kind == "full_attention" for kind in kinds) and (kinds or not getattr(config, "sliding_window", None))
    checkpointing = causal.is_gradient_checkpointing and causal.training
    return bool(whole) and config._attn_implementation in ("sdpa", "eager") and not checkpointing


def _behind_shared_prompts(decoder: Any, batch: TokenBatch) -> Tensor:
    """Return the hidden state before each completion token, row by row: `[tokens, H]`. The gradient of a prompt is that of all its rows."""
    device, before = batch.input_ids.device, batch.prompt_lengths
    numbers, owner = batch.prompts.unique(return_inverse=True)  # [P], [B]
    first = torch.stack([(owner == p).nonzero()[0, 0] for p in range(len(numbers))])
    width, longest = int(before.max()), max(2, int((batch.lengths - before).max()))
    cache = DynamicCache(config=decoder.config)
    prompts = batch.input_ids[first, :width]
    of_prompts = decoder(input_ids=prompts, past_key_values=cache, use_cache=True).last_hidden_state  # [P, W, H]
    cache.batch_select_indices(owner)
    place = before.unsqueeze(1) + torch.arange(longest - 1, device=device)  # [B, C - 1]
    ids = batch.input_ids.gather(1, place.clamp(max=batch.input_ids.shape[1] - 1))
    of_prompt = torch.arange(width, device=device) < before.view(-1, 1, 1, 1)  # [B, 1, 1, W]
    own = torch.ones(longest - 1, longest - 1, dtype=torch.bool, device=device).tril()
    mask = torch.cat([of_prompt.expand(-1, 1, longest - 1, -1), own.expand(len(owner), 1, -1, -1)], dim=-1)
    # mask [B, 1, C - 1, W + C - 1]
    if decoder.config._attn_implementation == "eager":  # adds its mask to the scores
        lowest = torch.finfo(of_prompts.dtype).min
        mask = torch.zeros(mask.shape, dtype=of_prompts.dtype, device=device).masked_fill(~mask, lowest)
    after = decoder(
        input_ids=ids, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
    ).last_hidden_state
    hidden = torch.cat([of_prompts[owner, before - 1].unsqueeze(1), after], dim=1)  # [B, C, H]
    row, column = batch.mask.bool().nonzero(as_tuple=True)  # also where a mask leaves tokens out
    scored: Tensor = hidden[row, column - before[row] + 1]
    return scored


def micro_batches(batch: TokenBatch, rows: Tensor, size: int) -> Iterator[tuple[Tensor, TokenBatch]]:
    """Return the given rows, `size` at a time: rows of one prompt together, and prompts with rows of like length, so that
    little padding is computed."""
    if not len(rows):
        return
    lengths = batch.lengths
    rows = rows.to(lengths.device)
    longest = torch.zeros_like(lengths).scatter_reduce(0, batch.prompts, lengths, "amax")  # by prompt
    for order in (lengths, batch.prompts, longest[batch.prompts]):  # the last counts most
        rows = rows[order[rows].argsort(stable=True)]
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        yield chosen, batch.rows(chosen)


@torch.no_grad()
def token_logp(model: nn.Module, batch: TokenBatch, micro_batch_size: int) -> Tensor:
    """Return log π of each token of each row's completion, 0 elsewhere: `[B, T]`."""
    logp = torch.zeros_like(batch.mask)
    for rows, part in micro_batches(batch, torch.arange(len(logp)), micro_batch_size):
        logp[rows, : part.mask.shape[1]] = score(model, part)
    return logp


@contextmanager
def as_initial(model: nn.Module) -> Iterator[nn.Module]:
    """Return the initial policy inside a LoRA policy: the adapter is off within the context."""
    with cast(Any, model).disable_adapter():
        yield model


def _score_chunk(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    logits = head(hidden).float()  # [N, V]
    if temperature != 1:
        logits = logits / temperature
    return -cross_entropy(logits, targets, reduction="none")


def causal_lm(model: Any) -> Any:
    """Return the causal LM inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
