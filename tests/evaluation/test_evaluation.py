import json
import sys
from dataclasses import replace
from itertools import combinations

import pyarrow.parquet
import pytest
import wandb
from conftest import make_prompts

from expo.config import UserError
from expo.evaluation.files import join, save_rows
from expo.evaluation.pass_at_k import pass_at_k
from expo.evaluation.tally import Tally, is_sound
from expo.ladder import problems as ladder
from expo.runs.reading import read_rows
from expo.verifier.answers import Verdict


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(k):
    n = 6
    for c in range(n + 1):
        subsets = list(combinations([1] * c + [0] * (n - c), k))
        expected = sum(any(s) for s in subsets) / len(subsets)
        assert pass_at_k(n, [c], k)[0] == pytest.approx(expected, abs=1e-12)


def test_one_of_four_right_is_certain_at_four():
    assert pass_at_k(4, [1, 0], 4).tolist() == [1.0, 0.0]


def test_more_samples_than_drawn_is_refused():
    with pytest.raises(ValueError, match="pass@5"):
        pass_at_k(4, [1], 5)


@pytest.mark.runs
def test_diagnose_measures_every_kind_on_the_ladder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # a sentence stays whole
    from conftest import compose_config

    from expo.commands.diagnose import diagnose
    from expo.evaluation.kinds import KINDS

    cfg = compose_config(
        "dataset=ladder", "dataset.levels=[1,5]", "diagnose.problems=4", "diagnose.samples=2", "diagnose.shuffled=true",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    assert diagnose(cfg) == 0
    directory = next(tmp_path.glob("diagnose/*"))
    rows = pyarrow.parquet.read_table(directory / "samples.parquet").to_pylist()
    assert {row["kind"] for row in rows} == set(KINDS)
    assert sum(row["kind"] == "own" for row in rows) == 2 * 4 * 2
    assert sum(row["kind"] == "expert" for row in rows) == 2 * 4
    metrics = json.loads((directory / "summary.json").read_text())["metrics"]
    assert metrics["expert/verified"] == 1.0
    assert metrics["own/answer_lift"] == pytest.approx(0.0, abs=1e-4)  # over itself
    # The paper's Table 1, in numbers.
    assert metrics["self_explanation/answer_lift/level5"] > 10
    assert metrics["self_explanation/nll_per_token/level5"] < metrics["expert/nll_per_token/level5"]
    assert metrics["wrong_answer/answer_lift/level5"] < metrics["self_explanation/answer_lift/level5"] / 2
    other = [row for row in rows if row["kind"] == "shuffled_answer"]
    assert len(other) == 2 * 4 * 2
    assert all(row["answer"] != row["true_answer"] for row in other)
    assert metrics["shuffled_answer/answer_lift/level5"] < metrics["self_explanation/answer_lift/level5"] / 2
    assert metrics["self_explanation/right_steps/level5"] > metrics["own/right_steps/level5"]
    assert (directory / "properties.png").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "self-explanation" in said
    assert "ExP-GRPO would learn from at most" in said
    assert "the explanations are likelier than the expert here: the paper's first property holds for this model" in said
    assert "the paper's second property" in said


def test_a_diagnosis_ends_in_sentences():
    from expo.evaluation.kinds import in_words

    def row(kind, problem, nll=1.0, lift=0.0, verified=1.0):
        return {
            "kind": kind,
            "problem": problem,
            "level": None,
            "nll_per_token": nll,
            "answer_lift": lift,
            "verified": verified,
        }

    explained = [row("self_explanation", p, 2.0 + p / 100, p - 3.5, float(p == 3)) for p in range(8)]
    expert = [row("expert", p, 1.0) for p in range(8)]
    assert in_words(explained + expert) == [
        "1 of 8 explanations is right: ExP-GRPO would learn from at most 12 % of the problems",
        "the expert is likelier than the explanations here: the paper's first property does not hold for this model",
        "too few problems to tell the paper's second property",
    ]
    assert in_words([row("self_explanation", p, 0.5, 1.0 + p / 100) for p in range(8)] + expert) == [
        "8 of 8 explanations are right: ExP-GRPO would learn from at most 100 % of the problems",
        "the explanations are likelier than the expert here: the paper's first property holds for this model",
        "explanations make the answer likelier than own completions do: the paper's second property holds for this "
        "model",
    ]
    assert in_words(expert) == []
    cut = [row("self_explanation", p) | {"truncated": p > 1} for p in range(8)]  # which the filters take none of
    assert in_words(cut)[0] == "8 of 8 explanations are right: ExP-GRPO would learn from at most 25 % of the problems"
    mute = [row("self_explanation", p, verified=0.0) | {"verdict": "unparseable", "truncated": p < 2} for p in range(3)]
    assert in_words(explained + mute)[0] == (
        "1 of 11 explanations is right, 3 without an answer that can be read (2 of these cut off): ExP-GRPO would "
        "learn from at most 12 % of the problems"
    )


@pytest.mark.runs
def test_evaluate_and_diagnose_tell_wandb_what_they_found(tmp_path, monkeypatch):
    from conftest import compose_config

    from expo.commands.diagnose import diagnose
    from expo.commands.evaluate import evaluate_command
    from expo.config import run_id
    from expo.loggers.offline import read_offline
    from expo.runs.reading import read_summary

    def no_model(cfg):
        raise UserError("no model")

    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = compose_config(
        "debug=tiny", "diagnose.problems=2", "diagnose.samples=1", "logger=wandb", "logger.wandb.group=g",
        f"output_dir={tmp_path}",
    )  # fmt: skip
    for command, make, heavy, metric in (
        ("evaluate", evaluate_command, "score", "pass@4"),
        ("diagnose", diagnose, "measure", "own/nll"),
    ):
        assert make(cfg) == 0
        wandb.teardown()  # what is written asynchronously is there now
        (directory,) = tmp_path.glob(f"{command}/*/wandb")
        (path,) = directory.glob("offline-run-*/run-*.wandb")
        found = read_offline(path)
        summary = json.loads((directory.parent / "summary.json").read_text())
        assert (found.id, found.group) == (run_id(cfg, command), "g")
        assert (found.summary["status"], found.summary["identity"]) == ("done", summary["identity"])
        assert found.history[0][metric] == pytest.approx(summary["metrics"][metric])
        assert not (directory.parent / "metrics.jsonl").exists()  # which is of steps
        monkeypatch.setattr(sys.modules[f"expo.jobs.{heavy}"], "load_model", no_model)
        with pytest.raises(UserError, match="no model"):
            make(replace(cfg, fresh=True))
        wandb.finish()
        wandb.teardown()
        assert read_summary(directory.parent)["status"] == "done"  # a mistake costs nothing that is there


@pytest.mark.runs
def test_diagnose_runs_on_math_with_a_random_model(tmp_path, math_file):
    from conftest import compose_config

    from expo.commands.diagnose import diagnose

    cfg = compose_config(
        "dataset=math", f"dataset.path={math_file}", "model=random_tiny", "diagnose.problems=1", "diagnose.samples=1",
        "rollout.max_completion_tokens=8", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert diagnose(cfg) == 0
    rows = pyarrow.parquet.read_table(next(tmp_path.glob("diagnose/*/samples.parquet"))).to_pylist()
    assert {row["kind"] for row in rows} >= {"own", "expert", "self_explanation"}
    assert all(row["right_steps"] is None for row in rows)


def test_what_another_judge_says_of_the_same_samples_is_another_diagnosis():
    from conftest import compose_config

    from expo.config import run_mark

    url, model, prompt = "diagnose.judge.base_url=http://x", "diagnose.judge.model=m", "prompts.judge='{completion}'"
    cfgs = [[], [url, model], [url, "diagnose.judge.model=n"], [url, model, prompt]]
    marks = [run_mark(compose_config(*cfg), "diagnose") for cfg in cfgs]
    assert len(set(marks)) == 4
    assert run_mark(compose_config(model), "diagnose") == marks[0]  # nobody is asked
    assert len({run_mark(compose_config(*cfg)) for cfg in cfgs}) == 1  # a training run has no judge


def test_a_judge_that_fails_midway_is_asked_for_the_rest_alone():
    from types import SimpleNamespace

    from expo.config import DiagnoseConf, JudgeConf
    from expo.evaluation import samples
    from expo.ground.problem import Problem

    rows = [{"kind": "own", "problem": 0, "id": "a", "completion": text} for text in "abc"]
    tools, conf = SimpleNamespace(prompts=None), DiagnoseConf(judge=JudgeConf("http://x", "m"))
    asked = []

    def judge(conf, prompts, problems, completions):
        asked.append(list(completions))
        return ([0.5, None, None], 2) if len(asked) == 1 else ([1.0] * len(completions), 0)

    samples.judge_steps, real = judge, samples.judge_steps
    try:
        assert samples.check_steps(rows, [Problem("a", "q", "1")], conf, tools, []) == 2
        again = [dict(row) for row in rows]
        assert samples.check_steps(again, [Problem("a", "q", "1")], conf, tools, rows) == 0
    finally:
        samples.judge_steps = real
    assert asked == [["a", "b", "c"], ["b", "c"]]
    assert [row["right_steps"] for row in again] == [0.5, 1.0, 1.0]


def test_an_explanation_of_a_wrong_answer_that_has_no_room_is_not_asked_for(caplog):
    from types import SimpleNamespace

    from expo.evaluation.samples import sample
    from expo.ground.problem import Problem
    from expo.rollout.engine import Completion
    from expo.step.experience import Tools
    from expo.verifier.answers import Verdict

    class Characters:
        def batch_decode(self, ids, skip_special_tokens):
            return ["".join(map(chr, i)) for i in ids]

    said = {"1+1": "9" * 40, "1+2": "7"}
    prompts = SimpleNamespace(
        solve_ids=lambda tokenizer, problems: [[*map(ord, p.question)] for p in problems],
        explain_ids=lambda tokenizer, problems: [[*map(ord, p.question + p.answer)] for p in problems],
    )
    verifier = SimpleNamespace(
        extraction=SimpleNamespace(of=lambda text: text),
        verify=lambda texts, problems: [
            Verdict.CORRECT if t == p.answer else Verdict.INCORRECT for t, p in zip(texts, problems, strict=True)
        ],
    )
    asked = []

    def generate(requests, sampling):
        asked.append(["".join(map(chr, r.prompt)) for r in requests])
        return [
            Completion(r.prompt, [*map(ord, said.get(q, "5"))], [], False, 0)
            for r, q in zip(requests, asked[-1], strict=True)
        ]

    tools = Tools(prompts, Characters(), verifier, None, 0, 20)
    rows = sample([Problem("a", "1+1", "2"), Problem("b", "1+2", "3")], SimpleNamespace(generate=generate), tools, 1)
    assert asked == [["1+1", "1+2"], ["1+12", "1+23"], ["1+27"]]
    assert [(row["kind"], row["problem"]) for row in rows][-1] == ("wrong_answer", 1)
    assert "1 prompts of wrong_answer not used: over 20 tokens" in caplog.text


def test_the_judge_counts_steps_and_an_endpoint_that_is_not_there_is_one_line():
    from expo.config import JudgeConf, UserError
    from expo.evaluation.llm_judge import judge_steps, parse_share
    from expo.ground.problem import Problem

    assert parse_share("Step 1 is fine.\nright: 3, wrong: 1") == 0.75
    assert parse_share("right: 1, wrong: 1 ... Right: 0, Wrong: 2") == 0.0
    assert parse_share("I cannot say.") is None
    assert parse_share("right: 0, wrong: 0") is None
    prompts = make_prompts("{question}", "{question}{answer}", judge="{question} {answer} {completion}")
    conf = JudgeConf("http://127.0.0.1:9/v1", "m")
    with pytest.raises(UserError, match=r"diagnose.judge.base_url=http://127.0.0.1:9/v1"):
        judge_steps(conf, prompts, [Problem("a", "q", "1")], ["c"])


def test_the_judge_asks_an_openai_compatible_endpoint():
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from expo.config import JudgeConf
    from expo.evaluation.llm_judge import judge_steps
    from expo.ground.problem import Problem

    asked = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            message = {"role": "assistant", "content": "right: 1, wrong: 3"}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                     "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    Thread(target=server.serve_forever, daemon=True).start()
    prompts = make_prompts("{question}", "{question}{answer}", judge="{question} {answer} {completion}")
    conf = JudgeConf(f"http://127.0.0.1:{server.server_port}/v1", "judge-model")
    assert judge_steps(conf, prompts, [Problem("a", "q", "1")], ["steps"]) == ([0.25], 0)
    server.shutdown()
    path, body = asked[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "judge-model"
    assert body["messages"][0]["content"] == "q 1 steps"


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
    assert "eval/correct_with_sound_steps_frac" not in tally.metrics([1])  # of no right answer, it is not defined
    tally.add([sample("correct", steps)])
    tally.add([sample("correct", "guessed"), sample("incorrect", "guessed")])
    assert tally.metrics([1])["eval/correct_with_sound_steps_frac"] == 0.5
    kept = sample("correct", steps)
    assert is_sound(kept) is is_sound(kept | {"sound": None}) is True  # of before it was kept, beside rows that have it
    assert is_sound(kept | {"sound": False}) is False


def test_parts_of_an_earlier_expo_join_those_of_today(tmp_path):
    parts = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    wholes = [tmp_path / "one.parquet", tmp_path / "other.parquet"]
    for whole, seconds in zip(wholes, (1.5, 2.5), strict=True):  # the same rows make the same file
        save_rows([{"problem": "a", "tokens": 1}], parts[0], seconds)
        save_rows([{"problem": "b", "tokens": 2, "sound": True}], parts[1], seconds)
        join(parts, whole)
    assert [row["sound"] for row in read_rows(wholes[0])] == [None, True]
    assert wholes[0].read_bytes() == wholes[1].read_bytes()


def test_levels_have_no_second_pass_at_k():
    rows = [row(p, "correct", level=i, subject=s) for i, (p, s) in enumerate((("a", "Algebra"), ("b", "Geometry")), 1)]
    tally = Tally(1)
    tally.add(rows)
    found = tally.sampling_metrics([], [1])
    assert "pass@1/Algebra" in found
    assert not any(name.startswith("pass@1/level") for name in found)
