"""Keys of `algorithm=` for self-distillation: what a teacher sees, who it is, and what is learned from it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from expo.config.algorithm import GRPOConf
from expo.config.key import Config, Rules, key, option


@option("algorithm", "self_distillation", alone=False)
class SelfDistillationConf(GRPOConf):
    """GRPO's rollouts, scored by a teacher: the same network, that sees more. Its opinion of each token is learned
    from."""

    # A key that is no more: its one value is still hashed, so that runs made with it keep their identity.
    gone: ClassVar[Mapping[str, Any]] = {"top_of": "student"}
    has_teacher: ClassVar[bool] = True
    _target_: str = "expo.algorithms.distillation.SelfDistillation"
    group_size: int = key(8, low=1, high=2**16, help="rollouts per problem; a group advantage needs at least 2")
    privilege: str = key("answer", choices=("answer", "solution", "sibling", "other_solution"))
    """what the teacher sees: the answer (prompts.explain); or, by prompts.with_solution, the expert's solution, a right
    rollout of the same problem but not the scored one, or the expert's solution of another problem, a control"""
    teacher: str = key("current", choices=("current", "initial", "average"))
    """weights of the teacher: the policy's, the initial policy's, or a moving average of the policy's"""
    average_rate: float = key(0.05, above=0, high=1)
    """share of the policy that goes into the average after each optimizer step"""
    signal: str = key("divergence", choices=("divergence", "sampled", "contrast"))
    """what is learned from the teacher: the divergence of the two next-token distributions; log p_T - log p_S of each
    sampled token, as its advantage; or log p_T seeing the right answer less that seeing a wrong one, as a part of it"""
    distill_weight: float = key(1.0, above=0, high=1e4, help="weight of the teacher's signal beside GRPO's advantage")
    mix: float = key(0.5, low=0, high=1)
    """β of the generalized Jensen-Shannon divergence; 0: KL(p_T || p_S), 1: KL(p_S || p_T)"""
    top_k: int = key(0, low=0)
    """the student's likeliest words, over which the divergence is taken; 0: the whole vocabulary"""
    tail: bool = key(True, help="count all other words as one; false: make those words' probabilities sum to 1")
    cap: float = key(float("inf"), above=0, finite=False)
    """most that one token's signal counts; the gradient of a larger one is scaled down by as much; inf: no cap"""
    ratio_cap: float = key(2.0, low=1)
    """most that the importance ratio of a token weighs its divergence, after the first update"""

    @property
    def uses_reference(self) -> bool:
        return super().uses_reference or self.teacher == "initial"

    @property
    def uses_average(self) -> bool:
        return self.teacher == "average"

    @property
    def forward_passes(self) -> int:
        return (self.kl_coef > 0) + (2 if self.signal == "contrast" else 1)

    def rules(self, cfg: Config) -> Rules:
        yield from super().rules(cfg)
        if self.entropy_coef:
            why = f"{cfg.name}'s pass beside its teacher measures no entropy"
            yield f"algorithm.entropy_coef={self.entropy_coef:g}: {why}; set algorithm.entropy_coef=0"
        if self.learns_from_rewards and self.group_size < 2:
            remedy = "set algorithm.group_size=2 or more, or algorithm.advantage=none"
            yield f"algorithm.group_size={self.group_size}: a group advantage needs at least 2; {remedy}"
        if self.privilege == "sibling" and self.group_size < 2:
            why = f"a group of {self.group_size} has no siblings"
            yield f"algorithm.privilege=sibling: {why}; set algorithm.group_size=2 or more"
        if self.signal == "contrast" and self.privilege != "answer":
            why = "a contrast is between the right answer and a wrong one"
            yield f"algorithm.privilege={self.privilege}: {why}; set algorithm.privilege=answer"
        if self.signal != "divergence" and self.ratio != "token":
            yield (
                f"algorithm.ratio=sequence: with algorithm.signal={self.signal} each token has an advantage of its "
                "own, which one ratio for a whole sequence would average away; set algorithm.ratio=token"
            )
        if not self.learns_from_rewards and self.refills:
            why = "rewards that are not learned from would choose the problems"
            yield f"algorithm.refills={self.refills}: {why}; set algorithm.refills=0"
        if self.retry != 1:
            why = "every problem has a gradient from the teacher, so that none would be passed over"
            yield f"algorithm.retry={self.retry:g}: {why}; set algorithm.retry=1"
        if not self.learns_from_rewards and self.signal == "divergence":
            why = "since algorithm.advantage=none leaves the divergence alone"
            yield from self.idle(["ratio", "surrogate", "clip_low", "clip_high"], why, "another algorithm.advantage")
        if self.signal != "divergence":
            why = f"since algorithm.signal={self.signal} is no divergence"
            yield from self.idle(["mix", "top_k", "tail", "ratio_cap"], why, "algorithm.signal=divergence")
        if not self.top_k:
            yield from self.idle(["tail"], "since the divergence is over all words", "algorithm.top_k=100")
        if self.teacher != "average":
            why = f"since algorithm.teacher={self.teacher}"
            yield from self.idle(["average_rate"], why, "algorithm.teacher=average")
