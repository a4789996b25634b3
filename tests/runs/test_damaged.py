"""What is damaged, hostile or absurd is met with one line that names it; nothing is made up in its place."""

import errno
import hashlib
import json
import math
import os
import shutil
import threading
from dataclasses import fields, is_dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from conftest import compose_config, make_prompts
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from expo import config
from expo.cli import main
from expo.config import LADDER, UserError, build, check, identity, model_content, pairs_identity
from expo.config.key import LARGEST, OPTIONS, declaration
from expo.config.run import Config
from expo.evaluation.llm_judge import judge_steps
from expo.jobs.fit import make_run
from expo.jobs.wiring import load_model
from expo.model.policy import load_policy

SMALL = [
    "algorithm=exp_dpo_offline",
    "dataset=ladder_level5",
    "trainer.max_steps=2",
    "evaluation.every=0",
    "trainer.problems_per_step=2",
    "dataset.limit=8",
    "dataset.eval_limit=2",
    "rollout.max_completion_tokens=8",
    "k=[1]",
    "logger=none",
    "positives.filters=[]",
]


# --- a model's folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(LADDER, tmp_path / "model")


def loading(folder: Path) -> str:
    """Return the one line that refuses the model."""
    with pytest.raises(UserError, match=r"model\.path=") as told:
        load_model(compose_config("dataset=ladder", "model=hf", f"model.path={folder}"))
    assert "\n" not in str(told.value)
    return str(told.value)


def with_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * len(b), lambda b: b"{}"]
)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_of_a_model_is_one_line(folder, name, damage):
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    if name == "config.json" and path.read_bytes() == b"{}":
        assert loading(folder)
    else:
        assert "cannot be loaded" in loading(folder)


def test_a_weight_that_is_not_there_is_not_made_up(folder):
    with_weights(folder, lambda w: w.pop("model.layers.1.mlp.down_proj.weight"))
    assert "lack 1 weights (model.layers.1.mlp.down_proj.weight)" in loading(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(folder, value):
    def change(weights):
        weights["model.layers.2.mlp.up_proj.weight"][3, 5] = value

    with_weights(folder, change)
    assert "model.layers.2.mlp.up_proj.weight has values that are no numbers" in loading(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    def change(weights):
        weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:-20].contiguous()

    with_weights(folder, change)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"vocab_size": settings["vocab_size"] - 20}))
    assert "its embedding" in loading(folder)


@pytest.mark.parametrize(
    "weight", ["model.layers.3.self_attn.v_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
)
def test_another_model_at_the_same_path_is_another_run(folder, weight):
    """An adapter that is merged changes neither sizes nor the embedding, which comes first in the file."""
    cfg = compose_config("algorithm=exp_dpo_offline", "dataset=ladder", "model=hf", f"model.path={folder}")
    before = identity(cfg), pairs_identity(cfg)

    def merge(weights):
        weights[weight] += 1e-3

    with_weights(folder, merge)
    after = identity(cfg), pairs_identity(cfg)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_an_adapter_on_another_base_is_another_model(folder, tmp_path):
    model, tokenizer = load_policy(config.ModelConf(path=str(folder), lora_rank=2))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    known = model_content(tmp_path / "adapter")
    assert known == model_content(tmp_path / "adapter")

    def other(weights):
        weights["model.layers.3.mlp.up_proj.weight"] += 1e-3

    with_weights(folder, other)
    assert model_content(tmp_path / "adapter") != known


def test_every_tensor_of_a_large_file_is_looked_at(tmp_path):
    tensors = {f"layers.{i:02d}.weight": torch.zeros(64, 2**12) for i in range(24)}  # 1 MiB each
    known = set()
    for changed in (None, *tensors):
        content = {name: tensor + (name == changed) for name, tensor in tensors.items()}
        save_file(content, tmp_path / "model.safetensors")
        known.add(model_content(tmp_path))
    assert len(known) == 25


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_weights_that_execute_code_are_refused_without_advice_to_run_them(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Harm(tmp_path / "harm")}, folder / "pytorch_model.bin")
    told = loading(folder)
    assert "could execute code" in told
    assert "weights_only" not in told
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("command", ["train", "plan", "export"])
def test_a_models_own_code_is_not_run_and_nobody_is_asked(folder, tmp_path, command, monkeypatch, capsys):
    settings = json.loads((folder / "config.json").read_text())
    theirs = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "evil", "auto_map": theirs}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copytree(folder, run / "checkpoints" / "final")
    OmegaConf.save(OmegaConf.structured(compose_config("dataset=ladder")), run / "config.yaml")
    summary = {"metrics": {}, "device": "d", "identity": "i", "git": "g", "versions": {}, "step": 1}
    (run / "summary.json").write_text(json.dumps(summary))
    line = [f"{run}"] if command == "export" else ["model=hf", f"model.path={folder}", f"output_dir={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["expo", command, *line])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert not (tmp_path / "harm").exists()
    assert (ended.value.code, told.count("\n")) == (2, 1)
    assert "only code in its own files can load it" in told
    assert "True" not in told  # no advice to run it


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for x in %}", "TemplateSyntaxError"),
        ("{{ messages[7].content.foo.bar }}", "UndefinedError"),
        (" ", "shows a message 0 times"),
        ("hello", "shows a message 0 times"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "shows a message 2 times"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "it takes over 0.5 s"),
    ],
)
def test_a_chat_template_that_shows_no_message_once_is_refused(folder, monkeypatch, template, told):
    monkeypatch.setattr("expo.model.prompts.TEMPLATE_S", 0.5)
    for path in folder.glob("*.jinja"):
        path.unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    assert told in loading(folder)


# --- classes and numbers


@pytest.mark.parametrize(
    ("group", "target", "kind"),
    [
        ("algorithm", "expo.data.formats.Ladder", "Algorithm"),
        ("algorithm", "expo.algorithms.losses.kl", "Algorithm"),
        ("algorithm", "expo.ladder.problems.LEVELS", "Algorithm"),
        ("rollout", "expo.step.rewards.Correct", "Engine"),
        ("reward", "expo.config.run.Config", "Reward"),
        ("dataset", "expo.step.rewards.Correct", "Reader"),
        ("model", "expo.data.formats.Ladder", "loads no model"),
    ],
)
def test_a_target_of_another_kind_is_one_line(tmp_path, group, target, kind):
    cfg = compose_config(*SMALL, f"output_dir={tmp_path}", f"{group}._target_={target}")
    with pytest.raises(UserError, match=f"_target_={target}.*{kind}"):
        make_run(cfg)


def test_what_fits_a_protocol_is_taken_whatever_it_inherits():
    class Half:
        def __init__(self, conf):
            self.conf = conf

        def __call__(self, rollouts):
            return [0.5 for _ in rollouts]

    from expo.step import rewards

    rewards.Half = Half
    try:
        assert isinstance(build(config.RewardConf("expo.step.rewards.Half"), of=rewards.Reward), Half)
    finally:
        del rewards.Half


def numbers(node: type, prefix: str):
    """Yield the key and declaration of each number of a config class."""
    for f in fields(node):
        if isinstance(f.type, type) and is_dataclass(f.type):
            yield from numbers(f.type, f"{prefix}{f.name}.")
        elif any(kind in str(f.type) for kind in ("int", "float")) and "str" not in str(f.type):
            yield f"{prefix}{f.name}", declaration(f)


NUMBERS = {
    name: d
    for prefix, node in [("", Config), *((f"{g}.", n) for (g, _), n in OPTIONS.items())]
    for name, d in numbers(node, prefix)
}


def test_no_key_takes_an_absurd_number():
    assert len(NUMBERS) > 60
    for name, declared in NUMBERS.items():
        for value in (math.nan, 1e30, -1e30, 10**15 if declared.high is None else 2 * declared.high + 1):
            assert declared.wrong(name, value), (name, value)
        if declared.finite:
            assert declared.wrong(name, math.inf)
            assert declared.wrong(name, -math.inf)
        assert declared.high is None or declared.high <= 2**63


@pytest.mark.parametrize(
    "override",
    [
        "positives.weight=1e30", "rollout.temperature=1e-30", "model.lora_alpha=-1", "positives.min_logp=nan", "optimizer.warmup_steps=-1",  # noqa: E501
        "verifier.workers=100000", "verifier.timeout_s=1e7", "optimizer.learning_rate=inf", "trainer.micro_batch_size=0", "dataset.levels=[[1]]",  # noqa: E501
        "k=[[1]]", "seed=99999999999999999999", "algorithm.group_size=9999999999", "dataset.limit=100000000", f"trainer.max_steps={LARGEST + 1}",  # noqa: E501
        "rollout.max_completion_tokens=99999999",
    ],
)  # fmt: skip
def test_an_absurd_number_is_one_line(override):
    arm = ["algorithm=exp_grpo", "dataset=ladder"]
    with pytest.raises(UserError, match=override.split("=")[0]) as told:
        check(compose_config(*arm, override))
    assert "\n" not in str(told.value)


def test_beta_of_dpo_is_bounded():
    with pytest.raises(UserError, match=r"algorithm\.beta"):
        check(compose_config("algorithm=exp_dpo_offline", "dataset=ladder", "algorithm.beta=1e9"))


def test_the_ladder_says_when_a_level_has_no_more_problems(caplog):
    reader = build(compose_config("dataset=ladder", "dataset.levels=[1]", "dataset.limit=3000").dataset, None)
    assert len(reader.train()) == 408
    assert "level 1 has no more than 408 problems, not 3000" in caplog.text


# --- the disk


def test_a_run_that_cannot_fit_is_refused_before_its_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 2**20))
    cfg = compose_config(*SMALL, f"output_dir={tmp_path}")
    with pytest.raises(
        UserError, match=r"output_dir=.*: 1 MiB free, and the checkpoints of this run \(5 MiB each\) need 11 MiB"
    ):
        make_run(cfg)


def test_a_checkpoint_that_cannot_fit_is_not_begun(tmp_path, monkeypatch, capsys):
    real, calls = shutil.disk_usage, []

    def usage(path):
        calls.append(path)
        return shutil._ntuple_diskusage(10**12, 10**12, 2**20) if len(calls) > 2 else real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    cfg = compose_config(*SMALL, f"output_dir={tmp_path}", "trainer.checkpoint_every=1")
    assert make_run(cfg) == 1
    told = capsys.readouterr().err
    assert f"[Errno {errno.ENOSPC}] no room for 5 MiB, 1 MiB free" in told
    assert "the same command goes on" in told
    assert told.count("\n") == 1
    (run,) = tmp_path.glob("ladder_level5/exp_dpo*")
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step000000.ckpt"]
    monkeypatch.setattr(shutil, "disk_usage", real)
    assert make_run(cfg) == 0


# --- others' files


@pytest.mark.runs
@pytest.mark.parametrize("damage", [b"PAR1", b"", b"\xff" * 500])
def test_pairs_that_cannot_be_read_are_one_line_though_their_digest_fits(tmp_path, damage):
    cfg = compose_config(*SMALL, f"output_dir={tmp_path}", "trainer.stop_after=1")
    assert make_run(cfg) == 0
    cfg = compose_config(*SMALL, f"output_dir={tmp_path}", "trainer.stop_after=2")
    (path,) = tmp_path.glob("**/pairs-step*.parquet")
    path.write_bytes(damage)
    path.with_suffix(".sha256").write_text(hashlib.sha256(damage).hexdigest())
    with pytest.raises(UserError, match=r"pairs=.*cannot be read.*fresh=true begins the run anew") as told:
        make_run(cfg)
    assert "\n" not in str(told.value)
    path.unlink()
    with pytest.raises(UserError, match=r"pairs=.*gone; fresh=true"):  # its policy has been trained on them
        make_run(cfg)
    path.write_bytes(damage)
    path.with_suffix(".sha256").write_text(hashlib.sha256(damage).hexdigest())
    other = compose_config(*SMALL, f"output_dir={tmp_path}", "algorithm.beta=0.2", "trainer.stop_after=1")
    with pytest.raises(UserError, match=r"pairs=.*cannot be read.*delete it, and it is made again"):
        make_run(other)
    path.unlink()  # as it says, and nothing else
    assert make_run(other) == 0


@pytest.mark.parametrize(
    "reply",
    [
        b"[" * 200_000,
        b'{"choices":' + b"[" * 200_000,
        b"null",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": [1]}}]}',
        b"\xff",
    ],
)
def test_a_judge_may_answer_with_anything(reply, caplog):
    good = json.dumps({"choices": [{"message": {"content": "right: 1, wrong: 1"}}]}).encode()
    replies = [good, reply, good]

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(replies.pop(0))

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    conf = config.JudgeConf(base_url=f"http://127.0.0.1:{server.server_port}/v1", model="m")
    prompts = make_prompts("{question}", "{question} {answer}", judge="{completion}")
    problem = build(compose_config("dataset=ladder", "dataset.limit=1").dataset, None).train()[0]
    try:
        shares = judge_steps(conf, prompts, [problem] * 3, ["a", "b", "c"])
    finally:
        server.shutdown()
    assert shares[0] == [0.5, None, 0.5]
    assert "counts as not judged" in caplog.text
