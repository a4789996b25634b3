"""What the README and docs/ tell people to type works: every command composes, and the tutorial is followed
literally."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from by_hand import leave, save
from conftest import ROOT, compose_config
from pages import blocks, run

import expo
from expo import cli
from expo.commands import compare, wandb
from expo.config import check
from expo.config.from_run import config_from_run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text() for page in PAGES}
# Whose commands need what the page makes first; they are run by tests of their own.
FOLLOWED = {"tutorial.md", "extending.md", "answers.md"}


def commands(text: str) -> list[str]:
    """The lines of a page's bash blocks, joined where they end in a backslash, without comments."""
    lines = "\n".join(code for kind, _, code in blocks(text) if kind == "bash").replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip()]


EXPO = sorted({c for name, t in TEXTS.items() if name not in FOLLOWED for c in commands(t) if c.startswith("expo ")})

# Which take no overrides of a run.
NO_OVERRIDES = tuple(f"expo {command} " for command in cli.PROGRAMS if command not in ("demo", "table"))


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", "\n".join(line for t in TEXTS.values() for line in commands(t))))
    named |= {target for t in TEXTS.values() for target in re.findall(r"`make ([a-z-]+)", t)}
    assert named
    assert named <= targets


@pytest.mark.parametrize("line", [line for line in EXPO if "=" in line and not line.startswith(NO_OVERRIDES)])
def test_every_command_composes(line, tmp_path, monkeypatch, math_file, gsm8k_file):
    if "reasoning_gym" in line and importlib.util.find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed (make setup EXTRA=smol)")
    monkeypatch.chdir(tmp_path)
    source = gsm8k_file if "gsm8k" in line else math_file
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(source.read_text())
    write_rows(tmp_path)
    if " run=" in line:
        _, command, *arguments = shlex.split(line)
        run_folder = save(compose_config(), tmp_path / "RUN")
        given = [f"run={run_folder}" if a.startswith("run=") else a for a in arguments if a != "-m"]
        check(config_from_run(command, given))
        return
    for model in ("math_level5/RUN/checkpoints/final", "bases/world_weak"):
        (tmp_path / "outputs" / model).mkdir(parents=True)
        (tmp_path / "outputs" / model / "config.json").write_text("{}")
    _, command, *arguments = shlex.split(line)
    if command == "table":
        assert arguments[0] in {p.parent.name for p in ROOT.glob("experiments/*/plan.yaml")}
        return
    assert command in cli.COMMANDS
    overrides = [
        a for a in arguments if "=" in a and not a.startswith(("hydra.", "hydra/sweeper")) and not a.endswith("=…")
    ]
    if "-m" in arguments:
        overrides = [
            re.sub(r"=([^,\[]*),.*", r"=\1", re.sub(r"=(?:tag\(.*)?interval\((\S+),.*", r"=\1", o)) for o in overrides
        ]
    cfg = compose_config(*overrides)
    check(replace(cfg, rollout=replace(cfg.rollout, requires="")))  # whether vLLM is installed here or not


@pytest.mark.parametrize("line", [line for line in EXPO if line.startswith("expo compare")])
def test_the_recipes_for_comparing_run(line, capsys):
    assert cli.PROGRAMS["compare"][0] == "expo.commands.compare"
    assert compare.main(shlex.split(line)[2:]) == 0
    assert "pairs of runs" in capsys.readouterr().out


def write_rows(folder):
    rows = [{"task": f"{i} + {i}?", "result": 2 * i} for i in range(4)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("line", [line for line in EXPO if line.startswith(("expo runs", "expo init"))])
def test_the_recipes_for_runs_and_studies_run(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    made = [leave("outputs", "trainer.max_steps=200"), leave("outputs", "algorithm=grpo", "trainer.max_steps=200")]
    named = iter(made)
    words = [str(next(named)) if re.fullmatch("[0-9a-f]{10}", word) else word for word in shlex.split(line)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.runs
def test_the_notebook_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (code for kind, _, code in blocks(TEXTS["notebooks.md"]) if kind == "python")
    small = '"trainer.problems_per_step=2", "algorithm.group_size=8", "dataset.eval_limit=2", "evaluation.every=0"'
    second = second.replace('"trainer.max_steps=20"', f'"trainer.max_steps=1", "trainer.micro_batch_size=4", {small}')
    names = {"expo": expo}
    exec(second, names)
    assert 0 <= names["scored"].summary["metrics"]["pass@8"] <= 1
    plotted = first.replace('.plot(x="step", y="pass@4")', '[["step", "pass@4"]]')
    assert plotted != first
    exec(plotted, names)
    assert len(names["runs"]) == 1  # the evaluation is none


@pytest.mark.parametrize("line", [line for line in EXPO if line.startswith("expo wandb")])
def test_the_recipes_for_wandb_run(line, tmp_path, monkeypatch, capsys):
    """As far as there is no network: what is saved in W&B is written to a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    arguments = [a for a in shlex.split(line)[2:] if a != "mode=online"]
    if arguments[0] == "upload":  # tests/commands/test_people.py sends one
        assert "upload" in wandb.SUBCOMMANDS
        return
    assert cli.PROGRAMS["wandb"] == (wandb.__name__, "main")
    assert wandb.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"wandb {arguments[0]}: ")


def test_keys_that_pages_name_are_keys():
    known = (ROOT / "docs" / "keys.md").read_text()
    metrics = ("algorithm._target_", "logger._target_", "verifier._target_", "hydra.", "trainer.fit")
    groups = "algorithm|dataset|diagnose|evaluation|hints|logger|model|optimizer|positives|pretrain|prompts|rollout|trainer|verifier"  # noqa: E501
    for name, text in TEXTS.items():
        for key in set(re.findall(rf"`((?:{groups})\.[a-z0-9_.]+)", text)):
            assert f"`{key}`" in known or f"`{key}." in known or key.startswith(metrics), f"{name}: {key}"


def test_the_readme_is_short():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 120


def test_paths_in_the_readme_exist():
    linked = re.findall(r"\]\((?!http)([^)#]+)", TEXTS["README.md"])
    named = re.findall(r"\b((?:expo|conf|experiments)/[\w./]*)", TEXTS["README.md"])
    assert linked
    assert named
    assert all((ROOT / path).exists() for path in [*linked, *named])


@pytest.mark.long
@pytest.mark.runs
def test_the_readmes_own_data_run(tmp_path):
    rows = [{"task": f"What is {i} + {i}?", "result": 2 * i} for i in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = re.search(r"^## Your own data\n(.*?)^## ", TEXTS["README.md"], re.MULTILINE | re.DOTALL)[1]
    train, report = commands(section)
    # An untrained model never ends by itself: a completion has all the tokens that it may have.
    run(tmp_path, [f"{train} rollout.max_completion_tokens=64"])
    (made,) = tmp_path.glob("outputs/custom-mine/grpo-*")
    assert report == "expo report outputs/custom-mine/grpo-*"
    again = " ".join(word for word in train.split() if word.startswith("dataset"))
    model = f"model=hf model.path=./{made.relative_to(tmp_path)}/checkpoints/final rollout.max_completion_tokens=64"
    said = run(tmp_path, [f"expo report {made}", f"expo evaluate {again} {model}"])
    assert "report: " in said
    assert "15 problems (dataset.part=held_out)" in " ".join(said.split())  # what the run had held out, and no more


@pytest.mark.long
@pytest.mark.runs
def test_the_recipes_for_local_files_run_without_a_network(tmp_path, monkeypatch, math_file, gsm8k_file):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    section = re.search(r"^## Local files\n(.*?)^## ", TEXTS["math.md"], re.MULTILINE | re.DOTALL)[1]
    lines = commands(section)
    assert len(lines) == 3
    for source, word in ((math_file, "dataset=math "), (gsm8k_file, "dataset=gsm8k ")):
        rows = source.read_text().splitlines(keepends=True)
        (tmp_path / "train.jsonl").write_text("".join(rows[::2]))
        (tmp_path / "test.jsonl").write_text("".join(rows[1::2]))
        assert run(tmp_path, [line for line in lines if word in line])


@pytest.mark.slow
def test_the_tutorial_is_followed_literally(tmp_path):
    """By experiments/new_user/follow.py, with bash, in an empty folder; but for the number of steps."""
    script = ROOT / "experiments" / "new_user" / "follow.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "user", "--small"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for told in (
        "1 (line 7): the answer is a " "sentence", "1 (line 8): no column 'result'", "1 (line 302): not JSON", "asked twice",  # noqa: E501
        "to train on    249 problems", "held out       50 problems", "cons@4", "greedy", "self-explanation", "4 runs",
        "this one goes on from its step 2", "its card begins with: exp_grpo on custom",
    ):  # fmt: skip
        assert told in done.stdout, told
    page = (tmp_path / "user" / "outputs" / "report.html").read_text()
    assert "exp_grpo" in page


def test_the_tutorial_shows_what_its_commands_print():
    text = TEXTS["tutorial.md"]
    assert re.search(
        r"What the commands print was printed on \d{4}-\d\d-\d\d by `python experiments/new_user/follow.py`", text
    )
    assert len([kind for kind, _, _ in blocks(text) if kind == "text"]) >= 8
