"""`expo wandb workspace`, `report` and `sweep`: what they write, beside what is recorded, and what they send to a
stand-in server."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from queue import Queue

import pytest
import yaml
from conftest import ROOT, TESTS
from running import SMALL, grid
from wandb_server import expo

from expo import cli
from expo.commands import wandb as command
from expo.config import UserError
from expo.loggers.offline import read_offline
from expo.report import wandb_views
from expo.report.page import Page
from expo.report.wandb_views import SECTIONS, Selection, make_report, make_workspace, specification
from expo.tables.request import Request

PAGE = Page(
    "A table", "Made by a test.", ["arm", "pass@4"], [["GRPO | plain", "0.0"], ["ExP-GRPO", "12.5"]], ["A note."]
)


def check_recorded(name: str, found: object) -> None:
    """Compare with tests/recorded/NAME. To record anew, remove the file and run the test: it writes it, and fails
    once."""
    path = TESTS / "recorded" / name
    text = json.dumps(found, indent=1) + "\n"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        pytest.fail(f"{path} is recorded anew: look at it, and run again")
    assert text == path.read_text()


def test_the_panels_are_those_of_the_documentation():
    table = re.search(r"^\| panel \|.*?\n\n", (ROOT / "docs" / "wandb.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:] if line]
    assert [row[0] for row in rows] == [section.title for section in SECTIONS]
    for row, section in zip(rows, SECTIONS, strict=True):
        assert re.findall(r"`([^`]+)`", row[2]) == list(section.metrics)
        assert row[3].strip("`") == (section.key or "job type")


def test_the_panels_show_what_runs_log():
    """A metric that no run has would be an empty panel."""
    code = "".join(path.read_text() for path in (ROOT / "expo").rglob("*.py") if path.name != "wandb_views.py")
    for metric in (m for section in SECTIONS for m in section.metrics if not m.startswith(("pass@", "time/"))):
        group, _, name = metric.partition("/")
        assert f'"{metric}"' in code or (f'"{group}/' in code and name in code), metric


def test_a_workspace_without_a_network_is_the_recorded_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody there, and nobody asked
    assert command.main(["workspace", "demo"]) == 0
    assert "wandb workspace: outputs/wandb/demo-cpu-workspace.json" in capsys.readouterr().out
    text = Path("outputs/wandb/demo-cpu-workspace.json").read_text()
    command.main(["workspace", "demo"])
    assert Path("outputs/wandb/demo-cpu-workspace.json").read_text() == text  # the same each time
    check_recorded("wandb_workspace.json", json.loads(text))


def test_a_report_without_a_network_is_the_recorded_one(monkeypatch):
    monkeypatch.setattr(wandb_views, "SECTIONS", (SECTIONS[0], SECTIONS[4], SECTIONS[-1]))
    shown = Selection.of_runs("a-s0", ["a-s0", "a-s1"], "expo", "")
    check_recorded("wandb_report.json", specification(make_report(shown, PAGE)))


def test_a_workspace_shows_the_runs_that_were_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, project in (("ladder/a-s0", "mine"), ("evaluate/e", "mine")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.yaml").write_text(f"logger: {{wandb: {{project: {project}}}}}\n")
    assert command.main(["workspace", "ladder/a-s0", "evaluate/e", "output=x/view.json"]) == 0
    made = json.loads(Path("x/view.json").read_text())
    assert (made["project"], made["displayName"]) == ("mine", "a-s0-and-1-more")
    (runs,) = made["spec"]["section"]["runSets"]
    assert [f["value"] for f in runs["filters"]["filters"]] == [["a-s0", "evaluate-e"]]
    assert runs["grouping"] == [{"section": "config", "name": "name.value"}]
    assert command.main(["workspace", "project=other", "output=x/all.json"]) == 0
    assert json.loads(Path("x/all.json").read_text())["project"] == "other"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], r"wandb nothing: no such command; use one of workspace, report"),
        (["workspace", "nowhere"], r"nowhere: no run directory and no table"),
        (["workspace", "demo", "rivals"], r"rivals: one table per view"),
        (["workspace", "mode=sideways"], r"mode=sideways: neither offline nor online"),
        (["workspace", "wide=1"], r"wide=1: no such option"),
        (["report"], r"wandb report: nothing to report on"),
        (["report", "nowhere"], r"nowhere: no run directory and no table"),
        (["sweep"], r"no table given; use one of"),
        (["sweep", "nowhere"], r"table=nowhere: no such table"),
        (["run", "demo", "arm=grpo", "seed=99"], r"arm=grpo, seed=99: no such run in the plan"),
        (["run", "demo", "run=x"], r"run=x: no such run in the plan; use one of "),
        (["sync", "a", "b"], r"b: one folder at a time"),
    ],
)
def test_mistakes_are_one_line(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["expo", "wandb", *arguments])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda m, *rest: None if m == "wandb_workspaces" else find(m, *rest)
    )
    for view in ("workspace", "report"):
        with pytest.raises(UserError, match=r"wandb-workspaces is not installed; install it with pip install wandb-w"):
            command.main([view, "demo"])


def test_online_they_go_to_the_server(online, capsys, monkeypatch):
    assert command.main(["workspace", "demo", "mode=online"]) == 0
    assert re.search(r"wandb workspace: \S+/me/expo\?nw=", capsys.readouterr().out)
    (view,) = online.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "expo", "demo-cpu")
    offline = specification(make_workspace(Selection.of_table("demo", "cpu", "expo", "me")))["spec"]
    assert len(json.dumps(json.loads(view["spec"]))) == pytest.approx(len(json.dumps(offline)), abs=300)
    assert [s["name"] for s in json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]] == [
        s.title for s in SECTIONS
    ]
    page = PAGE, []
    monkeypatch.setattr("expo.report.reading.read_table", lambda folder: page)
    monkeypatch.setattr("expo.report.reading.table_request", lambda subject, options: subject)
    assert command.main(["report", "demo", "mode=online"]) == 0
    assert re.search(r"wandb report: \S+/me/expo/reports/A-table--v", capsys.readouterr().out)
    assert (online.views[1]["displayName"], online.views[1]["type"]) == ("A table", "runs")
    assert "| GRPO \\\\| plain | 0.0 |" in online.views[1]["spec"]
    assert online.unknown == []


def test_online_without_a_key_is_one_line(server, tmp_path):
    code, said = expo(server, tmp_path, "wandb", "workspace", "demo", "mode=online", WANDB_API_KEY="")
    assert code == 2
    (line,) = (line for line in said.splitlines() if line.startswith("expo: "))
    assert re.search(r"mode=online: W&B cannot be asked \(.*run `wandb login`, or use mode=offline", line)
    assert "Traceback" not in said


# Sweeps. Who expands a grid is W&B's server; everything that an agent does is here.


def agent_makes(path: Path, setting: dict[str, object], run_id: str) -> list[str]:
    """Let W&B's own agent start a run of a sweep, without its server, and wait for it. Returns the command line."""
    from wandb.sdk.launch.sweeps import utils
    from wandb.wandb_agent import Agent

    config = utils.load_sweep_config(str(path))
    agent = Agent(api=None, queue=Queue(), sweep_id="s")
    agent._sweep_command = config["command"]
    args = {name: {"value": value} for name, value in setting.items()}
    agent._process_command({"id": "1", "type": "run", "run_id": run_id, "program": config["program"], "args": args})
    (_, response) = agent._log[0]
    assert "exception" not in response, response
    process = agent._run_processes[run_id]
    assert process.wait() == 0
    return process._popen.args


@pytest.mark.slow
def test_an_agent_makes_the_very_runs_of_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):  # that the agent sets
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)
    asked = ["demo", "seeds=2", *SMALL, "trainer.max_steps=1"]
    assert command.main(["sweep", *asked]) == 0
    path = Path("outputs/wandb/demo-cpu-sweep.yaml")
    setting = grid(yaml.safe_load(path.read_text()))[-1]
    assert setting["seed"] == 1
    line = agent_makes(path, setting, "agents-own-id")
    assert line[:7] == ["/usr/bin/env", "python", "-P", "-m", "expo", "wandb", "run"]
    done = [run for run in Request.parse(asked).runs() if run.done]  # as `expo table` looks for them
    assert [(run.arm, run.seed) for run in done] == [(setting["arm"], 1)]
    own = read_offline(done[0].dir)
    assert (own.id, own.group, own.job_type) == ("agents-own-id", "demo", setting["arm"])
    assert own.config["algorithm"]["group_size"] == 4  # a parameter called as a group would take the group's place
    assert own.config["arm"] == setting["arm"]
