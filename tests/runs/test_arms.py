"""Runs are the seeds of one arm only if they differ in nothing but the seed."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from conftest import compose_config
from omegaconf import OmegaConf

from expo.commands import report
from expo.config import arm_identity, build, data_content, identity
from expo.evaluation.files import save_rows
from expo.jobs.score import warn_of_other_settings, warn_of_trained_on
from expo.report import reading
from expo.runs.arms import TRAINED_BY, arm_names, settings_in, settings_of
from expo.verifier.pool import Verifier


@pytest.fixture
def arms(tmp_path):
    def named(*runs: list[str]) -> list[str]:
        summaries, settings = [], []
        for i, overrides in enumerate(runs):
            cfg, directory = compose_config(*overrides), tmp_path / str(i)
            directory.mkdir(exist_ok=True)
            OmegaConf.save(OmegaConf.structured(cfg), directory / "config.yaml")
            summaries.append({"name": cfg.name, "seed": cfg.seed, "arm": arm_identity(cfg)})
            settings.append(settings_of(directory))
        return arm_names(summaries, settings)

    return named


def test_seeds_and_runtime_keys_make_no_arm(arms):
    assert set(arms(["seed=0"], ["seed=1", "trainer.threads=2", "logger=wandb"], ["seed=2", "name=exp_grpo"])) == {
        "exp_grpo"
    }


def test_what_differs_is_told(arms):
    made = arms(["seed=0"], ["seed=1", "trainer.max_steps=5", "positives.filters=[]"], ["algorithm=grpo"])
    assert made == [
        "exp_grpo, filters=[truncated,unparseable,wrong,leak,early_answer], max_steps=120",
        "exp_grpo, filters=[], max_steps=5",
        "grpo, max_steps=120",
    ]


def test_what_the_name_stands_for_is_not_told_again(arms):
    assert arms(["algorithm=grpo"], ["algorithm=exp_grpo"]) == ["grpo", "exp_grpo"]


def test_a_name_of_the_users_hides_nothing(arms):
    first, second = arms(["name=mine"], ["name=mine", "algorithm.clip_high=0.3"])
    assert (first, second) == ("mine, clip_high=0.2", "mine, clip_high=0.3")


def test_other_content_behind_the_same_path_is_another_arm(arms, math_file):
    data = ["dataset=math", f"dataset.path={math_file}"]
    same = arms(data, [*data, "seed=1"])
    assert len(set(same)) == 1
    first = arm_identity(compose_config(*data))
    math_file.write_text(math_file.read_text().replace("What is", "Tell what is"))
    summaries = [{"name": "exp_grpo", "arm": mark} for mark in (first, arm_identity(compose_config(*data)))]
    settings = [{"dataset.path": str(math_file)}] * 2
    assert len(set(arm_names(summaries, settings))) == 2


def test_a_run_of_an_older_version_is_of_the_same_arm():
    """Keys that came later, at the value where all is as before, tell no arms apart."""
    tree = OmegaConf.to_container(OmegaConf.structured(compose_config("algorithm=grpo")))
    older = {**tree, "evaluation": {k: v for k, v in tree["evaluation"].items() if k != "greedy"}}
    assert settings_in(older) == settings_in(tree)


def test_config_files_of_others_are_not_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    (tmp_path / "config.yaml").write_text("dataset: {name: '${oc.env:OPENAI_API_KEY}'}")
    assert settings_of(tmp_path) == {"dataset.name": "${oc.env:OPENAI_API_KEY}"}


def test_an_exported_model_knows_which_part_its_run_held_out(tmp_path, math_file, caplog):
    data = ["dataset=math", f"dataset.path={math_file}", "model=hf"]
    OmegaConf.save(OmegaConf.structured(compose_config(*data, "dataset.eval_limit=5")), tmp_path / "config.yaml")
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / TRAINED_BY).write_text(yaml.safe_dump(settings_of(tmp_path)))
    warn_of_other_settings(compose_config(*data, "dataset.eval_limit=5", f"model.path={exported}"))
    assert not caplog.text
    warn_of_other_settings(compose_config(*data, f"model.path={exported}"))
    assert f"{exported}: what is scored may have been trained on" in caplog.text


def test_a_checkpoint_scored_on_another_part_of_its_file_is_said(tmp_path, math_file, caplog):
    data = ["dataset=math", f"dataset.path={math_file}", "model=hf"]
    OmegaConf.save(OmegaConf.structured(compose_config(*data, "dataset.eval_limit=5")), tmp_path / "config.yaml")
    final = f"model.path={tmp_path / 'checkpoints' / 'final'}"
    warn_of_other_settings(compose_config(*data, "dataset.eval_limit=5", final))
    warn_of_other_settings(compose_config(*data, "dataset.part=all", final))
    assert not caplog.text
    warn_of_other_settings(compose_config(*data, final))
    assert "may have been trained on" in caplog.text
    assert "dataset.eval_limit=500 (the run: 5)" in caplog.text
    assert "scored otherwise" not in caplog.text
    warn_of_other_settings(compose_config(*data, "dataset.eval_limit=5", final, "verifier.extract=whole"))
    assert "scored otherwise than in its run" in caplog.text
    assert "verifier.extract=whole (the run: boxed)" in caplog.text


def test_a_file_that_was_renamed_holds_out_other_rows_and_is_another_run(tmp_path, math_file, caplog):
    """Which rows are held out follows from the file's name and their lines."""
    import shutil

    renamed = math_file.with_name("another.jsonl")
    shutil.copy(math_file, renamed)
    cfgs = [compose_config("dataset=math", f"dataset.path={f}", "dataset.eval_limit=3") for f in (math_file, renamed)]
    assert identity(cfgs[0]) != identity(cfgs[1])
    whole = [
        compose_config("dataset=math", f"dataset.path={f}", f"dataset.eval_path={f}", "dataset.eval_limit=null")
        for f in (math_file, renamed)
    ]
    assert identity(whole[0]) == identity(whole[1])  # all rows are taken: the name changes nothing
    with Verifier(cfgs[0].verifier) as verifier:
        held_out, other = (build(cfg.dataset, verifier).evaluation() for cfg in cfgs)
    (tmp_path / "completions").mkdir()
    save_rows([{"question": p.question} for p in held_out], tmp_path / "completions" / "eval-step000000.parquet")
    final = f"model.path={tmp_path / 'checkpoints' / 'final'}"
    scored = compose_config("dataset=math", f"dataset.path={renamed}", "dataset.eval_limit=3", "model=hf", final)
    caplog.clear()
    warn_of_trained_on(scored, held_out)
    assert not caplog.text
    (tmp_path / "completions" / "eval-step000000.parquet").rename(tmp_path / "completions" / "eval-step000050.parquet")
    warn_of_trained_on(scored, [*held_out, *other])  # evaluation.first=false, too
    assert "are none that the run has held out, and may have been trained on" in caplog.text
    apart = [p for p in other if p.question not in {q.question for q in held_out}]
    caplog.clear()
    warn_of_trained_on(scored, apart)  # other data, as far as anybody can tell
    assert not caplog.text
    (tmp_path / "summary.json").write_text(json.dumps({"data": data_content(cfgs[0])}))
    warn_of_trained_on(scored, apart)  # the very file of the run
    assert f"{len(apart)} of the {len(apart)} problems are none that the run has held out" in caplog.text


@pytest.mark.filterwarnings("error")
def test_evaluations_of_different_parts_are_different_arms(tmp_path):
    for part in ("held_out", "train"):
        (tmp_path / part / "completions").mkdir(parents=True)
        OmegaConf.save(OmegaConf.structured(compose_config("debug=tiny")), tmp_path / part / "config.yaml")
        summary = {"name": "base", "arm": "x", "seed": 0, "status": "done", "metrics": {}, "git": "", "device": ""}
        (tmp_path / part / "summary.json").write_text(json.dumps(summary | {"part": part}))
        rows = [
            {
                "problem": part,
                "level": 1,
                "verdict": "correct",
                "sample": 0,
                "question": "q",
                "answer": "1",
                "completion": "",
                "tokens": 1,
                "truncated": False,
            }
        ]
        pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / part / "completions" / "eval.parquet")
    directories = [tmp_path / "held_out", tmp_path / "train"]
    page, runs = reading.read_runs(directories)
    assert [run.arm for run in runs] == ["base, part=held_out", "base, part=train"]
    assert page.differs == (["setting", *(run.arm for run in runs)], [["dataset.part", "held_out", "train"]])
    assert report.main([*map(str, directories), f"output={tmp_path / 'page.html'}"]) == 0
    assert report.main([str(tmp_path / "[ht]*"), f"output={tmp_path / 'pattern.html'}"]) == 0
    assert (tmp_path / "pattern.html").read_text() == (tmp_path / "page.html").read_text()


@pytest.mark.runs
def test_the_report_does_not_pool_different_experiments(tmp_path):
    from running import run

    made = [run(tmp_path, *more)[1] for more in (["trainer.max_steps=1"], ["trainer.max_steps=2", "seed=1"])]
    _, runs = reading.read_runs([*made, made[0]])
    assert [r.arm for r in runs] == ["exp_grpo, max_steps=1", "exp_grpo, max_steps=2"]
    assert "arm" in json.loads((made[0] / "summary.json").read_text())
