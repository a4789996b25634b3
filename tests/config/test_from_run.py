"""run=<directory>: the settings of a run, taken whole; and names of run directories."""

import json
import sys
from dataclasses import replace

import pytest
from by_hand import save
from conftest import compose_config
from omegaconf import OmegaConf

from expo.cli import main
from expo.commands import export
from expo.config import AdamW8bitConf, UserError, build, identity, run_dir
from expo.config.from_run import combinations, config_from_run, restore
from expo.config.key import OPTIONS
from expo.config.naming import what_differs
from expo.config.reference import options_of
from expo.data.reader import set_apart
from expo.runs.arms import settings_in

EVERY_OPTION = [
    [f"{group}={option}"]
    for group in ("algorithm", "positives", "hints", "reward", "rollout", "logger", "model", "optimizer", "verifier")
    for option in options_of(group)
    if (group, option) != ("verifier", "python")  # which needs a function
] + [["verifier=python", "verifier.function=a.b"]]


@pytest.mark.parametrize(
    "overrides", [*EVERY_OPTION, ["dataset=custom", "dataset.path=x.jsonl"], ["dataset=math"], ["dataset=gsm8k"]]
)
def test_a_saved_config_is_restored_whole(tmp_path, overrides):
    cfg = compose_config(*overrides)
    assert restore(save(cfg, tmp_path / "run")) == cfg


def test_every_option_of_the_groups_above_is_there():
    assert {group for group, _ in OPTIONS} <= {
        "algorithm",
        "positives",
        "hints",
        "optimizer",
        "reward",
        "rollout",
        "logger",
        "model",
        "dataset",
        "prompts",
        "trainer",
        "verifier",
    }


def test_a_config_of_an_older_version_is_what_it_was(tmp_path):
    cfg = compose_config("algorithm=exp_grpo")
    folder = save(cfg, tmp_path / "run")
    tree = OmegaConf.load(folder / "config.yaml")
    tree.model._target_ = "expo.policy.load_policy"  # its name in 0.1
    for later in ("reward", "hints", "run", "differs"):
        del tree[later]
    OmegaConf.save(tree, folder / "config.yaml")
    assert identity(restore(folder)) == identity(cfg)


def test_a_run_of_a_package_that_is_not_loaded_names_it(tmp_path):
    folder = save(compose_config("algorithm=exp_grpo"), tmp_path / "run")
    tree = OmegaConf.load(folder / "config.yaml")
    tree.positives.update({"_target_": "their_lab.parts.Short", "shortest": 3})
    OmegaConf.save(tree, folder / "config.yaml")
    with pytest.raises(UserError, match=r"a package of its own, their_lab, .* set EXPO_PLUGINS=their_lab"):
        restore(folder)
    tree.positives._target_ = "expo.step.positives.sources.SelfExplanation"  # of another version of expo
    OmegaConf.save(tree, folder / "config.yaml")
    with pytest.raises(UserError, match="cannot be read by this version of expo"):
        restore(folder)
    (folder / "summary.json").write_text(
        json.dumps({"own_code": {"keys_of_theirs.py": "0"}})
    )  # declares, and has no _target_
    with pytest.raises(UserError, match="set EXPO_PLUGINS=keys_of_theirs"):
        restore(folder)


def test_an_interpolation_in_a_strange_config_is_refused(tmp_path):
    folder = save(compose_config(), tmp_path / "run")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("name: exp_grpo", "name: ${oc.env:HOME}"))
    with pytest.raises(UserError, match="name is an interpolation"):
        restore(folder)


def test_an_evaluation_takes_data_prompts_lengths_and_sampling_of_the_run(tmp_path, math_file, capsys):
    own = [
        "dataset=math",
        f"dataset.path={math_file}",
        "dataset.limit=7",
        "dataset.eval_limit=5",
        "rollout.max_completion_tokens=48",
        "evaluation.temperature=0.3",
        "k=[1,2]",
        "trainer.accelerator=gpu",
    ]
    cfg = compose_config(*own)
    folder = save(cfg, tmp_path / "math-math" / "run")
    taken = config_from_run("evaluate", [f"run={folder}"])
    assert (taken.prompts, taken.evaluation, taken.k) == (cfg.prompts, cfg.evaluation, cfg.k)
    assert taken.rollout.max_completion_tokens == 48
    assert taken.dataset == replace(cfg.dataset, limit=None)  # of training; `expo evaluate` means another thing by it
    assert taken.model.path == str(folder / "checkpoints" / "final")
    assert taken.output_dir == str(tmp_path)
    assert taken.trainer.accelerator == "auto"  # whatever the run was trained on
    assert capsys.readouterr().out == f"run={folder}: its settings\n"


def test_what_is_overridden_is_said(tmp_path, capsys):
    folder = save(compose_config("rollout.max_completion_tokens=48"), tmp_path / "run")
    taken = config_from_run("evaluate", [f"run={folder}", "rollout.max_completion_tokens=1024", "dataset=gsm8k"])
    assert taken.rollout.max_completion_tokens == 1024
    assert taken.dataset.name == "gsm8k"
    assert taken.prompts == compose_config("dataset=gsm8k").prompts
    said = capsys.readouterr().out
    assert "rollout.max_completion_tokens=1024 (the run: 48)" in said
    assert "dataset.name=gsm8k (the run: ladder_level5)" in said


def test_a_group_that_is_asked_for_stands_before_what_another_brings(tmp_path):
    folder = save(compose_config(), tmp_path / "run")
    asked = ["positives=expert", "algorithm=exp_grpo", "prompts=final_line", "dataset=gsm8k"]
    for overrides in (asked, asked[::-1]):
        taken = config_from_run("train", [f"run={folder}", *overrides])
        assert taken.positives == compose_config(*asked).positives
        assert taken.prompts == compose_config(*asked).prompts


def test_another_file_is_evaluated_in_place_of_the_runs_held_out_one(tmp_path, math_file):
    other = math_file.with_name("other.jsonl")
    other.write_text(math_file.read_text())
    cfg = compose_config("dataset=math", f"dataset.path={math_file}", f"dataset.eval_path={math_file}")
    folder = save(cfg, tmp_path / "run")
    taken = config_from_run("evaluate", [f"run={folder}", f"dataset.path={other}"])
    assert (taken.dataset.path, taken.dataset.eval_path) == (str(other), None)
    assert config_from_run("train", [f"run={folder}", f"dataset.path={other}"]).dataset.eval_path == str(math_file)


def test_a_judge_that_was_changed_since_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "judge_of_ours.py").write_text("# changed")
    folder = save(compose_config(), tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps({"own_code": {"judge_of_ours.py": "0"}}))
    config_from_run("evaluate", [f"run={folder}"])
    assert "made before a change of judge_of_ours.py, which judges or trains otherwise now" in capsys.readouterr().out


def test_explanations_and_a_plan_are_of_the_model_that_the_run_begins_with(tmp_path):
    cfg = compose_config("dataset=ladder", "dataset.limit=7", "model.lora_rank=4")
    folder = save(cfg, tmp_path / "run")
    (folder / "checkpoints" / "final" / "config.json").unlink()  # nor need it be finished
    for command in ("explain", "plan"):
        taken = config_from_run(command, [f"run={folder}"])
        assert (taken.model, taken.dataset.limit) == (cfg.model, 7)


def test_a_model_that_is_not_the_runs_is_neither_scored_nor_exported(tmp_path):
    folder = save(compose_config(), tmp_path / "run")
    (folder / "summary.json").write_text(json.dumps({"status": "done", "final": "another"}))
    with pytest.raises(UserError, match="is not the model that the run has left"):
        config_from_run("evaluate", [f"run={folder}"])
    with pytest.raises(UserError, match="is not the model that the run has left"):
        export.main([str(folder), f"output={tmp_path / 'plain'}"])


def test_a_prompt_may_hold_what_looks_like_a_reference(tmp_path):
    text = r"{question} costs ${price}, $\{x} \${y}"
    (tmp_path / "solve.txt").write_text(text)
    cfg = compose_config(f"prompts.solve=@{tmp_path}/solve.txt")
    assert cfg.prompts.solve == text
    folder = save(cfg, tmp_path / "run")
    assert restore(folder) == cfg
    for command in ("train", "evaluate"):
        assert config_from_run(command, [f"run={folder}"]).prompts == cfg.prompts


@pytest.mark.parametrize("with_run", [True, False])
def test_a_group_without_an_option_is_one_line(tmp_path, with_run):
    folder = save(compose_config(), tmp_path / "run")
    for group in ("positives", "model", "algorithm"):
        with pytest.raises(UserError, match=f"{group}=null: no option of the group; name one"):
            config_from_run("train", [f"run={folder}", f"{group}=null"]) if with_run else compose_config(
                f"{group}=null"
            )


def test_another_engine_keeps_lengths_and_sampling(tmp_path):
    folder = save(compose_config("rollout.max_completion_tokens=48", "rollout.temperature=0.6"), tmp_path / "run")
    taken = config_from_run("evaluate", [f"run={folder}", "rollout=vllm", "rollout.dtype=bfloat16"])
    assert taken.rollout._target_.endswith("VLLMEngine")
    assert (taken.rollout.max_completion_tokens, taken.rollout.temperature) == (48, 0.6)
    assert taken.rollout.requires == "vllm"  # so that a missing vLLM is one line


@pytest.mark.parametrize(
    ("of_run", "chosen"),
    [([], "token"), (["algorithm.sampler_correction=sequence"], "sequence")],
)
def test_what_follows_from_an_overridden_key_follows_anew(tmp_path, of_run, chosen):
    directory = save(compose_config("dataset=ladder", *of_run), tmp_path / "a" / "b" / "run")
    engine = ["rollout=vllm", "rollout.dtype=bfloat16"]
    assert restore(directory).algorithm.sampler_correction == (chosen if of_run else "none")
    cfg = config_from_run("train", [f"run={directory}", *engine])
    assert cfg.algorithm.sampler_correction == chosen
    assert identity(cfg) == identity(compose_config("dataset=ladder", *of_run, *engine))
    kept = config_from_run("train", [f"run={directory}", *engine, "algorithm.sampler_correction=none"])
    assert kept.algorithm.sampler_correction == "none"
    assert identity(config_from_run("train", [f"run={directory}"])) == identity(restore(directory))


def test_another_optimizer_keeps_the_learning_rate(tmp_path):
    folder = save(compose_config("trainer=ladder", "optimizer.betas=[0.8,0.9]"), tmp_path / "run")
    taken = config_from_run("train", [f"run={folder}", "optimizer=adamw_8bit", "optimizer.weight_decay=0.1"])
    assert taken.optimizer == AdamW8bitConf(learning_rate=3e-4, betas=[0.8, 0.9], weight_decay=0.1)
    # As a trainer's settings do, whatever is picked first.
    assert compose_config("optimizer=adamw_8bit", "trainer=ladder").optimizer == AdamW8bitConf(learning_rate=3e-4)


def test_training_on_is_the_very_run(tmp_path, capsys):
    cfg = compose_config("trainer.max_steps=3", "trainer.stop_after=1", f"output_dir={tmp_path}")
    folder = save(cfg, run_dir(cfg))
    again = config_from_run("train", [f"run={folder}"])
    assert identity(again) == identity(cfg)
    assert again.trainer.stop_after is None
    assert run_dir(again) == folder
    longer = config_from_run("train", [f"run={folder}", "trainer.max_steps=5"])
    assert longer.differs == "max_steps_5"
    told = f"model.path={folder / 'checkpoints' / 'final'}"
    assert told not in capsys.readouterr().out
    config_from_run("train", [f"run={folder}", "algorithm=grpo"])
    assert told in capsys.readouterr().out


def test_a_run_that_lies_elsewhere_is_not_begun_anew(tmp_path):
    cfg = compose_config("trainer.max_steps=3", f"output_dir={tmp_path}")
    folder = save(cfg, run_dir(cfg))
    (folder / "summary.json").write_text(json.dumps({"identity": identity(cfg), "status": "stopped"}))
    for moved in (tmp_path / "else" / "mine", folder.parent / "mine", tmp_path / "else" / "deep" / folder.name):
        moved.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(moved)
        with pytest.raises(UserError, match=f"would begin it anew in {folder}; move it there, and it goes on"):
            config_from_run("train", [f"run={moved}"])
        for wish in ("seed=7", "fresh=true", f"output_dir={tmp_path}/other"):  # its settings
            config_from_run("train", [f"run={moved}", wish])
        moved.rename(folder)
    moved = tmp_path / "kept" / folder.name  # where a run of this name is looked for
    moved.parent.mkdir()
    folder.rename(moved)
    assert run_dir(config_from_run("train", [f"run={moved}"])) == moved


def test_a_run_is_named_by_a_pattern_or_its_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = compose_config("trainer.max_steps=3")
    folder = save(cfg, run_dir(cfg))
    for name in (str(folder), "outputs/ladder_level5/exp_*", identity(cfg)):
        assert config_from_run("train", [f"run={name}"]).trainer.max_steps == 3
    save(compose_config("trainer.max_steps=4"), run_dir(compose_config("trainer.max_steps=4")))
    with pytest.raises(UserError, match="2 run directories are called so"):
        config_from_run("train", ["run=outputs/ladder_level5/exp_*"])
    with pytest.raises(UserError, match="0 run directories"):
        config_from_run("train", ["run=0123456789"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run=nowhere"], "no run directory"),
        (["run=RUN", "trainer.max_stepps=3"], "did you mean max_steps?"),
        (["run=RUN", "debug=tiny"], "cannot be taken with run="),
        (["run=RUN", "rollout.max_completion_tokens=0"], "must be greater than 0"),
        (["run=RUN", "dataset.name=evaluate"], "another folder of output_dir"),
        (["run=RUN", "--info"], "not taken with run="),
        (["run=UNFINISHED"], "has no finished model (checkpoints/final); finish it with expo train run="),
    ],
)
def test_mistakes_with_run_are_told_in_one_line(tmp_path, monkeypatch, capsys, arguments, told):
    save(compose_config(), tmp_path / "run")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text((tmp_path / "run" / "config.yaml").read_text())
    own = [
        a.replace("RUN", str(tmp_path / "run")).replace("UNFINISHED", str(tmp_path / "unfinished")) for a in arguments
    ]
    monkeypatch.setattr("sys.argv", ["expo", "evaluate", *own])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_other_data_behind_the_path_is_said(tmp_path, math_file, capsys):
    cfg = compose_config("dataset=math", f"dataset.path={math_file}", f"output_dir={tmp_path}")
    folder = save(cfg, run_dir(cfg))
    (folder / "summary.json").write_text(json.dumps({"identity": identity(cfg)}))
    config_from_run("evaluate", [f"run={folder}"])
    assert "has changed since" not in capsys.readouterr().out
    math_file.write_text("\n".join(reversed(math_file.read_text().splitlines())))
    config_from_run("evaluate", [f"run={folder}"])
    assert "what is behind dataset.path or model.path has changed since" in capsys.readouterr().out


def test_a_run_from_before_another_answer_lift_is_said_to_be_that(tmp_path, capsys):
    cfg = compose_config("dataset=gsm8k", "model=random_tiny", "positives.selection=two_properties")
    folder = save(cfg, tmp_path / "a" / "b" / "run")
    ids = sys.modules["expo.config.identity"]  # a function of the package has its name
    then = ids._digest(ids._with_contents(ids._tree(cfg, pairs=False), cfg))
    (folder / "summary.json").write_text(json.dumps({"identity": then}))
    config_from_run("evaluate", [f"run={folder}"])
    said = capsys.readouterr().out
    assert "the answer lift as it was measured before 2026-11-28: this is no longer that run" in said
    assert "has changed since" not in said


def test_what_a_run_has_trained_on_is_no_more_than_its_limit(tmp_path, math_file):
    own = "dataset=math", f"dataset.path={math_file}", "dataset.limit=20", "dataset.eval_limit=10"
    cfg = compose_config(*own, "dataset.validation=5", "model=random_tiny", f"output_dir={tmp_path}")
    folder = save(cfg, run_dir(cfg))
    trained, held_out = (
        build(config_from_run("evaluate", [f"run={folder}", *part]).dataset).part()
        for part in (["dataset.part='train'"], [])
    )
    assert (len(trained), len(held_out)) == (15, 10)
    assert {p.id for p in trained} == {p.id for p in set_apart(build(cfg.dataset).train(), 5)[0]}


def test_a_sweep_over_runs():
    lines = combinations(["run=a,b", "k=[1],[1,4]", "dataset.part=train"])
    assert len(lines) == 4
    assert ["run=b", "k=[1,4]", "dataset.part=train"] in lines


def test_names_tell_what_differs():
    told = what_differs(
        [
            "algorithm=grpo",
            "seed=3",
            "trainer.max_steps=4",
            "model=hf",
            "model.path=a/Qwen2.5-0.5B",
            "k=[1,8]",
            "output_dir=x",
            "trainer.threads=1",
        ],
        {"output_dir", "trainer.threads"},
    )
    assert told == "max_steps_4+path_Qwen2.5-0.5B+k_1_8"
    assert what_differs(["trainer.max_steps=8"], set(), earlier="max_steps_4+k_1") == "k_1+max_steps_8"
    long = what_differs([f"optimizer.key{i}=123456789" for i in range(9)], set())
    assert len(long) < 70
    assert long.endswith("+key8_123456789+5_more")


def test_a_run_is_found_by_its_identity_whatever_it_is_called(tmp_path, math_file):
    cfg = compose_config("dataset=math", f"dataset.path={math_file}", "trainer.max_steps=4", f"output_dir={tmp_path}")
    mark = identity(cfg)
    assert run_dir(cfg) == tmp_path / "math" / f"exp_grpo-max_steps_4-s0-{mark}"
    for old in (tmp_path / "math" / f"exp_grpo-s0-{mark}", tmp_path / "else" / f"my try-{mark}"):
        old.mkdir(parents=True)
        (old / "config.yaml").touch()
        assert run_dir(cfg) == old
        (old / "config.yaml").unlink()
    # An evaluation of the same config is another thing.
    (tmp_path / "evaluate" / f"math-{mark}").mkdir(parents=True)
    assert run_dir(cfg).parent.name == "math"


def test_the_data_files_name_is_in_the_path(tmp_path):
    path = tmp_path / "my rows.jsonl"
    path.write_text(json.dumps({"question": "1?", "answer": "1"}))
    cfg = compose_config("dataset=custom", f"dataset.path={path}", "name=my_try")
    assert run_dir(cfg).parts[-2] == "custom-my_rows"
    assert run_dir(cfg).name == f"my_try-s0-{identity(cfg)}"


@pytest.mark.parametrize("key", ["name", "dataset.name"])
@pytest.mark.parametrize("value", ["../../x", "/dev/null", ".hidden", "a/b"])
def test_names_are_names(key, value, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["expo", "train", f"{key}={value}"])
    with pytest.raises(SystemExit):
        main()
    assert f"{key}={value}: no name" in capsys.readouterr().err


def test_a_key_that_is_gone_is_read_at_its_one_value(tmp_path):
    """algorithm.top_of had one value that anything used: runs that say so are what they were, with the same
    identity."""
    cfg = compose_config("algorithm=sdpo", "dataset=ladder")
    tree = OmegaConf.to_container(OmegaConf.structured(cfg))
    for value, fits in (("student", True), ("teacher", False)):
        tree["algorithm"]["top_of"] = value
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(tree))
        if fits:
            assert identity(restore(tmp_path)) == identity(cfg)
            assert settings_in(tree) == settings_in(OmegaConf.to_container(OmegaConf.structured(cfg)))  # one arm
        else:
            with pytest.raises(UserError, match="cannot be read by this version of expo"):
                restore(tmp_path)


def test_folders_that_an_override_brings_are_looked_into_each_time(tmp_path):
    """`hydra.searchpath` is no part of what is known of composed configs: an edited file there counts at once."""
    path = tmp_path / "positives" / "mine.yaml"
    path.parent.mkdir()
    for weight in (0.3, 0.4):
        path.write_text(f"defaults: [self_explanation, _self_]\nweight: {weight}\n")
        line = [f"hydra.searchpath=[file://{tmp_path}]", "positives=mine", "dataset=ladder"]
        assert compose_config(*line).positives.weight == weight
