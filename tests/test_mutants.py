"""What mutation testing found untested: losses, scalars of evaluations, collapses, answers."""

import math
from threading import Thread

import numpy as np
import pytest
import torch

from expo.algorithms import losses
from expo.data import ladder
from expo.evaluation.habits import habits
from expo.evaluation.pass_at_k import interval
from expo.evaluation.tally import Tally
from expo.runs.health import WINDOW, Health, Sign, Watch
from expo.verifier import answers, forms
from expo.verifier.answers import Verdict, fast_verdict, judge, last_boxed, normalized

# --- losses


def test_the_deviation_has_a_small_number_added():
    found = losses.group_advantages(torch.tensor([[0.0, 2e-6]]))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0]]) / (2**0.5 + 1), atol=1e-4, rtol=0)


def test_equal_rewards_are_equal_whatever_an_empty_slot_holds():
    """The mean of 0.1 is not 0.1 in float32, and the rounding is divided by next to nothing."""
    rewards = torch.tensor([[0.1] * 7 + [1.0]])
    members = torch.tensor([[1.0] * 7 + [0.0]])
    for advantage in losses.ADVANTAGES:
        assert not losses.group_advantages(rewards, advantage, members).any()


def test_overlong_penalty_has_a_floor_and_is_a_float():
    lengths = torch.tensor([150])
    assert losses.overlong_penalty(lengths, 100, 0.2).tolist() == [-1.0]
    assert losses.overlong_penalty(lengths, 100, 0).dtype == torch.float32


def test_token_weights_of_one_row():
    mask = torch.tensor([[0.0, 1.0]])
    for aggregation, weight in (("sequence_mean", 1.0), ("token_mean", 1.0), ("constant", 0.1)):
        torch.testing.assert_close(losses.token_weights(mask, aggregation, 10), torch.tensor([[0.0, weight]]))


def test_ratios_of_sequences_are_those_of_their_own_tokens():
    logp = torch.tensor([[0.3, 0.1, 9.0], [0.4, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    _, rho, _ = losses.policy_loss(logp, torch.zeros(3, 3), mask, torch.ones(3), 0.5, 0.5, "sequence")
    torch.testing.assert_close(rho, torch.tensor([[0.2], [0.4], [0.0]]).exp().expand(3, 3))
    weights = losses.sampler_weights(logp, torch.zeros(3, 3), mask, "sequence", 100.0)
    torch.testing.assert_close(weights, torch.tensor([[0.4], [0.4], [0.0]]).exp().expand(3, 3))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_log_ratio_beyond_20_is_20(sign):
    logp, zero, one = torch.tensor([[50.0 * sign]]), torch.zeros(1, 1), torch.ones(1, 1)
    bounded = pytest.approx(math.exp(20 * sign), rel=1e-5, abs=0)
    assert losses.policy_loss(logp, zero, one, torch.ones(1), 0.2, 0.2, "token")[1].item() == bounded
    assert losses.sampler_weights(logp, zero, one, "token", 1e12).item() == bounded
    assert losses.kl(logp, zero, "k3").item() == pytest.approx(math.exp(-20 * sign) - 1 + 20 * sign, rel=1e-5)


# --- evaluation


def row(problem, verdict, tokens=10, truncated=False, level=None, subject=None, question="", completion="no answer"):
    return {
        "problem": problem, "verdict": verdict, "tokens": tokens, "truncated": truncated, "level": level,
        "subject": subject, "question": question, "completion": completion,
    }  # fmt: skip


def test_the_scalars_of_an_evaluation_by_hand():
    right, wrong, unreadable = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSEABLE
    tally = Tally(2)
    tally.add(
        [row("a", right, 10, level=1), row("a", wrong, 20, level=1), row("b", wrong, 30), row("b", unreadable, 40)]
    )
    tally.add([row("c", right, 50, True, 2), row("c", right, 60, level=2)])
    found = tally.metrics([1, 2])
    names = {
        f"pass@{k}{group}{end}" for k in (1, 2) for group in ("", "/level1", "/level2") for end in ("", "_lo", "_hi")
    }
    assert found.keys() == names | {"eval/length_mean", "eval/truncated_frac", "eval/unparseable_frac"}
    assert (found["pass@1"], found["pass@1/level1"], found["pass@1/level2"]) == (0.5, 0.5, 1.0)
    assert found["pass@2"] == pytest.approx(2 / 3)
    assert found["pass@1_lo"] < found["pass@1"] < found["pass@1_hi"]
    assert found["eval/length_mean"] == 35
    assert found["eval/truncated_frac"] == found["eval/unparseable_frac"] == pytest.approx(1 / 6)
    assert list(tally.outcomes) == ["a", "b", "c"]


def test_the_ladder_tells_right_answers_by_wrong_steps():
    [problem] = ladder.generate(1, "eval", 1)
    parts = ladder.parse_question(problem.question)
    steps = ladder.cot_text(parts, [part.meaning for part in parts])

    def sample(verdict, completion):
        return row("p", verdict, subject="ladder", question=problem.question, completion=completion)

    tally = Tally(1)
    tally.add([sample("incorrect", steps)])
    assert tally.metrics([1])["eval/correct_with_sound_steps_frac"] == 0
    tally.add([sample("correct", steps)])
    tally.add([sample("correct", "guessed"), sample("incorrect", "guessed")])
    assert tally.metrics([1])["eval/correct_with_sound_steps_frac"] == 0.5


def test_an_interval_holds_95_percent_and_is_the_same_each_time():
    values = np.random.default_rng(0).normal(size=400)
    error = values.std() / 20
    low, high = interval(values)
    assert (values.mean() - low) / error == pytest.approx(1.96, abs=0.08)
    assert (high - values.mean()) / error == pytest.approx(1.96, abs=0.08)
    assert interval(values) == (low, high) == interval(values, 0) != interval(values, 1)


def test_levels_have_no_second_pass_at_k():
    rows = [row(p, "correct", level=i, subject=s) for i, (p, s) in enumerate((("a", "Algebra"), ("b", "Geometry")), 1)]
    found = habits(rows, [], [1])
    assert "pass@1/Algebra" in found
    assert not any(name.startswith("pass@1/level") for name in found)


# --- collapses


def noticed(metric, values):
    health = Health()
    return [step for step, value in enumerate(values, 1) if health.see(step, {metric: value})]


@pytest.mark.parametrize(
    ("metric", "healthy", "ill", "not_ill"),
    [
        ("reward/mean", 0.6, 0.29, 0.31),
        ("reward/mean", 0.15, 0.04, 0.06),
        ("reward/unparseable_frac", 0.1, 0.41, 0.39),
        ("reward/unparseable_frac", 0.6, 0.91, 0.89),
        ("policy/entropy", 0.05, 0.36, 0.34),
        ("policy/entropy", 0.2, 0.81, 0.79),
        ("completion/length_mean", 400.0, 39.0, 41.0),
        ("completion/length_mean", 5.4, 0.3, 0.5),
        ("completion/truncated_frac", 0.1, 0.61, 0.59),
        ("completion/truncated_frac", 0.4, 0.91, 0.89),
        ("loss/kl", 0.1, 1.11, 1.09),
        ("loss/kl", 1.0, 4.01, 3.99),
        ("positive/leak_gap", 0.1, 1.11, 1.09),
        ("positive/leak_gap", 1.0, 4.01, 3.99),
    ],
)
def test_how_much_worse_a_collapse_is(metric, healthy, ill, not_ill):
    assert len(noticed(metric, [healthy] * 20 + [ill] * 20)) == 1
    assert noticed(metric, [healthy] * 20 + [not_ill] * 20) == []


def test_two_bad_steps_after_a_short_start_are_no_collapse():
    assert noticed("reward/mean", [0.6] * 10 + [0.0] * 2) == []


def test_a_slow_decline_is_a_collapse():
    assert len(noticed("reward/mean", [0.6 - 0.006 * i for i in range(100)])) == 1


@pytest.mark.parametrize(
    ("between", "times"), [(0.475, 2), (0.35, 1)]
)  # of 0.6: the sign is on until half of 0.3 is left
def test_a_collapse_lasts_until_half_of_it_is_made_good(between, times):
    assert len(noticed("reward/mean", [0.6] * 20 + [0.05] * 20 + [between] * 20 + [0.05] * 20)) == times


def test_the_limits_of_a_sign_by_hand():
    def steps(*values):
        watch = Watch(Sign("m", True, 2.0, 0.0, ""))
        return [step for step, value in enumerate(values, 1) if watch.see(step, value) is not None]

    assert len(steps(*[10] * 20, *[8] * 10)) == 1  # reaching the least change is enough
    assert steps(*[10] * 20, *[0] * 10) == [30]  # at step 29 the change is 9 and three deviations are 9
    assert len(steps(*[10] * 20, *[8] * 20, *[9] * 20, *[8] * 20)) == 1  # half of it left: it lasts


def test_a_collapse_began_after_the_last_step_nearer_to_the_best():
    watch = Watch(Sign("m", True, 2.0, 0.0, ""), best=12.0)
    assert watch.began([(1, 12.0), (2, 8.0), (3, 7.0), (4, 5.0), (5, 2.0)], 2.0) == 3  # 7 is the middle
    assert watch.began([(4, 2.0), (5, 2.0)], 2.0) == 1


def test_the_reward_is_that_of_the_last_steps_once_there_are_enough():
    health = Health()
    for step in range(1, WINDOW + 1):
        assert health.reward is None
        health.see(step, {"reward/mean": 0.2})
    assert health.reward == pytest.approx(0.2)
    for step in range(WINDOW):
        health.see(WINDOW + 1 + step, {"reward/mean": 0.4, "policy/entropy": 0.1})
    assert health.reward == pytest.approx(0.4)


def test_one_sign_is_a_collapse():
    health = Health()
    assert health.collapsing is False
    for step, value in enumerate([0.6] * 20 + [0.0] * 20):
        health.see(step, {"reward/mean": value, "policy/entropy": 0.1})
    assert health.collapsing is True


def test_a_state_from_before_a_sign_existed_is_taken():
    assert Health.of({}).state() == Health().state()


# --- answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{[1,2\}}", r"[1,2\}"),  # an escaped brace closes nothing
        (r"} \boxed{6}", "6"),
        (r"\boxed{4} and {5}", "4"),
        (r"\boxed{1 \boxed{2} 3}", "2"),  # the last to open
    ],
)
def test_the_last_box_among_braces(text, answer):
    assert last_boxed(text) == answer


def test_of_a_long_text_so_many_characters_are_read():
    box = r"\boxed{7}"
    assert last_boxed(box + "x" * (answers.LONGEST_TEXT - len(box))) == "7"
    assert last_boxed(box + "x" * (answers.LONGEST_TEXT - len(box) + 1)) is None


def test_verdicts_have_the_names_that_files_hold():
    assert [verdict.value for verdict in Verdict] == ["correct", "incorrect", "unparseable", "timeout"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"\left(1,2\right)", "(1,2)"),
        (r"\leftarrow", r"\leftarrow"),
        ("$12$", "12"),
        ("12.", "12"),
        (".5", ".5"),
        (r"\tfrac12", r"\frac12"),
        (r"1\,2", "1 2"),
        (r"x \, + \; 1", "x+1"),
    ],
)
def test_what_is_normalized(answer, expected):
    assert normalized(answer) == expected


@pytest.mark.parametrize("spaces", [r" \, ", r"\;\;", r" \ "])
def test_several_spaces_between_numbers_mean_something(spaces):
    assert fast_verdict(f"1{spaces}1/2", "11/2") is not Verdict.CORRECT


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("0", "5", Verdict.INCORRECT),
        ("(5)", "(6)", Verdict.INCORRECT),
        ("(1,2,3)", "(1,2,4)", Verdict.INCORRECT),
        (r"\text{x + 1}", "x+1", Verdict.CORRECT),
        (r" \% ", r"\%", Verdict.CORRECT),
        (r"\%", r" \% ", Verdict.CORRECT),
        (r"\phantom{1}", r"\phantom{2}", Verdict.UNPARSEABLE),
        ("", "5", Verdict.UNPARSEABLE),
        ("PARIS", "Paris", Verdict.CORRECT),
        ("1 DAY", "1 day", Verdict.CORRECT),
        ("X", "x", None),  # another variable
        ("AB", "ab", None),
        (r"\Delta", r"\delta", None),
    ],
)
def test_what_strings_settle(answer, gold, verdict):
    assert fast_verdict(answer, gold) is verdict


@pytest.mark.parametrize("command", ["text", "textbf", "textit", "textrm", "mbox", "mathrm", "operatorname"])
def test_words_stand_in_any_text_command(command):
    assert fast_verdict(rf"\{command}{{even}}", "even") is Verdict.CORRECT


def test_math_verify_reads_what_is_visible():
    judge.cache_clear()
    assert judge("1/2", r"0.5\%") is judge(r"0.5\%", "1/2") is Verdict.CORRECT
    assert judge(r"\infty", r"\infty") is Verdict.CORRECT
    assert judge("", "12") is Verdict.UNPARSEABLE
    assert judge("12", "") is Verdict.INCORRECT


def test_math_verify_has_no_alarm_of_its_own():
    """Its limits are of signals, which only a main thread may set."""
    judge.cache_clear()
    found = []
    thread = Thread(target=lambda: found.append(judge("x=2/4=0.50", "0.5")))
    thread.start()
    thread.join()
    assert found == [Verdict.CORRECT]


@pytest.mark.parametrize("space", [r"\!", r"\,", r"\;", r"\:", r"\>", r"\ ", r"\quad ", r"\qquad ", "~"])
def test_spaces_of_latex_are_spaces(space):
    assert forms.plain(f"3{space}apples").split() == ["3", "apples"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (r"5 \\ ", "5"),
        (r"5 \\", "5"),
        (r"1\\2", r"1\\2"),
        (r"\quads", r"\quads"),
        (r"\qquads", r"\qquads"),
        (r"12\phantom{3}", "12"),
        (r"12\hphantom{3}\vphantom{3}", "12"),
        (" 12. ", "12"),
        ("12 .", "12"),
        (".5", ".5"),
        ("12%", "12"),
        (r" 12\%. ", "12"),
        ("x, the answer is 5", "x, the answer is 5"),
        ("so the answer is 5", "5"),
        ("Thus, the answer is 5", "5"),
        ("hence the answer is 5", "5"),
        ("therefore, my answer: 5", "5"),
        ("our final answer = 5", "5"),
        ("the  final  answer is: 5", "5"),
    ],
)
def test_what_is_plain(answer, expected):
    assert forms.plain(answer) == expected


def test_what_is_readable():
    assert forms.readable(r"12\%") == forms.readable("12%") == forms.readable(r"1\phantom{2}2") == "12"


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        (r" x \in[1,2]", "[1,2]", ["[1,2]"]),
        (r"x\in [1,2]", "[1,2]", ["[1,2]"]),
        (r"x \in S", r"x \in S", [r"x \in S"]),
        (r"x\infty", "3", [r"x\infty"]),
        ("x=1,y=2", "5", ["x=1,y=2"]),
        (r"x=5 \neq 6", "5", [r"x=5 \neq 6"]),
        ("y=2", "y=2", ["y=2"]),
        ("P(X = 2) = 3", "3", ["P(X = 2)", "3"]),
    ],
)
def test_sides_of_an_equation(answer, gold, expected):
    assert [side.strip() for side in forms.sides(answer, gold)] == expected


def test_what_names():
    assert forms.names("2x")
    assert forms.names(r"\frac12 x")
    assert not forms.names(r"\frac12")


LATEX = (
    "not ne neq le leq ge geq leqslant geqslant lt gt to rightarrow Rightarrow implies iff approx sim equiv cong propto "
    "subset subseteq in notin mid"
)


@pytest.mark.parametrize(
    "relation", ["\\" + name for name in LATEX.split()] + ["<", ">", "≤", "≥", "≠", "≈", "→", "!=", ":="]
)
def test_relations_are_refused_where_the_gold_answer_has_none(relation):
    assert forms.refuses(f"2 {relation} 12", "12")
    assert not forms.refuses(f"2 {relation} 12", f"2 {relation} 12")


@pytest.mark.parametrize(
    "word",
    ["not", "no", "never", "isn", "wrong", "false", "and", "or", "but", "than", "least", "most", "except", "incorrect"],
)
def test_words_that_turn_a_value_are_refused(word):
    assert forms.refuses(rf"\text{{{word}}} 12", "12")


@pytest.mark.parametrize("word", ["unless", "minus", "plus"])
def test_words_with_an_s_that_turn_a_value_are_refused(word):
    assert forms.refuses(rf"12\text{{ {word} one}}", "12")


UNITS = (
    "in=inches inch=inches ft=feet yd=yards mi=miles cm=centimeters mm=millimeters km=kilometers m=meters kg=kilograms g=grams lb=pounds "
    "lbs=pound oz=ounces sec=seconds s=seconds min=minutes hr=hours hrs=hour h=hours l=liters ml=milliliters sq=square deg=degrees "
    "cents=cent a=am p=pm a.m.=am p.m.=PM foot=feet cats=cat"
)


@pytest.mark.parametrize("pair", UNITS.split())
def test_a_unit_written_in_two_ways_is_one(pair):
    short, long = pair.split("=")
    assert not forms.refuses(rf"5\text{{ {short}}}", rf"5\text{{ {long}}}")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("(1,2,…)", "(1,2)"),
        ("(1,2,...)", "(1,2)"),
        (r"(1,2,\ldots)", "(1,2)"),
        (r"(1,2,\cdots)", "(1,2)"),
        (r"(1,2,\dots)", "(1,2)"),
        ("12_{81}", "12_{8}"),
        ("12_{eight}", "12"),
        (r"12_{\text{eight}}", "12"),
        (" (1,2) ", r"\{1,2\}"),
        (r"\{1,2\}", " (1,2) "),
        ("(12,34)", r"\{12,34\}"),
        (r"\left(1,2\right)", r"\{1,2\}"),
        (r"\big(1,2\big)", r"\{1,2\}"),
        (r"\bigl(1,2\bigr)", r"\{1,2\}"),
        (r"\Big(1,2\Big)", r"\{1,2\}"),
        (r"\Bigl(1,2\Bigr)", r"\{1,2\}"),
        (r"\text{not } 3, 5", "3,5"),
        ("5 cm (", "5 km"),
        ("5 cm", "5 km"),
        ("2 gas", "2 ga"),
        (r"12\text{ one two three four five}", "12"),
        (r"\cancel{12}", "12"),
        (r"x \bcancel{12}", "12"),
        (r"\xcancel{12}", "12"),
        (r"\st{12}", "12"),
        ("x < 2", "(1), 2"),
        ("x < 2", "1, (2)"),
        (r"\sout{12}", "12"),
    ],
)
def test_what_states_something_else(answer, gold):
    assert forms.refuses(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\left|-5\right|", "5"),
        ("1 < x < 2", "(1,2)"),
        ("10 < x < 20", "(10,20)"),
        ("1 < x < 2", r"\left(1,2\right)"),
        ("x < 2", r"A \cup B"),
        ("x > 2", r"\{3\}"),
        (r"x \in S", "S"),
        ("1,2,...", "1,2,..."),
        (r"\{1,2\}x", "(1,2)"),
        ("(1,2)x", r"\{1,2\}"),
        (r"\text{five miles}", "5 km"),
        ("12 hours", "noon today"),
        (r"12\text{ one two three four}", "12"),
        (r"\cancel{12}", r"x \cancel{12}"),
        (r"a \star b", r"a \star b"),
        *((f"{name} 2 cm", "2 cm") for name in ("sin", "cos", "tan", "log", "ln", "sqrt", "pi")),
    ],
)
def test_what_states_nothing_else(answer, gold):
    assert not forms.refuses(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"x\text{ is wrong}", "x"),
        (r"y\text{ is not it}", "y"),
        (r"\pi\text{ or not}", r"\pi"),
        (r"(1,2,\dotsc)", "(1,2)"),
        (r"(1,2,\dotsb)", "(1,2)"),
    ],
)
def test_a_value_without_digits_is_turned_by_words_too(answer, gold):
    assert fast_verdict(answer, gold) is Verdict.INCORRECT
