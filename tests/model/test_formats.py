"""A head in float32, weights in 4 bits under an adapter, an optimizer in 8 bits: what they change, and what they leave
alone."""

import copy

import pytest
import torch
from conftest import compose_config
from running import run, scalars, weights

from expo.config import AdamW8bitConf, ModelConf, OptimizerConf, UserError, build, check_anywhere
from expo.config.from_run import config_from_run
from expo.cost.machine import DEVICES
from expo.cost.memory import memory
from expo.cost.run import Work
from expo.jobs.wiring import load_model
from expo.ladder.policy import ladder_model, ladder_tokenizer
from expo.model.formats import as_numbers
from expo.model.modes import as_initial, causal_lm
from expo.model.policy import load_policy
from expo.model.scoring import score, token_batch
from expo.step.positives.bank import fingerprint
from expo.training.checkpoints import newest_checkpoint

QLORA = ["model.load_in_4bit=true", "model.lora_rank=4"]
SHORT = ["rollout.max_completion_tokens=16", "positives.filters=[]"]  # fresh weights end nothing themselves
ROWS = token_batch([[5, 6, 7], [8, 9]], [[20, 21, 22], [30, 31]], 0, torch.device("cpu"))


def ladder_policy(**keys):
    return load_policy(ModelConf(path="ladder", **keys))[0]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Folder of a ladder policy with fresh weights: its rows are of 64 and more, as bitsandbytes on a CPU wants
    them."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("wide")
    ladder_model(0, hidden_size=192, layers=2, heads=3).save_pretrained(folder)
    ladder_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_head_in_float32_takes_16_bit_states_and_rounds_nothing():
    plain, precise = ladder_policy(dtype="bfloat16"), ladder_policy(dtype="bfloat16", float32_head=True)
    hidden = plain.model(input_ids=ROWS.input_ids).last_hidden_state[:, :-1][ROWS.mask.bool()]
    logits = hidden.float() @ plain.lm_head.weight.float().t()
    expected = logits.log_softmax(-1).gather(-1, ROWS.targets[ROWS.mask.bool()].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(score(precise, ROWS)[ROWS.mask.bool()], expected, atol=1e-6, rtol=0)
    assert (score(plain, ROWS)[ROWS.mask.bool()] - expected).abs().max() > 1e-4
    assert precise(input_ids=ROWS.input_ids).logits.dtype == torch.float32
    assert precise.lm_head.weight is precise.model.embed_tokens.weight
    torch.testing.assert_close(score(copy.deepcopy(precise), ROWS), score(precise, ROWS), atol=0, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert precise.lm_head(hidden).dtype == torch.float32


@pytest.mark.runs
def test_a_head_in_float32_is_the_same_in_rollouts_and_scores(tmp_path):
    """The ratio of the first update compares log-probabilities of decoding with those of scoring."""
    _, directory = run(
        tmp_path, "algorithm=grpo", "model.float32_head=true", "trainer.precision=bf16-mixed", "trainer.max_steps=1",
        "dataset=ladder", "dataset.levels=[2]",
    )  # fmt: skip
    assert scalars(directory)[-2]["policy/sampler_kl"] < 1e-2


def test_weights_in_4_bits_are_scored_as_the_numbers_that_they_stand_for(wide):
    policy, plain = (
        load_policy(ModelConf(path=wide, load_in_4bit=True, lora_rank=4))[0],
        load_policy(ModelConf(path=wide))[0],
    )
    held = dict(causal_lm(policy).named_parameters())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            found = as_numbers(held[name] if name in held else held[name.replace(".weight", ".base_layer.weight")])
            assert (found - weight).norm() <= 0.12 * weight.norm()
            weight.copy_(found)
    packed = sum(p.numel() for p in held.values() if p.dtype == torch.uint8)
    assert packed == sum(p.numel() for name, p in plain.named_parameters() if "_proj" in name) // 2
    assert all(("lora_" in name) == p.requires_grad for name, p in policy.named_parameters())
    for module in (
        policy,
        policy.eval(),
    ):  # in evaluation bitsandbytes would pack them otherwise, and round their scales
        with torch.no_grad(), as_initial(module):
            torch.testing.assert_close(score(module, ROWS), score(plain, ROWS), atol=1e-4, rtol=0)
    score(policy, ROWS).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in policy.parameters())


def test_weights_that_come_back_otherwise_are_refused(wide, monkeypatch):
    """On a CPU bitsandbytes 0.50 does so with rows of 96, as the ladder's, without a word."""
    monkeypatch.setattr("expo.model.checks.error_in_4bit", lambda shape, device: 0.27)
    with pytest.raises(UserError, match=r"they are 27% off; set model.load_in_4bit=false"):
        load_model(compose_config(*QLORA, f"model.path={wide}"))


def test_a_bank_knows_weights_in_4_bits_by_their_scales_too(wide):
    policy = load_policy(ModelConf(path=wide, load_in_4bit=True, lora_rank=4))[0]
    before = fingerprint(policy)
    other, plain = (load_policy(ModelConf(path=wide, lora_rank=8, load_in_4bit=bits))[0] for bits in (True, False))
    assert before == fingerprint(other) != fingerprint(plain)
    scaled = next(p for p in policy.parameters() if hasattr(p, "quant_state"))
    scaled.quant_state.offset = scaled.quant_state.offset * 2  # of the scales, which are rounded themselves
    assert fingerprint(policy) != before


@pytest.mark.runs
@pytest.mark.parametrize("bits", [QLORA, ["optimizer=adamw_8bit"], [*QLORA, "optimizer=adamw_8bit"]])
def test_fewer_bits_stop_and_go_on_bit_for_bit(tmp_path, wide, bits):
    overrides = [
        "algorithm=sft",
        f"model.path={wide}",
        "trainer.max_steps=4",
        "optimizer.learning_rate=0.01",
        *SHORT,
        *bits,
    ]
    _, whole = run(tmp_path / "whole", *overrides)
    run(tmp_path / "parts", *overrides, "trainer.stop_after=2")
    code, parts = run(tmp_path / "parts", *overrides)
    assert code == 0
    assert scalars(parts) == scalars(whole)
    ours, theirs = flat(weights(parts)), flat(weights(whole))
    assert ours.keys() == theirs.keys()
    assert any(v.dtype == torch.uint8 for v in ours.values()) == (
        bits == ["optimizer=adamw_8bit"]
    )  # the base is not in it
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def flat(found):
    inner = {f"{k}.{name}": v for k, kept in found.items() if isinstance(kept, dict) for name, v in kept.items()}
    return {k: v for k, v in (found | inner).items() if isinstance(v, torch.Tensor)}


@pytest.mark.runs
@pytest.mark.parametrize(
    "overrides",
    [
        [
            "algorithm=exp_grpo_distill",
            "algorithm.kl_coef=0.05",
            "positives.explainer=snapshot",
            "positives.snapshot_every=1",
        ],
        ["algorithm=exp_grpo_distill", "algorithm.teacher=average", "positives.explainer=reference"],
    ],
)
def test_every_stream_of_a_step_works_on_weights_in_4_bits(tmp_path, wide, overrides):
    _, directory = run(tmp_path, *QLORA, f"model.path={wide}", "trainer.max_steps=2", *SHORT, *overrides)
    assert all(line["policy/grad_norm"] > 0 for line in scalars(directory) if "reward/mean" in line)


@pytest.mark.runs
def test_a_finished_qlora_run_is_measured_on_the_weights_it_was_trained_on(tmp_path, wide, caplog):
    _, directory = run(
        tmp_path, *QLORA, f"model.path={wide}", "algorithm=sft", "trainer.max_steps=2", "optimizer.learning_rate=0.01"
    )
    trained = load_policy(ModelConf(path=wide, load_in_4bit=True, lora_rank=4))[0]
    saved = torch.load(newest_checkpoint(directory), weights_only=True)["state_dict"]
    adapter = {name.removeprefix("policy."): value for name, value in saved.items() if "lora_" in name}
    trained.load_state_dict(adapter, strict=False)
    caplog.clear()  # the run's own: a random model is never right
    measured = load_model(config_from_run("evaluate", [f"run={directory}"]))[0]
    assert not caplog.records
    merged = load_model(config_from_run("evaluate", [f"run={directory}", "model.load_in_4bit=false"]))[0]
    assert "was trained on weights in 4 bits: on whole ones it is another policy" in caplog.text
    ours, theirs, other = (score(model.eval(), ROWS).detach() for model in (trained, measured, merged))
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)
    assert (other - ours).abs().max() > 1e-3
    final = directory / "checkpoints" / "final"
    with pytest.raises(UserError, match="takes no other beside it"):
        load_model(compose_config(*QLORA, f"model.path={final}"))
    with pytest.raises(UserError, match="not trained further"):
        run(tmp_path / "on", "model.load_in_4bit=true", f"model.path={final}")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.load_in_4bit=true"], "set model.lora_rank=16"),
        ([*QLORA, "rollout=vllm"], "set rollout=hf"),
        ([*QLORA, "model.dtype=auto"], "set model.dtype=bfloat16"),
        ([*QLORA, "trainer.devices=2", "trainer.strategy=fsdp"], "set trainer.strategy=ddp"),
        ([*QLORA, "model=random_shape"], "use model=hf"),
        (["model=random_tiny", "model.float32_head=true"], "remove them"),
        (["optimizer=adamw_8bit", "trainer.devices=2", "trainer.strategy=fsdp"], "use optimizer=adamw"),
    ],
)
def test_what_cannot_be_held_in_fewer_bits_is_refused(overrides, told):
    with pytest.raises(UserError, match=told):
        check_anywhere(compose_config(*overrides))


def test_an_optimizer_in_8_bits_takes_nearly_the_same_steps():
    pytest.importorskip("bitsandbytes")

    def stepped(conf):
        torch.manual_seed(0)
        weight, target = torch.nn.Parameter(torch.randn(64, 128)), torch.randn(64, 128)
        optimizer = build(conf, [weight], of=torch.optim.Optimizer)
        for _ in range(5):
            (weight - target).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return weight.detach(), optimizer

    plain, _ = stepped(OptimizerConf(learning_rate=0.01))
    small, optimizer = stepped(AdamW8bitConf(learning_rate=0.01))
    begun = stepped(OptimizerConf(learning_rate=1e-12))[0]
    assert 0 < (small - plain).abs().mean() < 0.1 * (plain - begun).abs().mean()
    (state,) = optimizer.state.values()
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8


def test_the_estimate_knows_of_fewer_bits():
    def needed(*overrides):
        return memory(
            Work.of(compose_config("model=qwen2.5-3b-instruct", "dataset=math", "algorithm=grpo", *overrides)),
            DEVICES["h200"],
        )

    parameters, in_embedding = 3_085_938_688, 2048 * 151936
    assert needed("optimizer=adamw_8bit")["optimizer"] == 2 * parameters
    lora, small = needed("model.lora_rank=16"), needed("model.lora_rank=16", "model.load_in_4bit=true")
    saved = lora["weights"] - small["weights"]
    assert saved == pytest.approx((parameters - in_embedding) * (4 - 0.516), rel=1e-3)
    assert small["optimizer"] == lora["optimizer"]


@pytest.mark.slow
def test_two_devices_hold_fewer_bits_too(tmp_path, wide):
    overrides = ["algorithm=sft", f"model.path={wide}", "trainer.max_steps=3", *QLORA, "optimizer=adamw_8bit"]
    _, one = run(tmp_path / "one", *overrides)
    code, two = run(tmp_path / "two", *overrides, "trainer.devices=2")
    assert code == 0
    for mine, other in zip(scalars(one), scalars(two), strict=True):
        assert mine == {
            name: value if value is None else pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in other.items()
        }
