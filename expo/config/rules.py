"""Rules between config groups: what cannot be run together, and the remedy.

What a group says of its own keys stands in its dataclass, as do all rules of an option of a user's own package.
"""

from typing import Any

from expo.config.algorithm import AlgorithmConf, DPOConf, GRPOConf, PositivesOnlyConf, SFTConf
from expo.config.distillation import SelfDistillationConf
from expo.config.hints import HintsConf, PrefixConf, SelfHintConf
from expo.config.key import Rules, unused
from expo.config.optimizer import AdamW8bitConf
from expo.config.positives import ParaphraseConf, PositivesConf, SelfExplanationConf, SourceConf, StarConf
from expo.config.reasoning import ReasoningGymConf
from expo.config.rollout import VLLMConf
from expo.config.run import Config
from expo.config.training import PartialConf, PythonVerifierConf, RegexVerifierConf, RewardConf

VLLM_COLDEST = 0.01  # it raises a lower temperature to this one, and says so in its log


def between_groups(cfg: Config) -> Rules:
    """Yield what to say of each broken rule on more than one config group, in the order in which mistakes are told."""
    yield from of_algorithm(cfg.algorithm, cfg)
    yield from of_positives(cfg.positives, cfg)
    yield from of_hints(cfg.hints, cfg)
    yield from of_answers(cfg)
    yield from of_devices(cfg)


def of_algorithm(algorithm: AlgorithmConf, cfg: Config) -> Rules:
    """Yield what an algorithm asks of positives, hints and the rest."""
    positives, learning = cfg.positives, cfg.positives.positive_loss
    if not algorithm.takes_positives and positives.gives_positives:
        remedy = "set positives=none (an algorithm of your own that does says takes_positives: ClassVar[bool] = True)"
        yield f"positives={positives._target_}: {cfg.name} trains on none of them, and they cost tokens; {remedy}"
    if isinstance(algorithm, PositivesOnlyConf):
        if not positives.gives_positives:
            why = f"{cfg.name} learns from positives only"
            yield f"positives=none: {why}; set positives=expert or positives=self_explanation"
        if learning.joins_groups:
            why = f"{cfg.name} has no groups to put positives in"
            yield f"positives.use=group_member: {why}; remove it, or choose a GRPO algorithm"
        if cfg.hints.gives_hints:
            why = f"{cfg.name} has no groups to make again with hints"
            yield f"hints: {why}; set hints=none, or choose a GRPO algorithm"
    cache_steps = getattr(positives, "cache_steps", 0)
    if cache_steps and (isinstance(algorithm, DPOConf) or getattr(algorithm, "restart_every", 0)):
        why = f"a round of {cfg.name} makes its data anew"
        yield f"positives.cache_steps={cache_steps}: {why}; set positives.cache_steps=0"
    if isinstance(algorithm, SFTConf):
        if learning.weight <= 0:
            yield f"positives.weight=0: {cfg.name} has no other loss; set positives.weight=1"
        if algorithm.restart_every and positives.writer not in (None, "snapshot"):
            why = "in rounds, the round's first policy explains"
            yield f"algorithm.restart_every={algorithm.restart_every}: {why}; set positives.explainer=snapshot"
    if isinstance(algorithm, DPOConf) and getattr(positives, "selection", "") == "threshold":
        why = "a pair has one chosen completion"
        yield f"positives.selection=threshold: {why}; set positives.selection=two_properties or first"
    if isinstance(algorithm, GRPOConf):
        if cfg.needs == "positives" and not positives.gives_positives:
            why = f"{cfg.name} without positives is plain GRPO under another name"
            yield f"positives=none: {why}; use algorithm=grpo, or leave positives out"
        if cfg.needs == "positives" and not learning.joins_groups and learning.weight <= 0:
            why = f"{cfg.name} would not learn from its positives"
            yield f"positives.weight=0: {why}; set positives.weight above 0, or use algorithm=grpo"
        if cfg.needs == "hints" and not cfg.hints.gives_hints:
            why = f"{cfg.name} without hints is plain GRPO under another name"
            yield f"hints=none: {why}; use algorithm=grpo, or leave hints out"
        if algorithm.retry != 1 and positives.explains_all and not learning.joins_groups:
            yield (
                f"algorithm.retry={algorithm.retry:g}, positives.gate=always: every problem has a positive to learn "
                "from, so that none would be passed over; set positives.gate=all_wrong or algorithm.retry=1"
            )
    if isinstance(algorithm, SelfDistillationConf):
        yield from of_teacher(algorithm, cfg)


def idle_beside(cfg: Config) -> dict[str, str]:
    """Return keys that change nothing beside the other values, each with why, and a remedy. A preset may set them; on
    a command line they are a mistake."""
    algorithm, idle = cfg.algorithm, dict[str, str]()
    if isinstance(algorithm, GRPOConf):
        if algorithm.updates_per_rollout == 1:
            why = "with one update per batch of rollouts every importance ratio is 1; set algorithm.updates_per_rollout"
            caps = ("clip_low", "clip_high", "dual_clip", "sapo_tau_positive", "sapo_tau_negative", "ratio_cap")
            idle |= {f"algorithm.{name}": f"{why}=2 or more" for name in caps}
        if not algorithm.kl_coef:
            idle["algorithm.kl_estimator"] = "there is no KL term; set algorithm.kl_coef above 0"
        if not algorithm.overlong_share:
            idle["algorithm.overlong_penalty"] = "no reward falls; set algorithm.overlong_share above 0"
    return idle


def of_teacher(algorithm: SelfDistillationConf, cfg: Config) -> Rules:
    """Yield what a teacher asks of data, prompts and precision, and what cannot stand beside one."""
    if cfg.trainer.dropout:
        yield f"trainer.dropout=true: the teacher of {cfg.name} is the student without it; set trainer.dropout=false"
    if "solution" in algorithm.privilege and not cfg.dataset.has_solutions:
        remedy = "set dataset.columns.solution, or algorithm.privilege=answer or sibling"
        yield f"algorithm.privilege={algorithm.privilege}: {cfg.dataset.name} has no solutions; {remedy}"
    if cfg.hints.gives_hints:
        yield (
            f"hints: {cfg.name}'s teacher reads a completion from its beginning, and one made with a hint may go on "
            "from elsewhere; set hints=none, or choose algorithm=nurl"
        )
    if not algorithm.learns_from_rewards and cfg.positives.positive_loss.joins_groups:
        why = "a positive in the group would have no advantage"
        yield f"algorithm.advantage=none: {why}; set positives.use=auxiliary, or another advantage"
    if algorithm.privilege == "other_solution" and cfg.trainer.problems_per_step < 2:
        why = "the other problem is one of the same step"
        yield f"trainer.problems_per_step={cfg.trainer.problems_per_step}: {why}; set 2 or more"
    if algorithm.teacher == "average" and cfg.model.dtype != "float32":
        why = f"an average that moves by {algorithm.average_rate:g} of a small step stands still in 16 bits"
        remedy = "set model.dtype=float32 (and trainer.precision=bf16-mixed for speed), or algorithm.teacher=current"
        yield f"model.dtype={cfg.model.dtype}: {why}; {remedy}"
    shows_solution = algorithm.privilege != "answer" and not cfg.dataset.is_ladder
    for place in ("{solution}", "{question}"):
        if shows_solution and place not in (cfg.prompts.with_solution or ""):
            why = f"has no {place}, and a teacher with privilege={algorithm.privilege} sees one"
            yield f"prompts.with_solution={cfg.prompts.with_solution}: {why}; put {place} where it goes"
    if cfg.dataset.is_ladder and cfg.prompts.with_solution is not None:
        remedy = "set prompts.with_solution=null, and its teacher sees the answer of the solution"
        yield f"prompts.with_solution: the ladder's policy can read no such prompt; {remedy}"


def of_positives(positives: PositivesConf, cfg: Config) -> Rules:
    """Yield what positives ask of rollouts, data, prompts and the reward."""
    rollouts = cfg.algorithm.group_size > 0
    if isinstance(positives, StarConf) and not rollouts:
        yield "algorithm.group_size=0: STaR learns from its own samples first; set algorithm.group_size=1 or more"
    if isinstance(positives, ParaphraseConf):
        if not rollouts:
            why = f"a paraphrase is matched in length to rollouts, and {cfg.name} makes none"
            yield f"algorithm.group_size=0: {why}; set algorithm.group_size=1 or more"
        if "{solution}" not in (cfg.prompts.paraphrase or ""):
            why = "a paraphrase needs a prompt that asks for it"
            yield f"prompts.paraphrase={cfg.prompts.paraphrase}: {why}; set prompts.paraphrase with {{solution}} in it"
    if isinstance(positives, SourceConf):
        judged = f"{cfg.name} makes no rollouts to judge by"
        if not rollouts and positives.gate != "always":
            remedy = "set positives.gate=always or algorithm.group_size=1 or more"
            yield f"positives.gate={positives.gate}: {judged}; {remedy}"
        if not rollouts and positives.schedule == "all_wrong_fraction":
            remedy = "set positives.schedule=constant or algorithm.group_size=1 or more"
            yield f"positives.schedule={positives.schedule}: {judged}; {remedy}"
        if positives.joins_groups and cfg.reward._target_ != RewardConf._target_:
            why = "a positive that joins a group has reward 1, the right answer's under reward=correct"
            yield f"reward={cfg.reward._target_}: {why}; set positives.use=auxiliary"
    if isinstance(positives, SelfExplanationConf):
        if cfg.prompts.final_is_unmarked and positives.selection in ("two_properties", "threshold"):
            yield (
                f"positives.selection={positives.selection}: goes by the likelihood of the final statement, and "
                f"prompts.final={cfg.prompts.final} does not tell where one begins; write words before {{answer}}, or "
                "set positives.selection=first"
            )
        if not rollouts and positives.selection in ("two_properties", "threshold"):
            why = f"compares with the policy's own rollouts, and {cfg.name} makes none"
            yield f"positives.selection={positives.selection}: {why}; set algorithm.group_size=1 or more"
        if not rollouts and positives.shown_answer == "wrong":
            why = f"the wrong answers are those of rollouts, and {cfg.name} makes none"
            yield f"positives.shown_answer=wrong: {why}; set algorithm.group_size=1 or more"
        if positives.shown_answer != "true" and cfg.verifier.judges_rows:
            why = "verifier=reasoning_gym judges by the row, whatever answer was shown"
            yield f"positives.shown_answer={positives.shown_answer}: {why}; set positives.shown_answer=true"
        if positives.selection == "oracle_sound" and not cfg.dataset.has_oracle:
            remedy = "use dataset=ladder, a function with an oracle, or another selection"
            yield f"positives.selection=oracle_sound: {cfg.dataset.name} cannot check steps; {remedy}"


def of_hints(hints: HintsConf, cfg: Config) -> Rules:
    """Yield what hints ask of groups and prompts."""
    if isinstance(hints, SelfHintConf):
        if hints.gradient != "hint" and cfg.prompts.solve_with_hint is None:
            yield (
                "hints.gradient=question: without prompts.solve_with_hint a hint is the beginning of the completion, "
                "and what follows it is no answer to the question alone; set hints.gradient=hint"
            )
        if hints.gradient != "hint" and getattr(cfg.algorithm, "sampler_correction", "none") != "none":
            yield (
                "hints.gradient=question: rollouts with a hint were sampled under another prompt, and a correction "
                "between sampler and trainer would take that for an error; set algorithm.sampler_correction=none"
            )
    if isinstance(hints, PrefixConf):
        if hints.keep >= cfg.algorithm.group_size:
            why = f"not fewer than algorithm.group_size={cfg.algorithm.group_size}, so that nothing would be made again"
            yield f"hints.keep={hints.keep}: {why}; set hints.keep={max(cfg.algorithm.group_size - 1, 0)} or less"
        begins = not isinstance(hints, SelfHintConf) or cfg.prompts.solve_with_hint is None
        if begins and cfg.prompts.final_is_unmarked:
            yield (
                f"prompts.final={cfg.prompts.final}: does not tell where a solution states its answer, before which a "
                "hint has to end; write words before {answer}, as prompts=final_line does, or set hints=none"
            )
        if "{hint}" not in (cfg.prompts.solve_with_hint or "{hint}"):
            yield "prompts.solve_with_hint: has no {hint}; put {hint} where the hint goes"
        for used, name, place in hints.templates():
            template = getattr(cfg.prompts, name)
            for needed in (place, "{question}"):
                if used and not cfg.dataset.is_ladder and (needed not in (template or "")):
                    why = f"has no {needed}, which {cfg.name} shows by it"
                    yield f"prompts.{name}={template}: {why}; put {needed} where it goes"
            if cfg.dataset.is_ladder and template is not None:
                yield f"prompts.{name}: the ladder's policy can read no such prompt; set prompts.{name}=null"


def of_answers(cfg: Config) -> Rules:
    """Yield what data, prompts, judging and evaluation ask of each other."""
    dataset, verifier, evaluation, judge = cfg.dataset, cfg.verifier, cfg.evaluation, cfg.diagnose.judge
    if not dataset.has_solutions and (cfg.positives.needs_solutions or cfg.hints.needs_solutions):
        yield f"positives, hints: {cfg.name} uses expert solutions, {dataset.no_solutions}"
    if isinstance(verifier, PythonVerifierConf | RegexVerifierConf):
        why = "since the judge compares no kinds of answers"
        yield from unused(
            verifier, "verifier.", ["kind"], why, "a verifier that compares answers, such as verifier=math"
        )
        yield from unused(dataset, "dataset.", ["answer_kind"], why, "such a verifier")
    if isinstance(dataset, ReasoningGymConf) and not isinstance(verifier, PythonVerifierConf):
        why = "its tasks score answers themselves"
        yield f"dataset={dataset.name}: {why}; set verifier=reasoning_gym, or a function of your own"
    if isinstance(cfg.reward, PartialConf) and not isinstance(verifier, PythonVerifierConf):
        why = "only a function gives parts of an answer"
        yield f"reward=partial: {why}; set verifier=reasoning_gym or verifier=python, or reward=correct"
    if "auto" not in (verifier.kind, dataset.answer_kind) and verifier.kind != dataset.answer_kind:
        yield (
            f"dataset.answer_kind={dataset.answer_kind}, verifier.kind={verifier.kind}: two kinds for one answer; "
            "leave one of them out (verifier=exact, choice and json set verifier.kind)"
        )
    if cfg.prompts.examples and dataset.is_ladder:
        why = "the ladder's policy has read no prompt with examples"
        yield f"prompts.examples={cfg.prompts.examples}: {why}; set prompts.examples=0"
    largest = max(cfg.k, default=1)
    if evaluation.samples is not None and evaluation.samples < largest:
        why = f"pass@{largest} needs at least as many samples"
        yield f"evaluation.samples={evaluation.samples}: {why}; set evaluation.samples={largest} or smaller k"
    if evaluation.patience is not None and (dataset.validation <= 0 or evaluation.every <= 0):
        remedy = "set dataset.validation and evaluation.every, or leave it out"
        yield f"evaluation.patience={evaluation.patience}: goes by problems of its own, every so often; {remedy}"
    if judge.base_url is not None and (judge.model == "" or cfg.prompts.judge is None):
        why = "a judge needs a model and a prompt"
        yield f"diagnose.judge.base_url={judge.base_url}: {why}; set diagnose.judge.model and prompts.judge"


def of_devices(cfg: Config) -> Rules:
    """Yield what the trainer, the model, the optimizer and the engine ask of each other."""
    trainer, model, rollout = cfg.trainer, cfg.model, cfg.rollout
    bits = "model.load_in_4bit=true"
    if model.load_in_4bit and not rollout.in_place:
        yield f"{bits}: vLLM would generate with other weights than these; set rollout=hf"
    if model.load_in_4bit and trainer.strategy != "ddp":
        yield f"{bits}: fsdp cannot share such weights out; set trainer.strategy=ddp"
    if isinstance(cfg.optimizer, AdamW8bitConf) and trainer.strategy != "ddp":
        why = "fsdp shares the optimizer's state out already"
        yield f"optimizer=adamw_8bit: {why}; use optimizer=adamw, or trainer.strategy=ddp"
    if trainer.strategy != "ddp" and model.lora_rank and model.dtype != "float32":
        why = "takes weights of one number format, and a LoRA adapter is float32"
        yield f"trainer.strategy={trainer.strategy}: {why}; set model.dtype=float32, or trainer.strategy=ddp"
    if trainer.dropout and model.gradient_checkpointing:
        why = "model.gradient_checkpointing=true computes activations again, with other noise"
        yield f"trainer.dropout=true: {why}; set one of them to false"
    if trainer.on_collapse == "rollback" and not cfg.algorithm.acts_every_step:
        why = f"{cfg.name} has no reward of each step to know the best checkpoint by"
        yield f"trainer.on_collapse={trainer.on_collapse}: {why}; set trainer.on_collapse=stop"
    if trainer.devices * trainer.num_nodes != 1 and not rollout.beside_others:
        remedy = "set rollout.device=null rollout.transfer=file rollout.tensor_parallel=1, or rollout=hf"
        yield f"trainer.devices={trainer.devices}: each device has an engine of its own, on the same GPU; {remedy}"
    if isinstance(rollout, VLLMConf):
        for name, temperature in (("rollout", rollout.temperature), ("evaluation", cfg.evaluation.temperature)):
            if temperature < VLLM_COLDEST:
                remedy = f"set {name}.temperature={VLLM_COLDEST:g} or more, or rollout=hf"
                yield f"{name}.temperature={temperature:g}: vLLM would sample at {VLLM_COLDEST:g}; {remedy}"
        if rollout.ahead:
            yield from of_a_step_ahead(cfg)
        if rollout.transfer != "file" and (not rollout.device or (not rollout.merge_lora and model.lora_rank)):
            remedy = "set rollout.device=1 (with LoRA rollout.merge_lora=true too), or rollout.transfer=file"
            yield f"rollout.transfer=nccl: takes whole weights from the trainer's GPU, 0, to another; {remedy}"


def of_a_step_ahead(cfg: Config) -> Rules:
    """Yield what `rollout.ahead=1` asks: an update that corrects for older rollouts, and that no part of collecting
    them looks at the policy, which is being trained meanwhile."""
    algorithm, positives, ahead = cfg.algorithm, cfg.positives, "rollout.ahead=1"
    corrects = isinstance(algorithm, GRPOConf) and not isinstance(algorithm, SelfDistillationConf)
    if not corrects or not algorithm._target_.startswith("expo."):
        why = f"expo does not know that {cfg.name} corrects for rollouts of older weights"
        yield f"{ahead}: {why}; use a GRPO algorithm of expo's, or rollout.ahead=0"
    correction, retry = (getattr(algorithm, name, None) for name in ("sampler_correction", "retry"))
    if correction == "none":
        yield f"{ahead}: rollouts are one update old; set algorithm.sampler_correction=token, or rollout.ahead=0"
    if retry != 1:
        yield f"{ahead}: algorithm.retry={retry:g} deals by what the last update learned; set algorithm.retry=1"
    if "snapshot" in (positives.writer, cfg.hints.writer):
        why = "a snapshot is taken of a policy that is being trained"
        yield f"{ahead}: {why}; set positives.explainer=reference or current"
    unscored: dict[str, list[Any]] = {"measure_every": [0], "cache_steps": [0], "selection": ["first", "oracle_sound"]}
    for name, blind in unscored.items():
        value = getattr(positives, name, blind[0])
        if value not in blind:
            why = f"positives.{name}={value} scores under a policy that is being trained"
            yield f"{ahead}: {why}; set positives.{name}={blind[0]}"
    if getattr(cfg.hints, "measure_every", 0):
        yield f"{ahead}: hints.measure_every scores under a policy that is being trained; set hints.measure_every=0"
    if cfg.trainer.devices * cfg.trainer.num_nodes != 1:
        why = f"trainer.devices={cfg.trainer.devices} exchange rollouts and gradients at the same time"
        yield f"{ahead}: {why}; set trainer.devices=1, and give the engine more GPUs with rollout.tensor_parallel"
    if cfg.trainer.on_collapse == "rollback":
        why = "trainer.on_collapse=rollback would go on with rollouts of the policy that collapsed"
        yield f"{ahead}: {why}; set trainer.on_collapse=stop"
