"""What an algorithm is wired to."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from expo.collector import Collector, ProblemSampler
from expo.pairs import PairStore
from expo.schema import OptimizerConf, TrainerConf


@dataclass
class Parts:
    """`reference` is the frozen initial policy; None where nothing needs it, or where it is the policy without its LoRA
    adapter. `snapshot` is an earlier policy, refreshed by the algorithm.
    """

    policy: PreTrainedModel
    reference: PreTrainedModel | None
    snapshot: PreTrainedModel | None
    collector: Collector
    sampler: ProblemSampler
    optimizer: OptimizerConf
    trainer: TrainerConf
    pairs: PairStore
