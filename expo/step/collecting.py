"""When a step's experience is collected: before its own update, or one step ahead (`rollout.ahead=1`), while the step
before is trained on.

With w_t the weights before the update of step t, a step ahead goes so: take the experience that w_(t-1) generated, give
the engine w_t, let it generate for t + 1, and make w_(t+1) meanwhile. Each step but the first learns from rollouts that
are one update old; `algorithm.sampler_correction` weighs their tokens by π_(w_t) / π_(w_(t-1)), as AReaL (arXiv
2505.24298) and prime-rl do.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import accumulate, pairwise
from typing import Any

import torch

from expo.config import UserError
from expo.rollout.engine import Completion, Engine, EngineAround, Follow, Request, Sampling
from expo.rollout.noise import NoiseKey
from expo.step.experience import Experience
from expo.step.pipeline import Pipeline

LACKING = (
    "rollout.ahead=1: step {step} asks for other completions than the checkpoint has, which were generated ahead; "
    "the same command tries again (a verdict may have timed out; it was written by an earlier expo, or under another "
    "hint: then not again), and fresh=true begins the run anew"
)


class Collector:
    """Collects a step's experience before its update, with the weights that it updates. Args: collect, the algorithm's
    own; steps, those of the run."""

    def __init__(self, pipeline: Pipeline, collect: Callable[[int], Experience], steps: int):
        self.pipeline, self.engines, self.collect, self.steps = pipeline, pipeline.engines, collect, steps

    def experience(self, step: int) -> Experience:
        return self.collect(step)

    def before_update(self, experience: Experience) -> None:
        """Leave the device to the update."""
        with experience.timer("update"):
            self.engines.policy.sleep()

    def after_update(self, experience: Experience) -> None:
        """Bring the engine up to the new weights."""
        with experience.timer("sync"):
            self.engines.policy.wake()
            self.engines.policy.sync()

    def current_engine(self) -> Engine:
        """Return the policy's engine, with the policy's weights as they are now and nothing under way."""
        return self.engines.policy

    def close(self) -> None:
        self.engines.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to collect the next step's experience again."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""


class CollectorAhead(Collector):
    """Collects the next step's experience in a thread, while this one is trained on. A checkpoint waits for it, and has
    its completions: the weights that generated them are gone by then."""

    def __init__(self, pipeline: Pipeline, collect: Callable[[int], Experience], steps: int):
        super().__init__(pipeline, collect, steps)
        assert isinstance(pipeline.engines.policy, KeepingEngine)
        self.engine, self.thread = pipeline.engines.policy, ThreadPoolExecutor(1, "expo-ahead")
        self.next: Future[Experience] | None = None

    def experience(self, step: int) -> Experience:
        """Return the experience that is under way; a session's first is collected now. Raises UserError where a run
        goes on without all completions of its checkpoint: they are of weights that are gone."""
        if self.next is None:
            resumed = bool(self.engine.loaded)
            experience = self.collect(step)
            if self.engine.loaded or (step and not resumed):
                raise UserError(LACKING.format(step=step + 1))
            experience.hidden_s = 0.0
            return experience
        started = time.perf_counter()
        future, self.next = self.next, None
        experience = future.result()
        waited = time.perf_counter() - started
        experience.hidden_s = max(0.0, sum(experience.timer.seconds.values()) - waited)
        return experience

    def before_update(self, experience: Experience) -> None:
        """Give the engine the weights that are about to be updated, and begin the next step."""
        following = experience.step + 1
        with experience.timer("sync"):
            self.engine.sync()
        if following < self.steps:
            if self.engines.banked:  # it generates with the initial weights, put in the policy's place
                with experience.timer("explain"):
                    self.engines.banked.fill(following, self.pipeline.tools.sampling)
                    self.engines.banked.bank.load(following)  # whatever becomes of the file, the thread writes none
            self.engine.kept = {}
            self.next = self.thread.submit(self.collect, following)

    def after_update(self, experience: Experience) -> None:
        """Do nothing: the engine generates the next step with the weights before this update, see `before_update`."""

    def current_engine(self) -> Engine:
        self._wait()
        self.engine.sync()
        return self.engine.engine

    def close(self) -> None:
        self._wait()
        self.thread.shutdown()
        super().close()

    def state_dict(self) -> dict[str, Any]:
        if self.next is None:
            return {}
        self.next.result()  # its error, where it has one: no checkpoint is better than one without its completions
        return self.engine.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.engine.load_state_dict(state)

    def _wait(self) -> None:
        if self.next:
            wait([self.next])


class KeepingEngine(EngineAround):
    """Engine that keeps completions by their request's key, for a checkpoint, and gives out a checkpoint's, once."""

    def __init__(self, engine: Engine):
        super().__init__(engine)
        self.kept: dict[NoiseKey, Completion] = {}
        self.loaded: dict[NoiseKey, tuple[list[int], list[float], bool, str]] = {}

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, follow: Follow | None = None
    ) -> list[Completion]:
        """See `Engine.generate`. Raises UserError where a checkpoint has some of the completions, and not all."""
        asked = list(requests)

        def noted(ended: Mapping[int, Completion]) -> Sequence[Request]:
            assert follow is not None
            more = follow(ended)
            asked.extend(more)
            return more

        if any(r.key in self.loaded for r in requests):
            completions = [self._take(r) for r in requests]
            if follow and (more := noted(dict(enumerate(completions)))):
                completions += self.generate(more, sampling)
        else:
            completions = self.engine.generate(requests, sampling, noted if follow else None)
        self.kept |= zip((r.key for r in asked), completions, strict=True)
        return completions

    def _take(self, request: Request) -> Completion:
        ids, logp, truncated, prompt = self.loaded.pop(request.key, ([], [], False, ""))
        if prompt != _mark(request.prompt):  # a hint that was written again may be another
            raise UserError(LACKING.format(step=request.key.step + 1))
        return Completion(request.prompt, ids, logp, truncated, request.problem)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes: plain data and tensors."""
        kept = self.kept.values()
        return {
            "keys": [(key.seed, key.stream, key.step, key.row) for key in self.kept],
            "lengths": [len(c.ids) for c in kept],
            "ids": torch.tensor([i for c in kept for i in c.ids], dtype=torch.int64),
            "logp": torch.tensor([x for c in kept for x in c.logp], dtype=torch.float64),
            "truncated": [c.truncated for c in kept],
            "prompts": [_mark(c.prompt) for c in kept],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the completions of `state_dict`, for the requests that will ask for them; {} for none."""
        ends = pairwise(accumulate(state.get("lengths", ()), initial=0))
        keys = state.get("keys", ())
        prompts = state.get("prompts", [""] * len(keys))  # a checkpoint of before has none, and is not gone on with
        rows = zip(keys, state.get("truncated", ()), prompts, ends, strict=True)
        self.loaded = {
            NoiseKey(*key): (state["ids"][a:b].tolist(), state["logp"][a:b].tolist(), cut, prompt)
            for key, cut, prompt, (a, b) in rows
        }


def _mark(prompt: Sequence[int]) -> str:
    return hashlib.sha256(str([*prompt]).encode()).hexdigest()[:16]
