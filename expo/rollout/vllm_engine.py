"""Rollouts with vLLM: in this process beside the trainer, or in one of its own (`rollout.separate`).

Weights, or a LoRA adapter alone, go to the running engine after every step, and are verified: the sums of every
parameter that can be read, and the log-probabilities of a probe, must be the policy's. A CPU build packs most matrices
away: of those, only the probe tells. Where every parameter was compared, the probe tells of number formats and kernels,
and warns.
"""

import logging
import math
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expo.config import EngineError, VLLMConf
from expo.ground.files import Temporary
from expo.ground.progress import counting
from expo.model.modes import causal_lm, in_evaluation, without_autocast
from expo.model.scoring import score, token_batch
from expo.rollout.engine import Completion, Engine, Follow, Request, Sampling, eos_ids
from expo.rollout.vllm_place import (
    adapter_rank,
    alone,
    check_heads,
    key_heads,
    kv_bytes,
    memory_share,
    place_for,
    trainers_group,
    unmoved,
    visible,
)
from expo.rollout.vllm_transfer import in_time, nccl_info, open_transfer
from expo.rollout.vllm_worker import sums

log = logging.getLogger(__name__)
PROBE_TOKENS = 256
PROBE = "A train leaves at 14:05 and takes 95 minutes. When does it arrive? Explain each step, then state the answer."
BLOCK = 16  # tokens of a block of vLLM's cache
GIB = 2**30


class VLLMEngine(Engine):
    """Engine whose weights are a copy of the policy's, brought up to date by `sync`."""

    sleeper: ClassVar[bool] = False  # whether an engine of this process can sleep

    def __init__(self, conf: VLLMConf, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer, self.conf = model, tokenizer, conf
        self.pad_id, self.eos_ids = tokenizer.pad_token_id, eos_ids(model, tokenizer)
        computed = getattr(causal_lm(model), "compute_dtype", None) or model.dtype  # the trainer's
        self.dtype: torch.dtype = getattr(torch, conf.dtype) if conf.dtype else computed
        self.syncs = 0
        # Until there is a completion: ids that make no text have probabilities of which formats differ most.
        self.probe: list[int] = tokenizer(PROBE, add_special_tokens=False)["input_ids"][: conf.longest_prompt]
        self.usual = 0.0  # the probe's gap at the first sync, with weights that are the policy's
        weights = sum(p.numel() for p in model.parameters()) * self.dtype.itemsize
        self.folder = Temporary("expo-vllm-", place_for(weights))
        check_heads(model, self.device)
        self.lora_rank = 0 if conf.merge_lora else adapter_rank(model)
        self.adapter: Any = None  # vLLM's name for it, once it is there
        self.sender: Any = None
        self.closed, self.gone, self.asleep = threading.Event(), threading.Event(), False
        # In the trainer's process it joins the trainer's group of processes, in which each engine is a group of its
        # own.
        self.in_group = not conf.separate and dist.is_initialized() and dist.get_world_size() > 1
        # vLLM lets one engine per process sleep; it is the policy's, which is made first.
        self.sleeps = self.device.type == "cuda" and not conf.separate and not VLLMEngine.sleeper
        VLLMEngine.sleeper |= self.sleeps
        try:
            remedy = "; without LoRA support for this model, rollout.merge_lora=true" if self.lora_rank else ""
            with (
                visible(self.own_gpus),
                nullcontext() if self.in_group else alone(),
                nullcontext() if conf.separate else unmoved(),
                in_vllm(f"cannot start (expo doctor looks at the installation{remedy})"),
            ):
                self.llm = self._start(weights)
        finally:
            shutil.rmtree(Path(self.folder.name, "model"), ignore_errors=True)
        if conf.separate:
            threading.Thread(target=self._watch, args=(self.llm.llm_engine.engine_core,), daemon=True).start()
        if conf.transfer == "nccl":
            with in_vllm("cannot meet the trainer"):
                self.sender = in_time(lambda: open_transfer(self.llm, nccl_info(), self.weights), self.gone)
        self.sync()

    def _watch(self, client: Any) -> None:
        """Raise an error in every call that waits for the engine once it was killed: vLLM 0.32 waits for ever."""
        wait([process.sentinel for process in client.resources.engine_manager.processes])
        if not self.closed.is_set():
            self.gone.set()
            ended = RuntimeError("its process has ended")
            client.outputs_queue.put_nowait(ended)
            for future in list(client.utility_results.values()):
                if not future.done():
                    future.set_exception(ended)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def own_gpus(self) -> Sequence[int]:
        """Return the GPUs, as this process counts them, of an engine in its own process; () where it cannot choose."""
        beside = self.device.index if self.conf.separate and self.device.type == "cuda" else None
        first = beside if self.conf.device is None else self.conf.device
        return () if first is None else range(first, first + self.conf.tensor_parallel)

    def _start(self, weights: int) -> Any:
        """Start vLLM. Args: weights, their bytes."""
        conf = self.conf
        longest = conf.longest_prompt + conf.max_completion_tokens
        # vLLM keeps blocks of tokens, of which each row's last is not full.
        positions = conf.at_once * (conf.max_prompt_tokens + conf.max_completion_tokens + BLOCK)
        cached = kv_bytes(self.model, self.dtype) * max(positions, longest + BLOCK)
        unless_set = {
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it would take the trainer's threads with it
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        }
        os.environ |= unless_set | os.environ
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(conf.separate))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, math.ceil(cached / GIB)))
        from vllm import LLM

        options: dict[str, Any] = {}
        if not conf.separate:
            options["distributed_executor_backend"] = "external_launcher" if self.in_group else "uni"
        if conf.transfer != "file":
            options["weight_transfer_config"] = {"backend": conf.transfer}
        if self.lora_rank:
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": self.lora_rank}
        if self.device.type == "cuda":
            device = self.device if conf.device is None else torch.device("cuda", conf.device)
            total = torch.cuda.get_device_properties(device).total_memory
            shares = conf.tensor_parallel
            options["gpu_memory_utilization"] = conf.memory_share or memory_share(
                weights // shares, cached // shares, total
            )
            if conf.memory_share is None:  # else it takes what is left of its share
                options["kv_cache_memory_bytes"] = cached // shares
            options["enable_sleep_mode"] = self.sleeps
        else:  # of a prompt read in parts vLLM rewinds the request's generator, which a CPU's cannot
            options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": 8192 + conf.max_prompt_tokens}
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or longest
        llm = LLM(
            model=self._source(),
            revision=getattr(causal_lm(self.model), "hub_commit", None),
            skip_tokenizer_init=True,
            dtype=str(self.dtype).removeprefix("torch."),
            seed=0,
            max_model_len=min(longest, limit),
            max_num_seqs=conf.at_once,
            enforce_eager=conf.eager,
            tensor_parallel_size=conf.tensor_parallel,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            worker_extension_cls="expo.rollout.vllm_worker.WeightSync",
            **options,
        )
        print(f"rollout=vllm: the model is run by {llm.collective_rpc('expo_runner')[0]}", flush=True)
        return llm

    def _source(self) -> str:
        """Return the folder or hub id from which vLLM loads the model's config and weights. The weights are replaced,
        unless an adapter alone is sent."""
        base = causal_lm(self.model)
        # vLLM reads no GGUF file, and of a model with an adapter merged into it, the path is that of the bare one.
        made_here = hasattr(base.config, "expo_gguf") or getattr(base, "begun_from_adapter", False)
        if base.name_or_path and not made_here:
            return str(base.name_or_path)
        folder = Path(self.folder.name, "model")
        base.config.save_pretrained(folder)
        _save({name: tensor for name, tensor in self.weights() if ".lora_" not in name}, folder / "model.safetensors")
        return str(folder)

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights that the engine is to hold, under Hugging Face's names, without the tied head. An adapter
        is merged where `lora_rank` is 0; else its parts stand beside their layer, as `q_proj.lora_A` and
        `q_proj.lora_B`, the latter times LoRA's scaling."""
        layers: dict[str, Any] = {
            name: module for name, module in self.model.named_modules() if hasattr(module, "get_delta_weight")
        }
        for name, parameter in self.model.named_parameters():
            owner, _, part = name.removesuffix(".default.weight").rpartition(".lora_")
            value: Tensor = parameter
            if owner and not self.lora_rank:
                continue
            if part == "B":
                value = parameter.to(self.dtype) * layers[owner].scaling["default"]
            elif ".base_layer.weight" in name and not self.lora_rank:
                value = parameter + layers[name.partition(".base_layer")[0]].get_delta_weight("default")
            name = name.removeprefix("base_model.model.").removesuffix(".default.weight").replace(".base_layer", "")
            value = value.detach().to(self.dtype)
            yield name, value

    def sync(self) -> None:
        """Send the policy's weights; every `probe_every` times verify them. Raises EngineError where they differ."""
        with without_autocast(self.model):  # the trainer's precision is not the comparison's
            self._send()
            if self.asleep:  # the cache was not there beside the old weights and the new ones
                self.llm.wake_up(tags=["kv_cache"])
                self.asleep = False
            with in_vllm("stopped working"):
                emptied = self.llm.reset_prefix_cache()
            if not emptied:
                raise EngineError(
                    "vLLM keeps its prefix cache, some of whose blocks are held: prompts would be read with the old "
                    "weights"
                )
            if self.conf.probe_every and self.syncs % self.conf.probe_every == 0:
                self.verify()
        self.syncs += 1

    def _send(self) -> None:
        if self.lora_rank:
            self._send_adapter()
            return
        if self.sender:
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # it sends on streams of its own, which do not wait for the optimizer's
            sender, self.sender = self.sender, None  # one that hangs cannot be shut down
            with in_vllm("cannot take the weights"):
                in_time(sender.send_weights, self.gone)
            self.sender = sender
            return
        if not self.conf.separate:
            self._call("expo_load", {"weights": self.weights()})
            return
        path = Path(self.folder.name, "weights.safetensors")  # in memory, where the system has /dev/shm
        _save(dict(self.weights()), path)
        self._call("expo_load_file", {"path": str(path)})
        path.unlink()

    def _send_adapter(self) -> None:
        from vllm.lora.request import LoRARequest

        path = Path(self.folder.name, "adapter")
        model: Any = self.model
        model.save_pretrained(path, save_embedding_layers=False)  # else PEFT asks the hub about the vocabulary
        with in_vllm("cannot take the LoRA adapter (rollout.merge_lora=true sends merged weights)"):
            self.llm.llm_engine.add_lora(LoRARequest("policy", 1, str(path), load_inplace=True))
        self.adapter = LoRARequest("policy", 1, str(path))

    def verify(self) -> None:
        """Check that the engine is the policy. Raises EngineError, which names the parameters, where it is not."""
        ours, engine_sums = sums(self.weights()), self._call("expo_sums", {})
        theirs = {name: [share[name] for share in engine_sums] for name in engine_sums[0] if self._sharded_evenly(name)}
        wrong = sorted(n for n in ours.keys() & theirs.keys() if not _held(ours[n], theirs[n]))
        hidden = sorted({group_of(n) for n in ours.keys() - theirs.keys()})
        gap, tolerance = self.probe_gap(), self.conf.probe_tolerance or (1e-3 if self.dtype == torch.float32 else 0.05)
        if wrong or math.isnan(gap) or (hidden and gap > tolerance):
            named = sorted({group_of(n) for n in wrong}) or [
                f"one of {len(hidden)} that cannot be read, such as {hidden[0]}"
                if hidden
                else "none of the parameters themselves"
            ]
            raise EngineError(
                "vLLM's weights are not the policy's after a sync: "
                f"{', '.join(named[:4])}{' …' if len(named) > 4 else ''} differ; mean difference of log-probabilities "
                f"on the probe {gap:.2g} nats, allowed {tolerance:g}; nothing was trained on them"
            )
        if gap > max(tolerance, 2 * self.usual):  # every sum is the policy's: the weights are
            message = (
                "vLLM has the policy's weights, and computes otherwise: mean difference of log-probabilities on "
                "the probe %.2g nats (%g is usual)"
            )
            log.warning(
                f"{message}; look at policy/sampler_kl and algorithm.sampler_correction", gap, self.usual or tolerance
            )
        self.usual = self.usual or gap

    def _sharded_evenly(self, name: str) -> bool:
        """Return whether a parameter is shared out among the GPUs, or whole on each: with fewer heads of keys than
        GPUs, some of those are doubled."""
        return ".qkv_proj." not in name or key_heads(self.model) % self.conf.tensor_parallel == 0

    @torch.no_grad()
    def probe_gap(self) -> float:
        """Return the mean |log π_vLLM - log π| over the probe's tokens, in nats."""
        from vllm import SamplingParams

        ids = self.probe[:PROBE_TOKENS]
        only = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        with in_vllm("stopped working"):
            out = self.llm.generate([{"prompt_token_ids": ids}], only, use_tqdm=False, lora_request=self.adapter)[0]
        theirs = torch.tensor(
            [entry[token].logprob for token, entry in zip(ids[1:], out.prompt_logprobs[1:], strict=True)]
        )
        batch = token_batch([ids[:1]], [ids[1:]], self.pad_id, self.device)
        with in_evaluation(self.model):
            ours = score(self.model, batch)[batch.mask.bool()].float().cpu()
        return (ours - theirs).abs().mean().item()

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, follow: Follow | None = None
    ) -> list[Completion]:
        """See `Engine.generate`. Temperature 0 is greedy. Raises EngineError where vLLM fails."""
        asked: list[Request] = []
        done: dict[int, Completion] = {}
        rows: dict[str, int] = {}  # by vLLM's name of the request

        def ask(more: Sequence[Request]) -> None:
            rows.update(zip(self._enqueue(more, sampling), range(len(asked), len(asked) + len(more)), strict=True))
            asked.extend(more)

        ask(requests)
        with counting(len(requests)) as at:
            while len(done) < len(asked):
                at(len(done))
                with in_vllm("stopped working"):
                    outputs = [o for o in self.llm.llm_engine.step() if o.finished]
                ended = {}
                for output in outputs:
                    row, best = rows[output.request_id], output.outputs[0]
                    ids = list(best.token_ids)
                    logp = [entry[token].logprob for token, entry in zip(ids, best.logprobs, strict=True)]
                    ended[row] = Completion(
                        asked[row].prompt, ids, logp, best.finish_reason == "length", asked[row].problem
                    )
                done |= ended
                first = {row: completion for row, completion in ended.items() if row < len(requests)}
                if follow and first:
                    ask(follow(first))
        if done:
            longest = max(done.values(), key=lambda c: len(c.ids))
            self.probe = [*longest.prompt, *longest.ids]
        return [done[row] for row in range(len(asked))]

    def _enqueue(self, requests: Sequence[Request], sampling: Sampling) -> list[str]:
        from vllm import SamplingParams

        if not requests:
            return []
        params = [
            SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k or -1, logprobs=0,
                max_tokens=sampling.max_tokens, stop_token_ids=self.eos_ids, detokenize=False,
                seed=int(r.key.generator().integers(2**31)),
            )
            for r in requests
        ]  # fmt: skip
        with in_vllm("stopped working"):
            prompts = [{"prompt_token_ids": list(r.prompt)} for r in requests]
            names = self.llm.enqueue(prompts, params, use_tqdm=False, lora_request=self.adapter)
        return [name.partition("-")[0] for name in names]  # within, vLLM adds a random end to the name

    def _call(self, method: str, arguments: dict[str, Any]) -> Any:
        with in_vllm("stopped working"):
            return self.llm.collective_rpc(method, kwargs=arguments)

    def sleep(self) -> None:
        """Free cache and weights on a GPU that the engine shares with the trainer: `sync` brings the weights back.
        Where it sends an adapter alone, the base weights wait on the CPU."""
        if self.sleeps:
            self.llm.sleep(level=1 if self.lora_rank else 2)
            self.asleep = True

    def wake(self) -> None:
        """Make room for the weights that `sync` brings; the cache comes after them."""
        if self.sleeps:
            torch.cuda.empty_cache()  # what the update has left
            self.llm.wake_up(tags=["weights"])

    def close(self) -> None:
        self.closed.set()
        VLLMEngine.sleeper &= not self.sleeps
        if self.sender:
            self.sender.shutdown()
            self.sender = None
        if hasattr(self, "llm"):
            with trainers_group() if self.in_group else nullcontext():
                self.llm.llm_engine.engine_core.shutdown()
            del self.llm
        self.folder.cleanup()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def in_vllm(what: str) -> Iterator[None]:
    """Turn any error of vLLM, which has no base class, into an EngineError, which ends the run."""
    try:
        yield
    except Exception as error:
        raise EngineError(f"vLLM {what}: {type(error).__name__}: {error}") from error


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _equal_sums(ours: tuple[float, float], theirs: tuple[float, float]) -> bool:
    """Return whether two sums agree up to the order of additions; the scale is the root of the sum of squares."""
    scale = math.sqrt(max(ours[1], theirs[1])) + 1e-12
    return abs(ours[0] - theirs[0]) <= 1e-6 * scale + 1e-9 and abs(ours[1] - theirs[1]) <= 1e-9 * scale**2 + 1e-12


def _held(ours: tuple[float, float], theirs: Sequence[tuple[float, float]]) -> bool:
    """Return whether the engine's GPUs hold a parameter of the policy, by its sums: all of it, or a share each."""
    first, second = zip(*theirs, strict=True)
    return all(_equal_sums(ours, each) for each in theirs) or _equal_sums(ours, (sum(first), sum(second)))


def group_of(name: str) -> str:
    """Return the part of the model that a parameter is in: layers.3.self_attn for one of its qkv_proj."""
    parts = name.removeprefix("model.").removesuffix(".weight").removesuffix(".bias").split(".")
    return ".".join(parts[:3] if parts[0] == "layers" else parts[:1])
