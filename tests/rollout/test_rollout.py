import json
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DynamicCache, FalconConfig, FalconForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks import rollout as bench_rollout
from expo.config import RolloutConf
from expo.ladder import problems as world
from expo.ladder.policy import ladder_model
from expo.model.modes import compute_in
from expo.model.scoring import score, token_batch
from expo.rollout import decoding as decoding_module
from expo.rollout import transformers_engine
from expo.rollout.decoding import attention, decoding
from expo.rollout.engine import Request, Sampling
from expo.rollout.noise import SOLVE, NoiseKey, uniforms
from expo.rollout.transformers_engine import TransformersEngine, sample

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=80)


@pytest.fixture(scope="module")
def setting(ladder):
    model, tokenizer, prompts = ladder
    problems = [*world.generate(2, "test", 3), *world.generate(5, "test", 3)]  # two prompt lengths
    solve, explain = prompts.solve_ids(tokenizer, problems), prompts.explain_ids(tokenizer, problems)
    rows = [tuple(ids) for pair in zip(solve, explain, strict=True) for ids in pair for _ in range(2)]
    requests = [Request(prompt, NoiseKey(7, 0, 3, i)) for i, prompt in enumerate(rows)]
    engine = TransformersEngine(RolloutConf(batch_size=64), model, tokenizer)
    return model, tokenizer, engine, requests


def test_a_row_does_not_depend_on_the_rows_beside_it(setting):
    _, _, engine, requests = setting
    together = engine.generate(requests, PLAIN)
    backwards = engine.generate(requests[::-1], PLAIN)[::-1]
    alone = [engine.generate([request], PLAIN)[0] for request in requests[:6]]
    assert [c.ids for c in together] == [c.ids for c in backwards]
    assert [c.ids for c in together[:6]] == [c.ids for c in alone]


def test_rows_of_one_prompt_differ_and_keys_repeat(setting):
    _, _, engine, requests = setting
    prompt = requests[0].prompt
    rows = engine.generate([Request(prompt, NoiseKey(0, 0, 0, i)) for i in range(16)], PLAIN)
    assert len({tuple(row.ids) for row in rows}) > 1
    again = engine.generate([Request(prompt, NoiseKey(0, 0, 0, 5))], PLAIN)[0]
    assert again.ids == rows[5].ids


def test_sampler_logp_is_the_policys_own(setting):
    model, _, engine, requests = setting
    completions = engine.generate(requests, Sampling(0.7, 1.0, 0, 80))
    batch = token_batch([c.prompt for c in completions], [c.ids for c in completions], 0, torch.device("cpu"))
    logp = score(model, batch, temperature=0.7)
    for row, mask, completion in zip(logp, batch.mask.bool(), completions, strict=True):
        torch.testing.assert_close(row[mask], torch.tensor(completion.logp), atol=1e-4, rtol=0)


def test_nearly_greedy_sampling_agrees_with_generate(setting):
    model, _, engine, requests = setting
    ours = engine.generate(requests, Sampling(1.0, 1.0, 1, 80))
    for request, completion in zip(requests[::3], ours[::3], strict=True):
        ids = torch.tensor([request.prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False)
        assert theirs[0, ids.shape[1] :].tolist() == completion.ids


def test_end_of_sequence_and_truncation(setting):
    _, tokenizer, engine, requests = setting
    whole, cut = engine.generate(requests, PLAIN), engine.generate(requests, Sampling(1.0, 1.0, 0, 5))
    assert all(c.ids[-1] == tokenizer.eos_token_id and not c.truncated for c in whole)
    assert all(len(c.ids) == 5 and c.truncated for c in cut)
    assert [c.ids for c in cut] == [c.ids[:5] for c in whole]


def test_small_batches_change_nothing(setting):
    model, tokenizer, engine, requests = setting
    small = TransformersEngine(RolloutConf(batch_size=5), model, tokenizer)
    assert [c.ids for c in small.generate(requests, PLAIN)] == [c.ids for c in engine.generate(requests, PLAIN)]


def test_what_follows_a_row_comes_after_all_rows(setting):
    _, _, engine, requests = setting
    told = {}

    def follow(ended):
        told.update(ended)
        return requests[20:23]

    done = engine.generate(requests[:6], PLAIN, follow)
    assert [told[row] for row in range(6)] == done[:6]
    assert [c.ids for c in done] == [c.ids for c in engine.generate([*requests[:6], *requests[20:23]], PLAIN)]


def test_generation_leaves_the_mode_of_the_model(setting):
    model, _, engine, requests = setting
    model.train()
    engine.generate(requests[:2], PLAIN)
    assert model.training


def test_sample_inverts_the_cumulative_distribution():
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(4, 1)
    token, logp = sample(logits, torch.tensor([0.05, 0.25, 0.59, 0.99]), PLAIN)
    assert token.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(logp.exp(), torch.tensor([0.1, 0.2, 0.3, 0.4]))


def test_top_k_and_top_p_never_draw_outside():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log().repeat(101, 1)
    noise = torch.linspace(0, 0.999999, 101)
    for sampling in (Sampling(1.0, 1.0, 2, 1), Sampling(1.0, 0.6, 0, 1)):
        token, logp = sample(logits, noise, sampling)
        assert set(token.tolist()) == {1, 2}
        torch.testing.assert_close(logp[token == 1].exp(), torch.full(((token == 1).sum(),), 4 / 7))


def test_the_most_likely_token_is_one_even_among_equals():
    logits = torch.tensor([[0.1, 0.4, 0.4, 0.1]]).log().repeat(50, 1)
    token, logp = sample(logits, torch.linspace(0, 0.999, 50), Sampling(1.0, 1.0, 1, 1))
    assert set(token.tolist()) == {1}
    assert logp.tolist() == [0.0] * 50


def test_uniforms_are_a_function_of_the_key_alone():
    keys = [NoiseKey(1, 0, 2, row) for row in range(5)]
    torch.testing.assert_close(uniforms(keys, 8)[3], uniforms([keys[3]], 8)[0])
    torch.testing.assert_close(uniforms(keys, 8)[:, :4], uniforms(keys, 4))
    distinct = [
        NoiseKey(1, 0, 2, 3),
        NoiseKey(2, 0, 2, 3),
        NoiseKey(1, 1, 2, 3),
        NoiseKey(1, 0, 3, 3),
        NoiseKey(1, 0, 2, 4),
    ]
    assert len({uniforms([key], 1).item() for key in distinct}) == 5


def test_no_noise_draws_a_token_of_probability_zero():
    logits = torch.full((3, 50), float("-inf"))
    logits[:, 10:14] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    token, logp = sample(logits, torch.tensor([0.0, 0.5, 1.0 - 2**-24]), PLAIN)
    assert token.tolist() == [10, 13, 13]
    assert logp.tolist() == pytest.approx(torch.tensor([0.0, 1.0, 2.0, 3.0]).log_softmax(0)[[0, 3, 3]].tolist())
    certain = torch.full((1, 50), float("-inf"))
    certain[0, 7] = 3.0
    assert sample(certain, torch.tensor([1.0 - 2**-24]), PLAIN)[0].tolist() == [7]


def test_in_float64_every_word_of_a_large_vocabulary_is_drawn_as_often_as_it_should_be():
    """In float32 the 100,000 words of 1e-9 behind the first are lost: their sum, 1e-4, stays 0."""
    p = np.full(151_936, 1e-9)
    p[0], p[100_001:] = 0.5, 0
    p[-1] = 1 - p.sum()
    noise = 0.5 + np.linspace(0, 1.2e-4, 50)
    token, logp = sample(torch.tensor(p).log().repeat(50, 1), torch.tensor(noise), PLAIN)
    assert len(set(token.tolist())) > 40
    np.testing.assert_allclose(token[:40], np.searchsorted(p.cumsum(), noise[:40], side="right"), atol=9)
    np.testing.assert_allclose(logp, np.log(p[token]), rtol=1e-4)


def test_noise_on_a_gpu_is_in_float64_and_on_a_cpu_what_it_was(monkeypatch):
    """In float32 noise itself is a grid of 6e-8, between whose points a rare word is drawn never, and on one too
    often."""
    keys, seen = [NoiseKey(1, 0, 2, row) for row in range(3)], []
    assert uniforms(keys, 8).dtype == np.float32
    double = uniforms(keys, 4000, np.float64)
    assert double.dtype == np.float64
    assert (double != double.astype(np.float32)).mean() > 0.9
    np.testing.assert_array_equal(double[1], uniforms([keys[1]], 4000, np.float64)[0])

    class Stop(Exception):
        pass

    def asked(keys, count, dtype):
        seen.append(dtype)
        raise Stop

    monkeypatch.setattr(transformers_engine, "uniforms", asked)
    for device in ("cpu", "cuda"):
        engine = TransformersEngine.__new__(TransformersEngine)
        head = SimpleNamespace(get_decoder=lambda: None)
        engine.model = SimpleNamespace(
            device=torch.device(device), get_base_model=lambda head=head: head, get_output_embeddings=lambda: None
        )
        engine.eos_ids = SimpleNamespace(to=lambda device: None)
        with pytest.raises(Stop):
            engine._decode([], PLAIN, print)
    assert seen == [np.float32, np.float64]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 6])
def test_quick_decoding_is_that_of_transformers(kv_heads, window, monkeypatch):
    torch.manual_seed(0)
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=kv_heads, pad_token_id=0, eos_token_id=[1, 2, 3], bos_token_id=None, **sliding)
    )  # fmt: skip
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=1)
    requests = [Request((5, 6, 7, *range(8, 8 + i % 3)), NoiseKey(0, SOLVE, 0, i)) for i in range(12)]
    engine, sampling = TransformersEngine(RolloutConf(), model, tokenizer), Sampling(1.0, 1.0, 0, 20)
    quick = engine.generate(requests, sampling)
    monkeypatch.setattr(transformers_engine, "roomy_cache", lambda config, room: DynamicCache(config=config))
    monkeypatch.setattr(transformers_engine, "decoding", nullcontext)
    plain = engine.generate(requests, sampling)
    assert [c.ids for c in quick] == [c.ids for c in plain]
    assert len({len(c.ids) for c in quick}) > 3  # rows have left at several steps
    for ours, theirs in zip(quick, plain, strict=True):
        assert ours.logp == pytest.approx(theirs.logp, abs=1e-5)


@pytest.mark.parametrize("window", [None, 6])
def test_under_autocast_the_cache_is_in_16_bit_and_changes_no_token(window, monkeypatch):
    """Rotary embeddings give float32 keys, after which a layer would hold its values in float32, too: twice what `expo
    plan` says."""
    torch.manual_seed(0)
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, pad_token_id=0, eos_token_id=[1, 2, 3], bos_token_id=None, **sliding)
    )  # fmt: skip
    compute_in(model, "bf16-mixed")
    engine = TransformersEngine(RolloutConf(), model, SimpleNamespace(pad_token_id=0, eos_token_id=1))
    requests = [Request((5, 6, 7, *range(8, 8 + i % 3)), NoiseKey(0, SOLVE, 0, i)) for i in range(12)]
    caches = []
    own = transformers_engine.roomy_cache
    monkeypatch.setattr(transformers_engine, "roomy_cache", lambda *args: caches.append(own(*args)) or caches[-1])
    ours = engine.generate(requests, Sampling(1.0, 1.0, 0, 20))
    for layer in caches[0].layers:
        assert layer.keys.dtype == layer.values.dtype == torch.bfloat16
    monkeypatch.setattr(transformers_engine, "roomy_cache", lambda config, room: DynamicCache(config=config))
    plain = engine.generate(requests, Sampling(1.0, 1.0, 0, 20))
    assert [(c.ids, c.logp) for c in ours] == [(c.ids, c.logp) for c in plain]


def test_models_have_transformers_attention_again_whatever_happens():
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with suppress(KeyboardInterrupt), decoding():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is attention
        raise KeyboardInterrupt
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is own


@pytest.mark.parametrize("alibi", [False, True])
def test_a_model_that_chooses_by_the_name_of_its_attention_decodes_rightly(alibi):
    """Falcon adds the mask to its scores where the name is none that it knows: it would look ahead."""
    torch.manual_seed(0)
    model = FalconForCausalLM(
        FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=alibi,
                     pad_token_id=0, eos_token_id=1, bos_token_id=None)
    ).eval()  # fmt: skip
    requests = [Request((5, 6, 7, *range(8, 8 + i % 3)), NoiseKey(0, SOLVE, 0, i)) for i in range(6)]
    engine = TransformersEngine(RolloutConf(), model, SimpleNamespace(pad_token_id=0, eos_token_id=1))
    for made in engine.generate(requests, Sampling(1.0, 1.0, 0, 12)):
        ids = torch.tensor([[*made.prompt, *made.ids]])
        with torch.no_grad():
            logp = model(input_ids=ids).logits.float().log_softmax(-1)[0, len(made.prompt) - 1 : -1]
        assert made.logp == pytest.approx(
            logp.gather(1, ids[0, len(made.prompt) :, None]).squeeze(1).tolist(), abs=1e-4
        )


def test_room_that_is_full_is_made_again(monkeypatch, ladder):
    model, tokenizer, _ = ladder
    requests = [Request(tuple(range(5, 9 + i % 3)), NoiseKey(0, SOLVE, 0, i)) for i in range(6)]
    engine = TransformersEngine(RolloutConf(), model, tokenizer)
    whole = engine.generate(requests, Sampling(1.0, 1.0, 0, 60))
    monkeypatch.setattr(decoding_module, "ROOM", 3)
    parts = engine.generate(requests, Sampling(1.0, 1.0, 0, 60))
    assert [c.ids for c in parts] == [c.ids for c in whole]
    assert max(len(c.ids) for c in whole) > 9


def test_the_two_engines_are_measured_in_turns(monkeypatch, tmp_path):
    """With a second transformers engine for vLLM's, which is not installed everywhere."""

    class Other(TransformersEngine):
        def __setattr__(self, name, value):
            super().__setattr__(name, torch.as_tensor(value) if name == "eos_ids" else value)

    monkeypatch.setattr(bench_rollout, "VLLMEngine", Other)
    monkeypatch.setattr(bench_rollout, "TURNS", 2)
    shapes = {"small": (lambda: ladder_model(0, hidden_size=32, layers=1, heads=1), 16, 4)}
    monkeypatch.setattr(bench_rollout, "RANDOM", shapes)
    assert bench_rollout.main(["small", f"output={tmp_path / 'found.json'}"]) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())["results"]
    assert [len(speeds) for speeds in found["tokens_per_s"].values()] == [2, 2]
    assert found["vllm_to_hf"].keys() == found["followed_to_two_calls_s"].keys() == {"median", "min", "max"}
