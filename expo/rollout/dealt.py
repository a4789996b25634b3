"""One engine for each device of a run: the requests are dealt out, the completions shared."""

from collections.abc import Sequence
from itertools import groupby

from expo.ground.ranks import Ranks
from expo.rollout.engine import Completion, Engine, EngineAround, Follow, Request, Sampling


class DealtEngine(EngineAround):
    """Engine that generates its share of the requests and gets the rest from others. Equal prompts stay together."""

    def __init__(self, engine: Engine, ranks: Ranks):
        super().__init__(engine)
        self.ranks = ranks

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, follow: Follow | None = None
    ) -> list[Completion]:
        """See `Engine.generate`. What `follow` asks for waits until all `requests` have ended, on all devices."""
        groups = [list(group) for _, group in groupby(range(len(requests)), lambda i: requests[i].prompt)]
        own_groups = self.ranks.own(groups)
        own_completions = iter(
            self.engine.generate([requests[i] for group in own_groups for i in group], sampling) if own_groups else []
        )
        shared = self.ranks.whole([[next(own_completions) for _ in group] for group in own_groups])
        completions = [completion for group in shared for completion in group]
        more = follow(dict(enumerate(completions))) if follow else []
        return completions + (self.generate(more, sampling) if more else [])
