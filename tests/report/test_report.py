"""The HTML page: what it shows of runs, and that it needs nothing but itself."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.colors
import pyarrow as pa
import pyarrow.parquet
import pytest
from by_hand import leave
from conftest import compose_config
from running import run

from expo import cli
from expo.commands import compare
from expo.commands import report as command
from expo.config import UserError, run_dir
from expo.jobs.fit import make_run
from expo.report import charts, page
from expo.report.page import Page, RunData, write
from expo.report.reading import read_runs
from expo.report.settings import data_sentences, differing
from expo.report.solving import CLIPPED, HELD_OUT, SHOWN, STEPS, read_solving, verdict_of
from expo.runs.reading import read_rows, samples_of
from expo.tables.figures import Bars
from expo.tables.plan import EXPERIMENTS, load_plan
from expo.tables.styles import COLOURS, styles


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    code, made = run(tmp_path_factory.mktemp("runs"), "trainer.max_steps=2", "evaluation.every=1")
    assert code == 0
    return made


def plain(html: str) -> str:
    """Return a page without the places where its long names may break."""
    return html.replace("<wbr>", "")


@pytest.mark.runs
def test_a_run_is_shown_with_curves_samples_counts_and_cost(directory, capsys):
    assert command.main([str(directory)]) == 0
    assert "report.html" in capsys.readouterr().out
    html = (directory / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(?!["']?(?:data:|#))""", html)  # nothing from outside
    for heading in (
        "How problems got solved",
        "Last evaluation",
        "over problems alone",
        "completion/truncated_frac (percent)",
        "_ is cat",
        "Curves",
        "What was learned from",
        "Filters and counts",
        "Cost",
        "pass@4",
        "time/update_s",
        "Data: ladder_level5",
    ):
        assert heading in plain(html)
    assert html.count('<span class="t') > 6 + 10  # the legend's, and tokens coloured by log-probability
    assert re.search(r'title="log π = -?\d+\.\d\d"', html)


@pytest.mark.runs
def test_a_bank_beside_runs_is_no_run_and_no_word_is_said_of_it(directory, tmp_path, caplog):
    (tmp_path / "banks").mkdir()
    (tmp_path / "another").mkdir()
    for beside, said in (("banks", False), ("another", True)):
        caplog.clear()
        assert command.main([str(directory), str(tmp_path / beside), f"output={tmp_path / 'page.html'}"]) == 0
        assert ("Left out" in caplog.text) is said
    shutil.copytree(directory, tmp_path / "evaluate")
    (tmp_path / "evaluate" / "summary.json").unlink()
    assert command.main([str(directory), str(tmp_path / "evaluate"), f"output={tmp_path / 'page.html'}"]) == 0
    assert "evaluate/summary.json" in caplog.text  # a run by such a name is one all the same, and damaged


@pytest.mark.runs
def test_run_directories_take_no_options_of_a_table(directory):
    with pytest.raises(UserError, match="scale=cpu: only a table takes it"):
        command.main([str(directory), "scale=cpu"])


@pytest.mark.runs
def test_the_log_probabilities_are_those_of_the_policy_after_the_step(directory):
    import pyarrow.parquet
    import torch

    from expo.config import ModelConf, build
    from expo.model.policy import load_policy
    from expo.model.scoring import token_batch, token_logp

    rows = pyarrow.parquet.read_table(directory / "completions" / "train-step000002.parquet").to_pylist()
    shown = samples_of(directory)
    assert [s["right"] for s in shown] == sorted(s["right"] for s in shown)  # the hardest first
    row = next(row for row in rows if row["positive_tokens"])
    model, tokenizer = load_policy(ModelConf(path=str(directory / "checkpoints" / "final")))
    cfg = compose_config("dataset=ladder_level5")
    from expo.ground.problem import Problem

    prompt = build(cfg.prompts).solve_ids(tokenizer, [Problem("", row["question"], row["answer"])])
    ids = tokenizer(" ".join(row["positive_tokens"]), add_special_tokens=False)["input_ids"]
    batch = token_batch(prompt, [ids], tokenizer.pad_token_id, torch.device("cpu"))
    expected = token_logp(model.eval(), batch, 1)[batch.mask.bool()]
    torch.testing.assert_close(torch.tensor(row["positive_token_logp"]), expected, atol=1e-4, rtol=0)


def test_each_filter_that_rejected_something_is_counted(tmp_path):
    line = {"step": 1, "pass@4": 0.5, "positive/filtered_frac": 0.25, "positive/filtered_wrong_frac": 0.25}
    data = RunData("a", 0, {"wall_s": 1.0}, [line | {"positive/filtered_leak_frac": 0.0}], [], [])
    write(Page("t", "", ["arm"], [["a"]]), [data], tmp_path / "page.html")
    html = plain((tmp_path / "page.html").read_text())
    assert "<th>positive/filtered_frac</th><th>positive/filtered_wrong_frac</th>" in html
    assert "filtered_leak_frac" not in html


@pytest.mark.runs
def test_a_run_whose_levels_are_words_is_reported_and_compared(tmp_path, capsys):
    rows = [{"question": f"{i} + {i}?", "answer": str(2 * i), "level": ["easy", "hard"][i % 2]} for i in range(24)]
    path = tmp_path / "words.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = compose_config(
        "dataset=custom", f"dataset.path={path}", "dataset.columns.level=level", "model=random_tiny", "algorithm=grpo",
        "trainer.max_steps=1", "trainer.problems_per_step=2", "rollout.max_completion_tokens=8", "k=[1]",
        "evaluation.every=0", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert make_run(cfg) == 0
    directory = str(run_dir(cfg))
    assert command.main([directory, f"output={tmp_path / 'page.html'}"]) == 0
    assert "easy" in (tmp_path / "page.html").read_text()
    assert {row["level"] for row in read_rows(f"{directory}/completions/eval-step000001.parquet")} == {"easy", "hard"}
    assert compare.main([directory, directory]) == 0


def test_runs_on_other_levels_stand_side_by_side(tmp_path):
    def rows(*levels):
        return [
            {"problem": f"{level}", "level": level, "verdict": "correct", "sample": 0} for level in levels
        ]  # fmt: skip

    data = [RunData("a", 0, {"wall_s": 1.0}, [], rows(1, 2), []), RunData("b", 0, {"wall_s": 1.0}, [], rows(5), [])]
    write(Page("t", "", ["arm"], [["a"]]), data, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "L1" in html
    assert "L5" in html


def test_the_preference_loss_is_shown_where_there_is_one(tmp_path):
    for loss in (0.0, 0.7):
        data = RunData("a", 0, {"wall_s": 1.0}, [{"step": s, "loss/preference": loss} for s in (1, 2)], [], [])
        write(Page("t", "", ["arm"], [["a"]]), [data], tmp_path / "page.html")
        assert ("loss/preference" in (tmp_path / "page.html").read_text()) is bool(loss)


def test_text_of_a_model_is_text_on_the_page(tmp_path):
    sample = {"positive": "<script>", "positive_tokens": ["<scr", "ipt>"], "positive_token_logp": [-0.1, -5.0]}
    sample |= {"question": "<b>", "answer": "&", "completion": None, "verdict": None, "rejected": None, "level": None}
    data = RunData("a", 0, {"wall_s": 1.0}, [{"step": 1, "pass@4": 0.5}], [], [sample | {"right": 0, "rollouts": 0}])
    write(Page("<i>", "", ["arm"], [["a"]]), [data], tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "<script>" not in html
    assert (
        '<span class="t1" title="log π = -0.10">&lt;scr</span><span class="t5" title="log π = -5.00">ipt&gt;</span>'
        in html
    )


def test_what_cannot_be_reported_on_is_one_line(tmp_path):
    for arguments, said in (
        (["nope"], "nope: no run directory and no table"),
        (["nope", "output_dir=x"], "nope: no run directory and no table"),
        (["output=x.html"], "nothing to report on"),
        (["table3_levels", "dry_run=true"], "dry_run: a report makes no runs"),
        (["table3_levels", "seeds=2", "output_dir=nowhere"], "expo table table3_levels seeds=2 output_dir=nowhere"),
        (["table3_levels", "scale=huge"], "scale=huge"),
    ):
        with pytest.raises(UserError, match=said):
            command.main(arguments)
    assert "report" in cli.PROGRAMS


def texts_of(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def path_of(svg, colour):
    """Return the places of a curve's points."""
    drawn = re.search(rf'<path d="([^"]*)"[^>]*style="fill: none; stroke: {colour}', svg)[1]
    return [tuple(map(float, point)) for point in re.findall(r"[ML] ([\d.]+) ([\d.]+)", drawn)]


def test_an_unfinished_run_does_not_cut_an_arms_curve(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "lines", lambda title, y, curves, *rest: drawn.append(curves))
    done, killed = (
        RunData("a", seed, {"status": status}, tuple({"step": s, "x": 1.0} for s in steps), (), ())
        for seed, status, steps in ((0, "done", (1, 2, 3)), (1, "stopped", (1,)))
    )
    for runs, steps in (([done, killed], [[1, 2, 3]]), ([killed], [[1]])):
        page._chart("x", "", {"a": runs}, {})
        assert [[step for step, _ in run] for run in drawn.pop()["a"]] == steps


def test_charts_show_what_they_are_given():
    look = styles(["a"])
    colour = look["a"].colour
    assert charts.lines("x", "y", {"a": [[]]}, look, share=True) is None
    alone = charts.lines("x", "y", {"a": [[(1, 0.5)]]}, look, share=False)
    assert "<use" in alone.split('id="line2d')[-1]  # a point alone is seen, by its marker
    svg = charts.lines("x", "height (m)", {"a": [[(0, 0.0), (10, 1.0)], [(0, 1.0), (10, 1.0)]]}, look, share=True)
    assert {"step", "height (m)", "0", "100"} <= set(texts_of(svg))
    (x0, y0), (x1, y1) = path_of(svg, colour)
    (_, v0), (_, v1) = path_of(charts.lines("x", "y", {"a": [[(0, 0.5), (10, 1.0)]]}, look, share=True), colour)
    assert y0 - y1 == pytest.approx(v0 - v1, rel=1e-3)  # the mean of the two runs
    assert x0 < x1
    assert "fill-opacity: 0.15" in svg  # their band
    assert "currentColor" in svg
    assert "#000000" not in svg
    svg = charts.bars("x", "level", "pass@4 (percent)", {"L1": {"a": (1.0, 0.5, 2.0)}}, look)
    assert {"100", "level", "L1", "pass@4 (percent)"} <= set(texts_of(svg))  # 100 also where no bar is so high
    assert f"fill: {colour}" in svg


def test_more_arms_than_colours_look_different_all_the_same():
    many = styles(f"arm {i}" for i in range(3 * len(COLOURS)))
    assert len(set(many.values())) == len(many)


def test_an_arm_has_one_colour_on_the_page_and_in_the_figures(tmp_path):
    record = json.loads((EXPERIMENTS / "rivals" / "results" / "cpu" / "table.json").read_text())
    plan = load_plan("rivals", "cpu")
    axis = Bars(panels=[["pass@4"]]).draw(plan, record, []).axes[0]
    drawn = {bars.get_label(): bars[0] for bars in axis.containers if hasattr(bars, "patches")}
    colours = {label: matplotlib.colors.to_hex(bar.get_facecolor()) for label, bar in drawn.items()}
    assert colours == {arm.label: styles(plan.arms)[key].colour for key, arm in plan.arms.items()}
    assert [bar.get_hatch() is not None for bar in drawn.values()] == [i >= len(COLOURS) for i in range(len(plan.arms))]
    # Three of table3's arms share one run: the page has fewer arms with runs than the figures have.
    plan = load_plan("table3_levels", "cpu")
    assert command.main(["table3_levels", f"output={tmp_path / 'page.html'}"]) == 0
    html = (tmp_path / "page.html").read_text()
    for key in ("grpo", "exp_grpo"):
        colour = styles(plan.arms)[key].colour
        assert re.search(rf'<line[^>]* stroke="{colour}" [^>]*/></svg>{plan.arms[key].label}</li>', html)
        assert f"fill: none; stroke: {colour}" in html


@pytest.mark.long
def test_a_table_names_its_data_and_what_its_arms_differ_in(tmp_path):
    assert command.main(["table3_levels", f"output={tmp_path / 'page.html'}"]) == 0
    assert "world.expert_own=0.3, world.familiarity=[0.85,0.72,0.5,0.38,0.12]" in (tmp_path / "page.html").read_text()
    assert command.main(["table3_levels", "scale=clear", f"output={tmp_path / 'page.html'}"]) == 0
    html = (tmp_path / "page.html").read_text()
    assert "Data: ladder (generated" in html
    assert "world." not in html.partition("Data: ladder (")[2].partition(")")[0]
    assert "Model: ladder." in html
    text = plain(html)
    assert '<td class="value">command</td><td class="value">expo evaluate</td><td class="value">expo train</td>' in text
    assert '<td class="value">positives.weight</td>' in text
    assert command.main(["fig1_hard_levels", f"output={tmp_path / 'page.html'}"]) == 0  # whose runs are another table's
    html = plain((tmp_path / "page.html").read_text())
    assert "algorithm=grpo_sft_gt_cot" in html
    assert "settings in which" not in html


def test_data_and_differences_by_hand():
    file = {"dataset.name": "mine", "dataset.path": "a/mine.jsonl", "dataset.eval_limit": 50, "model.path": "m"}
    hub = {"dataset.name": "math", "dataset.hub_id": "x/math", "dataset.hub_configs": ["algebra"], "model.path": "m"}
    hub |= {"dataset.split": "train", "dataset.eval_split": "test", "dataset.levels": [4, 5], "k": [1, 4]}
    assert data_sentences({"a": file, "b": dict(file)}) == [
        "Data: mine (a/mine.jsonl, up to 50 problems of it held out for evaluation). Model: m."
    ]
    assert data_sentences({"a": file | {"dataset.eval_path": "b.jsonl", "dataset.part": "train"}, "b": hub}) == [
        "a: Data: mine (a/mine.jsonl, evaluated on b.jsonl, part train). Model: m.",
        "b: Data: math (x/math (algebra) on the hub, split train, evaluated on its split test, levels [4,5]). Model: "
        "m.",
    ]
    (told,) = data_sentences(
        {"a": hub | {"dataset.eval_limit": 500, "dataset.eval_levels": [1, 4], "dataset.limit": 9}}
    )
    assert "evaluated on up to 500 problems of its split test, levels [4,5], evaluated on levels [1,4])" in told
    (told,) = data_sentences({"a": hub | {"dataset.eval_limit": 500, "dataset.limit": 9, "command": "expo evaluate"}})
    assert "evaluated on up to 9 problems of its split test, levels [4,5])" in told
    (told,) = data_sentences({"a": file | {"dataset.eval_path": "b.jsonl", "dataset.eval_levels": []}})
    assert told.startswith(
        "Data: mine (a/mine.jsonl, evaluated on up to 50 problems of b.jsonl, evaluated on all levels)"
    )
    assert differing({"a": file, "b": dict(file)}) is None
    trained = {"optimizer.learning_rate": 1e-3, "trainer.max_steps": 9, "trainer.precision": "32-true"}
    evaluated = trained | {"command": "evaluate", "optimizer.learning_rate": 1e-6, "trainer.max_steps": 1}
    heads, rows = differing({"trained": trained, "base": evaluated | {"trainer.precision": "bf16-mixed"}})
    assert [row[0] for row in rows] == ["command", "trainer.precision"]  # the base is not trained
    heads, rows = differing({"a": trained, "b": trained | {"trainer.max_steps": 5}, "base": evaluated})
    assert ["trainer.max_steps", "9", "5", "–"] in rows
    heads, rows = differing({"a": {"x": None, "y": [1], "z": 0.5}, "b": {"x": False, "y": [1]}})
    assert heads == ["setting", "a", "b"]
    assert rows == [["x", "null", "false"], ["z", "0.5", "–"]]


def kept(directory: Path, kind: str, step: int, verdicts: dict[str, list[str]], text: str = "so", **more) -> None:
    """Write the completions of a step: verdicts by problem."""
    rows = [
        {"problem": p, "question": f"question {p}", "answer": "1", "level": int(p[0]), "verdict": v, "completion": text}
        | more
        for p, own in verdicts.items()
        for v in own
    ]
    (directory / "completions").mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows), directory / "completions" / f"{kind}-step{step:06d}.parquet")


RIGHT, WRONG = "correct", "incorrect"


def test_problems_that_got_solved_come_first_and_the_hardest_of_them(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for directory in (a, b):
        kept(directory, "eval", 0, {"1x": [WRONG] * 4, "1y": [RIGHT] * 4, "2x": [WRONG] * 4, "3x": [WRONG] * 4})
    kept(a, "eval", 5, {"1x": [RIGHT] * 4, "1y": [RIGHT] * 4, "2x": [WRONG] * 3 + [RIGHT], "3x": [WRONG] * 4})
    kept(b, "eval", 5, {"1x": [WRONG] * 4, "1y": [RIGHT] * 4, "2x": [WRONG] * 4, "3x": [WRONG] * 4})
    kept(a, "train", 2, {"1t": [WRONG, RIGHT], "1u": [WRONG]}, positive="because")
    kept(a, "train", 5, {"1t": [RIGHT, RIGHT]}, positive=None, hinted=True)
    solving = read_solving({"A": a, "B": b})
    problems = solving.data["problems"]
    assert [p["question"].split()[1] for p in problems] == ["2x", "1x", "3x", "1y", "1t"]  # 1u was met only once
    assert problems[0]["label"] == "level 2, held out, solved (A)"
    step, right, total, places, verdicts, positive = problems[0]["arms"]["A"][1]
    assert (step, right, total, positive) == (5, 1, 4, None)
    assert RIGHT in verdicts  # though it is the last of four
    assert len(places) == len(verdicts) == SHOWN
    assert [point[:3] for point in problems[0]["arms"]["B"]] == [[0, 0, 4], [5, 0, 4]]
    assert [solving.data["texts"][p[5]] if p[5] is not None else None for p in problems[4]["arms"]["A"]] == [
        "because",
        None,
    ]
    assert [p[4] for p in problems[4]["arms"]["A"]] == [[WRONG, RIGHT], ["correct with a hint"] * 2]
    assert "4 of 4 problems held out and 1 of 2 problems trained on" in solving.told
    assert read_solving({"B": tmp_path / "none"}) is None


def test_what_the_slider_shows_is_limited_and_says_so(tmp_path):
    for step in range(40):
        verdicts = {f"1{i:02d}": [WRONG if step < 20 else RIGHT] for i in range(HELD_OUT + 5)}
        kept(tmp_path, "eval", step, verdicts, text="long " * CLIPPED)
    solving = read_solving({"A": tmp_path})
    assert len(solving.data["problems"]) == HELD_OUT
    steps = [point[0] for point in solving.data["problems"][0]["arms"]["A"]]
    assert (len(steps), steps[0], steps[-1]) == (STEPS, 0, 39)
    assert len(solving.data["texts"]) == 1
    assert len(solving.data["texts"][0]) < CLIPPED + 10
    for said in (f"{HELD_OUT} of {HELD_OUT + 5} problems", f"At most {STEPS} steps", "the middle is left out"):
        assert said in solving.told


def test_a_copy_of_a_run_or_of_its_completions_is_no_further_seed_and_no_step(tmp_path):
    made = leave(tmp_path / "outputs", "debug=tiny")
    page, _ = read_runs([made, Path(shutil.copytree(made, tmp_path / "copy"))])
    assert sum("seed 0: 2 runs of one seed" in note for note in page.notes) == 1
    assert not any("one seed" in note for note in read_runs([made])[0].notes)
    for step, verdict in ((1, "incorrect"), (2, "correct")):
        kept(made, "eval", step, {"5a": [verdict]})
    file = made / "completions" / "eval-step000001.parquet"
    shutil.copy(file, file.with_name("eval-step000001 (copy).parquet"))
    assert [point[0] for point in read_solving({"arm": made}).data["problems"][0]["arms"]["arm"]] == [1, 2]


def test_curves_of_long_runs_are_means_and_the_axis_says_of_how_many_steps():
    look = styles(["a"])
    short = charts.lines("t", "y", {"a": [[(step, step % 7) for step in range(1, 1001)]]}, look, False)
    assert "step" in texts_of(short)
    long = charts.lines("t", "y", {"a": [[(step, float(step > 50_000)) for step in range(1, 100_001)]]}, look, False)
    assert "step (means of 100 steps)" in texts_of(long)
    assert len({y for _, y in path_of(long, look["a"].colour)}) == 2, "a bucket does not mix what a step parts"
    rare = charts.lines("t", "y", {"a": [[(step * 1000, step) for step in range(20)]]}, look, False)
    assert "means of" not in rare, "few points stay as they are"


HOSTILE = "</script><script>document.title = 'taken'</script><!--"


def hostile_page(tmp_path: Path) -> Path:
    for step in (0, 5):
        kept(tmp_path, "eval", step, {"1x": [RIGHT if step else WRONG]}, text=HOSTILE)
    page = Page("t", "", ["arm"], [["a"]], solving=read_solving({HOSTILE: tmp_path}))
    write(page, [], tmp_path / "page.html")
    return tmp_path / "page.html"


def test_no_text_leads_out_of_the_sliders_data(tmp_path):
    html = hostile_page(tmp_path).read_text()
    data = re.search('<script type="application/json" id="solving-data">(.*?)</script>', html, re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data)["texts"] == [HOSTILE]
    assert html.count("</script>") == 2
    assert "innerHTML" not in html


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_the_slider_opens_at_the_last_step_and_shows_texts_as_text(tmp_path):
    page = hostile_page(tmp_path)
    line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([*line, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert "<title>t</title>" in dom
    assert "1 of 1 right at step 5" in dom
    assert '<output id="at" for="step problem">5 of 5</output>' in dom
    assert f'<pre class="">{HOSTILE.replace("<", "&lt;").replace(">", "&gt;")}</pre>' in dom


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
@pytest.mark.usefixtures("warm")
def test_a_run_with_hostile_texts_everywhere_runs_nothing_in_a_browser(tmp_path):
    """Questions, answers, completions, positives, settings and the summary of a run that someone sent."""
    code = main_of_cli(
        [
            "train",
            "algorithm=exp_grpo",
            "dataset=ladder",
            "dataset.eval_limit=2",
            "trainer.max_steps=1",
            "evaluation.every=1",
            "k=[1]",
            "trainer.problems_per_step=2",
            "logger=none",
            f"output_dir={tmp_path / 'outputs'}",
        ]
    )
    assert code == 0
    (run,) = tmp_path.glob("outputs/ladder/*-s0-*")
    taken = "</script></pre><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"><!--"
    for path in run.glob("completions/*.parquet"):
        rows = pyarrow.parquet.read_table(path).to_pylist()
        for row in rows:
            for name, value in row.items():
                if isinstance(value, str) and name not in ("problem", "verdict"):
                    row[name] = taken
                if name == "positive_tokens" and value:
                    row[name] = [taken] * len(value)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    summary = json.loads((run / "summary.json").read_text())
    collapse = {"metric": taken, "meaning": taken, "best": 1.0, "now": 0.0, "began": 1, "noticed": 1}
    (run / "summary.json").write_text(
        json.dumps(summary | {"name": taken, "device": taken, "git": taken, "status": taken, "collapses": [collapse]})
    )
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("path: ladder", f"path: {json.dumps(taken)}"))
    assert main_of_cli(["report", str(run), f"output={tmp_path / 'page.html'}"]) == 0
    line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    page = (tmp_path / "page.html").as_uri()
    dom = subprocess.run([*line, "--dump-dom", page], capture_output=True, text=True, timeout=120).stdout
    assert "document.title" in dom, "the texts are shown"
    assert "<title>taken</title>" not in dom
    assert '<img src="x"' not in dom


def main_of_cli(arguments):
    """Run `expo` in a process of its own. Returns the exit code."""
    return subprocess.run([sys.executable, "-m", "expo", *arguments], check=False).returncode


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.usefixtures("warm")
def test_a_run_that_cannot_be_read_is_left_out_and_named(tmp_path, caplog):
    small = [
        "algorithm=grpo",
        "dataset=ladder",
        "dataset.eval_limit=2",
        "trainer.max_steps=1",
        "evaluation.every=1",
        "k=[1]",
        "trainer.problems_per_step=2",
        "logger=none",
        f"output_dir={tmp_path / 'outputs'}",
    ]
    assert main_of_cli(["train", *small]) == 0
    (good,) = tmp_path.glob("outputs/ladder/*-s0-*")
    damage = {
        "summary.json": b"{",
        "config.yaml": b"a: [",
        "completions/eval-step000001.parquet": b"PAR1",
    }
    for i, (name, content) in enumerate(damage.items()):
        bad = shutil.copytree(good, tmp_path / f"bad{i}")
        (bad / name).write_bytes(content)
    partly = shutil.copytree(good, tmp_path / "partly")  # an earlier evaluation, which only the slider shows
    (partly / "completions" / "eval-step000000.parquet").write_bytes(b"PAR1")
    given = [str(path) for path in (good, *sorted(tmp_path.glob("bad*")))]
    assert command.main([*given, f"output={tmp_path / 'page.html'}"]) == 0
    html = (tmp_path / "page.html").read_text()
    for i, name in enumerate(damage):
        assert f"bad{i}/{name}" in html
        assert f"bad{i}/{name}" in caplog.text
    assert good.name in html
    assert command.main([str(partly), f"output={tmp_path / 'partly.html'}"]) == 0
    assert "eval-step000000.parquet: cannot be read" in caplog.text
    with pytest.raises(UserError, match="bad0"):
        command.main([str(tmp_path / "bad0")])


def test_a_page_says_what_its_intervals_cover_and_shows_a_reward_that_is_no_share_as_it_is(tmp_path):
    def made(arm, seed, reward):
        rows = [{"problem": "p", "level": None, "sample": 0, "verdict": "correct"}]
        return RunData(
            arm, seed, {}, [{"step": 1, "reward/mean": reward}, {"step": 2, "reward/mean": reward}], rows, []
        )

    def page(*runs):
        write(Page("t", "", ["arm"], [["a"]]), runs, tmp_path / "page.html")
        return (tmp_path / "page.html").read_text()

    one = page(made("a", 0, 0.5))
    assert "95 % intervals over problems alone: one run cannot tell" in one
    assert ">reward/mean (percent)<" in one
    assert "By level" not in one  # there are none
    several = page(made("a", 0, -3.0), made("a", 1, 0.5), made("b", 0, 0.5))
    assert "over problems and seeds; of b over problems alone: one run" in several
    assert ">reward/mean<" in several
    assert "95 % intervals over problems and seeds." in page(made("a", 0, 0.5), made("a", 1, 0.5))
    stopped = replace(made("a", 1, 0.5), summary={"status": "stopped"})  # which the bars leave out
    assert "95 % intervals over problems alone" in page(made("a", 0, 0.5), stopped)


def test_a_completion_that_was_cut_off_says_so_beside_its_verdict():
    assert verdict_of({"verdict": "unparseable", "truncated": True}) == "unparseable (cut off)"
    assert verdict_of({"verdict": "unparseable"}) == "unparseable"  # of before they told


def test_a_page_says_at_which_temperatures_its_numbers_were_sampled():
    (told,) = data_sentences({"a": {"dataset.name": "x", "rollout.temperature": 1.0, "evaluation.temperature": 0.7}})
    assert "Rollouts are sampled at temperature 1.0, evaluations at 0.7." in told
