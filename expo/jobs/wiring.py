"""Wire the parts of a run together from its config."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expo.algorithms.pair_store import PairStore
from expo.config import Config, RewardConf, UserError, build, pairs_identity, run_dir
from expo.config.explaining import explanation_timing, frozen_copies
from expo.config.identity import bank_identity
from expo.config.own_code import own_code
from expo.cost.machine import DEVICES
from expo.cost.memory import settled
from expo.cost.run import Work
from expo.data.account import Account
from expo.data.reader import Reader, set_apart
from expo.evaluation.evaluate import Evaluator
from expo.ground.problem import Problem
from expo.ground.ranks import ALONE, Ranks
from expo.jobs.checks import check_extraction, check_world
from expo.model.checks import check_bits, check_packing, check_rounding, check_scoring, reads_rightly, row_limit
from expo.model.modes import as_it_began, cast_frozen_linears, causal_lm, compute_in, frozen_copy
from expo.model.prompts import Prompts
from expo.rollout.checks import check_decoding
from expo.rollout.dealt import DealtEngine
from expo.rollout.engine import Engine, Sampling
from expo.rollout.sharded import CopyEngine, WholeCopy, shared_out
from expo.rollout.transformers_engine import UnadaptedEngine
from expo.step.collecting import KeepingEngine
from expo.step.experience import Batch, Tools
from expo.step.hints import NoHints
from expo.step.pipeline import Engines, Pipeline
from expo.step.positives.bank import Bank, BankedEngine, fingerprint
from expo.step.positives.properties import Scorer
from expo.step.positives.sources import PositiveSource
from expo.step.problems import ProblemSampler, within_length
from expo.step.rewards import Reward, check_reward
from expo.verifier.pool import Verifier

if TYPE_CHECKING:
    from expo.algorithms.base import Algorithm
    from expo.loggers.tracking import Tracker

log = logging.getLogger(__name__)


def divide_evenly(cfg: Config) -> None:
    """Lower `trainer.micro_batch_size` to the largest divisor of a step's rollouts that is no larger. Print it where a
    step has more rollouts than that."""
    rows, given = cfg.trainer.problems_per_step * max(cfg.algorithm.group_size, 1), cfg.trainer.micro_batch_size
    size = cfg.trainer.micro_batch_size = cfg.trainer.even_micro_batch(cfg.algorithm.group_size)
    if size != given and given < rows:
        print(f"trainer.micro_batch_size={given} does not divide the {rows} rows of a step; {size} are taken at a time")


def read_prompts_rightly(cfg: Config, policy: PreTrainedModel, ranks: Ranks = ALONE) -> None:
    """Turn `trainer.share_prompts` off, with a message, for a model that scores otherwise behind shared prompts.

    Raises UserError where `trainer.packing` is asked for, and the model scores otherwise when it is packed.
    """
    if cfg.trainer.packing:
        check_packing(policy, cfg.model.path)
    cfg.trainer.share_prompts = cfg.trainer.shares_prompts(cfg, policy.device.type == "cuda")
    if cfg.trainer.share_prompts and not ranks.by_first(lambda: reads_rightly(policy, shared=True)):
        cfg.trainer.share_prompts = False
        log.warning(
            "%s scores otherwise when a prompt is read once for several rows: each row reads its own",
            type(policy).__name__,
        )


def build_run(cfg: Config, verifier: Verifier, commit: str | None = None) -> tuple["Algorithm", Evaluator, Account]:
    """Wire data, models and engines of a training run. Raises UserError for a model or data set that cannot be loaded.

    Args: commit, of the model on the hub, that the run began with.
    """
    from expo.algorithms.base import Algorithm, Components  # Lightning's: 2 s of imports

    torch.manual_seed(cfg.seed)
    divide_evenly(cfg)
    ranks = verifier.ranks
    # Before the model: quicker to fail.
    problems, validation, held_out, examples, read = ranks.by_first(lambda: read_data(cfg, verifier))
    policy, tokenizer, prompts = load_model(cfg, commit=commit)
    prompts.examples = examples
    if not any(p.requires_grad for p in policy.parameters()):
        raise UserError(
            f"model.path={cfg.model.path}: an adapter on weights in 4 bits, which is measured as it is, and not "
            "trained further; give a whole model and model.lora_rank, or set model.load_in_4bit=false"
        )
    if causal_lm(policy).is_gradient_checkpointing and cfg.model.gradient_checkpointing is None:
        print("activations are computed again in the backward pass; model.gradient_checkpointing=false keeps them")
    check_rounding(policy, cfg.model.dtype, cfg.optimizer.learning_rate)
    read_prompts_rightly(cfg, policy, ranks)
    limit = prompt_limit(cfg, policy, cfg.rollout.max_prompt_tokens)
    longest = prompt_limit(cfg, policy, cfg.rollout.longest_prompt)
    makers = [prompts.solve_ids, prompts.explain_ids]
    if cfg.hints.writer and not cfg.hints.needs_solutions:
        makers.append(prompts.hint_ids)
    problems, trained = within_length(problems, makers, tokenizer, limit)
    held_out, evaluated = within_length(held_out, [prompts.solve_ids], tokenizer, limit)
    account = read | {"train": trained, "held_out": evaluated}
    if validation:
        validation, chosen_by = within_length(validation, [prompts.solve_ids], tokenizer, limit)
        account |= {"validation": chosen_by}

    reference, snapshot = frozen_models(cfg, policy)
    average = frozen_copy(policy) if cfg.algorithm.uses_average else None
    whole_copy = shared_out(policy) if cfg.trainer.strategy == "fsdp" else None
    generating = whole_copy.model if whole_copy else policy
    sampler = ProblemSampler(problems, cfg.trainer.problems_per_step, cfg.seed)
    source: PositiveSource = build(cfg.positives, of=PositiveSource)
    tools = Tools(prompts, tokenizer, verifier, rollout_sampling(cfg), cfg.seed, longest, ranks)
    engines = make_engines(cfg, generating, reference, snapshot, tokenizer, ranks, whole_copy)
    if cfg.positives.from_bank(cfg.algorithm):
        mark = bank_identity(cfg)
        folder = Path(cfg.output_dir, "banks", f"{cfg.dataset.name}-{mark}")
        bank = Bank(folder, f"{mark}-{fingerprint(generating)}")
        banked = BankedEngine(
            bank,
            cfg.trainer.max_steps,
            lambda step: source.requests(
                Batch.of(sampler.batch(step), tools, step), {}, range(sampler.per_step), tools
            ),
            engines.policy,
            lambda: initial_weights(cfg, policy, bank, ranks),
            ranks,
        )
        engines = replace(engines, explanations=banked, banked=banked)
    hold_base(cfg, policy)  # once the bank knows it by its weights
    pipeline = Pipeline(
        engines=engines,
        source=source,
        hints=build(cfg.hints, of=NoHints),
        reward=make_reward(cfg),
        scorer=Scorer(generating, tokenizer, prompts, cfg.trainer.micro_batch_size, ranks),
        tools=tools,
        when=explanation_timing(cfg.positives, cfg.algorithm),
    )
    shared = Path(cfg.output_dir, cfg.dataset.name, "pairs", pairs_identity(cfg))
    # `make_run` says where the run's own are, once that is sure.
    judging = {f: mark for part in (cfg.verifier, cfg.reward, cfg.positives) for f, mark in own_code(part).items()}
    pairs = PairStore(shared, run_dir(cfg) / "pairs", cfg.fresh, judging)
    components = Components(
        policy, reference, snapshot, pipeline, sampler, cfg.optimizer, cfg.trainer, pairs, whole_copy, average
    )
    return (
        build(cfg.algorithm, components, of=Algorithm),
        replace(make_evaluator(cfg, held_out, verifier, prompts, tokenizer), validation=validation),
        account,
    )


def hold_base(cfg: Config, policy: PreTrainedModel) -> None:
    """Hold a policy's frozen weights as they are multiplied, see `cast_frozen_linears`: the base under a LoRA adapter.

    Shares are of one format, though, and a model into which an earlier adapter was merged is saved as a whole.
    """
    if cfg.trainer.strategy != "fsdp" and not getattr(causal_lm(policy), "begun_from_adapter", False):
        cast_frozen_linears(policy)


def read_data(
    cfg: Config, verifier: Verifier
) -> tuple[list[Problem], list[Problem], list[Problem], list[Problem], Account]:
    """Return the problems to train on, those to choose by, those held out, worked examples, and the account of all.

    Raises UserError for what cannot be read.
    """
    reader: Reader = build(cfg.dataset, verifier, of=Reader)
    problems, held_out = reader.train(), reader.evaluation()
    account = reader.account()
    problems, validation = set_apart(problems, cfg.dataset.validation)
    return problems, validation, held_out, reader.examples(cfg.prompts.examples), account


def load_model(
    cfg: Config, to_device: bool = True, commit: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Prompts]:
    """Load the model, its tokenizer and its prompts. The model goes to its device: engines ask where they find it.

    Args: to_device, False for its weights alone: it stays on the CPU, and its scores are not checked. Raises UserError
    for what cannot be loaded, and for a model that cannot be scored rightly.
    """
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator != "cpu"
    # Random weights are made where they will be: a CPU takes a minute for 3B, and its numbers are others.
    with torch.device("cuda") if gpu and cfg.model.from_nothing else nullcontext():
        loaded = build(replace(for_gpu(cfg, gpu).model, revision=cfg.model.revision or commit))
    if not isinstance(loaded, tuple):
        raise UserError(f"model._target_={cfg.model._target_}: loads no model and tokenizer; give a function that does")
    model, tokenizer = loaded
    prompts: Prompts = build(cfg.prompts, of=Prompts)
    prompts.check(tokenizer, cfg.model.path)
    check_extraction(cfg)
    check_world(cfg, model, tokenizer)
    if to_device and gpu:
        model.to("cuda")
    compute_in(model, cfg.trainer.precision)
    if to_device:  # some attention works on a GPU alone
        check_bits(model, cfg.model.path)
        check_scoring(model, cfg.model.path)
    return model, tokenizer, prompts


def for_gpu(cfg: Config, gpu: bool) -> Config:
    """Return the config with what null leaves to a GPU, as far as a model's shape tells; see `settled`."""
    if not gpu or (cfg.rollout.batch_size and cfg.model.gradient_checkpointing is not None):
        return cfg
    there = float(torch.cuda.get_device_properties(0).total_memory)
    try:
        return settled(Work.of(cfg), replace(DEVICES["h100"], memory=there)).cfg
    except UserError:  # a model of one's own, of which nothing is known before it is there
        return cfg


def frozen_models(cfg: Config, policy: PreTrainedModel) -> tuple[PreTrainedModel | None, PreTrainedModel | None]:
    """Return the frozen reference and the snapshot, each None where nothing needs a copy of its own."""
    initial, earlier = frozen_copies(cfg)
    reference, snapshot = (frozen_copy(policy) if wanted else None for wanted in (initial, earlier))
    # STaR gives the policy the reference's weights again: these must not be rounded.
    for frozen in (None if cfg.algorithm.uses_snapshot else reference, snapshot):
        if frozen is not None:
            cast_frozen_linears(frozen)
    return reference, snapshot


def make_engines(
    cfg: Config,
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    snapshot: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks = ALONE,
    whole: WholeCopy | None = None,
) -> Engines:
    """Make one engine for each set of weights that generates, on each device of the run.

    Args: whole, the copy of a sharded policy, whose model `policy` then is.
    """

    def dealt(engine: Engine) -> Engine:
        return engine if ranks.count == 1 else DealtEngine(engine, ranks)

    policy_engine = make_engine(cfg, policy, tokenizer)
    engine = dealt(CopyEngine(policy_engine, whole) if whole else policy_engine)
    if getattr(cfg.rollout, "ahead", 0):
        engine = KeepingEngine(engine)
    writer = None if cfg.positives.from_bank(cfg.algorithm) else cfg.positives.writer  # a bank takes this place
    by_writer: dict[str | None, Engine] = {"current": engine, None: engine}
    if "reference" in (writer, cfg.hints.writer):  # a copy that a KL term alone needs generates nothing
        by_writer["reference"] = dealt(
            UnadaptedEngine(cfg.rollout, policy, tokenizer)
            if reference is None
            else make_engine(cfg, reference, tokenizer)
        )
    if snapshot is not None:
        by_writer["snapshot"] = dealt(make_engine(cfg, snapshot, tokenizer))
    return Engines(
        policy=engine,
        rollouts=by_writer["snapshot"] if cfg.algorithm.uses_snapshot else engine,
        explanations=by_writer[writer],
        hints=by_writer[cfg.hints.writer],
    )


def initial_weights(
    cfg: Config, policy: PreTrainedModel, bank: Bank, ranks: Ranks = ALONE
) -> AbstractContextManager[None]:
    """Return a context in which the policy has its initial weights. Raises UserError where its files have changed.

    The first device alone loads them: the memory of a machine has no room for as many as it has devices.
    """
    models: list[PreTrainedModel | None] = []

    def load() -> str:
        with torch.random.fork_rng():  # loading draws
            model, _, _ = load_model(cfg, to_device=False, commit=getattr(causal_lm(policy), "hub_commit", None))
        models.append(model)
        return fingerprint(model)

    if ranks.by_first(load) != bank.identity.rpartition("-")[2]:
        raise UserError(
            f"model.path={cfg.model.path}: has other weights than when the run began; put the first ones back"
        )
    return as_it_began(policy, models[0] if models else None)


def make_engine(cfg: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Engine:
    """Make an engine on a model in memory, as `rollout` says. Raises UserError for a model that it cannot decode."""
    engine: Engine = build(for_gpu(cfg, model.device.type == "cuda").rollout, model, tokenizer, of=Engine)
    if cfg.rollout.in_place:
        check_decoding(engine, model, cfg.model.path)
    return engine


def rollout_sampling(cfg: Config) -> Sampling:
    r = cfg.rollout
    return Sampling(r.temperature, r.top_p, r.top_k, r.max_completion_tokens)


def prompt_limit(cfg: Config, model: PreTrainedModel, asked: int) -> int:
    """Return the tokens of the longest prompt that is taken: `asked`, or what leaves room for a completion.

    Raises UserError where it has room for none.
    """
    limit, completion = row_limit(model), cfg.rollout.max_completion_tokens
    if limit is None:
        return asked
    if completion >= limit:
        raise UserError(
            f"rollout.max_completion_tokens={completion}: {cfg.model.path} has room for {limit} tokens of prompt and "
            "completion together; lower it"
        )
    return min(asked, limit - completion)


def make_evaluator(
    cfg: Config, problems: list[Problem], verifier: Verifier, prompts: Prompts, tokenizer: PreTrainedTokenizerBase
) -> Evaluator:
    e = cfg.evaluation
    sampling = Sampling(e.temperature, e.top_p, e.top_k, cfg.rollout.max_completion_tokens)
    # Only where it is more than the verdict.
    reward = None if cfg.reward._target_ == RewardConf._target_ else make_reward(cfg)
    samples = e.samples or max(cfg.k)
    return Evaluator(problems, verifier, prompts, tokenizer, sampling, samples, cfg.k, e.seed, reward)


def measuring_loggers(cfg: Config, directory: Path, command: str) -> list["Tracker"]:
    """Return a measuring command's logger; none for logger=none, without importing Lightning."""
    if not cfg.logger._target_:
        return []
    from expo.loggers.tracking import Session, chosen_loggers

    return chosen_loggers(Session(cfg, directory, command=command))


def make_reward(cfg: Config) -> Reward:
    return check_reward(build(cfg.reward, of=Reward))
