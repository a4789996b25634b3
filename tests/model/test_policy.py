import copy
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from conftest import clipped_at, compose_config

from expo.algorithms import losses
from expo.config import ModelConf
from expo.ground.problem import Problem
from expo.jobs import wiring
from expo.jobs.wiring import frozen_models, load_model, make_engine, make_evaluator, read_prompts_rightly
from expo.model import scoring
from expo.model.checks import reads_rightly
from expo.model.modes import as_initial, cast_frozen_linears, compute_in, frozen_copy, take_weights, without_autocast
from expo.model.scoring import can_share, micro_batches, score, token_batch, token_logp
from expo.model.small import random_tiny
from expo.step.positives.bank import fingerprint
from expo.step.positives.properties import Scorer
from expo.verifier.pool import Verifier

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [5, 6]]
COMPLETIONS = [[20, 21, 22, 23], [30], [40, 41, 42], [50, 51, 52, 53, 54]]
ADVANTAGES = torch.tensor([1.0, -0.5, 0.7, -1.2])


@pytest.fixture(scope="module")
def model():
    return random_tiny()[0]


def batch_of(order=range(4), extra_padding=0):
    batch = token_batch([PROMPTS[i] for i in order], [COMPLETIONS[i] for i in order], 0, torch.device("cpu"))
    padded = {name: torch.nn.functional.pad(getattr(batch, name), (0, extra_padding)) for name in ("input_ids", "mask")}
    return replace(batch, **padded)


def test_scores_are_those_of_the_full_logits(model):
    batch = batch_of()
    logits = model(input_ids=batch.input_ids).logits[:, :-1].float() / 0.7
    expected = logits.log_softmax(-1).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1) * batch.mask
    torch.testing.assert_close(score(model, batch, temperature=0.7), expected, atol=1e-5, rtol=0)


def test_only_completion_tokens_are_scored():
    batch = batch_of()
    assert batch.mask.sum(dim=1).tolist() == [4, 1, 3, 5]
    assert batch.targets[0][batch.mask[0].bool()].tolist() == COMPLETIONS[0]


def test_long_rows_do_not_pad_short_ones(model, monkeypatch):
    """By hand: 4 rows of 10 tokens and 4 of 40 are 320 tokens together, 200 apart; the rows of a prompt stay
    together."""
    prompts = [[5, 6, 7 + i // 2] for i in range(8)]
    rows = token_batch(prompts, [[20 + i] * (7 if i < 4 else 37) for i in range(8)], 0, torch.device("cpu"))

    def shapes(few):
        monkeypatch.setattr(scoring, "FEW", few)
        return [
            (index.tolist(), tuple(part.input_ids.shape)) for index, part in micro_batches(rows, torch.arange(8), 8)
        ]

    assert shapes(121) == [(list(range(8)), (8, 40))]
    assert shapes(120) == [([0, 1, 2, 3], (4, 10)), ([4, 5, 6, 7], (4, 40))]
    same_prompt = replace(rows, prompts=torch.zeros(8, dtype=torch.long))
    assert [len(index) for index, _ in micro_batches(same_prompt, torch.arange(8), 8)] == [8]
    within = score(model, rows)
    for index, part in micro_batches(rows, torch.arange(8), 8):
        torch.testing.assert_close(score(model, part), within[index, : part.mask.shape[1]], atol=1e-5, rtol=0)


def loss_and_gradients(model, batch, advantages, aggregation, size):
    model = copy.deepcopy(model)
    weights = losses.token_weights(batch.mask, aggregation, 10)
    total = 0.0
    for rows, part in micro_batches(batch, torch.arange(len(batch.mask)), size):
        logp = score(model, part)
        per_token, _, _ = losses.policy_loss(
            logp, logp.detach() - 0.1, part.mask, advantages[rows], clipped_at(0.2, 0.2, "token")
        )
        loss = (weights[rows, : part.mask.shape[1]] * (per_token + 0.1 * losses.sft_loss(logp))).sum()
        loss.backward()
        total += loss.item()
    return total, [p.grad for p in model.parameters()]


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize("variant", ["padding", "micro-batches", "row order"])
def test_loss_and_gradients_do_not_depend_on(variant, aggregation, model):
    order = [2, 0, 3, 1] if variant == "row order" else range(4)
    batch = batch_of(order, extra_padding=6 if variant == "padding" else 0)
    size = 1 if variant == "micro-batches" else 4
    loss, gradients = loss_and_gradients(model, batch, ADVANTAGES[list(order)], aggregation, size)
    expected_loss, expected = loss_and_gradients(model, batch_of(), ADVANTAGES, aggregation, 4)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_no_rows_is_no_pass(model):
    empty = token_batch([], [], 0, torch.device("cpu"))
    assert list(micro_batches(empty, torch.arange(0), 4)) == []


def test_total_logp_is_the_sum_over_the_completion(model):
    batch = batch_of()
    expected = score(model, batch).sum(1)
    torch.testing.assert_close(token_logp(model, batch, 2).sum(dim=1), expected.detach(), atol=1e-5, rtol=0)


def test_packed_rows_score_and_train_as_padded_ones(model):
    gradients = []
    for packed in (False, True):
        logp = score(model, batch_of(extra_padding=3), 0.7, packed)
        gradients.append([logp, *torch.autograd.grad((logp * logp).sum(), list(model.parameters()))])
    for padded, packed in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, packed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [[3, 1, 0, 5, 2, 4], [1, 1, 1, 1, 1, 1], [0, 6, 2, 2, 1, 3]])
def test_a_prompt_read_once_scores_and_trains_as_one_read_for_each_row(attention, lengths):
    model, _ = random_tiny()
    model.set_attn_implementation(attention)
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7], [10, 11, 12, 13, 14], [8, 9], [5, 6, 7]]
    rows = token_batch(prompts, [list(range(20, 20 + n)) for n in lengths], 0, torch.device("cpu"))
    read = []
    decoder = model.get_decoder()
    counting = decoder.register_forward_pre_hook(lambda *a: read.append(a[2]["input_ids"].shape), with_kwargs=True)
    found = []
    for shared in (False, True):
        logp = score(model, rows, 0.7, shared=shared)
        found.append([logp, *torch.autograd.grad((logp * logp).sum(), list(model.parameters()))])
    counting.remove()
    assert read[1] == (3, 5)  # three prompts, of at most five tokens: not six
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(plain, shared, atol=1e-5, rtol=1e-4)


def test_a_prompt_is_read_for_each_row_where_the_model_cannot_do_otherwise(model):
    assert can_share(model)
    model.gradient_checkpointing_enable()
    assert not can_share(model.train())
    assert can_share(model.eval())
    sliding = copy.deepcopy(model)
    sliding.config.layer_types = ["full_attention", "sliding_attention"]
    assert not can_share(sliding)
    window = copy.deepcopy(model)
    window.config.layer_types, window.config.sliding_window = None, 16
    assert not can_share(window)
    flash = copy.deepcopy(model)
    flash.config._attn_implementation = "flash_attention_2"
    assert not can_share(flash)


@pytest.mark.parametrize("shared", [False, True])
def test_a_mask_that_weighs_tokens_or_leaves_some_out_cuts_no_row(model, shared):
    rows = token_batch([[5, 6, 7], [5, 6, 7]], [[20, 21, 22, 23, 24], [25, 26, 27]], 0, torch.device("cpu"))
    whole = score(model, rows)
    place = (rows.mask.cumsum(dim=1) - 1).clamp(min=0)
    later = torch.tensor([[0.0], [1.0]])  # leaves out the first token of one row, and of both
    for mask in (rows.mask * 0.1**place, *(rows.mask * (place != i) for i in (0, 1)), rows.mask * (place != later)):
        changed = replace(rows, mask=mask)
        assert changed.lengths.tolist() == rows.lengths.tolist()
        ((_, part),) = micro_batches(changed, torch.arange(2), 2)
        assert part.input_ids.shape == rows.input_ids.shape
        order = [0, 1] if part.input_ids[0, 3] == 20 else [1, 0]
        logp = score(model, part, shared=shared)
        torch.testing.assert_close(logp, (whole * mask.bool())[order], atol=1e-5, rtol=1e-4)


def test_a_gpu_reads_long_rows_one_by_one_until_it_is_told_otherwise():
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    for overrides, shared in (
        ((), False),
        (("trainer.share_prompts=true",), True),
        (("rollout.max_prompt_tokens=128", "rollout.max_completion_tokens=384"), True),
        (("rollout.max_prompt_tokens=128", "rollout.max_completion_tokens=385"), False),
    ):
        cfg = compose_config("model=random_tiny", "dataset=math", *overrides)
        with patch("expo.jobs.wiring.reads_rightly", return_value=True):
            read_prompts_rightly(cfg, on_gpu)
        assert cfg.trainer.share_prompts is shared, overrides


def test_a_model_that_ignores_positions_reads_each_row_alone(monkeypatch, caplog):
    model, _ = random_tiny()
    assert reads_rightly(model, shared=True)
    cfg = compose_config("model=random_tiny")
    read_prompts_rightly(cfg, model)
    assert cfg.trainer.share_prompts
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, given: (args, {k: v for k, v in given.items() if k != "position_ids"}), with_kwargs=True
    )
    assert not reads_rightly(model, shared=True)
    read_prompts_rightly(cfg, model)
    assert not cfg.trainer.share_prompts
    assert "each row reads its own" in caplog.text


def test_rows_of_one_prompt_are_scored_together():
    prompts = [[5, 6], [8, 9], [5, 6], [8, 9]]
    rows = token_batch(prompts, [[1] * n for n in (1, 2, 9, 3)], 0, torch.device("cpu"))
    assert [i.tolist() for i, _ in micro_batches(rows, torch.arange(4), 2)] == [[1, 3], [0, 2]]


def test_lora_trains_adapters_only_and_scores_like_its_base(tmp_path):
    from expo.model.policy import load_policy

    base, tokenizer = load_policy(ModelConf(path="ladder"))
    lora, _ = load_policy(ModelConf(path="ladder", lora_rank=4))
    assert {name.split(".")[-3] for name, p in lora.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    ids = tokenizer("(1) 3 + 4 @ 2")["input_ids"]
    batch = token_batch([ids], [ids], 0, torch.device("cpu"))
    torch.testing.assert_close(score(lora, batch), score(base, batch))  # adapters start at zero
    with torch.no_grad():
        for name, p in lora.named_parameters():
            if "lora_B" in name:
                p += 1.0
    assert (score(lora, batch) - score(base, batch)).abs().max() > 0.1
    lora.train()
    for module in lora.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    with as_initial(lora) as initial:  # as a reference of its own would be
        assert not initial.training
        torch.testing.assert_close(score(initial, batch), score(base, batch))
    assert lora.training


def test_logits_that_are_kept_and_those_made_again_score_and_train_alike(model, monkeypatch):
    found = []
    for logits in (5 * model.config.vocab_size, scoring.LOGITS):
        monkeypatch.setattr(scoring, "LOGITS", logits)
        logp = score(model, batch_of(), 0.7)
        found.append([logp, *torch.autograd.grad((logp * logp).sum(), list(model.parameters()))])
    for again, at_once in zip(*found, strict=True):
        torch.testing.assert_close(again, at_once, atol=1e-5, rtol=1e-4)


def formats(model):
    """What the first projection computes in, from now on."""
    seen = []
    projection = next(m for name, m in model.named_modules() if name.endswith("q_proj"))
    projection.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    return seen


def test_rollouts_scoring_and_evaluation_compute_in_one_format(tmp_path):
    cfg = compose_config("dataset=ladder", "trainer.precision=bf16-mixed")
    loaded, tokenizer, prompts = load_model(cfg)
    for copy_of in (loaded, frozen_copy(loaded)):
        seen = formats(copy_of)
        problems = [Problem("p", "(1) > 7 ;", "7", level=1)]
        engine = make_engine(cfg, copy_of, tokenizer)
        make_evaluator(cfg, problems, Verifier(), prompts, tokenizer).evaluate(engine)
        score(copy_of, batch_of(), shared=True).sum()
        Scorer(copy_of, tokenizer, prompts, 4).logp([[5, 6]], [[7, 8]])
        assert set(seen) == {torch.bfloat16}
        with without_autocast(copy_of):
            score(copy_of, batch_of())
        assert seen[-1] == torch.float32
        assert {p.dtype for p in copy_of.parameters()} == {torch.float32}


def test_weights_that_have_changed_are_seen_in_mixed_precision():
    """Autocast that spans two updates keeps the casts of the first one's weights."""
    model, _ = random_tiny()
    compute_in(model, "bf16-mixed")
    before = score(model, batch_of()).detach()
    with torch.no_grad():
        for p in model.parameters():
            p *= 3
    after = score(model, batch_of()).detach()
    assert (after - before).abs().max() > 0.1
    fresh = copy.deepcopy(model)
    torch.testing.assert_close(score(fresh, batch_of()).detach(), after)


def test_logits_are_bounded_by_their_number(model, monkeypatch):
    """However large the vocabulary is."""
    sizes, chunk = [], scoring._score_chunk
    monkeypatch.setattr(
        scoring, "_score_chunk", lambda head, rows, *more: sizes.append(len(rows)) or chunk(head, rows, *more)
    )
    monkeypatch.setattr(scoring, "LOGITS", 4 * model.config.vocab_size + 1)
    score(model, batch_of())
    assert sizes == [4, 4, 4, 1]


@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_model_holds_its_matrices_as_they_are_multiplied_and_changes_no_number(ladder, tied):
    """Autocast casts float32 weights that are not trained again for each token, and they take twice the memory."""
    model = copy.deepcopy(ladder[0])
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    batch = token_batch([[9, 8, 7]] * 2, [[5, 4], [6]], 0, torch.device("cpu"))
    assert cast_frozen_linears(frozen_copy(model)).lm_head.weight.dtype == torch.float32  # without autocast all stays
    compute_in(model, "bf16-mixed")
    frozen = cast_frozen_linears(frozen_copy(model))
    assert frozen.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert frozen.model.norm.weight.dtype == frozen.get_input_embeddings().weight.dtype == torch.float32
    assert frozen.lm_head.weight.dtype == (torch.float32 if tied else torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(score(frozen, batch), score(model, batch))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01)
    take_weights(frozen, model)  # as a snapshot does
    assert torch.equal(score(frozen, batch), score(model, batch))
    with without_autocast(frozen):  # of which it has two
        assert torch.equal(score(frozen, batch), score(model, batch))


def test_a_reference_from_which_rounds_begin_is_whole(ladder):
    model = copy.deepcopy(ladder[0])
    compute_in(model, "bf16-mixed")
    for algorithm, whole in (("star algorithm.restart_every=2", True), ("grpo algorithm.kl_coef=0.1", False)):
        cfg = compose_config("dataset=ladder", *f"algorithm={algorithm}".split())
        reference, _ = frozen_models(cfg, model)
        assert (reference.model.layers[0].mlp.up_proj.weight.dtype == torch.float32) == whole


@pytest.mark.parametrize(("options", "held"), [("", torch.bfloat16), ("trainer.devices=2 trainer.strategy=fsdp", torch.float32), ("trainer.precision=32-true", torch.float32)])  # fmt: skip  # noqa: E501
def test_the_base_under_an_adapter_is_held_as_it_is_multiplied(options, held, monkeypatch):
    def loaded():
        torch.manual_seed(0)
        cfg = compose_config("dataset=ladder", "model.lora_rank=4", "trainer.precision=bf16-mixed", *options.split())
        model = load_model(cfg)[0]
        began.append(fingerprint(model))
        wiring.hold_base(cfg, model)
        return model

    began = []
    model = loaded()
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype == held
    assert layer.lora_A["default"].weight.dtype == torch.float32
    monkeypatch.setattr(wiring, "cast_frozen_linears", lambda model: model)
    batch = token_batch([[9, 8, 7]] * 2, [[5, 4], [6]], 0, torch.device("cpu"))
    found = []
    for each in (model, loaded()):
        assert began[0] == began[-1]  # a bank knows the model as it was loaded, however it is held then
        with torch.no_grad():
            for name, weight in each.named_parameters():
                if "lora_B" in name:
                    weight.fill_(0.01)
        logp = score(each, batch)
        logp.sum().backward()
        found.append((logp.detach(), [p.grad for p in each.parameters() if p.requires_grad]))
    assert torch.equal(found[0][0], found[1][0])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(ours, theirs)
