"""One run on several devices: the same completions, metrics and weights as on one. Here they are processes on the
CPU."""

import copy
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import ROOT, compose_config
from running import SMALL, expo, run, scalars, weights
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel

from expo.commands.train import train
from expo.config import PartialConf, UserError, check, run_dir
from expo.ground.problem import Problem
from expo.ground.ranks import ALONE, Apart, Ranks
from expo.jobs import wiring
from expo.jobs.wiring import build_run
from expo.model.modes import as_it_began, compute_in
from expo.model.scoring import score, token_batch
from expo.model.shares import whole_state
from expo.rollout.dealt import DealtEngine
from expo.rollout.engine import Completion, Request, Sampling
from expo.rollout.noise import SOLVE, NoiseKey
from expo.rollout.sharded import shard, shared_out
from expo.runs.reading import read_rows
from expo.step.pipeline import Pipeline
from expo.step.positives.bank import fingerprint
from expo.step.rewards import Partial
from expo.tables.launch import own_gpus
from expo.verifier.answers import Verdict
from expo.verifier.pool import Verifier

# Level 2, where the base policy is right sometimes: every stream is busy. And AdamW's ε of 1e-6, for it divides a
# gradient by its size: one that is nothing but rounding would move its weight as far as any other.
LADDER = ["dataset=ladder", "dataset.levels=[2]", "trainer.accelerator=cpu", "evaluation.every=2", "optimizer.eps=1e-6"]
STRATEGIES = ["ddp", "fsdp"]
BUSY = ["algorithm.kl_coef=0.05", "algorithm.updates_per_rollout=2"]


def completions(directory: Path) -> dict[str, list]:
    """Everything that was sampled, by file."""
    files = sorted((directory / "completions").glob("*.parquet"))
    return {f.name: [(r["problem"], r["completion"], r["verdict"]) for r in read_rows(f)] for f in files}


def assert_same(ours: Path, theirs: Path) -> None:
    assert completions(ours) == completions(theirs)
    assert len(scalars(ours)) == len(scalars(theirs))
    for mine, other in zip(scalars(ours), scalars(theirs), strict=True):
        undefined = {name for name, value in other.items() if value is None}
        assert undefined == {name for name, value in mine.items() if value is None}
        assert {k: v for k, v in mine.items() if v is not None} == pytest.approx(
            {k: v for k, v in other.items() if v is not None}, rel=1e-5, abs=1e-5
        )
    mine, other = weights(ours), weights(theirs)
    assert mine.keys() == other.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], atol=1e-5, rtol=0)
        assert (mine[name] - other[name]).abs().mean() < 1e-6


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.usefixtures("warm")
def test_two_devices_make_the_run_of_one(strategy, tmp_path, capfd):
    overrides = [*LADDER, *BUSY, "trainer.max_steps=3"]
    _, one = run(tmp_path / "one", *overrides)
    capfd.readouterr()
    code, two = run(tmp_path / "two", *overrides, "trainer.devices=2", f"trainer.strategy={strategy}")
    assert code == 0
    assert_same(two, one)
    assert capfd.readouterr().out.count("done at step 3") == 1
    assert not list(two.glob("device*.log"))
    assert one.name == two.name  # the number of devices is no part of a run's identity


MATRIX = {
    "grpo": ["algorithm=grpo", "algorithm.kl_coef=0.05"],
    "always": ["algorithm=exp_grpo"],
    "all_wrong": ["algorithm=exp_grpo", "positives.gate=all_wrong", "dataset.levels=[2,5]"],
    "no positives": ["algorithm=exp_grpo", "positives.gate=all_wrong", "dataset.levels=[1]"],
    "online DPO": ["algorithm=exp_dpo_online", "algorithm.pairs_every=2"],
    "offline DPO": ["algorithm=exp_dpo_offline"],
    "sft": ["algorithm=sft"],
    "star": ["algorithm=star", "algorithm.restart_every=2"],
    "luffy": ["algorithm=luffy"],
    "nurl": ["algorithm=nurl", "dataset.levels=[4]"],
    "dapo": ["algorithm=dapo", "dataset.levels=[3]"],
    "checkpointing": ["algorithm=exp_grpo", "model.gradient_checkpointing=true"],
    "packed": ["algorithm=exp_grpo", "trainer.packing=true"],
    "lora": ["algorithm=exp_grpo", "model.lora_rank=4", "algorithm.kl_coef=0.05"],
    "cache": ["algorithm=exp_grpo", "positives.cache_steps=8", "dataset.limit=6"],
    "opsd": ["algorithm=opsd_answer", "algorithm.updates_per_rollout=2"],
    "sdpo": ["algorithm=sdpo", "algorithm.top_k=5", "dataset.levels=[1,4]"],
    "sdpg": ["algorithm=sdpg"],
    "rlcsd": ["algorithm=rlcsd", "dataset.levels=[2,4]"],
    "distill": ["algorithm=exp_grpo_distill", "model.lora_rank=4"],
    "retry": ["algorithm=grpo", "algorithm.retry=0.3", "dataset.levels=[1,4]", "dataset.limit=6"],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MATRIX)
def test_any_number_of_devices_makes_the_run_of_one(kind, tmp_path):
    overrides = [*LADDER, *MATRIX[kind], "trainer.max_steps=3"]
    _, one = run(tmp_path / "one", *overrides)
    for devices, strategy in itertools.product((2, 4), STRATEGIES):
        several = [f"trainer.devices={devices}", f"trainer.strategy={strategy}"]
        code, made = run(tmp_path / f"{devices}-{strategy}", *overrides, *several)
        assert code == 0, several
        assert_same(made, one)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_devices_than_rows(strategy, tmp_path):
    overrides = [*LADDER, "trainer.problems_per_step=1", "algorithm.group_size=2", "trainer.max_steps=2"]
    _, one = run(tmp_path / "one", *overrides)
    code, four = run(tmp_path / "four", *overrides, "trainer.devices=4", f"trainer.strategy={strategy}")
    assert code == 0
    assert_same(four, one)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["model.lora_rank=4"]])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_goes_on_with_other_devices(strategy, more, tmp_path):
    overrides = [*LADDER, *BUSY, *more, "trainer.max_steps=8"]
    _, one = run(tmp_path / "one", *overrides)
    for devices, stop_after, kind in ((4, 2, strategy), (2, 4, strategy), (1, 6, "ddp"), (2, "null", strategy)):
        several = [f"trainer.devices={devices}", f"trainer.strategy={kind}", f"trainer.stop_after={stop_after}"]
        code, parts = run(tmp_path / "parts", *overrides, *several)
        assert code == 0
    assert_same(parts, one)


@pytest.mark.slow
def test_explanations_that_shared_weights_write_later_are_those_of_the_beginning(tmp_path):
    """A bank that is gone is written again by the initial policy, though the devices hold shares of a later one."""
    overrides = [*LADDER, "algorithm=exp_grpo", "trainer.max_steps=4", "optimizer.learning_rate=0.001"]
    _, one = run(tmp_path / "one", *overrides)
    several = ["trainer.devices=2", "trainer.strategy=fsdp"]
    run(tmp_path / "two", *overrides, *several, "trainer.stop_after=2")
    for bank in (tmp_path / "two").glob("banks/*"):
        shutil.rmtree(bank)
    code, two = run(tmp_path / "two", *overrides, *several)
    assert code == 0
    assert_same(two, one)


def started(tmp_path: Path, *overrides: str) -> tuple[subprocess.Popen, list[psutil.Process], Path]:
    """A run on two devices under way, the processes of its devices, and its directory."""
    options = [*SMALL, *LADDER, "trainer.max_steps=400", "trainer.devices=2", "evaluation.every=0", *overrides]
    process = expo("train", *options, "output_dir=runs", cwd=tmp_path)
    directory = run_dir(compose_config(f"output_dir={tmp_path / 'runs'}", *options))
    lines = directory / "metrics.jsonl"
    while not (lines.is_file() and len(lines.read_text().splitlines()) > 3):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    children = psutil.Process(process.pid).children()
    own = [c for c in children if "expo.jobs.device" in c.cmdline()]
    assert len(own) == 2
    return process, sorted(own, key=lambda c: int(c.environ()["RANK"])), directory


def ended(process: subprocess.Popen, devices: list[psutil.Process]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=60)
    assert not any(d.is_running() and d.status() != psutil.STATUS_ZOMBIE for d in devices)
    return process.returncode, out


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.parametrize(
    ("rank", "strategy"), [(0, "ddp"), (1, "ddp"), pytest.param(1, "fsdp", marks=pytest.mark.slow)]
)
def test_a_killed_device_ends_the_run_with_one_line_and_the_same_command_goes_on(rank, strategy, tmp_path):
    process, devices, directory = started(tmp_path, "trainer.checkpoint_every=2", f"trainer.strategy={strategy}")
    devices[rank].kill()
    code, out = ended(process, devices)
    assert code == 1
    said = [line for line in out.splitlines() if line.startswith("expo: ")]
    assert said == [
        f"expo: device {rank} of 2: was ended by SIGKILL; the same command goes on from the last checkpoint"
    ]
    assert "Traceback" not in out
    assert json.loads((directory / "summary.json").read_text())["status"] == "stopped"
    if rank:
        resume = [
            "trainer.devices=2",
            f"trainer.strategy={strategy}",
            "trainer.max_steps=400",
            "evaluation.every=0",
            "trainer.stop_after=1",
        ]
        assert run(tmp_path / "runs", *LADDER, "trainer.checkpoint_every=2", *resume)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whom", ["all", "one device"])
def test_a_signal_stops_all_devices_after_the_same_step(number, whom, tmp_path):
    process, devices, directory = started(tmp_path)
    (process if whom == "all" else psutil.Process(devices[1].pid)).send_signal(number)
    code, out = ended(process, devices)
    assert code == 128 + number
    assert "Traceback" not in out
    assert json.loads((directory / "summary.json").read_text())["status"] == "stopped"
    assert list((directory / "checkpoints").glob("step*.ckpt"))


@pytest.mark.slow
def test_devices_end_with_who_watches_over_them(tmp_path):
    process, devices, _ = started(tmp_path)
    process.kill()
    process.wait()
    psutil.wait_procs(devices, timeout=60)
    assert not any(d.is_running() and d.status() != psutil.STATUS_ZOMBIE for d in devices)


BROKEN = """
import os
from expo.step.rewards import Correct

class Reward(Correct):
    def __call__(self, rollouts):
        if os.environ.get("RANK") == "1":
            raise ValueError("the reward of device 1 is broken")
        return super().__call__(rollouts)
"""


CRITIC = """
import torch
from torch import nn
from expo.algorithms.grpo import GRPO
from expo.algorithms.terms import Term

class Value(Term):
    name = "value"

    def __init__(self, critic):
        self.critic = critic

    def __call__(self, scored, sums):
        place = scored.mask.cumsum(dim=1).unsqueeze(-1) / 10
        value = self.critic(torch.cat([place, place.square()], dim=-1)).squeeze(-1)
        sums.mean("critic/value", (scored.on_policy * value).sum(), scored.on_policy.sum())
        return scored.on_policy * (value - scored.advantages.unsqueeze(1)).square()

class WithCritic(GRPO):
    def __init__(self, conf, components):
        super().__init__(conf, components)
        torch.manual_seed(0)
        self.critic = nn.Linear(2, 1)
        self.terms = [*self.terms, Value(self.critic)]

    @property
    def trained(self):
        return [self.policy, self.critic]
"""


@pytest.mark.long
@pytest.mark.runs
def test_a_critic_is_one_override_and_the_same_on_two_devices(tmp_path, monkeypatch):
    """Its gradients are summed over devices, clipped and checked with the policy's."""
    (tmp_path / "critical.py").write_text(CRITIC)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    options = [*LADDER, "algorithm=grpo", "algorithm._target_=critical.WithCritic", "trainer.max_steps=3"]
    code, one = run(tmp_path / "one", *options)
    assert code == 0
    code, two = run(tmp_path / "two", *options, "trainer.devices=2")
    assert code == 0
    assert_same(one, two)
    torch.manual_seed(0)
    assert not torch.equal(weights(one)["critic.weight"], torch.nn.Linear(2, 1).weight)  # it has learned
    losses = [line["loss/value"] for line in scalars(one) if "loss/value" in line]
    assert len(losses) == 3
    assert all("critic/value" in line for line in scalars(two) if "loss/value" in line)


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.usefixtures("warm")
def test_an_error_on_one_device_ends_the_run_with_its_line(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    options = [
        *SMALL,
        *LADDER,
        "trainer.devices=2",
        "trainer.max_steps=3",
        "reward._target_=broken.Reward",
        "output_dir=runs",
    ]
    process = expo("train", *options, cwd=tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert "expo: device 1 of 2: ValueError: the reward of device 1 is broken; the same command" in out
    assert "Traceback" not in out
    (log,) = tmp_path.glob("runs/*/*/device1.log")
    assert "Traceback" in log.read_text()  # the whole of it


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.usefixtures("warm")
def test_a_mistake_is_told_once(tmp_path):
    process = expo(
        "train",
        *SMALL,
        "dataset=ladder",
        "trainer.devices=2",
        "rollout.max_prompt_tokens=5",
        "output_dir=runs",
        cwd=tmp_path,
    )
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out.count("rollout.max_prompt_tokens=5") == 1
    assert "Traceback" not in out


@pytest.mark.slow
def test_torchrun_starts_the_devices_as_well(tmp_path):
    overrides = [*SMALL, *LADDER, *BUSY, "trainer.max_steps=2"]
    _, one = run(tmp_path / "one", *LADDER, *BUSY, "trainer.max_steps=2")
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "expo", "train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*line, *overrides, "trainer.devices=2", "output_dir=two"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_same(run_dir(compose_config(f"output_dir={tmp_path / 'two'}", *overrides)), one)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["trainer.devices=0"], r"trainer\.devices=0: must be greater than 0"),
        (
            ["trainer.devices=2", "rollout=vllm_server", "rollout.device=1"],
            r"trainer\.devices=2: .* set rollout\.device=null",
        ),
        (["trainer.devices=2", "rollout=vllm_server", "rollout.tensor_parallel=2"], r"rollout\.tensor_parallel=1"),
        (["rollout=vllm", "rollout.tensor_parallel=2"], r"tensor_parallel=2: .* use rollout=vllm_server"),
        (["trainer.strategy=fsdp"], r"trainer\.strategy=fsdp: .* there is one; set trainer\.devices"),
        (["trainer.num_nodes=2"], r"trainer\.num_nodes=2: start one process per device with torchrun"),
    ],
)
def test_devices_that_cannot_work_are_refused(overrides, told, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # as if vLLM were there
    with pytest.raises(UserError, match=told):
        check(compose_config("dataset=ladder", *overrides))


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"trainer\.devices=1, trainer\.num_nodes=1: 2 processes were started"):
        train(compose_config("dataset=ladder", f"output_dir={tmp_path}"))


def test_logs_that_a_full_disk_has_no_room_for_are_no_second_line(tmp_path, monkeypatch):
    cfg = compose_config("dataset=ladder", *SMALL, f"output_dir={tmp_path}", "trainer.devices=2")

    def fails(command, devices, folder, locks):
        (folder / "device1.log").write_text("it ended")
        run_dir(cfg).mkdir(parents=True, exist_ok=True)
        return 1

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("expo.commands.train.run_on_devices", fails)
    monkeypatch.setattr("shutil.copy", full)
    assert train(cfg) == 1


def test_alone_nothing_is_dealt_and_nothing_is_sent():
    items, sums = list(range(5)), {"a": 1.0}
    assert ALONE.whole(ALONE.own(items)) == items
    assert ALONE.by_first(lambda: "made") == "made"
    ALONE.add_up(sums, {"a": 0.5})
    assert sums == {"a": 1.0}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_make_up_the_whole_in_order(count):
    items = list(range(11))
    shares = [Ranks(rank, count).own(items) for rank in range(count)]
    assert sorted(x for share in shares for x in share) == items
    together = Gathered(0, count, shares)
    assert together.whole(shares[0]) == items


class Gathered(Ranks):
    """A process that hears at once what the others have."""

    def __init__(self, rank, count, shares):
        super().__init__(rank, count)
        object.__setattr__(self, "shares", shares)

    def _gather(self, value):
        return self.shares


class InStep(Ranks):
    """One of several processes that are threads here: they wait for each other where processes would."""

    def __init__(self, rank, said, barrier):
        super().__init__(rank, len(said))
        object.__setattr__(self, "said", said)
        object.__setattr__(self, "barrier", barrier)

    def _gather(self, value):
        self.said[self.rank] = value
        self.barrier.wait()
        heard = list(self.said)
        self.barrier.wait()
        return heard


def test_a_reward_gets_whole_groups_and_the_scores_of_its_own_rollouts_on_every_device():
    texts = [str(row / 10) for row in range(1, 10)]  # three groups of three wrong rollouts, each with its score
    asked: list[list[str]] = []

    class Scores:
        def score(self, completions, problems):
            return [(Verdict.INCORRECT, float(c)) for c in completions]

    def reward(rollouts):
        asked.append([r.text for r in rollouts])
        return Partial(PartialConf())(rollouts)

    def judge(rank):
        tools = SimpleNamespace(texts=lambda ids: texts, verifier=Scores(), ranks=InStep(rank, said, barrier))
        batch = SimpleNamespace(problems=[Problem(str(i), "", "") for i in range(3)], prompts=[()] * 3, step=0)
        rollouts = {i: [Completion((), [0], [0.0], False)] * 3 for i in range(3)}
        return Pipeline.verify(SimpleNamespace(tools=tools, reward=reward), batch, rollouts)

    said, barrier = [None, None], threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for groups in pool.map(judge, range(2)):
            assert [r for group in groups.values() for r in group.rewards] == [float(text) for text in texts]
    assert sorted(asked) == [texts[:3] + texts[6:], texts[3:6]]


def test_a_prompt_is_read_on_one_device_and_completions_come_in_order():
    class Echo:
        def generate(self, requests, sampling, follow=None):
            return [Completion(r.prompt, [r.key.row], [0.0], False, r.problem) for r in requests]

    class Asks(Ranks):
        """Keeps what its share has become."""

        def whole(self, own):
            shares.append(list(own))
            return []

    requests = [Request((i // 3,), NoiseKey(0, SOLVE, 0, i), i // 3) for i in range(12)]
    shares: list[list[list[Completion]]] = []
    for rank in range(3):
        DealtEngine(Echo(), Asks(rank, 3)).generate(requests, Sampling(1.0, 1.0, 0, 4))
    assert all(len({c.prompt for c in group}) == 1 and len(group) == 3 for share in shares for group in share)
    made = Gathered(0, 3, shares).whole(shares[0])
    assert [c.ids for group in made for c in group] == [[i] for i in range(12)]


def test_rows_that_every_device_would_train_on_are_refused(tmp_path):
    cfg = compose_config("dataset=ladder", *SMALL, f"output_dir={tmp_path}")
    with Verifier() as verifier:
        module, _, _ = build_run(cfg, verifier)
    module.ranks = Ranks(0, 2)
    with pytest.raises(TypeError, match="went through no `micro_batches`"):
        module.take_step({})


def test_weights_that_go_apart_end_the_run():
    Gathered(0, 2, [repr([1.5, float("nan")])] * 2).agree([1.5, float("nan")], "the weights")
    with pytest.raises(Apart, match=r"the weights are not the same on the 2 devices"):
        Gathered(0, 2, ["[1.5]", "[1.25]"]).agree([1.5], "the weights")


def test_a_run_gets_as_many_gpus_as_it_wants_and_waits_for_them(tmp_path):
    def named(held):
        return held.get("CUDA_VISIBLE_DEVICES")

    gpus = ["0", "1", "2"]
    with own_gpus(lambda: gpus, 2, tmp_path) as first:
        assert named(first) == "0,1"
        with own_gpus(lambda: gpus, 1, tmp_path) as second:
            assert named(second) == "2"
            waited = []
            with (
                pytest.raises(TimeoutError),
                own_gpus(lambda: gpus, 2, tmp_path, wait=lambda: waited.append(1) or give_up(waited)),
            ):
                pass
            assert len(waited) == 3
    with own_gpus(lambda: gpus, 3, tmp_path) as again:
        assert named(again) == "0,1,2"
    with own_gpus(list, 2, tmp_path) as none:
        assert none == {}
    with own_gpus(lambda: pytest.fail("to look for GPUs imports torch"), 0, tmp_path) as none:
        assert none == {}


def give_up(waited):
    if len(waited) == 3:
        raise TimeoutError


@contextmanager
def alone_in_a_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_a_sharded_model_scores_takes_whole_weights_and_has_a_whole_copy(ladder):
    model, _, _ = ladder
    policy, other = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.01)
    batch = token_batch([[9, 8, 7]] * 2, [[5, 4], [6]], 0, torch.device("cpu"))
    before, after = score(policy, batch), score(other, batch)
    with alone_in_a_group():
        whole = shared_out(policy)
        assert torch.equal(score(whole.model, batch), before)
        fingerprint(whole.model)  # which leaves its memory free to go
        assert all(isinstance(weight, DTensor) for weight in policy.parameters())
        assert torch.equal(score(policy, batch), before)
        whole.free()
        assert sum(weight.untyped_storage().size() for weight in whole.model.parameters()) == 0
        policy.load_state_dict(other.state_dict())  # whole tensors
        assert torch.equal(score(policy, batch), after)
        whole.gather()
        assert torch.equal(score(whole.model, batch), after)
        with as_it_began(policy, model):
            assert torch.equal(score(policy, batch), before)
        assert torch.equal(score(policy, batch), after)
        saved = whole_state(policy.state_dict(keep_vars=True), keep=True)
        assert saved["lm_head.weight"] is saved["model.embed_tokens.weight"]  # tied, and stored once
        torch.testing.assert_close(saved, dict(other.state_dict()))
        assert set(whole_state(policy.state_dict(), keep=False).values()) == {None}


def test_the_first_device_alone_loads_the_initial_policy_again(ladder, monkeypatch):
    """Eight copies in float32 of what fits one GPU are more than a machine has."""
    model, tokenizer, _ = ladder
    policy, sent, loaded = copy.deepcopy(model), [], []
    with torch.no_grad():
        policy.lm_head.weight.add_(1.0)
    changed = policy.lm_head.weight.clone()
    cfg, bank = compose_config("dataset=ladder"), SimpleNamespace(identity=f"x-{fingerprint(model)}")
    monkeypatch.setattr(wiring, "load_model", lambda *args, **more: (loaded.append(1), (model, tokenizer, None))[1])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    named = iter(policy.named_parameters())

    def broadcast(tensor, src):
        name, _ = next(named)
        sent.append(name)
        if not loaded:  # this is the second device, which is sent what the first one has
            tensor.copy_(dict(model.named_parameters())[name])

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)

    class Second(Ranks):
        def by_first(self, make):
            return make() if self.first else fingerprint(model)

    for rank in (1, 0):
        named = iter(policy.named_parameters())
        with wiring.initial_weights(cfg, policy, bank, Second(rank, 2)):
            assert torch.equal(policy.lm_head.weight, model.lm_head.weight)
        assert torch.equal(policy.lm_head.weight, changed)
        assert len(loaded) == (rank == 0)
    assert sent == 2 * [name for name, _ in policy.named_parameters()]


def gradients(policy, batch, monkeypatch):
    """The gradients of a sharded policy under autocast, and the formats in which its layers' weights were gathered."""
    compute_in(policy, "bf16-mixed")
    formats = set()
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda x, w, b=None: (formats.add((tuple(w.shape), w.dtype)), linear(x, w, b))[1]
    )
    score(policy, batch).sum().backward()
    monkeypatch.undo()
    named = {n: whole_state({"g": p.grad}, keep=True)["g"] for n, p in policy.named_parameters()}
    return named, formats


def test_under_autocast_layers_are_gathered_in_16_bit_and_gradients_summed_in_float32(ladder, monkeypatch):
    """To gather float32 sends twice as much for every micro-batch, and autocast casts it again."""
    plain, policy = copy.deepcopy(ladder[0]), copy.deepcopy(ladder[0])
    batch = token_batch([[9, 8, 7]] * 2, [[5, 4], [6]], 0, torch.device("cpu"))
    wanted, _ = gradients(plain, batch, monkeypatch)
    compute_in(policy, "bf16-mixed")
    before = score(plain, batch)
    head = policy.lm_head.weight.shape
    with alone_in_a_group():
        shard(policy)
        assert {p.dtype for p in policy.parameters()} == {torch.float32}
        torch.testing.assert_close(score(policy, batch), before, atol=0.1, rtol=0)  # the norms' weights are rounded
        found, formats = gradients(policy, batch, monkeypatch)
    assert {dtype for shape, dtype in formats if shape != head} == {torch.bfloat16}
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    for name, grad in found.items():
        assert torch.nn.functional.cosine_similarity(grad.flatten(), wanted[name].flatten(), dim=0) > 0.99, name


def test_a_layer_norm_on_a_cpu_keeps_its_format():
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()
    compute_in(policy, "bf16-mixed")
    batch = token_batch([[9, 8, 7]] * 2, [[5, 4], [6]], 0, torch.device("cpu"))
    before = score(policy, batch)
    with alone_in_a_group():
        shard(policy)
        torch.testing.assert_close(score(policy, batch), before, atol=0.02, rtol=0)


def test_weights_of_two_number_formats_are_refused(ladder):
    policy = copy.deepcopy(ladder[0])
    policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.detach().bfloat16())
    with pytest.raises(UserError, match=r"trainer\.strategy=fsdp: .* bfloat16 and float32"):
        shard(policy)
