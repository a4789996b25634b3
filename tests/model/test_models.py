"""Many architectures at a tiny width: what expo takes is exact against plain transformers, and what it refuses says
so."""

import os
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from conftest import ROOT, compose_config
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from running import run
from safetensors.torch import load_file, save_file

from expo.config import ModelConf, UserError, build, check, identity
from expo.ground.problem import Problem
from expo.jobs import fit
from expo.jobs.process import set_up_process
from expo.jobs.wiring import load_model, make_engine, prompt_limit, read_prompts_rightly
from expo.ladder.policy import ladder_tokenizer
from expo.model import policy
from expo.model.checks import check_packing, check_scoring, reads_rightly, row_limit
from expo.model.policy import load_policy, save_policy
from expo.model.prompts import Prompts
from expo.model.scoring import can_share, score, token_batch
from expo.rollout.engine import Request, Sampling
from expo.rollout.noise import SOLVE, NoiseKey
from expo.runs.directory import Run
from expo.training.checkpoints import newest_checkpoint
from expo.verifier.pool import Verifier

TOKENIZER = ladder_tokenizer()
PLAIN = {"vocab_size": len(TOKENIZER), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "max_position_embeddings": 256}  # fmt: skip
WIDE = PLAIN | {"intermediate_size": 48, "num_key_value_heads": 2}
HEADS = WIDE | {"head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
KINDS = {
    "Qwen2": WIDE,
    "Qwen3": HEADS,
    "Qwen3Moe": HEADS | EXPERTS,
    "Llama": WIDE,
    "Mistral": HEADS | {"sliding_window": None},
    "Ministral": HEADS | {"sliding_window": 8},
    "Mixtral": WIDE | EXPERTS,
    "Gemma": HEADS,
    "Gemma2": HEADS | {"query_pre_attn_scalar": 8, "sliding_window": 8, "final_logit_softcapping": 30.0},
    "Gemma3": HEADS | {"sliding_window": 8},
    "Phi": WIDE,
    "Phi3": WIDE,
    "Olmo2": WIDE,
    "Olmo3": WIDE | {"sliding_window": 8},
    "SmolLM3": WIDE,
    "Granite": WIDE,
    "Glm4": HEADS,
    "StableLm": WIDE,
    "Starcoder2": WIDE,
    "GPTNeoX": PLAIN | {"intermediate_size": 48},
    "GPT2": PLAIN,
    "OPT": PLAIN | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "Falcon": PLAIN | {"alibi": False},
    "Bloom": PLAIN,
    "Cohere": WIDE,
    "GptOss": HEADS | EXPERTS | {"sliding_window": 8},
    "Lfm2": WIDE | {"full_attn_idxs": [1]},
    "Qwen3Next": HEADS
    | EXPERTS
    | LINEAR
    | {"shared_expert_intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"]},
    "Mamba": {k: PLAIN[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id", "eos_token_id")}
    | {"state_size": 4},
}
EAGER = ("Bloom", "GptOss", "Mamba")  # which have no sdpa
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [5, 6, 7], list(range(20, 32))]
COMPLETIONS = [[20, 21, 22, 23], [30], [40, 41, 42], [50, 51, 52, 53, 54, 20, 21, 22, 33], list(range(40, 60))]


def make(kind: str, folder: Path, **more) -> Path:
    """Save a model with random weights, larger than models begin with: differences show."""
    conf = getattr(transformers, {"Gemma3": "Gemma3Text"}.get(kind, kind) + "Config")(**KINDS[kind] | more)
    torch.manual_seed(0)
    model = getattr(transformers, kind + ("LMHeadModel" if kind == "GPT2" else "ForCausalLM"))(conf)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p *= 4
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def attention_of(kind: str) -> list[str]:
    return ["model.attention=eager"] if kind in EAGER else []


def config_of(folder: Path, *more: str):
    return compose_config("dataset=ladder", "model=hf", f"model.path={folder}", *more)


@torch.no_grad()
def plain_logp(model, prompt, completion):
    logits = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1)[range(len(prompt) - 1, len(prompt) + len(completion) - 1), completion]


@torch.no_grad()
def exact(model, **read) -> bool:
    rows = token_batch(PROMPTS, COMPLETIONS, 0, torch.device("cpu"))
    plain = torch.cat([plain_logp(model, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    return torch.allclose(score(model, rows, **read)[rows.mask.bool()], plain, rtol=0, atol=1e-4)


def decodes_exactly(engine, model) -> bool:
    """Sampled rows have the log-probability of plain transformers, and greedy rows its tokens."""
    requests = [Request(tuple(p), NoiseKey(0, SOLVE, 0, i)) for i, p in enumerate(PROMPTS)]
    for c in engine.generate(requests, Sampling(1.0, 1.0, 0, 24)):
        if not torch.allclose(torch.tensor(c.logp), plain_logp(model, c.prompt, c.ids), rtol=0, atol=1e-3):
            return False
    for c in engine.generate(requests, Sampling(1.0, 1.0, 1, 12)):
        ids = torch.tensor([c.prompt])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, use_cache=False
        )
        if theirs[0, len(c.prompt) :].tolist() != c.ids:
            return False
    return True


def row_of(kind: str, folder: Path) -> list[str]:
    """Return the row of docs/models.md, and fail where what is taken is not exact."""
    cfg = config_of(make(kind, folder), *attention_of(kind))
    try:
        model, tokenizer, _ = load_model(cfg)
    except UserError:
        return [kind, "no", "no", "no", "no"]
    model.eval()
    assert exact(model), "scored"
    row = [kind, "yes"]
    for read, taken in (("packed", True), ("shared", can_share(model))):
        taken = taken and reads_rightly(model, **{read: True})
        row.append("yes" if taken else "no")
        assert not taken or exact(model, **{read: True}), read
    try:
        engine = make_engine(cfg, model, tokenizer)
    except UserError:
        return [*row, "no"]
    assert decodes_exactly(engine, model), "decoded"
    return [*row, "yes"]


def documented() -> dict[str, list[str]]:
    text = ROOT.joinpath("docs", "models.md").read_text()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row for row in cells[2:] if len(row) == 5}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_exact_or_refused_as_the_docs_say(kind, tmp_path):
    assert documented()[kind] == row_of(kind, tmp_path)


def test_the_docs_have_every_architecture_that_is_tried():
    assert set(documented()) == set(KINDS)


@pytest.mark.parametrize(("kind", "changing"), [("Cohere", "logit_scale"), ("Gemma2", "final_logit_softcapping")])
def test_a_model_that_changes_its_logits_is_refused(kind, changing, tmp_path):
    plain = {"logit_scale": 1.0, "final_logit_softcapping": None}[changing]
    assert load_model(config_of(make(kind, tmp_path, **{changing: plain})))
    with pytest.raises(UserError, match=r"model\.path.*changes its logits after the output head"):
        load_model(config_of(make(kind, tmp_path)))


def test_a_model_as_it_begins_is_checked_as_well_as_a_trained_one(tmp_path):
    conf = transformers.Lfm2Config(**KINDS["Lfm2"])
    torch.manual_seed(0)
    model = transformers.Lfm2ForCausalLM(conf)  # whose rows leak less than rounding lets pass
    with pytest.raises(UserError, match=r"trainer\.packing=true: Lfm2ForCausalLM .* set trainer\.packing=false"):
        check_packing(model, "here")


@pytest.mark.parametrize("kind", ["Lfm2", "Qwen3Next"])
def test_a_model_that_cannot_be_decoded_is_refused_with_the_remedy(kind, tmp_path):
    cfg = config_of(make(kind, tmp_path))
    model, tokenizer, _ = load_model(cfg)
    with pytest.raises(
        UserError, match=rf"model\.path=.*: {kind}ForCausalLM cannot be decoded with rollout=hf .*; use rollout=vllm"
    ):
        make_engine(cfg, model, tokenizer)


def test_an_attention_that_a_model_lacks_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model\.attention=sdpa: .* has none; set model\.attention=eager"):
        load_model(config_of(make("Bloom", tmp_path)))


def test_packing_is_refused_where_rows_do_not_stay_apart(tmp_path):
    cfg = config_of(make("OPT", tmp_path), "trainer.packing=true")
    with pytest.raises(UserError, match=r"trainer\.packing=true: OPTForCausalLM"):
        read_prompts_rightly(cfg, load_model(cfg)[0])


def test_checks_leave_a_model_as_it_was(tmp_path):
    model, _ = load_policy(ModelConf(path=str(make("Qwen2", tmp_path))))
    assert model.training
    check_scoring(model, "here")
    check_packing(model, "here")
    assert model.training
    assert all(p.grad is None for p in model.parameters())


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}


@pytest.mark.parametrize(
    ("kind", "more", "limit"),
    [
        ("Qwen2", {}, 256),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, "max_position_embeddings": 64}, 64),  # noqa: E501
        ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 40}, 40),
        ("GPT2", {}, 256),
        ("Mamba", {}, None),
    ],
)  # fmt: skip
def test_rows_are_no_longer_than_a_model_has_room_for(kind, more, limit, tmp_path):
    lengths = ["rollout.max_completion_tokens=30", "rollout.max_prompt_tokens=100"]
    cfg = config_of(make(kind, tmp_path, **more), *lengths, *attention_of(kind))
    model, _ = load_policy(cfg.model)
    assert row_limit(model) == limit
    room = limit - 30 if limit else 10**6
    assert [prompt_limit(cfg, model, asked) for asked in (100, 130)] == [min(100, room), min(130, room)]
    if limit:
        cfg.rollout.max_completion_tokens = limit
        with pytest.raises(UserError, match=rf"rollout\.max_completion_tokens={limit}: .* room for {limit} tokens"):
            prompt_limit(cfg, model, 1)


def test_rope_by_length_is_exact_within_the_room(tmp_path):
    """And not beyond it: a row scores otherwise beside a longer one."""
    model, _ = load_policy(
        ModelConf(path=str(make("Phi3", tmp_path, rope_parameters=LONG, original_max_position_embeddings=32)))
    )
    model.eval()
    assert exact(model)
    short, long = [5, 6, 7], list(range(20, 60))
    beside = [token_batch([short, short], [[20, 21], c], 0, torch.device("cpu")) for c in (long[:20], long)]
    within, beyond = (score(model, rows)[0, :4] for rows in beside)
    assert (within - beyond).abs().max() > 1e-3


def changed_adapter(base, folder: Path):
    lora = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    lora.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return lora.eval()


@pytest.fixture
def adapter(tmp_path):
    """(policy with a trained adapter, folder of that adapter)"""
    base, _ = load_policy(ModelConf(path=str(make("Qwen2", tmp_path / "base"))))
    return changed_adapter(base, tmp_path / "adapter"), tmp_path / "adapter"


def logps(model):
    rows = token_batch(PROMPTS, COMPLETIONS, 0, torch.device("cpu"))
    with torch.no_grad():
        return score(model.eval(), rows)


@pytest.mark.parametrize("rank", [0, 2])
def test_training_begins_from_a_saved_adapter(adapter, rank):
    saved, folder = adapter
    model, _ = load_policy(ModelConf(path=str(folder), lora_rank=rank))
    torch.testing.assert_close(logps(model), logps(saved), atol=1e-4, rtol=1e-4)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(("lora_" in name) == bool(rank) for name in trained)


def test_an_adapter_on_an_adapter_is_saved_whole(adapter, tmp_path):
    """Whoever loads the folder by itself gets the model that was trained."""
    _, folder = adapter
    model, _ = load_policy(ModelConf(path=str(folder), lora_rank=2))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    trained = logps(model)
    save_policy(model, tmp_path / "final", goes_on=True)
    assert {name for name, p in model.named_parameters() if p.requires_grad}  # training goes on after `best` was saved
    torch.testing.assert_close(logps(model), trained)
    assert not (tmp_path / "final" / "adapter_config.json").exists()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    torch.testing.assert_close(logps(again), trained, atol=1e-4, rtol=1e-4)


def test_an_adapter_on_a_whole_model_is_saved_alone(tmp_path):
    model, _ = load_policy(ModelConf(path=str(make("Qwen2", tmp_path / "base")), lora_rank=2))
    expected = logps(model)
    save_policy(model, tmp_path / "final")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "final")
    torch.testing.assert_close(logps(again), expected)


def test_an_adapter_that_lacks_weights_is_refused(adapter):
    _, folder = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"model\.path=.*adapter.*missing adapter keys"):
        load_policy(ModelConf(path=str(folder)))


TEMPLATES = {
    "by its clock": "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m['content'] }}{% endfor %}",
    "by a variable": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }} {% for m in messages %}{{ m['content'] }}{% endfor %}",
}


@pytest.mark.parametrize("asked", TEMPLATES)
def test_a_template_that_prints_todays_date_prints_the_configs(asked, monkeypatch):
    tokenizer = ladder_tokenizer()
    tokenizer.chat_template = TEMPLATES[asked]
    rendered, seen = tokenizer.apply_chat_template, []
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: seen.append(rendered(*a, **k)) or seen[-1])
    prompts = Prompts(compose_config("dataset=ladder", "prompts.date=2025-02-03").prompts)
    prompts.solve_ids(tokenizer, [Problem("p", "q", "a")])
    assert "2025-02-03" in seen[0] or "03 Feb 2025" in seen[0]


@pytest.mark.parametrize("day", ["today", "2025-02-30", "03.02.2025"])
def test_a_date_that_is_none_is_refused(day):
    with pytest.raises(UserError, match=rf"prompts\.date={day}: is no day"):
        check(compose_config("dataset=ladder", f"prompts.date={day}"))


def test_a_revision_is_what_is_asked_of_the_hub(monkeypatch):
    asked = []

    def ask(*args, **options):
        asked.append(options["revision"])
        raise OSError("no hub here")

    monkeypatch.setattr(policy.AutoTokenizer, "from_pretrained", ask)
    for more, commit in ((["model.revision=v1"], None), (["model.revision=v1"], "abc"), ([], "abc"), ([], None)):
        with pytest.raises(UserError, match="no hub here"):
            load_model(compose_config("dataset=ladder", "model=hf", "model.path=some/model", *more), commit=commit)
    monkeypatch.setattr(datasets, "load_dataset", ask)
    with Verifier() as verifier, pytest.raises(UserError, match="no hub here"):
        build(compose_config("dataset=math", "dataset.revision=v2").dataset, verifier).train()
    assert asked == ["v1", "v1", "abc", None, "v2"]


def test_a_revision_makes_another_run_and_none_the_one_of_before():
    plain, pinned = (identity(compose_config("dataset=ladder", *more)) for more in ([], ["model.revision=v1"]))
    assert plain != pinned
    assert plain == identity(compose_config("dataset=ladder", "model.revision=null", "prompts.date=2024-07-26"))


@pytest.mark.parametrize(("fresh", "commit"), [("false", "abc"), ("true", None)])
def test_a_run_that_goes_on_loads_the_commit_that_it_began_with(fresh, commit, tmp_path, monkeypatch):
    cfg = compose_config("dataset=ladder", f"output_dir={tmp_path}", f"fresh={fresh}")
    run = Run.find(cfg)
    run.model_commit = "abc"
    run.dir.mkdir(parents=True)
    run.write_summary("stopped")
    asked = []
    monkeypatch.setattr(fit, "build_run", lambda cfg, verifier, commit: asked.append(commit) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit.make_run(cfg)
    assert asked == [commit]


@pytest.mark.runs
def test_a_run_that_begins_from_an_adapter_leaves_the_whole_model_that_it_trained(tmp_path):
    options = [
        "dataset=ladder",
        "dataset.levels=[2]",
        "model.lora_rank=2",
        "optimizer.learning_rate=0.01",
        "trainer.max_steps=2",
    ]
    _, first = run(tmp_path / "first", *options)
    adapter = first / "checkpoints" / "final"
    assert (adapter / "adapter_config.json").is_file()
    assert "library_name: peft" in (adapter / "README.md").read_text()
    _, second = run(tmp_path / "second", *options, "model=hf", f"model.path={adapter}")
    final = second / "checkpoints" / "final"
    assert not (final / "adapter_config.json").exists()
    assert "library_name: transformers" in (final / "README.md").read_text()
    trained, _ = load_policy(ModelConf(path=str(adapter), lora_rank=2))
    checkpoint = torch.load(newest_checkpoint(second), weights_only=True)["state_dict"]
    adapters = {name.removeprefix("policy."): w for name, w in checkpoint.items()}
    assert trained.load_state_dict(adapters, strict=False).unexpected_keys == []
    left, _ = load_policy(ModelConf(path=str(final)))
    torch.testing.assert_close(logps(left), logps(trained), atol=1e-4, rtol=1e-4)
    begun, _ = load_policy(ModelConf(path=str(adapter)))
    assert (logps(left) - logps(begun)).abs().max() > 1e-3


@pytest.mark.parametrize("targets", [["lm_head", "q_proj"], ["embed_tokens"]])
def test_an_adapter_on_a_weight_that_two_layers_share_is_refused(targets, tmp_path):
    base, _ = load_policy(ModelConf(path=str(make("Qwen2", tmp_path / "base", tie_word_embeddings=True))))
    lora = get_peft_model(base, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    lora.save_pretrained(tmp_path / "adapter")
    TOKENIZER.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="cannot be merged"):
        load_policy(ModelConf(path=str(tmp_path / "adapter")))


def test_the_commit_of_a_model_of_the_hub_is_known(monkeypatch):
    cached = {("some/model", "config.json", "v1"): "/cache/models--some--model/snapshots/abc123/config.json"}
    monkeypatch.setattr(
        policy, "try_to_load_from_cache", lambda source, name, revision: cached.get((source, name, revision))
    )
    assert policy.hub_commit("some/model", "v1") == "abc123"
    assert policy.hub_commit("some/model", None) is None


def test_an_adapter_names_the_commit_of_its_base():
    from expo.model.small import random_tiny

    model, _ = random_tiny()
    model.hub_commit = "abc123"
    adapted = policy.prepared(model, ModelConf(path="some/model", lora_rank=2))
    assert adapted.peft_config["default"].revision == "abc123"


def test_a_model_in_bf16_is_read_rightly_all_the_same():
    """The ladder's logits are large: their steps in bf16 are no leak."""
    cfg = compose_config("dataset=ladder", "trainer.precision=bf16-mixed", "trainer.packing=true")
    model, tokenizer, _ = load_model(cfg)
    read_prompts_rightly(cfg, model)
    assert cfg.trainer.share_prompts
    make_engine(cfg, model, tokenizer)


@pytest.mark.parametrize(
    ("rollout", "told", "gets"),
    [
        ("hf", {}, "expandable_segments:True"),
        ("vllm_server", {}, "expandable_segments:True"),
        ("vllm", {}, None),  # whose pools know no such segments
        ("hf", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ("hf", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_a_gpus_memory_comes_in_segments_that_grow_unless_the_user_has_said_how(rollout, told, gets, monkeypatch):
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    set_up_process(compose_config("dataset=ladder", "algorithm=grpo", f"rollout={rollout}"))
    assert os.environ.get("PYTORCH_ALLOC_CONF") == gets


def test_a_gpu_that_there_is_not_is_one_line_in_every_command(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer.accelerator=gpu: torch sees no GPU"):
        set_up_process(compose_config("trainer.accelerator=gpu"))
