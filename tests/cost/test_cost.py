"""What a run is estimated to cost: by hand, against what torch keeps, and `expo plan`."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import compose_config
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu.place import gap
from expo import cli
from expo.commands.plan import advice, changed, changes
from expo.commands.plan import plan as plan_command
from expo.config import UserError, build, check
from expo.cost import machine
from expo.cost import memory as of_memory
from expo.cost.estimate import SURE, estimate
from expo.cost.machine import DEVICES, Device
from expo.cost.memory import disk, generating, memory, settled, updating
from expo.cost.run import Work
from expo.cost.seconds import decoding, run_seconds, seconds, tokens, update
from expo.cost.shape import shape_of
from expo.jobs import wiring
from expo.model.modes import compute_in
from expo.model.scoring import LOGITS, score, token_batch
from expo.rollout import transformers_engine
from expo.rollout.engine import Request, Sampling
from expo.rollout.noise import SOLVE, NoiseKey
from expo.rollout.transformers_engine import TransformersEngine

THREE_B = ["model=qwen2.5-3b-instruct", "dataset=math", "algorithm=grpo", "trainer.precision=bf16-mixed"]


def work(*overrides: str, devices: int = 1) -> Work:
    return Work.of(compose_config(*THREE_B, *overrides), devices)


def test_memory_by_part_by_hand():
    found, parameters = memory(work(), DEVICES["h200"]), 3_085_938_688
    assert found["weights"] == 4 * parameters
    assert found["optimizer"] == 8 * parameters
    head = 4 * 2048 * 151936  # its gradient, or the embedding's
    assert found["gradients"] == 4 * parameters + head  # on top of the sum of earlier micro-batches
    assert updating(work("trainer.micro_batch_size=100000"))["gradients"] == 4 * parameters
    bare = ["trainer.precision=32-true", "trainer.micro_batch_size=1", "rollout.max_completion_tokens=1"]
    few = updating(work(*bare, "rollout.max_prompt_tokens=1"))  # nothing to be gone when both are there
    assert few["gradients"] == pytest.approx(4 * parameters + 2 * head - few["activations"] - few["logits"])
    assert found["casts to 16 bit"] == 2 * parameters
    assert found["peak"] == pytest.approx(sum(size for part, size in found.items() if part != "peak"))
    shared = memory(work("trainer.devices=8", "trainer.strategy=fsdp", devices=8), DEVICES["h200"])
    assert shared["weights"] == 4 * parameters / 8
    assert shared["optimizer"] == 8 * parameters / 8
    assert shared["peak"] < 0.6 * found["peak"]
    lora = updating(work("model.lora_rank=16"))
    assert lora["gradients"] < 0.02 * found["gradients"]
    assert disk(work())[0] == 12 * parameters  # weights and two moments


def test_null_is_what_fits_the_device():
    def found(device, *overrides):
        cfg = settled(work(*overrides), device).cfg
        return cfg.model.gradient_checkpointing, cfg.rollout.batch_size, cfg.trainer.share_prompts

    open_ = ["model.gradient_checkpointing=null", "rollout.max_completion_tokens=256", "rollout.max_prompt_tokens=128"]
    h200 = DEVICES["h200"]
    assert found(h200, *open_) == (False, 1024, True)
    assert found(h200, *open_, "trainer.micro_batch_size=512") == (True, 1024, True)
    # A dense mask for longer rows, and activations that do not fit.
    assert found(h200, *open_, "trainer.micro_batch_size=512", "trainer.dropout=true")[0] is False
    assert found(h200, *open_, "rollout.max_completion_tokens=1024")[2] is False
    assert found(h200, *open_, "rollout.max_completion_tokens=4096") == (True, 512, False)  # 80 GB of keys and values
    given = ["rollout.batch_size=7", "model.gradient_checkpointing=true", "trainer.share_prompts=true"]
    assert found(h200, "rollout.max_completion_tokens=1024", *given) == (True, 7, True)
    on_cpu = replace(TOY, memory=1.0)
    assert found(on_cpu, *open_, "rollout.max_completion_tokens=1024") == (False, 256, True)


def test_a_run_on_a_gpu_takes_what_fits_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=80 * 10**9))
    cfg = compose_config(*THREE_B, "model.gradient_checkpointing=null", "trainer.micro_batch_size=512")
    there = wiring.for_gpu(cfg, gpu=True)
    assert there.model.gradient_checkpointing
    assert 0 < there.rollout.batch_size <= 1024
    assert wiring.for_gpu(cfg, gpu=False) is cfg
    unknown = replace(cfg, model=replace(cfg.model, path="/no/such/model"))
    assert wiring.for_gpu(unknown, gpu=True) is unknown


def test_logits_are_those_of_the_completions_that_go_together():
    few = ["trainer.micro_batch_size=2", "rollout.max_completion_tokens=32"]
    assert updating(work(*few))["logits"] == 3 * 4 * 2 * 32 * 151936
    assert updating(work(*few, "rollout.max_prompt_tokens=2000"))["logits"] == 3 * 4 * 2 * 32 * 151936
    assert updating(work("rollout.max_completion_tokens=4096"))["logits"] == 3 * 4 * LOGITS


def test_a_second_copy_of_the_weights_is_counted():
    kl = memory(work("algorithm.kl_coef=0.05"), DEVICES["h200"])
    assert kl["frozen copies"] == 4 * 3_085_938_688 - 2 * work().shape.in_layers  # matrices in 16 bit
    plain = memory(work("algorithm.kl_coef=0.05", "trainer.precision=32-true"), DEVICES["h200"])
    assert plain["frozen copies"] == 4 * 3_085_938_688
    beside = generating(work("rollout=vllm", "rollout.dtype=bfloat16"))
    assert beside["the engines' weights"] == 2 * 3_085_938_688
    sharded = generating(work("trainer.devices=2", "trainer.strategy=fsdp", devices=2))
    assert sharded["a whole copy to generate with"] == 4 * 3_085_938_688
    # An engine in a process of its own does not sleep; nor does that of a snapshot.
    apart = updating(work("rollout=vllm_server", "rollout.dtype=bfloat16"))
    assert apart["the engines' weights"] == 2 * 3_085_938_688
    assert apart["KV cache"] == beside["KV cache"] > 0
    assert updating(work("rollout=vllm", "rollout.dtype=bfloat16"))["KV cache"] == 0
    two = work("algorithm=exp_grpo", "positives.explainer=snapshot", "rollout=vllm", "rollout.dtype=bfloat16")
    assert generating(two)["the engines' weights"] == 2 * 2 * 3_085_938_688
    assert disk(two)[0] == 16 * 3_085_938_688


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("hidden", "inner", "heads", "keys"), [(256, 512, 4, 4), (256, 1024, 4, 1), (512, 2048, 8, 2)])
def test_activations_are_what_torch_keeps(precision, hidden, inner, heads, keys):
    rows, prompt, completion = 4, 40, 60

    def kept(layers: int) -> int:
        config = Qwen2Config(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=keys, vocab_size=512,
        )  # fmt: skip
        model = Qwen2ForCausalLM(config)
        model.compute_dtype = torch.bfloat16 if precision == "bf16-mixed" else None
        own = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters() if p.dim() == 2}
        seen: dict[int, int] = {}
        alive = []

        def keep(tensor):
            if tensor.shape not in own:  # weights, and their casts, are counted elsewhere
                alive.append(tensor)
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        batch = token_batch([[5] * prompt] * rows, [[7] * completion] * rows, 0, torch.device("cpu"))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            score(model, batch)
        return sum(seen.values())

    measured = (kept(3) - kept(1)) / 2
    number = 2 if precision == "bf16-mixed" else 4
    width = keys * hidden // heads
    told = of_memory.KEPT_BYTES * hidden + number * (of_memory.KEPT_KEYS * width + of_memory.KEPT_INNER * inner)
    assert told * rows * (prompt + completion) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_cache_is_what_decoding_keeps(precision, monkeypatch):
    options = [
        "model=random_shape", "model.path=tiny", "dataset=ladder", "algorithm=grpo", f"trainer.precision={precision}",
        "rollout.max_prompt_tokens=24", "rollout.max_completion_tokens=20", "rollout.batch_size=6",
    ]  # fmt: skip
    cfg, caches = compose_config(*options), []
    model, tokenizer = build(cfg.model)
    compute_in(model, precision)
    engine, own = TransformersEngine(cfg.rollout, model, tokenizer), transformers_engine.roomy_cache
    engine.eos_ids = torch.tensor([-1])  # no row ends early
    monkeypatch.setattr(transformers_engine, "roomy_cache", lambda *args: caches.append(own(*args)) or caches[-1])
    engine.generate(
        [Request(tuple(range(5, 29)), NoiseKey(0, SOLVE, 0, i)) for i in range(6)], Sampling(1.0, 1.0, 0, 20)
    )
    kept = sum(t.untyped_storage().nbytes() for layer in caches[0].layers for t in (layer.keys, layer.values))
    assert of_memory.engine(Work.of(cfg, 1))["cache"] == pytest.approx(kept, rel=0.1)


TOY = Device(
    "toy",
    1e9,
    {"float32": 1e6},
    1e4,
    1e3,
    training=1.0,
    thin=0.5,
    reading=1.0,
    layer_s={"transformers": 2.0, "vllm": 0.0},
    reserved=0.0,
)


def test_seconds_of_decoding_by_hand():
    """Launches, reads and products of a token follow each other: a sum, not the largest of them."""
    w = work("trainer.precision=32-true", "rollout.batch_size=8", "plan.completion_tokens=10", "plan.prompt_tokens=5")
    s = w.shape
    cached = (5 + 5) * s.layers * 2 * s.kv_width * 4
    token = (
        2.0 * s.layers
        + 4 * (s.in_layers + s.head) / 1e4
        + 8 * cached / 1e4
        + 2 * 8 * (s.in_layers + s.head) / (0.5 * 1e6)
        + 8 * (s.head / s.hidden) * 40 / 1e4
    )
    assert decoding(w, TOY, 16, 2) == pytest.approx(2 * 2 * 5 * s.in_layers / 1e6 + 2 * 10 * token)
    assert decoding(w, TOY, 0, 0) == 0
    halves = replace(w, devices=2)  # each device has one of the two batches
    assert decoding(halves, TOY, 16, 2) == pytest.approx(decoding(w, TOY, 16, 2) / 2)


def test_seconds_of_an_update_grow_with_passes_and_devices_send():
    plain, kl = update(work(), DEVICES["h100"]), update(work("algorithm.kl_coef=0.05"), DEVICES["h100"])
    assert plain < kl < 1.5 * plain
    assert update(work(devices=8), DEVICES["h100"]) < plain / 4
    sharded = work("trainer.devices=8", "trainer.strategy=fsdp", devices=8)
    slow = replace(DEVICES["h100"], link=1e9)
    assert update(sharded, slow) > update(work(devices=8), slow)  # it sends more


def test_an_engine_decodes_at_the_rate_of_its_own_format():
    slow, quick = (
        seconds(work("rollout=vllm", f"rollout.dtype={d}"), DEVICES["h100"])["rollouts"]
        for d in ("float32", "bfloat16")
    )
    assert slow > 2 * quick


def test_an_engine_without_a_format_of_its_own_has_the_trainers():
    half, named = work("rollout=vllm"), work("rollout=vllm", "rollout.dtype=bfloat16")
    assert half.engine_format == named.engine_format == "bfloat16"
    assert memory(half, DEVICES["h200"]) == memory(named, DEVICES["h200"])
    assert work("rollout=vllm", "trainer.precision=32-true").engine_format == "float32"


def test_the_base_under_an_adapter_is_held_as_it_is_multiplied():
    lora, plain = work("model.lora_rank=16"), work("model.lora_rank=16", "trainer.precision=32-true")
    assert plain.held - lora.held == 2 * lora.shape.in_layers
    assert lora.read_bytes == 2
    assert lora.casts == 2 * (lora.shape.parameters - lora.shape.in_layers)


def test_sharded_layers_are_gathered_in_16_bit_under_autocast():
    sharded = ["trainer.devices=8", "trainer.strategy=fsdp"]
    mixed, plain = (work(*sharded, f"trainer.precision={p}", devices=8) for p in ("bf16-mixed", "32-true"))
    s, two = mixed.shape, 2 / mixed.shape.layers
    assert updating(plain)["gathered layers"] == pytest.approx(4 * (s.parameters - s.in_layers + two * s.in_layers))
    saved = updating(plain)["gathered layers"] - updating(mixed)["gathered layers"]
    assert saved == pytest.approx(2 * two * s.in_layers)
    assert updating(mixed)["casts to 16 bit"] == 2 * s.head
    link = replace(DEVICES["h100"], link=1.0)  # all else takes no time beside it
    assert update(mixed, link) / update(plain, link) == pytest.approx(
        (2 * (s.parameters - s.in_layers / 2) + s.parameters) / (3 * s.parameters), rel=1e-3
    )


def test_a_gpu_here_reaches_no_more_of_its_peak_in_training_than_another(monkeypatch):
    """Eager transformers reach 35 to 45 % of it; 70 % was assumed of a GPU that was measured."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=141e9))
    monkeypatch.setattr(torch, "rand", lambda *size, device: torch.zeros(1))
    monkeypatch.setattr(machine, "_least", lambda action: 1.0)
    assert machine._this_gpu().training == DEVICES["h200"].training == 0.4


def test_a_prompt_that_cannot_be_shared_is_read_by_each_row():
    plain = [*THREE_B[1:], "model=hf", "model.path=Qwen/Qwen2.5-3B-Instruct"]
    shared, apart = (Work.of(compose_config(*plain, f"trainer.share_prompts={s}"), 1) for s in ("true", "false"))
    assert update(shared, DEVICES["h100"]) < update(apart, DEVICES["h100"])
    kept, other = work(), work("trainer.share_prompts=false")  # the preset keeps no activations
    assert update(kept, DEVICES["h100"]) == update(other, DEVICES["h100"])


def test_an_evaluation_takes_one_device_whatever_the_run_has():
    one, eight = (estimate(compose_config(*THREE_B, f"trainer.devices={n}"), "evaluate", "h100") for n in (1, 8))
    assert one == eight


@pytest.mark.parametrize("path", ["0.5B:x", "half"])
def test_a_shape_that_is_not_known_is_one_line(path):
    with pytest.raises(UserError, match=rf"model\.path={path}: no shape"):
        build(compose_config("dataset=ladder", "model=random_shape", f"model.path={path}").model)


def test_a_random_shape_is_the_same_for_every_seed_and_draws_nothing():
    conf = compose_config("dataset=ladder", "model=random_shape", "model.path=tiny").model
    torch.manual_seed(1)
    one = build(conf)[0]
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn
    assert torch.equal(one.lm_head.weight, build(conf)[0].lm_head.weight)


def test_a_gap_of_two_runs_sees_what_one_lacks():
    assert gap([{"loss/total": 1.0, "time/update_s": 1.0}], [{"loss/total": 1.5, "time/update_s": 9.0}]) == 0.5
    for other in ({"loss/total": float("nan")}, {"loss/total": None}, {}):
        assert gap([{"loss/total": 1.0}], [other]) == float("inf")


def test_a_run_is_its_steps_and_its_evaluations():
    w, device = work("evaluation.every=0", "trainer.max_steps=10"), DEVICES["h100"]
    evaluations = 2 * decoding(w, device, 500 * 4, 500)
    assert run_seconds(w, device) == pytest.approx(10 * sum(seconds(w, device).values()) + evaluations)
    assert tokens(w) == 1024 * (10 * 16 * 8 + 2 * 500 * 4)


def test_advice_names_settings_that_fit_and_no_more_than_needed():
    small = replace(DEVICES["a100"], memory=60e9)
    w = work("trainer.micro_batch_size=64")
    assert "do not fit" in (told := advice(w, small))
    settings = next(s for s in changes(w) if memory(changed(w, s), small)["peak"] <= SURE * small.memory)
    assert told.endswith(" ".join(f"{key}={value}" for key, value in settings))
    check(compose_config(*THREE_B, "trainer.micro_batch_size=64", *(f"{key}={value}" for key, value in settings)))
    needed = memory(w, small)["peak"]
    told = advice(w, replace(small, memory=needed / 0.93))  # what is left may be less than the estimate is low
    assert "tight: " in told
    assert "93% of its memory" in told
    assert "; it fits with " in told
    assert advice(w, replace(small, memory=needed / 0.83)).endswith("fits")
    assert advice(w, DEVICES["h200"]).endswith("fits")
    assert advice(w, replace(small, memory=1e9)).endswith("no setting of one key or a few fits it")


@pytest.mark.runs
def test_expo_plan_needs_neither_vllm_nor_a_gpu(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(
        "sys.argv",
        ["expo", "plan", *THREE_B, "rollout=vllm_server", "rollout.device=1", "plan.devices=[1,8]", "plan.device=h200"],
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "most at a time, GB" in out
    assert "an estimate for h200, not measured" in out
    assert "1 h200: fits" in out
    assert "8 h200: trainer.devices=8: each device has an engine of its own" in out  # as `expo train` would say


def test_expo_plan_of_a_model_that_nobody_has_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"model\.path=.*nowhere: cannot be loaded"):
        plan_command(compose_config("dataset=ladder", "model=hf", f"model.path={tmp_path}/nowhere"))


def test_a_plan_for_this_machine_measures_it(capsys):
    assert (
        plan_command(
            compose_config(
                "dataset=ladder", "algorithm=grpo", "plan.device=here", "plan.devices=[1]", "trainer.threads=1"
            )
        )
        == 0
    )
    assert "this CPU" in capsys.readouterr().out or torch.cuda.is_available()


def test_a_shape_counts_a_tied_head_once():
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
        tie_word_embeddings=True,
    )
    tied, untied = shape_of(config), shape_of(Qwen2Config(**(config.to_dict() | {"tie_word_embeddings": False})))
    assert untied.parameters - tied.parameters == 500 * 64
    assert untied.in_layers == tied.in_layers == tied.parameters - 500 * 64


def test_a_plan_tells_steps_problems_epochs_and_money(capsys):
    line = [*THREE_B, "dataset.limit=1000", "dataset.validation=200", "trainer.max_steps=100", "plan.devices=[1,8]"]
    line += ["trainer.problems_per_step=16", "evaluation.every=50", "evaluation.first=false", "dataset.eval_limit=100"]
    assert plan_command(compose_config(*line, "plan.price=2.5")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "100 steps of 16 problems, 1,600 in all (2 epochs); 2 evaluations of 1,200 completions" in out
    assert "the run, money (plan.price=2.5)" in out
    assert "how sure: no GPU has been measured" in out


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["dataset=ladder"], "evaluations of 2,000 completions"),
        (["dataset=ladder", "dataset.eval_limit=1000"], "evaluations of at most 20,000 completions"),
        (["dataset=ladder"], "(at least 0.08 epochs)"),
        (["dataset=ladder", "dataset.eval_levels=[4,5]", "dataset.eval_limit=10"], "evaluations of 80 completions"),
        (["dataset=math"], "epochs); 2 evaluations of 2,000 completions"),
        (["dataset=math", "dataset.levels=[4,5]", "dataset.eval_limit=null"], "epochs not known: no dataset.limit)"),
        (["dataset=math", "dataset.levels=[4,5]", "dataset.eval_limit=null"], "number is not known (no dataset"),
        (["dataset=math", "dataset.path=x.jsonl", "dataset.eval_limit=null"], "epochs not known: no dataset.limit)"),
        (["dataset=math", "dataset.path=x.jsonl", "dataset.eval_limit=null"], "evaluations of at most 400 completions"),
        (["dataset=math_level5", "dataset.eval_limit=null"], "evaluations of 5,296 completions"),
        (["dataset=custom", "dataset.path=x.jsonl", "dataset.limit=800"], "(at least 1 epochs)"),
    ],
)
def test_a_plan_counts_the_problems_that_the_data_has_or_says_that_they_are_not_known(overrides, told):
    few = ["trainer.max_steps=100", "trainer.problems_per_step=8", "evaluation.every=100", "model=qwen2.5-3b-instruct"]
    assert told in Work.of(compose_config("algorithm=grpo", *overrides, *few), 1).length


@pytest.mark.parametrize(
    ("algorithm", "rows"),
    [("grpo", 4 * 8), ("dapo", 4 * 8 * 11), ("nurl", 4 * (8 + 7 + 2)), ("pope", 4 * (8 + 8)), ("exp_grpo", 4 * 9)],
)
def test_the_tokens_at_most_count_refills_and_hints(algorithm, rows):
    overrides = [f"algorithm={algorithm}", "algorithm.group_size=8", "trainer.max_steps=1", "evaluation.every=0"]
    more = ["algorithm.refills=10"] if algorithm == "dapo" else []
    cfg = compose_config(*overrides, *more, "trainer.problems_per_step=4")
    work = Work.of(cfg, 1)
    assert tokens(work) == work.completion * (rows + work.evaluations * work.sampled)


@pytest.mark.parametrize(("limit", "validation"), [(50, 60), (50, 50), (8000, 7500)])
def test_a_plan_of_which_nothing_is_left_to_train_on_is_one_line(limit, validation):
    line = [f"dataset.limit={limit}", f"dataset.validation={validation}"]
    told = f"dataset.validation={validation}: no problem is left to train on; set it below {min(limit, 7500)}"
    with pytest.raises(UserError, match=told):
        plan_command(compose_config(*THREE_B, *line))


def test_a_plan_counts_the_problems_of_a_file(tmp_path, capsys):
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"question": "none"}]))
    own = ["dataset=custom", f"dataset.path={tmp_path}/rows.jsonl", "dataset.validation=3"]
    few = ["trainer.max_steps=12", "trainer.problems_per_step=4", "evaluation.every=12", "k=[1]", "plan.devices=[1]"]
    plan_command(compose_config(*THREE_B, *own, *few))
    # 15 of 30 are held out, and 12 of the others trained on.
    assert "48 in all (4 epochs); 2 evaluations of 18 completions" in " ".join(capsys.readouterr().out.split())


def test_a_diagnosis_is_estimated_by_the_levels_that_it_takes():
    few = ["diagnose.problems=10", "diagnose.samples=2"]
    one, five = (
        estimate(compose_config("dataset=ladder", f"dataset.levels={levels}", *few, *THREE_B[:1]), "diagnose", "h100")
        for levels in ("[5]", "[1,2,3,4,5]")
    )
    assert five.tokens == 5 * one.tokens == 5 * 3 * 2 * 10 * 80


def test_dpo_trains_on_two_completions_of_each_problem():
    small = ["trainer.problems_per_step=16", "trainer.share_prompts=false", "positives.weight=0"]
    pairs, one = (
        Work.of(compose_config(f"algorithm={name}", *THREE_B[:2], *small[: 3 - (name == "sft")]), 1)
        for name in ("exp_dpo_offline", "sft")
    )
    assert (pairs.trained_rollouts, pairs.positives) == (32, 0)
    assert (one.trained_rollouts, one.positives) == (0, 16)


def test_an_evaluation_of_the_ladder_is_estimated_by_the_problems_of_its_levels():
    one, two = (
        estimate(compose_config("dataset=ladder", f"dataset.eval_levels={levels}", *THREE_B[:1]), "evaluate", "h100")
        for levels in ([5], [4, 5])
    )
    assert two.tokens == 2 * one.tokens
