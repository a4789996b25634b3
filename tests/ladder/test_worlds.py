"""Worlds of the ladder: what their corpora have, what the oracle sees in them, and that no base policy gets into
another's."""

import json
import random
import shlex

import pytest
from conftest import compose_config

from expo.config import UserError, WorldConf, check, identity
from expo.config.identity import made_as, pretrain_identity
from expo.config.reference import options_of
from expo.jobs.pretrain import command, corpus_item, first_weights, pretrain, unfinished_folder
from expo.jobs.wiring import load_model
from expo.ladder import problems as ladder

WORLDS = options_of("dataset/world")


def world_of(name):
    return compose_config("dataset=ladder", f"dataset/world={name}").dataset.world


def test_each_world_is_there_and_composes():
    assert {"clear", "weak", "leaky", "long", "paper"} == set(WORLDS)
    for name in WORLDS:
        check(compose_config("dataset=ladder", f"dataset/world={name}"))
    assert world_of("clear") == WorldConf()
    assert world_of("clear").corpus == {}


def explanations(world, level=5, count=400):
    rng = random.Random(0)
    for _ in range(count):
        parts = ladder.sample_parts(level, rng, world)
        true = [p.meaning for p in parts]
        yield parts, ladder.explanation_text(parts, true, rng, world)


def soundness(world, **kwargs):
    found = [ladder.check_steps(ladder.question_text(parts), text) for parts, text in explanations(world, **kwargs)]
    return sum(f.sound for f in found) / len(found), sum(f.arithmetic for f in found) / len(found)


def stated(text):
    return text.rpartition(r"\boxed{")[2]


@pytest.mark.parametrize(("knob", "arithmetic_holds"), [("slips", True), ("fudged", False)])
def test_the_share_of_wrong_parts_is_that_of_the_world(knob, arithmetic_holds):
    """A part slips, and is then believed rightly in one of ten cases: (1 - 0.9 · 0.2)^5 of the explanations stay
    sound."""
    sound, arithmetic = soundness(WorldConf(**{knob: 0.2}))
    assert sound == pytest.approx((1 - 0.9 * 0.2) ** 5, abs=0.07)
    assert (arithmetic == 1.0) is arithmetic_holds
    assert soundness(WorldConf())[0] == 1.0


@pytest.mark.parametrize("world", [WorldConf(slips=0.3), WorldConf(fudged=0.3), WorldConf(answer_first=0.5)])
def test_an_explanation_states_the_shown_answer_whatever_its_steps_are(world):
    for parts, text in explanations(world, count=50):
        assert stated(text) == stated(ladder.cot_text(parts, [p.meaning for p in parts]))


def test_an_answer_that_stands_first_hides_no_step_from_the_oracle():
    texts = list(explanations(WorldConf(answer_first=1.0), count=20))
    assert all(text.startswith(r"\boxed{( ") and text.count(r"\boxed") == 2 for _, text in texts)
    assert soundness(WorldConf(answer_first=1.0))[0] == 1.0
    assert soundness(WorldConf(answer_first=1.0, slips=1.0))[0] < 0.1


def test_the_long_world_writes_three_times_the_tokens_and_the_oracle_reads_them():
    long, rng = world_of("long"), random.Random(1)
    words = {}
    for world in (long, WorldConf()):
        lengths = []
        for _ in range(40):
            parts = ladder.sample_parts(5, rng, world)
            text = ladder.cot_text(parts, [p.meaning for p in parts], world.verbose)
            assert ladder.check_steps(ladder.question_text(parts), text).sound
            wrong = text.replace("max", "add", 1) if "max" in text else text.replace("cat", "add", 1)
            assert not ladder.check_steps(ladder.question_text(parts), wrong).sound
            assert set(text.split()) <= set(ladder.words(world))
            lengths.append(len(text.split()))
        words[world.verbose] = sum(lengths) / len(lengths)
    assert words[True] / words[False] == pytest.approx(3, abs=0.3)
    prompt = compose_config("dataset=ladder", "dataset/world=long").rollout
    longest = ladder.sample_parts(5, rng, long)
    assert len(ladder.question_text(longest).split()) + 20 < prompt.max_prompt_tokens
    assert words[True] < prompt.max_completion_tokens


def test_the_expert_writes_a_share_of_its_solutions_in_the_policys_style_always_the_same_ones():
    world = WorldConf(expert_own=0.3)
    problems = list(ladder.generate(5, "train", 300, "terse", world))
    own = ["=" in p.solution for p in problems]
    assert sum(own) / 300 == pytest.approx(0.3, abs=0.08)
    assert problems == list(ladder.generate(5, "train", 300, "terse", world))
    plain = list(ladder.generate(5, "train", 300))
    assert [p.question for p in plain] == [p.question for p in problems]
    assert all(a.solution == b.solution for a, b, is_own in zip(plain, problems, own, strict=True) if not is_own)
    assert world.corpus == {}  # it shapes no base policy


def test_the_corpus_of_the_clear_world_is_the_one_that_the_shipped_policy_has_read():
    """Drawn before there were worlds: the first sequences of two seeds."""
    rng = random.Random("0-0")
    items = [corpus_item(level, rng) for level in (1, 3, 5)]
    assert [(p.question, p.answer, text, explains) for p, text, explains in items] == [
        tuple(i) for i in json.loads(CORPUS)
    ]


CORPUS = r"""[["(1) 3 + 3 # 2", "( 6 )", "(1) 3 + 3 = 6 max 2 = 6 ; \\boxed{( 6 )}", true], ["(1) 2 - 5 ? 2 (2) 1 + 2 ? 5 (3) 6 - 4 ? 4", "( 5 , 8 , 6 )", "(1) 2 - 5 = 3 add 2 = 5 ; (2) 1 + 2 = 3 add 5 = 8 ; (3) 6 - 4 = 2 add 4 = 6 ; \\boxed{( 5 , 8 , 6 )}", false], ["(1) 5 + 6 _ 3 (2) 1 + 6 | 3 (3) 5 + 1 _ 4 (4) 5 + 3 _ 3 (5) 1 - 3 | 5", "( 33 , 73 , 10 , 8 , 7 )", "(1) 5 + 6 = 11 mul 3 = 33 ; (2) 1 + 6 = 7 cat 3 = 73 ; (3) 5 + 1 = 6 add 4 = 10 ; (4) 5 + 3 = 8 max 3 = 8 ; (5) 1 - 3 = 2 add 5 = 7 ; \\boxed{( 33 , 73 , 10 , 8 , 7 )}", true]]"""  # noqa: E501


def test_problems_of_another_shape_have_other_names():
    names = {p.id for w in ("clear", "weak") for p in ladder.generate(2, "test", 3, "terse", world_of(w))}
    assert names == {f"ladder/test/2/{i}" for i in range(3)}
    assert next(ladder.generate(2, "test", 1, "terse", world_of("long"))).id == "ladder-2-3-4-6-8/test/2/0"


def test_a_world_is_part_of_a_runs_identity_and_the_clear_one_changes_none():
    clear, weak = (compose_config("dataset=ladder", f"dataset/world={w}") for w in ("clear", "weak"))
    assert identity(clear) == identity(compose_config("dataset=ladder")) != identity(weak)
    own = compose_config("dataset=ladder", "dataset.world.expert_own=0.2")
    assert identity(own) != identity(clear)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("dataset.world.familiarity=[0.5,0.5]", "not one for each of levels 1 to 5"),
        ("dataset.world.parts=[1,2,3,4,9]", "not between 1 and 8"),
        ("dataset.world.misconception=0.95", "over 1; set it to 0.9 or less"),
        ("dataset.world.slips=1.5", "not between 0 and 1"),
    ],
)
def test_mistakes_in_a_world_are_one_line(override, told):
    with pytest.raises(UserError, match=told) as error:
        check(compose_config("dataset=ladder", override))
    assert "\n" not in str(error.value)


def test_two_rates_of_wrong_parts_are_at_most_all():
    with pytest.raises(UserError, match=r"dataset.world.fudged=0.6: with dataset.world.slips=0.6 over 1"):
        check(compose_config("dataset=ladder", "dataset.world.slips=0.6", "dataset.world.fudged=0.6"))


def test_the_shipped_policy_is_refused_in_another_world():
    with pytest.raises(UserError, match=r"dataset.world.slips is 0.16 here, 0.0 there; make one with expo pretrain"):
        load_model(compose_config("dataset=ladder", "dataset/world=weak"))
    load_model(compose_config("dataset=ladder", "dataset.world.expert_own=0.5"))  # which shapes no base policy
    load_model(compose_config("dataset=ladder", "dataset/world=weak", "model=random_tiny"))  # and is of no world


@pytest.mark.runs
def test_a_base_policy_of_a_world_is_made_used_and_refused_elsewhere(tmp_path, capsys):
    base = tmp_path / "weak"
    small = ["pretrain.max_steps=2", "pretrain.tokens_per_batch=300", f"pretrain.output={base}"]
    cfg = compose_config("dataset=ladder", "dataset/world=weak", *small)
    assert unfinished_folder(cfg) != unfinished_folder(compose_config("dataset=ladder", *small))
    pretrain(cfg)
    card = (base / "README.md").read_text()
    assert "dataset.world.slips=0.16" in card
    assert "trained by expo from ladder on" in card
    use = ["dataset=ladder", "model=hf", f"model.path={base}"]
    model, *_ = load_model(compose_config(*use, "dataset/world=weak"))
    model.save_pretrained(tmp_path / "trained")  # a run's final model knows its world, too
    load_model(compose_config(*use[:2], f"model.path={base}", "dataset/world=weak"))
    with pytest.raises(UserError, match="was made for another world"):
        load_model(compose_config(*use))
    assert json.loads((tmp_path / "trained" / "config.json").read_text())["expo_world"] == {"slips": 0.16}
    assert made_as(base, cfg) is True
    assert made_as(base, compose_config("dataset=ladder", *small)) is False
    assert made_as(tmp_path / "trained", cfg) is None  # it is not the base policy any more


@pytest.mark.parametrize("world", ["clear", "weak", "leaky", "long", "paper"])
def test_the_command_on_a_base_policys_card_makes_the_same(world):
    cfg = compose_config("dataset=ladder", f"dataset/world={world}", "seed=3", "pretrain.tokens_per_batch=77")
    _, _, *overrides = shlex.split(shlex.join(command(cfg)))
    assert pretrain_identity(compose_config(*overrides)) == pretrain_identity(cfg)


def test_a_base_policy_can_begin_from_another_and_not_where_words_are_missing():
    cfg = compose_config("dataset=ladder", "pretrain.start=ladder", "dataset/world=weak")
    _, model = first_weights(cfg, cfg.dataset.world)
    assert model.num_parameters() > 400_000
    cfg = compose_config("dataset=ladder", "pretrain.start=ladder", "dataset/world=long")
    with pytest.raises(UserError, match=r"does not know \(6\), a word of this world"):
        first_weights(cfg, cfg.dataset.world)
