"""`expo compare`: pairs, differences, problems gained and lost, tokens to reach a rate; in the terminal and on a
page."""

import json
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from expo.commands import compare, report
from expo.config import UserError
from expo.config.compose import compose_config
from expo.report.comparison import Comparison, Side, compared
from expo.report.page import RunData
from expo.runs.arms import settings_in


def rows(**right):
    """Two samples of each problem, of which so many are right."""
    return [
        {
            "problem": p,
            "level": 5,
            "sample": i,
            "question": f"{p}?",
            "answer": "1",
            "completion": f"{p}{i}",
            "verdict": "correct" if i < n else "incorrect",
        }
        for p, n in right.items()
        for i in range(2)
    ]


def run(arm, seed, lines=(), **right):
    return RunData(arm, seed, {}, lines, rows(**right), ())


A = Side.of("old", [run("old", 0, a=2, b=1, c=0, d=0), run("old", 1, a=2, b=0, c=0, d=0)])
B = Side.of("new", [run("new", 1, a=2, b=0, c=2, d=0), run("new", 0, a=2, b=0, c=1, d=0)])


def test_runs_that_learned_nothing_are_said():
    dead, alive = ([{"step": 1, "policy/grad_norm": norm}] for norm in (0.0, 0.5))
    assert Side.of("a", [run("a", 0, dead, p=1), run("a", 1, alive, p=1)]).marks == ["a: 1 of 2 runs learned nothing"]
    assert Side.of("a", [run("a", 1, alive, p=1)]).marks == []


def test_differences_are_those_of_the_same_problems_and_seeds():
    heads, table = Comparison(A, B).differences()
    assert heads[2:4] == ["old", "new"]
    assert [row[:2] for row in table] == [["all", "pass@1"], ["all", "pass@2"]]
    old, new, difference, problems = table[0][2:]
    assert old.startswith("31.2 [")  # (1 + .5 + 0 + 0 + 1 + 0 + 0 + 0) / 8
    assert new.startswith("43.8 [")
    assert difference.startswith("+12.5 [")
    assert problems == "4"


def test_a_problem_that_only_one_has_is_left_out_and_none_in_common_is_told():
    more = Side.of("new", [run("new", 0, a=2, e=2)])
    assert Comparison(A, more).differences()[1][0][-1] == "1"
    with pytest.raises(UserError, match="no problem in common"):
        Comparison(A, Side.of("new", [run("new", 0, e=1)])).differences()


def test_levels_are_those_of_the_shared_problems_and_other_questions_are_no_pairs():
    def at(level, question, *problems):
        return [{**row, "level": level, "question": question} for row in rows(**dict.fromkeys(problems, 1))]

    one = RunData("a", 0, {}, (), [*at(1, "x", "p"), *at(5, "x", "q")], ())
    other = RunData("b", 0, {}, (), [*at(5, "x", "q"), *at(6, "x", "r")], ())
    table = Comparison(Side.of("a", [one]), Side.of("b", [other])).differences()[1]
    assert [row[0] for row in table] == ["all", "all"]
    assert table[0][-1] == "1"
    relevelled = RunData("b", 0, {}, (), [*at(2, "x", "p"), *at(5, "x", "q")], ())
    table = Comparison(Side.of("a", [one]), Side.of("b", [relevelled])).differences()[1]
    assert [row[0] for row in table] == ["all", "all"]  # a row by level would be of other problems in each
    unlike = RunData("b", 0, {}, (), at(5, "y", "q"), ())
    with pytest.raises(UserError, match="q asks something else in each"):
        Comparison(Side.of("a", [one]), Side.of("b", [unlike])).differences()
    mended = RunData("b", 0, {}, (), [row | {"answer": "other"} for row in at(5, "x", "q")], ())
    with pytest.raises(UserError, match="q has another answer in each"):
        Comparison(Side.of("a", [one]), Side.of("b", [mended])).differences()


def test_evaluations_that_were_sampled_otherwise_are_told(capsys):
    def at(arm, temperature, **more):
        return Side.of(arm, [replace(run(arm, 0, a=1), settings={"evaluation.temperature": temperature, **more})])

    hot, cold = at("a", 1.0), at("b", 0.7, **{"model.float32_head": True})
    told = Comparison(hot, cold).otherwise
    assert told.endswith(
        "alone: evaluation.temperature is 1.0 in the first, 0.7 in the second; "
        "model.float32_head is false in the first, true in the second."  # the first is from before the key
    )
    assert told in compared([*hot.runs.values(), *cold.runs.values()]).told
    compare.print_comparison(Comparison(hot, cold), 0.5, 0)
    assert "Evaluated otherwise" in capsys.readouterr().out
    assert Comparison(hot, at("b", 1.0)).otherwise == Comparison(A, B).otherwise == ""
    levels = [
        at(arm, 1.0, **{"dataset.levels": lv, "prompts.examples": n}) for arm, lv, n in (("a", [5], 2), ("b", [], 2))
    ]
    assert "dataset.levels is [5] in the first" in Comparison(*levels).otherwise  # the examples are of these
    asked = at("a", 1.0, **{"prompts.system": None}), at("b", 1.0, **{"prompts.system": "Be brief."})
    assert "prompts.system is null in the first" in Comparison(*asked).otherwise


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["verifier=regex"], "verifier._target_"),
        (["verifier.extract=last_number"], "verifier.extract"),
        (["verifier.kind=number"], "verifier.kind"),
        (["dataset.answer_kind=number"], "dataset.answer_kind"),
        (["prompts.examples=2"], "prompts.examples"),
        (["prompts.template_system=false"], "prompts.template_system"),
        (["prompts.template_options={enable_thinking: false}"], "prompts.template_options.enable_thinking"),
        (["prompts.final='{answer}.'"], "prompts.final"),
        (["model.chat_template=plain"], "model.chat_template"),
        (["rollout.max_prompt_tokens=64"], "rollout.max_prompt_tokens"),
        (["algorithm=grpo", "prompts.explain='{question} {answer}'", "evaluation.samples=9", "evaluation.every=7"], ""),
        (["rollout.temperature=0.5", "model.lora_rank=4", "prompts.judge=x", "optimizer.learning_rate=1"], ""),
    ],
)
def test_every_setting_that_decides_an_evaluation_is_told_and_no_other(changed, told):
    data = ["dataset=gsm8k", "model=hf", "model.path=some/model"]
    sides = [
        Side.of(
            arm, [replace(run(arm, 0, a=1), settings=settings_in(OmegaConf.to_container(OmegaConf.structured(cfg))))]
        )
        for arm, cfg in (("a", compose_config(data)), ("b", compose_config([*data, *changed])))
    ]
    assert (f"alone: {told} is " if told else "") in Comparison(*sides).otherwise
    assert bool(Comparison(*sides).otherwise) == bool(told)


def test_a_run_that_is_not_finished_is_left_out_and_named():
    stopped = replace(run("new", 1, a=0), summary={"status": "stopped"})
    arm = Side.of("new", [run("new", 0, a=2), stopped])
    assert Comparison(A, arm).paired == (
        "1 pairs of runs (few), seeds 0; without seeds 1 of old, which the other has not; "
        "without seeds 1 of new, which are not finished"
    )
    with pytest.raises(UserError, match="no finished run"):
        Side.of("new", [stopped])


def test_more_samples_of_one_arm_gain_no_problems():
    def sampled(arm, right):
        rows = [
            {
                "problem": "p",
                "level": 1,
                "sample": i,
                "question": "p?",
                "answer": "1",
                "completion": "",
                "verdict": "correct" if i in right else "incorrect",
            }
            for i in range(right[-1] + 1)
        ]
        return Side.of(arm, [RunData(arm, 0, {}, (), rows, ())])

    few, many = sampled("few", [1]), sampled("many", [5])
    assert Comparison(few, many).gained() == []
    assert Comparison(few, many).lost() == ["p"]
    assert Comparison(few, many).solved == "solved in any of 2 samples, the first ones where a run has more: one has 6"
    assert Comparison(few, many).beside("p")[1]["verdict"] == "incorrect"


def test_the_metric_over_the_steps_is_one_that_was_logged():
    lines = [{"step": 1, "pass@1": 0.5, "pass@8": 1.0}]
    one, other = (Side.of(n, [run(n, 0, lines, a=1)]) for n in "ab")
    assert Comparison(one, other).metric == "pass@1"


def test_gained_and_lost_are_counted_over_all_samples_and_seeds():
    comparison = Comparison(A, B)
    assert comparison.gained() == ["c"]
    assert comparison.lost() == ["b"]
    old, new = comparison.beside("c")
    assert (old["verdict"], new["verdict"]) == ("incorrect", "correct")


def test_runs_without_a_common_seed_are_paired_only_where_there_is_one_of_each():
    one, other = Side.of("a", [run("a", 3, a=1)]), Side.of("b", [run("b", 4, a=2)])
    assert len(Comparison(one, other).pairs) == 1
    assert Comparison(one, other).paired.endswith("of unlike seeds, 3 and 4: paired by problem alone")
    with pytest.raises(UserError, match="none in common to pair"):
        _ = Comparison(A, other).pairs
    with pytest.raises(UserError, match="two of its runs have one seed"):
        Side.of("a", [run("a", 3, a=1), run("a", 3, a=1)])
    with pytest.raises(UserError, match="no finished run with completions"):
        Side.of("a", [RunData("a", 0, {}, (), (), ())])


def test_a_policy_without_a_seed_is_a_pair_with_every_run():
    base = Side.of("base", [replace(run("base", 0, a=1, b=0), summary={"id": "evaluate-ladder-ab12"})])
    comparison = Comparison(base, Side.of("b", [run("b", 3, a=2, b=2), run("b", 0, a=1, b=1), run("b", 8, a=1, b=0)]))
    assert [(one.seed, other.seed) for one, other in comparison.pairs] == [(0, 0), (0, 3), (0, 8)]
    assert comparison.paired == "3 pairs of runs, seeds 0, 3, 8, each with the one evaluation of base"
    assert comparison.differences()[1][0][4].startswith("+33.3 [")


def test_evaluations_of_two_policies_are_no_pair_by_the_seed_that_neither_was_trained_with():
    def evaluation(model):
        made = {"summary": {"id": "evaluate-ladder-ab12"}, "settings": {"model.path": f"outputs/{model}"}}
        return Side.of(model, [replace(run(model, 0, a=1), **made)])

    first, second = (evaluation(f"grpo-s{seed}/checkpoints/final") for seed in (1, 2))
    for one, other in ((first, second), (evaluation("base"), second)):
        assert Comparison(one, other).paired == "one evaluation of each (few): paired by problem alone"
    assert Comparison(first, first).paired == "1 pairs of runs (few), seeds 0"


def test_tokens_until_a_rate_is_reached():
    def lines(*passed):
        return [
            {"step": s, "throughput/tokens_generated": 1e6, "throughput/tokens_trained": 5e5, "pass@2": p}
            for s, p in enumerate(passed, 1)
        ]

    old = Side.of("old", [run("old", 0, lines(0.1, 0.2, 0.6), a=1), run("old", 1, lines(0.1, 0.1, 0.1), a=1)])
    new = Side.of("new", [run("new", 0, lines(0.7), a=1), run("new", 1, lines(0.1, 0.5), a=1)])
    _, table = Comparison(old, new).costs("pass@2", 0.5)
    assert table == [["old", "1 of 2", "> 3", "> 3.00 M", "> 1.50 M"], ["new", "2 of 2", "2", "1.50 M", "0.750 M"]]
    assert Comparison(old, new).curve("pass@2")[1][0] == ["1", "10.0", "40.0"]


def test_what_was_taken_is_no_mean_over_the_lucky_runs_alone():
    """One of three runs takes off at its second step: the arm did not take two steps."""

    def lines(*passed):
        return [{"step": s, "throughput/tokens_generated": 1e6, "pass@2": p} for s, p in enumerate(passed, 1)]

    never = lines(*[0.0] * 10)
    lucky = Side.of("lucky", [run("lucky", 0, lines(0.0, 0.9), a=1), *(run("lucky", s, never, a=1) for s in (1, 2))])
    steady = Side.of("steady", [run("steady", s, lines(0.0, 0.0, 0.9), a=1) for s in range(4)])
    _, table = Comparison(lucky, steady).costs("pass@2", 0.5)
    assert [row[1:4] for row in table] == [["1 of 3", "> 7", "> 7.33 M"], ["3 of 3", "3", "3.00 M"]]  # of the pairs
    assert Comparison(A, B).costs("pass@2", 0.5)[1][0] == ["old", "0 of 2", "–", "–", "–"]  # evaluations took no steps


def test_a_page_compares_two_arms_and_no_other_number():
    two = [*A.runs.values(), *B.runs.values()]
    found = compared(two)
    titles = [title for title, *_ in found.beside]
    assert titles == ["gained: c", "lost: b", "solved by both: a", "solved by neither: d"]
    assert "1 problems gained, 1 lost" in found.told
    assert compared(list(A.runs.values())) is None
    assert compared([*two, run("third", 0, a=1)]) is None


@pytest.mark.runs
def test_a_committed_tables_arms_are_compared(capsys, tmp_path):
    assert compare.main(["ablation_gate:always", "ablation_gate:all_wrong", "show=1"]) == 0
    printed = capsys.readouterr().out
    assert "always (first) and all_wrong (second), 3 pairs of runs, seeds 0, 1, 2" in printed
    assert "problems that only the second solves" in printed
    for bad, told in (
        (["ablation_gate:always"], "1 given"),
        (["ablation_gate:always", "ablation_gate:none_such"], "no runs of that arm here"),
        (["ablation_gate:always", str(tmp_path / "nothing")], "no run directory"),
        (["a", "b", "reach=x"], "reach, show"),
        (["a", "b", "reach=90"], "reach is a rate above 0 and up to 1"),
        (["fig1_hard_levels", "fig1_hard_levels"], "no completions are kept beside it"),
        (["fig1_hard_levels:grpo", "fig1_hard_levels:grpo"], "no completions are kept beside it"),
    ):
        with pytest.raises(UserError, match=told):
            compare.main(bad)


@pytest.mark.long
@pytest.mark.runs
def test_two_runs_are_compared_and_their_page_shows_it(tmp_path, capsys):
    from conftest import compose_config

    from expo import config
    from expo.commands.train import train

    folders = []
    for algorithm in ("grpo", "exp_grpo"):
        cfg = compose_config("debug=tiny", f"algorithm={algorithm}", f"output_dir={tmp_path}")
        assert train(cfg) == 0
        folders.append(str(config.run_dir(cfg)))
    capsys.readouterr()
    assert compare.main(folders) == 0
    assert "1 pairs of runs" in capsys.readouterr().out
    assert report.main([*folders, f"output={tmp_path / 'page.html'}"]) == 0
    assert "The two arms on the same problems" in (tmp_path / "page.html").read_text()
    assert json.loads(json.dumps(compare.arms_of(folders[0])["grpo"].name)) == "grpo"
