"""The bank: explanations written ahead by the initial policy, the same as those of a run that writes its own."""

import errno
import hashlib
import json
import threading
from contextlib import contextmanager, suppress
from functools import partial

import pyarrow as pa
import pytest
import torch
from conftest import compose_config
from running import SMALL, run, scalars, weights

from expo import config
from expo.cli import COMMANDS
from expo.config import UserError
from expo.config.identity import bank_identity
from expo.jobs import wiring
from expo.jobs.explain import explain
from expo.jobs.wiring import build_run
from expo.model.modes import as_it_began
from expo.model.small import random_tiny
from expo.rollout.engine import Completion, Request, Sampling
from expo.rollout.noise import EXPLAIN, NoiseKey
from expo.runs.reading import read_lines, read_summary
from expo.step.positives import bank as banks
from expo.step.positives.bank import Bank, BankedEngine, fingerprint
from expo.tables.aggregate import cost_of
from expo.verifier.pool import Verifier

SAMPLING = Sampling(1.0, 1.0, 0, 8)
long = partial(pytest.param, marks=pytest.mark.long)
LEVEL_2 = ["dataset=ladder", "dataset.levels=[2]", "trainer.max_steps=6"]


def request(step, row=0, prompt=(5, 6)):
    return Request((*prompt, step), NoiseKey(0, EXPLAIN, step, row), row)


def requests_of(step):
    return [request(step, row) for row in range(2)]


class Writer:
    """Writes the row and the step of a request."""

    def __init__(self):
        self.calls, self.told = [], []

    def sync(self):
        self.told.append("sync")

    @contextmanager
    def begun(self):
        self.told.append("begun")
        try:
            yield
        finally:
            self.told.append("restored")

    def generate(self, requests, sampling, follow=None):
        self.told.append("write")
        self.calls.append([r.key.step for r in requests])
        return [Completion(r.prompt, [r.key.step, r.key.row], [0.0, 0.0], r.key.row == 1, r.problem) for r in requests]


def throughput(directory):
    """What a step says of its speed, and what that would be if it had generated all tokens itself."""
    for line in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()):
        if "time/rollout_s" in line:
            seconds = sum(v for k, v in line.items() if k.startswith("time/"))
            yield line["throughput/tokens_per_s"] * (1 + 1e-6), line["throughput/tokens_generated"] / seconds


@pytest.fixture
def reading(tmp_path, monkeypatch):
    """Make an engine on the one bank of this test, with a writer of its own."""
    monkeypatch.setattr(banks, "PART", 4)

    def make(steps):
        writer = Writer()
        return BankedEngine(Bank(tmp_path, "one"), steps, requests_of, writer, writer.begun)

    return make


@pytest.mark.runs
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        long(
            ["positives.gate=all_wrong", "dataset.levels=[4]", "positives.samples=2", "positives.selection=most_likely"]
        ),
        long(["positives.use=group_member", "algorithm.kl_coef=0.05"]),
        long(["algorithm=star", "dataset.levels=[4]", "algorithm.restart_every=0", "positives.explainer=reference"]),
        long(["algorithm=exp_sft"]),
        long(["positives=expert_paraphrase", "prompts.paraphrase='{question} answer {answer} {solution}'"]),
        long(["positives=shuffled_answer"]),
        ["model.lora_rank=4"],
    ],
    ids=lambda o: o[0] if o else "exp_grpo",
)
def test_a_run_with_a_bank_is_the_run_without_bit_for_bit(overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(banks, "PART", 8)  # two steps at a time: the policy has learned when it writes most of it
    found = []
    for given in ("true", "false"):
        code, directory = run(tmp_path / given, *LEVEL_2, *overrides, f"positives.bank={given}")
        assert code == 0
        found.append((scalars(directory), weights(directory), directory.name))
        assert any(said < all_of_it for said, all_of_it in throughput(directory)) == (given == "true")
    (ours, ours_weights, name), (theirs, theirs_weights, other_name) = found
    assert (ours, name) == (theirs, other_name)
    assert all(torch.equal(theirs_weights[k], v) for k, v in ours_weights.items())
    assert list((tmp_path / "true").glob("banks/*/steps-*.parquet"))
    assert not list((tmp_path / "false").glob("banks"))


@pytest.mark.long
@pytest.mark.runs
def test_runs_that_learn_otherwise_share_it_and_longer_ones_add_to_it(tmp_path, capsys):
    _, writer = run(tmp_path, *LEVEL_2)
    assert "explanations of steps 1 to 6: " in capsys.readouterr().out
    run(tmp_path, *LEVEL_2, "positives.weight=0.5", "algorithm.kl_coef=0.1", "positives.gate=all_wrong")
    _, reader = run(tmp_path, *LEVEL_2, "positives.weight=0.5")
    assert "explanations of" not in capsys.readouterr().out
    written, read = (sum(line.get("time/shared_s", 0) for line in read_lines(d)) for d in (writer, reader))
    assert written == pytest.approx(0, abs=1e-6)  # it has used all that it wrote
    assert read > 0
    assert cost_of([reader])["seconds"] == pytest.approx(read_summary(reader)["wall_s"] + read)
    run(tmp_path, *LEVEL_2, "trainer.max_steps=8")
    assert "explanations of steps" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.glob("banks/*/*.parquet")) == [
        "steps-000000-000005.parquet", "steps-000006-000007.parquet",
    ]  # fmt: skip
    run(tmp_path, *LEVEL_2, "seed=1")
    assert "explanations of steps 1 to 6: " in capsys.readouterr().out
    assert len(list(tmp_path.glob("banks/*"))) == 2


@pytest.mark.runs
def test_expo_explain_fills_it_and_says_what_it_is_like(tmp_path, capsys):
    assert COMMANDS["explain"] == ("expo.jobs.explain", "explain")
    assert explain(compose_config(f"output_dir={tmp_path}", *SMALL, *LEVEL_2)) == 0
    told = capsys.readouterr().out
    assert "24 explanations for 6 steps" in told
    row = [cell.strip() for cell in told.split("all ")[-1].split("│")]
    assert row[1] == "24"
    assert float(row[5]) != 0  # answer lift, of the first step's
    assert row[6].endswith("%")  # sound
    run(tmp_path, *LEVEL_2)
    assert "explanations of steps" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [["positives.explainer=current"], ["positives.bank=false"], ["algorithm=exp_dpo_offline"], ["algorithm=grpo"],
     ["algorithm.refills=2"], ["positives=wrong_answer"]],
)  # fmt: skip
def test_what_cannot_be_written_ahead_has_no_bank(overrides, tmp_path):
    cfg = compose_config(f"output_dir={tmp_path}", "algorithm=exp_grpo", *overrides)
    assert not cfg.positives.from_bank(cfg.algorithm)
    with pytest.raises(UserError, match="nothing that can be written ahead"):
        explain(cfg)


def test_no_copy_of_the_initial_policy_stays_in_memory(tmp_path):
    def reference(*overrides):
        cfg = compose_config(f"output_dir={tmp_path}", *SMALL, "algorithm=exp_grpo", *overrides)
        with Verifier(cfg.verifier) as verifier:
            return build_run(cfg, verifier)[0].reference

    assert reference() is None
    assert reference("positives.bank=false") is not None
    assert reference("algorithm.kl_coef=0.1") is not None
    assert reference("algorithm.refills=1") is not None
    assert reference("algorithm.refills=1", "model.lora_rank=4") is None  # the policy without its adapter
    assert reference("algorithm=star", "positives.bank=false", "model.lora_rank=4") is not None  # which begins again


@pytest.mark.parametrize(
    ("overrides", "engines"),
    [
        (["algorithm.kl_coef=0.1"], 1),  # the copy scores, and generates nothing: with vLLM no second engine
        (["algorithm.kl_coef=0.1", "positives.bank=false"], 2),
        (["algorithm=nurl", "algorithm.kl_coef=0.1"], 2),
        (["positives.explainer=snapshot"], 2),
    ],
)
def test_only_who_generates_has_an_engine(overrides, engines, tmp_path, monkeypatch):
    made, make = [], wiring.make_engine
    monkeypatch.setattr(wiring, "make_engine", lambda *args: made.append(args[1]) or make(*args))
    cfg = compose_config(f"output_dir={tmp_path}", *SMALL, "algorithm=exp_grpo", *overrides)
    with Verifier(cfg.verifier) as verifier:
        build_run(cfg, verifier)
    assert len(made) == engines


@pytest.mark.long
@pytest.mark.runs
def test_a_lora_policy_explains_as_its_initial_self_without_a_copy(tmp_path, monkeypatch):
    found = []
    for copied in (True, False):
        monkeypatch.setattr(config.RolloutConf, "in_place", property(lambda self, copied=copied: not copied))
        _, directory = run(
            tmp_path / str(copied),
            *LEVEL_2,
            "positives.bank=false",
            "model.lora_rank=4",
            "optimizer.learning_rate=1e-2",
        )
        found.append((scalars(directory), weights(directory)))
    (with_copy, weights_with), (without, weights_without) = found
    assert with_copy == without
    assert all(
        torch.equal(weights_without[name], weight) for name, weight in weights_with.items() if "reference" not in name
    )


@pytest.mark.parametrize(
    ("same", "change"),
    [
        (True, "positives.weight=0.5"), (True, "optimizer.learning_rate=1e-5"), (True, "algorithm.group_size=16"),
        (True, "trainer.max_steps=7"), (True, "positives.filters=[]"), (True, "algorithm=star"),
        (False, "seed=1"), (False, "positives.samples=2"), (False, "trainer.problems_per_step=8"),
        (False, "rollout.temperature=0.9"), (False, "prompts.explain='{question} " "{answer}'"), (False, "model=random_tiny"),  # noqa: E501
        (False, "dataset.limit=100"), (False, "positives=shuffled_answer"), (False, "rollout.max_completion_tokens=70"),
        (False, "hints=self_made"), (True, "hints=expert_prefix"),
    ],
)  # fmt: skip
def test_a_bank_is_known_by_what_changes_its_explanations(same, change):
    rows = ("algorithm=exp_grpo", "dataset=gsm8k", "model=random_tiny")
    assert bank_identity(compose_config(*rows)) == bank_identity(compose_config(*rows, "verifier.workers=1"))
    assert bank_identity(compose_config(*rows)) != bank_identity(compose_config(*rows, "verifier=exact"))
    base = bank_identity(compose_config("algorithm=exp_grpo"))
    if change == "algorithm=star":  # another kind of source, which may ask for others
        assert bank_identity(compose_config(change)) != base
    else:
        assert (bank_identity(compose_config("algorithm=exp_grpo", change)) == base) is same


def test_it_gives_what_was_written_for_each_request(reading):
    engine = reading(steps=5)
    made = engine.generate([request(3, 1), request(0, 0), request(4, 1)], SAMPLING)
    assert [(c.ids, c.truncated, c.problem, c.prompt) for c in made] == [
        ([3, 1], True, 1, (5, 6, 3)), ([0, 0], False, 0, (5, 6, 0)), ([4, 1], True, 1, (5, 6, 4)),
    ]  # fmt: skip
    assert engine.engine.calls == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4]]  # whole blocks, and none beyond the run
    again = reading(steps=5)
    again.generate([request(3), request(2)], SAMPLING)
    assert again.engine.calls == []
    longer = reading(steps=6)
    longer.generate([request(5)], SAMPLING)
    assert longer.engine.calls == [[5, 5]]


def test_who_reads_pays_what_it_reads_and_who_writes_pays_no_more(reading, monkeypatch):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr(banks.time, "perf_counter", lambda: next(clock))
    steps = [[request(step, row) for row in range(2)] for step in range(4)]

    def paid(engine, asked):
        return [engine.shared_s(engine.generate(requests, SAMPLING)) for requests in asked]

    assert paid(reading(steps=4), steps) == [3.5 - 7, 3.5, 3.5 - 7, 3.5]  # blocks of two steps, 7 s each
    assert paid(reading(steps=4), steps) == [3.5] * 4
    assert paid(reading(steps=4), [requests[:1] for requests in steps]) == [1.75] * 4  # half of the tokens


def test_after_the_first_step_the_policy_writes_with_the_weights_that_it_began_with(reading):
    engine = reading(steps=6)
    for step in range(4):
        engine.generate([request(step)], SAMPLING)
    # Synced with them before it writes, and with its own afterwards.
    assert engine.engine.told == ["sync", "write", "sync", "begun", "sync", "write", "restored", "sync"]


def test_one_part_at_a_time_is_in_memory(reading):
    engine = reading(steps=6)
    for step in range(6):
        engine.generate([request(step)], SAMPLING)
        assert len(engine.bank.steps) == 2


def test_a_full_disk_leaves_what_was_written_and_nothing_else(reading, monkeypatch):
    write = pa.parquet.write_table

    def full(table, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    engine = reading(steps=6)
    engine.generate([request(1)], SAMPLING)
    monkeypatch.setattr(pa.parquet, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        engine.generate([request(2)], SAMPLING)
    assert engine.engine.told[-1] == "restored"
    assert sorted(path.name for path in engine.bank.folder.iterdir()) == [
        "steps-000000-000001.parquet", "steps-000000-000001.sha256", "steps.lock",
    ]  # fmt: skip
    monkeypatch.setattr(pa.parquet, "write_table", write)
    assert engine.generate([request(2)], SAMPLING)[0].ids == [2, 0]


def test_a_part_without_its_digest_was_not_finished(reading):
    engine = reading(steps=4)
    engine.generate([request(0)], SAMPLING)
    (engine.bank.folder / "steps-000002-000003.parquet").write_bytes(b"half")
    assert engine.generate([request(2)], SAMPLING)[0].ids == [2, 0]


def test_a_part_is_asked_for_steps_and_not_walked_through(reading, monkeypatch):
    """A name may promise more steps than memory has room for."""

    class Endless:
        def __contains__(self, step):
            return step != 3

        def __iter__(self):
            raise AssertionError("a step at a time")

    bank = reading(steps=4).bank
    monkeypatch.setattr(Bank, "parts", lambda self: {bank.folder / "steps-000000-999999999.parquet": Endless()})
    assert bank.missing(range(5)) == [3]


def test_what_killed_writers_have_left_goes_when_the_next_one_writes(reading):
    engine = reading(steps=4)
    for name in ("steps-000000-000001.99.tmp", ".steps-000002-000003.parquet.99.tmp"):
        (engine.bank.folder / name).write_bytes(b"half")
    engine.generate([request(0)], SAMPLING)
    assert not list(engine.bank.folder.glob("*.tmp"))


def test_two_at_once_write_everything_once(reading):
    engines = [reading(steps=8) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda e=engine: [e.generate([request(s)], SAMPLING) for s in range(8)])
        for engine in engines
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(step for e in engines for call in e.engine.calls for step in call) == sorted([*range(8), *range(8)])


def changed(part):
    part.write_bytes(part.read_bytes()[:-40])


def written_anew(part, change):
    table = pa.parquet.read_table(part)
    pa.parquet.write_table(change(table), part)
    part.with_suffix(".sha256").write_text(hashlib.sha256(part.read_bytes()).hexdigest())


def of_another_model(part):
    told = {b"bank": json.dumps({"identity": "another"})}
    written_anew(part, lambda table: table.replace_schema_metadata(told))


def without_a_column(part):
    written_anew(part, lambda table: table.drop_columns(["ids"]))


@pytest.mark.parametrize(
    ("damage", "told"),
    [(changed, "SHA-256 differs"), (of_another_model, "of the bank another"), (without_a_column, "cannot be read")],
)
def test_a_part_that_is_not_what_was_written_is_refused_in_one_line(reading, damage, told):
    engine = reading(steps=4)
    engine.generate([request(0), request(2)], SAMPLING)
    damage(engine.bank.folder / "steps-000002-000003.parquet")
    engine = reading(steps=4)
    assert engine.generate([request(1)], SAMPLING)
    with pytest.raises(UserError, match=told) as error:
        engine.generate([request(2)], SAMPLING)
    assert "\n" not in str(error.value)
    assert "delete it" in str(error.value)


def test_weights_are_known_by_their_numbers_and_not_by_an_adapter():
    from peft import LoraConfig, get_peft_model

    model, _ = random_tiny()
    before = fingerprint(model)
    assert fingerprint(random_tiny()[0]) == before
    assert fingerprint(get_peft_model(random_tiny()[0], LoraConfig(target_modules="all-linear"))) == before
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    assert fingerprint(model) != before


@pytest.mark.runs
def test_a_hub_id_with_other_weights_is_told(tmp_path, monkeypatch):
    run(tmp_path, *LEVEL_2, "trainer.max_steps=1")
    monkeypatch.setattr("expo.jobs.wiring.fingerprint", lambda policy: "others")
    with pytest.raises(UserError, match="whose model, prompts"):
        run(tmp_path, *LEVEL_2, "trainer.max_steps=1", "positives.weight=0.5")


@pytest.mark.runs
def test_a_model_that_was_changed_while_a_run_goes_on_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(banks, "PART", 4)
    found = iter(["first", "others"])
    monkeypatch.setattr("expo.jobs.wiring.fingerprint", lambda policy: next(found))
    with pytest.raises(UserError, match="has other weights than when the run began"):
        run(tmp_path, *LEVEL_2)
    assert [p.name for p in tmp_path.glob("banks/*/*.parquet")] == ["steps-000000-000000.parquet"]


def test_a_policy_has_its_own_weights_again_to_the_bit():
    policy, begun = random_tiny()[0], random_tiny()[0]
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.1)
    own = [w.clone() for w in policy.parameters()]
    with suppress(KeyboardInterrupt), as_it_began(policy, begun):
        assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), begun.parameters(), strict=True))
        raise KeyboardInterrupt
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), own, strict=True))


def test_no_explanation_of_another_prompt_is_given(reading):
    engine = reading(steps=2)
    engine.generate([request(0)], SAMPLING)
    with pytest.raises(UserError, match="has an explanation of another prompt for step 2"):
        engine.generate([request(1, prompt=(7,))], SAMPLING)
    with pytest.raises(UserError, match="has no explanation for step 2"):
        engine.generate([request(1, row=7)], SAMPLING)
