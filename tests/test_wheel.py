"""The wheel, built and installed outside of the checkout: what a user of `pip install` has."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(command line of expo, environment, empty folder): a new environment with the wheel.

    The packages that it depends on are taken from this environment, without the checkout that is installed in it.
    """
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "uv", "build", "--wheel", "-q", "-o", folder / "dist", ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "work").mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return folder / "venv" / "bin" / "expo", environment | {"OMP_NUM_THREADS": "1"}, folder / "work"


def expo(installed, *arguments):
    command, environment, folder = installed
    done = subprocess.run(
        [command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_train_evaluate_table_and_report_from_a_wheel(installed):
    command, environment, folder = installed
    where = [command.with_name("python"), "-c", "import expo; print(expo.__file__)"]
    found = subprocess.run(where, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout
    assert str(folder.parent / "venv") in found
    rows = [{"question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(12)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expo(installed, "init", "study", "data=mine.jsonl")
    expo(
        installed, "train", "algorithm=grpo", "dataset=custom", "dataset.path=mine.jsonl", "model=random_tiny",
        "trainer.max_steps=1", "trainer.problems_per_step=2", "rollout.max_completion_tokens=16",
    )  # fmt: skip
    (run,) = (folder / "outputs" / "custom-mine").iterdir()
    assert "pass@1" in expo(installed, "evaluate", f"run={run.relative_to(folder)}")
    expo(installed, "table", "study", "seeds=1")
    assert list(folder.glob("outputs/sweeps/study-cpu/*/table.md"))
    assert "4 runs, 4 to do" in expo(installed, "table", "table3_levels", "dry_run=true", "seeds=1")
    expo(installed, "report", str(run.relative_to(folder)))
    assert (run / "report.html").is_file()
    assert "custom-mine" in expo(installed, "runs")


@pytest.mark.slow
def test_the_wheel_has_every_plan_and_results_go_to_outputs(installed):
    command, environment, folder = installed
    script = (
        "from expo.tables.plan import known_tables, load_plan, results_folder\n"
        "print(*known_tables())\n"
        "assert all(load_plan(name).arms for name in known_tables())\n"
        "print(results_folder('table3_levels', 'cpu'))"
    )
    python = [command.with_name("python"), "-c", script]
    names, results = subprocess.run(
        python, cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()  # fmt: skip
    assert names.split() == sorted(path.parent.name for path in ROOT.glob("experiments/*/plan.yaml"))
    assert results == "outputs/tables/table3_levels/cpu"
    papers = [path.parent.name for path in ROOT.glob("experiments/*/paper.yaml")]
    (shipped,) = folder.parent.glob("venv/lib/python*/site-packages/expo/experiments")
    assert {path.name for path in shipped.rglob("*") if path.is_file()} == {"plan.yaml", "paper.yaml"}
    (wheel,) = (folder.parent / "dist").glob("*.whl")
    assert {name.partition("/")[0].partition("-")[0] for name in zipfile.ZipFile(wheel).namelist()} == {"expo"}
    assert sorted(papers) == sorted(path.parent.name for path in shipped.glob("*/paper.yaml"))
