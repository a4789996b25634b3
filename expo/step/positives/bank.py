"""The bank: explanations of the initial policy, written in whole batches ahead of a run, kept on disk, and shared
between runs.

An explanation of the initial policy depends on nothing that training changes. Each has the key of the step that will
ask for it, so that a run learns from the same text with and without a bank; no copy of the initial policy stays in
memory.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pyarrow as pa
from torch import nn

from expo.config import UserError
from expo.ground.ranks import ALONE, Ranks
from expo.model.formats import as_numbers
from expo.rollout.engine import Completion, Engine, Follow, Request, Sampling
from expo.step.signed import AGAIN, alone_with, is_signed, read_signed, write_signed

PART = 1024  # explanations of one file, about: what a kill while writing costs
SAMPLES = 256  # of each weight
IDENTITY = b"bank"
NAME = re.compile(r"steps-(\d+)-(\d+)\.parquet")

Entries = dict[int, tuple[tuple[int, ...], list[int], bool]]  # by row of the key: prompt, completion, truncated


@dataclass
class Bank:
    """A folder of parts, each with the explanations of consecutive steps; one without its SHA-256 beside it was not
    finished. `identity`, which stands in each part, is `bank_identity` (model, prompts, data, sampling, seed) and the
    weights' `fingerprint`, which tells what a hub id does not."""

    folder: Path
    identity: str
    steps: dict[int, Entries] = field(default_factory=dict)  # those of the part that was read last
    price: float = 0.0  # seconds of writing for each token of that part; 0 where an earlier expo wrote it

    def parts(self) -> dict[Path, range]:
        matches = {path: NAME.fullmatch(path.name) for path in sorted(self.folder.glob("steps-*.parquet"))}
        return {p: range(int(m[1]), int(m[2]) + 1) for p, m in matches.items() if m and is_signed(p)}

    def missing(self, steps: Iterable[int]) -> list[int]:
        written = self.parts().values()
        return [step for step in steps if not any(step in covered for covered in written)]

    def find(self, request: Request) -> Completion:
        """Return the banked explanation for a request. Raises UserError where there is none, or not of this prompt, or
        where its part was changed."""
        step = request.key.step
        self.load(step)
        row = self.steps.get(step, {}).get(request.key.row)
        if row is None or row[0] != request.prompt:
            told = "has no explanation" if row is None else "has an explanation of another prompt"
            raise UserError(
                f"bank={self.folder}: {told} for step {step + 1}; delete the folder, and it is made again, or where "
                "several nodes train, give an output_dir that all of them see"
            )
        return Completion(request.prompt, row[1], [], row[2], request.problem)

    def load(self, step: int) -> None:
        if step not in self.steps:
            self.steps = next((self._read(path) for path, covered in self.parts().items() if step in covered), {})

    def _read(self, path: Path) -> dict[int, Entries]:
        def parse(table: pa.Table) -> dict[int, Entries]:
            metadata = json.loads(table.schema.metadata[IDENTITY])
            if metadata["identity"] != self.identity:
                whose = f"of the bank {metadata['identity']}, whose model, prompts, data, sampling or seed are others"
                raise UserError(f"bank={path}: {whose}; {AGAIN}")
            steps: dict[int, Entries] = {}
            for row in table.to_pylist():
                steps.setdefault(row["step"], {})[row["row"]] = (tuple(row["prompt"]), row["ids"], row["truncated"])
            tokens = sum(len(ids) for rows in steps.values() for _, ids, _ in rows.values())
            self.price = metadata.get("seconds", 0.0) / max(tokens, 1)
            return steps

        return read_signed(path, "bank", parse)

    def save(
        self, steps: Sequence[int], requests: Sequence[Request], explanations: Sequence[Completion], seconds: float
    ) -> None:
        """Write a part whole or not at all. Args: steps, consecutive; requests and explanations, those of these steps,
        in order; seconds, that it took to make them."""
        columns = {
            "step": [r.key.step for r in requests], "row": [r.key.row for r in requests],
            "prompt": [list(r.prompt) for r in requests], "ids": [c.ids for c in explanations],
            "truncated": [c.truncated for c in explanations],
        }  # fmt: skip
        types = {"prompt": pa.list_(pa.int64()), "ids": pa.list_(pa.int64())}
        table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
        metadata = json.dumps({"identity": self.identity, "seconds": seconds})
        path = self.folder / f"steps-{steps[0]:06d}-{steps[-1]:06d}.parquet"
        write_signed(table.replace_schema_metadata({IDENTITY: metadata}), path)


class BankedEngine(Engine):
    """Serve explanations from a bank on disk. What it lacks, the policy's own engine writes first, with the weights
    that the policy began with: whole blocks of steps, about PART explanations at once. Args: steps, those of the run;
    requests_of, the requests of a step for all of its problems, whatever its rollouts are; initial, a context in which
    the policy has its initial weights."""

    def __init__(
        self,
        bank: Bank,
        steps: int,
        requests_of: Callable[[int], Sequence[Request]],
        engine: Engine,
        initial: Callable[[], AbstractContextManager[None]],
        ranks: Ranks = ALONE,
    ):
        self.bank, self.steps, self.requests_of, self.engine = bank, steps, requests_of, engine
        self.initial_weights, self.ranks = initial, ranks
        self.written_s = 0.0  # since `shared_s` was asked

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, follow: Follow | None = None
    ) -> list[Completion]:
        """See `Engine.generate`; nothing follows, since all explanations are written already."""
        for step in sorted({r.key.step for r in requests}):
            self.fill(step, sampling)
        return [self.bank.find(r) for r in requests]

    def shared_s(self, read: Sequence[Completion]) -> float:
        """Estimate the seconds to add to this run's own, so that runs compare whoever wrote the bank: what the given
        explanations took, by tokens and the last part's price, less what this run has spent on writing since the last
        call."""
        spent, self.written_s = self.written_s, 0.0
        return self.bank.price * sum(len(c.ids) for c in read) - spent

    def fill(self, step: int, sampling: Sampling) -> None:
        """Write the missing explanations of the block of steps that `step` is in."""
        if step in self.bank.steps:
            return
        size = max(1, PART // max(1, len(self.requests_of(step))))
        first = step - step % size
        block = range(first, max(step + 1, min(first + size, self.steps)))
        with alone_with(self.bank.folder / "steps") if self.ranks.first else nullcontext():
            missing = self.ranks.by_first(lambda: self.bank.missing(block))
            if not missing:
                return
            started = time.perf_counter()
            # Before the first step the policy is what it began as.
            with self.initial_weights() if step else nullcontext():
                self.engine.sync()
                tokens = sum(self._write(steps, sampling) for steps in _consecutive(missing))
            self.engine.sync()
        message = f"explanations of steps {first + 1} to {block[-1] + 1}: {tokens} tokens"
        print(f"{message}, {time.perf_counter() - started:.0f} s, in {self.bank.folder}", flush=True)

    def _write(self, steps: Sequence[int], sampling: Sampling) -> int:
        requests = [r for step in steps for r in self.requests_of(step)]
        started = time.perf_counter()
        explanations = self.engine.generate(requests, sampling) if requests else []
        seconds = time.perf_counter() - started
        self.written_s += seconds
        self.ranks.by_first(lambda: self.bank.save(steps, requests, explanations, seconds))
        return sum(len(c.ids) for c in explanations)


def fingerprint(model: nn.Module) -> str:
    """Return a hash of numbers of every weight of the initial policy, but for a LoRA adapter: it begins as nothing."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            values = as_numbers(weight).flatten()
            # A clone: numpy keeps hold of what it is given, and a weight that it holds cannot give its memory back.
            some = values[:: max(1, len(values) // SAMPLES)].clone().float().cpu().numpy()
            digest.update(some.tobytes())
    return digest.hexdigest()[:10]


def _consecutive(steps: Sequence[int]) -> Iterator[list[int]]:
    for _, run in groupby(enumerate(steps), lambda place: place[1] - place[0]):
        yield [step for _, step in run]
