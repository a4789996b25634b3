"""Rules between config groups: what cannot be run together, and the remedy.

What a group says of its own keys stands in its dataclass, as do all rules of an option of a user's own package.
"""

from typing import Any

from expo.config.algorithm import AlgorithmConf, DPOConf, GRPOConf, PositivesOnlyConf, SFTConf
from expo.config.distillation import SelfDistillationConf
from expo.config.hints import HintsConf, PrefixConf, SelfHintConf
from expo.config.key import Rules
from expo.config.optimizer import AdamW8bitConf
from expo.config.positives import ParaphraseConf, PositivesConf, SelfExplanationConf, SourceConf, StarConf
from expo.config.reasoning import ReasoningGymConf
from expo.config.rollout import VLLMConf
from expo.config.run import Config
from expo.config.training import PartialConf, PythonVerifierConf, RewardConf


def between_groups(cfg: Config) -> Rules:
    """Yield (whether it is kept, what to say where it is not) for each rule on more than one config group, in the order
    in which a user's mistake is told."""
    yield from of_algorithm(cfg.algorithm, cfg)
    yield from of_positives(cfg.positives, cfg)
    yield from of_hints(cfg.hints, cfg)
    yield from of_answers(cfg)
    yield from of_devices(cfg)


def of_algorithm(algorithm: AlgorithmConf, cfg: Config) -> Rules:
    """Yield what an algorithm asks of positives, hints and the rest."""
    positives, learning = cfg.positives, cfg.positives.learning
    yield (
        algorithm.takes_positives or not positives.gives_positives,
        f"positives={positives._target_}: {cfg.name} trains on none of them, and they cost tokens; set "
        "positives=none (an algorithm of your own that does says takes_positives: ClassVar[bool] = True)",
    )
    if isinstance(algorithm, PositivesOnlyConf):
        yield (
            positives.gives_positives,
            f"positives=none: {cfg.name} learns from positives only; set positives=expert or "
            "positives=self_explanation",
        )
        yield (
            not learning.joins_groups,
            f"positives.use=group_member: {cfg.name} has no groups to put positives in; remove it, or choose a GRPO "
            "algorithm",
        )
        yield (
            not cfg.hints.gives_hints,
            f"hints: {cfg.name} has no groups to make again with hints; set hints=none, or choose a GRPO algorithm",
        )
    if isinstance(algorithm, SFTConf):
        yield learning.weight > 0, f"positives.weight=0: {cfg.name} has no other loss; set positives.weight=1"
        cache_steps = getattr(positives, "cache_steps", 0)
        yield (
            not algorithm.restart_every or cache_steps == 0,
            f"positives.cache_steps={cache_steps}: a round of STaR makes its data anew; set positives.cache_steps=0",
        )
        yield (
            not algorithm.restart_every or positives.writer in (None, "snapshot"),
            f"algorithm.restart_every={algorithm.restart_every}: in rounds, the round's first policy explains; "
            "set positives.explainer=snapshot",
        )
    if isinstance(algorithm, DPOConf):
        yield (
            getattr(positives, "selection", "") != "threshold",
            "positives.selection=threshold: a pair has one chosen completion; "
            "set positives.selection=two_properties or first",
        )
    if isinstance(algorithm, GRPOConf):
        yield (
            cfg.needs != "positives" or positives.gives_positives,
            f"positives=none: {cfg.name} without positives is plain GRPO under another name; "
            "use algorithm=grpo, or leave positives out",
        )
        yield (
            cfg.needs != "positives" or learning.joins_groups or learning.weight > 0,
            f"positives.weight=0: {cfg.name} would not learn from its positives; set positives.weight above 0, or "
            "use algorithm=grpo",
        )
        yield (
            cfg.needs != "hints" or cfg.hints.gives_hints,
            f"hints=none: {cfg.name} without hints is plain GRPO under another name; "
            "use algorithm=grpo, or leave hints out",
        )
        yield (
            algorithm.retry == 1 or not positives.explains_all or learning.joins_groups,
            f"algorithm.retry={algorithm.retry:g}, positives.gate=always: every problem has a positive to learn from, "
            "so that none would be passed over; set positives.gate=all_wrong or algorithm.retry=1",
        )
    if isinstance(algorithm, SelfDistillationConf):
        yield from of_teacher(algorithm, cfg)


def of_teacher(algorithm: SelfDistillationConf, cfg: Config) -> Rules:
    """Yield what a teacher asks of data, prompts and precision, and what cannot stand beside one."""
    yield (
        not cfg.trainer.dropout,
        f"trainer.dropout=true: the teacher of {cfg.name} is the student without it; set trainer.dropout=false",
    )
    yield (
        "solution" not in algorithm.privilege or cfg.dataset.has_solutions,
        f"algorithm.privilege={algorithm.privilege}: {cfg.dataset.name} has no solutions; set "
        "dataset.columns.solution, or algorithm.privilege=answer or sibling",
    )
    yield (
        not cfg.hints.gives_hints,
        f"hints: {cfg.name}'s teacher reads a completion from its beginning, and one made with a hint may go on "
        "from elsewhere; set hints=none, or choose algorithm=nurl",
    )
    yield (
        algorithm.learns_from_rewards or not cfg.positives.learning.joins_groups,
        "algorithm.advantage=none: a positive in the group would have no advantage; set positives.use=auxiliary, "
        "or another advantage",
    )
    yield (
        algorithm.privilege != "other_solution" or cfg.trainer.problems_per_step >= 2,
        f"trainer.problems_per_step={cfg.trainer.problems_per_step}: the other problem is one of the same step; "
        "set 2 or more",
    )
    yield (
        algorithm.teacher != "average" or cfg.model.dtype == "float32",
        f"model.dtype={cfg.model.dtype}: an average that moves by {algorithm.average_rate:g} of a small step stands "
        "still in 16 bits; set model.dtype=float32 (and trainer.precision=bf16-mixed for speed), or "
        "algorithm.teacher=current",
    )
    shows_solution = algorithm.privilege != "answer" and not cfg.dataset.is_ladder
    for place in ("{solution}", "{question}"):
        yield (
            not shows_solution or place in (cfg.prompts.with_solution or ""),
            f"prompts.with_solution={cfg.prompts.with_solution}: has no {place}, and a teacher with "
            f"privilege={algorithm.privilege} sees one; put {place} where it goes",
        )
    yield (
        not cfg.dataset.is_ladder or cfg.prompts.with_solution is None,
        "prompts.with_solution: the ladder's policy can read no such prompt; set prompts.with_solution=null, and "
        "its teacher sees the answer of the solution",
    )


def of_positives(positives: PositivesConf, cfg: Config) -> Rules:
    """Yield what positives ask of rollouts, data, prompts and the reward."""
    rollouts = cfg.algorithm.group_size > 0
    if isinstance(positives, StarConf):
        yield (
            rollouts,
            "algorithm.group_size=0: STaR learns from its own samples first; set algorithm.group_size=1 or more",
        )
    if isinstance(positives, ParaphraseConf):
        yield (
            rollouts,
            f"algorithm.group_size=0: a paraphrase is matched in length to rollouts, and {cfg.name} makes none; "
            "set algorithm.group_size=1 or more",
        )
        yield (
            "{solution}" in (cfg.prompts.paraphrase or ""),
            f"prompts.paraphrase={cfg.prompts.paraphrase}: a paraphrase needs a prompt that asks for it; "
            "set prompts.paraphrase with {solution} in it",
        )
    if isinstance(positives, SourceConf):
        judged = f"{cfg.name} makes no rollouts to judge by"
        yield (
            rollouts or positives.gate == "always",
            f"positives.gate={positives.gate}: {judged}; set positives.gate=always or algorithm.group_size=1 or more",
        )
        yield (
            rollouts or positives.schedule != "all_wrong_fraction",
            f"positives.schedule={positives.schedule}: {judged}; set positives.schedule=constant or "
            "algorithm.group_size=1 or more",
        )
        yield (
            not positives.joins_groups or cfg.reward._target_ == RewardConf._target_,
            f"reward={cfg.reward._target_}: a positive that joins a group has reward 1, the right answer's under "
            "reward=correct; set positives.use=auxiliary",
        )
    if isinstance(positives, SelfExplanationConf):
        yield (
            rollouts or positives.selection not in ("two_properties", "threshold"),
            f"positives.selection={positives.selection}: compares with the policy's own rollouts, and {cfg.name} "
            "makes none; set algorithm.group_size=1 or more",
        )
        yield (
            rollouts or positives.shown_answer != "wrong",
            f"positives.shown_answer=wrong: the wrong answers are those of rollouts, and {cfg.name} makes none; "
            "set algorithm.group_size=1 or more",
        )
        yield (
            positives.selection != "oracle_sound" or cfg.dataset.has_oracle,
            f"positives.selection=oracle_sound: {cfg.dataset.name} cannot check steps; use dataset=ladder, a function "
            "with an oracle, or another selection",
        )


def of_hints(hints: HintsConf, cfg: Config) -> Rules:
    """Yield what hints ask of groups and prompts."""
    if isinstance(hints, SelfHintConf):
        yield (
            hints.gradient == "hint" or cfg.prompts.solve_with_hint is not None,
            "hints.gradient=question: without prompts.solve_with_hint a hint is the beginning of the completion, and "
            "what follows it is no answer to the question alone; set hints.gradient=hint",
        )
        yield (
            hints.gradient == "hint" or getattr(cfg.algorithm, "sampler_correction", "none") == "none",
            "hints.gradient=question: rollouts with a hint were sampled under another prompt, and a correction "
            "between sampler and trainer would take that for an error; set algorithm.sampler_correction=none",
        )
    if isinstance(hints, PrefixConf):
        yield (
            hints.keep < cfg.algorithm.group_size,
            f"hints.keep={hints.keep}: not fewer than algorithm.group_size={cfg.algorithm.group_size}, so that nothing "
            f"would be made again; set hints.keep={max(cfg.algorithm.group_size - 1, 0)} or less",
        )
        yield (
            "{hint}" in (cfg.prompts.solve_with_hint or "{hint}"),
            "prompts.solve_with_hint: has no {hint}; put {hint} where the hint goes",
        )
        for used, name, place in hints.templates():
            template = getattr(cfg.prompts, name)
            for needed in (place, "{question}"):
                yield (
                    not used or cfg.dataset.is_ladder or needed in (template or ""),
                    f"prompts.{name}={template}: has no {needed}, which {cfg.name} shows by it; put {needed} where "
                    "it goes",
                )
            yield (
                not cfg.dataset.is_ladder or template is None,
                f"prompts.{name}: the ladder's policy can read no such prompt; set prompts.{name}=null",
            )


def of_answers(cfg: Config) -> Rules:
    """Yield what data, prompts, judging and evaluation ask of each other."""
    dataset, verifier, evaluation, judge = cfg.dataset, cfg.verifier, cfg.evaluation, cfg.diagnose.judge
    yield (
        dataset.has_solutions or not (cfg.positives.needs_solutions or cfg.hints.needs_solutions),
        f"positives, hints: {cfg.name} uses expert solutions, {dataset.no_solutions}",
    )
    yield (
        not isinstance(dataset, ReasoningGymConf) or isinstance(verifier, PythonVerifierConf),
        f"dataset={dataset.name}: its tasks score answers themselves; set verifier=reasoning_gym, or a function of "
        "your own",
    )
    yield (
        not isinstance(cfg.reward, PartialConf) or isinstance(verifier, PythonVerifierConf),
        "reward=partial: only a function gives parts of an answer; set verifier=reasoning_gym or "
        "verifier=python, or reward=correct",
    )
    yield (
        "auto" in (verifier.kind, dataset.answer_kind) or verifier.kind == dataset.answer_kind,
        f"dataset.answer_kind={dataset.answer_kind}, verifier.kind={verifier.kind}: two kinds for one answer; leave "
        "one of them out (verifier=exact, choice and json set verifier.kind)",
    )
    yield (
        not cfg.prompts.examples or not dataset.is_ladder,
        f"prompts.examples={cfg.prompts.examples}: the ladder's policy has read no prompt with examples; set "
        "prompts.examples=0",
    )
    largest = max(cfg.k, default=1)
    yield (
        evaluation.samples is None or evaluation.samples >= largest,
        f"evaluation.samples={evaluation.samples}: pass@{largest} needs at least as many samples; "
        f"set evaluation.samples={largest} or smaller k",
    )
    yield (
        evaluation.patience is None or (dataset.validation > 0 and evaluation.every > 0),
        f"evaluation.patience={evaluation.patience}: goes by problems of its own, every so often; set "
        "dataset.validation and evaluation.every, or leave it out",
    )
    yield (
        judge.base_url is None or (judge.model != "" and cfg.prompts.judge is not None),
        f"diagnose.judge.base_url={judge.base_url}: a judge needs a model and a prompt; "
        "set diagnose.judge.model and prompts.judge",
    )


def of_devices(cfg: Config) -> Rules:
    """Yield what the trainer, the model, the optimizer and the engine ask of each other."""
    trainer, model, rollout = cfg.trainer, cfg.model, cfg.rollout
    bits = "model.load_in_4bit=true"
    yield (
        not model.load_in_4bit or rollout.in_place,
        f"{bits}: vLLM would generate with other weights than these; set rollout=hf",
    )
    yield (
        not model.load_in_4bit or trainer.strategy == "ddp",
        f"{bits}: fsdp cannot share such weights out; set trainer.strategy=ddp",
    )
    yield (
        not isinstance(cfg.optimizer, AdamW8bitConf) or trainer.strategy == "ddp",
        "optimizer=adamw_8bit: fsdp shares the optimizer's state out already; use optimizer=adamw, or "
        "trainer.strategy=ddp",
    )
    yield (
        trainer.strategy == "ddp" or not model.lora_rank or model.dtype == "float32",
        f"trainer.strategy={trainer.strategy}: takes weights of one number format, and a LoRA adapter is float32; "
        "set model.dtype=float32, or trainer.strategy=ddp",
    )
    yield (
        not (trainer.dropout and model.gradient_checkpointing),
        "trainer.dropout=true: model.gradient_checkpointing=true computes activations again, with other noise; "
        "set one of them to false",
    )
    yield (
        trainer.on_collapse != "rollback" or cfg.algorithm.acts_every_step,
        f"trainer.on_collapse={trainer.on_collapse}: {cfg.name} has no reward of each step to know the best "
        "checkpoint by; set trainer.on_collapse=stop",
    )
    yield (
        trainer.devices * trainer.num_nodes == 1 or rollout.beside_others,
        f"trainer.devices={trainer.devices}: each device has an engine of its own, on the same GPU; "
        "set rollout.device=null rollout.transfer=file rollout.tensor_parallel=1, or rollout=hf",
    )
    if isinstance(rollout, VLLMConf):
        if rollout.ahead:
            yield from of_a_step_ahead(cfg)
        yield (
            rollout.transfer == "file" or bool(rollout.device and (rollout.merge_lora or not model.lora_rank)),
            "rollout.transfer=nccl: takes whole weights from the trainer's GPU, 0, to another; set rollout.device=1 "
            "(with LoRA rollout.merge_lora=true too), or rollout.transfer=file",
        )


def of_a_step_ahead(cfg: Config) -> Rules:
    """Yield what `rollout.ahead=1` asks: an update that corrects for older rollouts, and that no part of collecting
    them looks at the policy, which is being trained meanwhile."""
    algorithm, positives, ahead = cfg.algorithm, cfg.positives, "rollout.ahead=1"
    yield (
        isinstance(algorithm, GRPOConf)
        and not isinstance(algorithm, SelfDistillationConf)
        and algorithm._target_.startswith("expo."),
        f"{ahead}: expo does not know that {cfg.name} corrects for rollouts of older weights; use a GRPO algorithm of "
        "expo's, or rollout.ahead=0",
    )
    correction, retry = (getattr(algorithm, name, None) for name in ("sampler_correction", "retry"))
    yield (
        correction != "none",
        f"{ahead}: rollouts are one update old; set algorithm.sampler_correction=token, or rollout.ahead=0",
    )
    yield retry == 1, f"{ahead}: algorithm.retry={retry:g} deals by what the last update learned; set algorithm.retry=1"
    yield (
        "snapshot" not in (positives.writer, cfg.hints.writer),
        f"{ahead}: a snapshot is taken of a policy that is being trained; set positives.explainer=reference or current",
    )
    unscored: dict[str, list[Any]] = {"measure_every": [0], "cache_steps": [0], "selection": ["first", "oracle_sound"]}
    for name, blind in unscored.items():
        value = getattr(positives, name, blind[0])
        yield (
            value in blind,
            f"{ahead}: positives.{name}={value} scores under a policy that is being trained; set "
            f"positives.{name}={blind[0]}",
        )
    yield (
        not getattr(cfg.hints, "measure_every", 0),
        f"{ahead}: hints.measure_every scores under a policy that is being trained; set hints.measure_every=0",
    )
    yield (
        cfg.trainer.devices * cfg.trainer.num_nodes == 1,
        f"{ahead}: trainer.devices={cfg.trainer.devices} exchange rollouts and gradients at the same time; set "
        "trainer.devices=1, and give the engine more GPUs with rollout.tensor_parallel",
    )
    yield (
        cfg.trainer.on_collapse != "rollback",
        f"{ahead}: trainer.on_collapse=rollback would go on with rollouts of the policy that collapsed; set "
        "trainer.on_collapse=stop",
    )
