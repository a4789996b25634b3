"""The bank: explanations written ahead by the initial policy, the same as those of a run that writes its own."""

import errno
import hashlib
import json
import threading

import pyarrow as pa
import pytest
import torch
from conftest import compose_config
from test_train import SMALL, run, scalars, weights

from expo import config
from expo.cli import COMMANDS
from expo.commands.explain import explain
from expo.commands.wiring import build_run
from expo.config import UserError
from expo.model.small import random_tiny
from expo.rollout.engine import Completion, Request, Sampling
from expo.rollout.noise import EXPLAIN, Key
from expo.step.positives import bank as banks
from expo.step.positives.bank import Bank, BankedEngine, fingerprint
from expo.verifier.pool import Verifier

SAMPLING = Sampling(1.0, 1.0, 0, 8)
LEVEL_2 = ["dataset=ladder", "dataset.levels=[2]", "trainer.max_steps=6"]


def request(step, row=0, prompt=(5, 6)):
    return Request((*prompt, step), Key(0, EXPLAIN, step, row), row)


def requests_of(step):
    return [request(step, row) for row in range(2)]


class Writer:
    """Writes the row and the step of a request; dies at a given call."""

    def __init__(self, dies_at=None):
        self.calls, self.dies_at = [], dies_at

    def generate(self, requests, sampling, follow=None):
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        self.calls.append([r.key.step for r in requests])
        return [Completion(r.prompt, [r.key.step, r.key.row], [0.0, 0.0], r.key.row == 1, r.problem) for r in requests]


def throughput(directory):
    """What a step says of its speed, and what that would be if it had generated all tokens itself."""
    for line in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()):
        if "time/rollout_s" in line:
            seconds = sum(v for k, v in line.items() if k.startswith("time/"))
            yield line["throughput/tokens_per_s"] * (1 + 1e-6), line["throughput/tokens_generated"] / seconds


@pytest.fixture
def bank(tmp_path, monkeypatch):
    monkeypatch.setattr(banks, "PART", 4)
    return Bank(tmp_path, "one")


@pytest.mark.runs
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["positives.gate=all_wrong", "dataset.levels=[4]", "positives.samples=2", "positives.selection=most_likely"],
        ["positives.use=group_member", "algorithm.kl_coef=0.05"],
        ["algorithm=star", "dataset.levels=[4]", "algorithm.restart_every=0", "positives.explainer=reference"],
        ["algorithm=exp_sft"],
        ["positives=expert_paraphrase", "prompts.paraphrase='{question} answer {answer} {solution}'"],
        ["positives=shuffled_answer"],
    ],
    ids=lambda o: o[0] if o else "exp_grpo",
)
def test_a_run_with_a_bank_is_the_run_without_bit_for_bit(overrides, tmp_path):
    found = []
    for given in ("true", "false"):
        code, directory = run(tmp_path / given, *LEVEL_2, *overrides, f"positives.bank={given}")
        assert code == 0
        found.append((scalars(directory), weights(directory), directory.name))
        assert any(said < all_of_it for said, all_of_it in throughput(directory)) == (given == "true")
    (ours, ours_weights, name), (theirs, theirs_weights, other_name) = found
    assert (ours, name) == (theirs, other_name)
    assert all(torch.equal(theirs_weights[k], v) for k, v in ours_weights.items())
    assert list((tmp_path / "true").glob("*/banks/*/steps-*.parquet"))
    assert not list((tmp_path / "false").glob("*/banks"))


@pytest.mark.runs
def test_runs_that_learn_otherwise_share_it_and_longer_ones_add_to_it(tmp_path, capsys):
    run(tmp_path, *LEVEL_2)
    assert "explanations of 6 steps are written ahead" in capsys.readouterr().out
    run(tmp_path, *LEVEL_2, "positives.weight=0.5", "algorithm.kl_coef=0.1", "positives.gate=all_wrong")
    assert "written ahead" not in capsys.readouterr().out
    run(tmp_path, *LEVEL_2, "trainer.max_steps=8")
    assert "explanations of 2 steps are written ahead" in capsys.readouterr().out
    run(tmp_path, *LEVEL_2, "seed=1")
    assert "explanations of 6 steps are written ahead" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*/banks/*"))) == 2


@pytest.mark.runs
def test_expo_explain_fills_it_and_says_what_it_is_like(tmp_path, capsys):
    assert COMMANDS["explain"] == ("expo.commands.explain", "explain")
    assert explain(compose_config(f"output_dir={tmp_path}", *SMALL, *LEVEL_2)) == 0
    told = capsys.readouterr().out
    assert "24 explanations for 6 steps" in told
    assert "sound" in told
    run(tmp_path, *LEVEL_2)
    assert "written ahead" not in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("same", "change"),
    [
        (True, "positives.weight=0.5"), (True, "optimizer.learning_rate=1e-5"), (True, "algorithm.group_size=16"),
        (True, "trainer.max_steps=7"), (True, "positives.filters=[]"), (True, "algorithm=star"),
        (False, "seed=1"), (False, "positives.samples=2"), (False, "trainer.problems_per_step=8"),
        (False, "rollout.temperature=0.9"), (False, "prompts.explain='{question} {answer}'"), (False, "model=random_tiny"),
        (False, "dataset.limit=100"), (False, "positives=shuffled_answer"), (False, "rollout.max_completion_tokens=70"),
        (False, "hints=self_made"), (True, "hints=expert_prefix"),
    ],
)  # fmt: skip
def test_a_bank_is_known_by_what_changes_its_explanations(same, change):
    base = config.bank_identity(compose_config("algorithm=exp_grpo"))
    if change == "algorithm=star":  # another kind of source, which may ask for others
        assert config.bank_identity(compose_config(change)) != base
    else:
        assert (config.bank_identity(compose_config("algorithm=exp_grpo", change)) == base) is same


def test_it_gives_what_was_written_for_each_request(bank):
    writer = Writer()
    assert bank.fill(5, requests_of, writer, SAMPLING) == (10, 20)
    assert writer.calls == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4]]
    engine = BankedEngine(Bank(bank.folder, "one"))
    made = engine.generate([request(3, 1), request(0, 0)], SAMPLING)
    assert [(c.ids, c.truncated, c.problem, c.prompt) for c in made] == [
        ([3, 1], True, 1, (5, 6, 3)), ([0, 0], False, 0, (5, 6, 0)),
    ]  # fmt: skip
    assert bank.fill(5, requests_of, writer, SAMPLING) == (0, 0)


def test_one_part_at_a_time_is_in_memory(bank):
    bank.fill(6, requests_of, Writer(), SAMPLING)
    for step in range(6):
        bank.find(request(step))
        assert len(bank.steps) == 2


def test_a_full_disk_while_it_is_filled_leaves_what_was_written_and_nothing_else(bank, monkeypatch):
    write = pa.parquet.write_table

    def full(table, path):
        if "000002" in path.name:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, path)

    monkeypatch.setattr(pa.parquet, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        bank.fill(6, requests_of, Writer(), SAMPLING)
    assert sorted(path.name for path in bank.folder.iterdir()) == [
        "steps-000000-000001.parquet", "steps-000000-000001.sha256", "steps.lock",
    ]  # fmt: skip
    monkeypatch.setattr(pa.parquet, "write_table", write)
    assert bank.fill(6, requests_of, Writer(), SAMPLING) == (8, 16)


def test_a_kill_while_it_is_filled_costs_one_part(bank):
    with pytest.raises(KeyboardInterrupt):
        bank.fill(6, requests_of, Writer(dies_at=1), SAMPLING)
    unfinished = bank.folder / "steps-000002-000003.parquet"
    unfinished.write_bytes(b"half")  # without its SHA-256: not there
    writer = Writer()
    assert bank.fill(6, requests_of, writer, SAMPLING) == (8, 16)
    assert writer.calls == [[2, 2, 3, 3], [4, 4, 5, 5]]


def test_two_that_fill_it_at_once_write_everything_once(bank):
    writers = [Writer(), Writer()]
    threads = [
        threading.Thread(target=Bank(bank.folder, "one").fill, args=(8, requests_of, writer, SAMPLING))
        for writer in writers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(step for w in writers for call in w.calls for step in call) == sorted([*range(8), *range(8)])


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
def test_a_part_that_is_not_what_was_written_is_refused_in_one_line(bank, damage, told):
    bank.fill(4, requests_of, Writer(), SAMPLING)
    damage(bank.folder / "steps-000002-000003.parquet")
    for use in (
        lambda b: b.find(request(2)),
        lambda b: b.fill(4, requests_of, Writer(), SAMPLING),
    ):
        with pytest.raises(UserError, match=told) as error:
            use(Bank(bank.folder, "one"))
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
    monkeypatch.setattr("expo.commands.wiring.fingerprint", lambda policy: "others")
    with pytest.raises(UserError, match="whose model, prompts"):
        run(tmp_path, *LEVEL_2, "trainer.max_steps=1", "positives.weight=0.5")


def test_no_explanation_of_another_prompt_is_given(bank):
    bank.fill(2, requests_of, Writer(), SAMPLING)
    with pytest.raises(UserError, match="has an explanation of another prompt for step 2"):
        bank.find(request(1, prompt=(7,)))
    with pytest.raises(UserError, match="has no explanation for step 8"):
        bank.find(request(7))
