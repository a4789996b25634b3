import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, compose_config
from hydra.errors import ConfigCompositionException

import expo
from expo import cli, config
from expo.config import UserError, check
from expo.config.compose import for_command
from expo.config.from_run import config_from_run
from expo.data.account import Account, Source
from expo.runs.directory import Run
from expo.runs.listing import run_folder

CONF = config.conf_dir()
OPTIONS = [(f.parent.name, f.stem) for f in sorted(CONF.glob("*/*.yaml"))]


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes_and_passes_the_checks(group, name, tmp_path, monkeypatch):
    needed = {
        "custom": ["dataset.path=README.jsonl"],
        "function": ["dataset.function=a.b"],
        "partial": ["verifier=python", "verifier.function=a.b"],
        "reasoning_gym": ["dataset.task=chain_sum"] if group == "dataset" else [],
        "expert_paraphrase": ["prompts=math"],
        "python": ["verifier.function=a.b"],
    }
    source = ["algorithm=grpo"] if (group, name) == ("positives", "none") else needed.get(name, [])
    if name == "custom":
        (tmp_path / "README.jsonl").touch()
        monkeypatch.chdir(tmp_path)
    cfg = compose_config(f"{group}={name}", *source)
    if cfg.rollout.requires and importlib.util.find_spec(cfg.rollout.requires) is None:
        with pytest.raises(config.UserError, match=f"make setup EXTRA={cfg.rollout.extra}"):
            check(cfg)
    elif (group, name) == ("dataset", "reasoning_gym") and importlib.util.find_spec("reasoning_gym") is None:
        with pytest.raises(config.UserError, match=r"pip install reasoning-gym"):
            check(cfg)
    else:
        check(cfg)


def test_the_groups_of_the_design_are_there():
    wanted = {"algorithm", "dataset", "model", "rollout", "trainer", "logger", "prompts", "debug"}
    assert wanted <= {group for group, _ in OPTIONS}


def run_cli(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["expo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code, capsys.readouterr().err


GYM = ("dataset=reasoning_gym", "dataset.task=chain_sum", "model=random_tiny")
REGEX = ("dataset=gsm8k", "model=random_tiny", "verifier=regex")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["algorithm.group_sizes=4"], ["algorithm.group_sizes"]),
        (["+trainer.foo=4"], ["trainer.foo=4"]),
        (["algorithm=nope"], ["algorithm/nope", "exp_grpo"]),
        (["trainer.max_steps=many"], ["trainer.max_steps", "many"]),
        (["algorithm.aggregation=median"], ["algorithm.aggregation", "median", "token_mean"]),
        (["dataset=math", "dataset.levels=[7]"], ["dataset.levels=[7]", "[1, 2, 3, 4, 5]"]),
        (["dataset=gsm8k", "dataset.levels=[1]"], ["dataset.levels=[1]", "no levels"]),
        (["algorithm.group_size=1"], ["algorithm.group_size=1", "between 2 and"]),
        (["diagnose.judge.base_url=http://x"], ["diagnose.judge.base_url=http://x", "diagnose.judge.model"]),
        (["algorithm=exp_sft", "positives.gate=all_wrong"], ["positives.gate=all_wrong", "algorithm.group_size=1"]),
        (["algorithm=exp_sft", "positives.use=group_member"], ["positives.use=group_member", "GRPO"]),
        (["algorithm=exp_dpo_offline", "hints=self_made"], ["hints", "exp_dpo_offline"]),
        (["algorithm=exp_sft", "positives.shown_answer=wrong"], ["positives.shown_answer=wrong", "group_size"]),
        (["algorithm=exp_sft", "positives.selection=two_properties"], ["positives.selection=two_properties"]),
        (["algorithm=star", "positives.explainer=current"], ["restart_every", "positives.explainer=snapshot"]),
        (["algorithm=star", "algorithm.group_size=0"], ["algorithm.group_size=0"]),
        (["dataset=math", "positives.selection=oracle_sound"], ["oracle_sound", "ladder"]),
        (["positives=expert_paraphrase"], ["prompts.paraphrase=None", "{solution}"]),
        (["positives=expert_paraphrase", "prompts=math", "positives.length_ratio=0.5"], ["positives.length_ratio=0.5"]),
        (["algorithm=exp_sft", "positives=expert_paraphrase", "prompts=math"], ["algorithm.group_size=0"]),
        (["algorithm=exp_sft", "positives.weight=0"], ["positives.weight=0"]),
        (["algorithm=exp_sft", "positives.schedule=all_wrong_fraction"], ["positives.schedule=all_wrong_fraction"]),
        (["algorithm=exp_grpo_member", "positives.schedule=linear"], ["positives.schedule=linear", "auxiliary"]),
        (["algorithm=star", "positives.cache_steps=5"], ["positives.cache_steps=5"]),
        (["algorithm=exp_dpo_online", "positives.cache_steps=5"], ["positives.cache_steps=5", "exp_dpo_online"]),
        (["positives=star", "positives.use=group_member"], ["positives.use=group_member", "auxiliary"]),
        (["positives=shuffled_answer", "trainer.problems_per_step=1"], ["trainer.problems_per_step=1"]),
        (["dataset=ladder", "dataset.eval_split=validation"], ["dataset.eval_split=validation", "train or test"]),
        (["algorithm=exp_dpo_offline", "positives.selection=threshold"], ["positives.selection=threshold"]),
        (["algorithm.sampler_cap=0.5"], ["algorithm.sampler_cap=0.5"]),
        (["dataset.levels=[[1]]"], ["dataset.levels=[[1]]", "a list in a list"]),
        (["k=[[1]]"], ["k=[[1]]", "a list in a list"]),
        (["seed=99999999999999999999999"], ["seed=99999999999999999999999"]),
        (["algorithm.group_size=9999999999"], ["algorithm.group_size=9999999999", "65536"]),
        ([f"dataset.path={'x' * 300}.jsonl"], ["dataset.path=xxx", "no such file"]),
        (["model.lora_alpha=-1"], ["model.lora_alpha=-1"]),
        (["rollout.temperature=1e-30"], ["rollout.temperature=1e-30"]),
        (["algorithm=nurl", "hints.explainer=snapshot"], ["hints.explainer=snapshot"]),
        (["algorithm=pope", "dataset=custom", "dataset.hub_id=a/b"], ["dataset.columns.solution"]),
        (["prompts.final=nothing"], ["prompts.final=nothing", "{answer}"]),
        (["algorithm=exp_dpo_online", "algorithm.beta=0"], ["algorithm.beta=0"]),
        (["algorithm=exp_dpo_online", "algorithm.preference=ipo", "algorithm.label_smoothing=0.1"], ["IPO"]),
        (["algorithm=nurl", "hints.keep=8"], ["hints.keep=8"]),
        (["algorithm=pope", "hints.share_low=0.9"], ["hints.share_low=0.9"]),
        (["dataset=math", "dataset.path=missing.jsonl"], ["dataset.path=missing.jsonl", ".jsonl"]),
        (["dataset=math", "dataset.path=pyproject.toml"], ["dataset.path=pyproject.toml", ".parquet"]),
        (["model=hf", "model.path=./missing"], ["model.path=./missing", "folder"]),
        (["rollout=vllm"], ["rollout", "vllm", "make setup EXTRA=gpu"]),
        (["rollout=vllm", "rollout.requires=", "rollout.device=1"], ["rollout.device=1", "rollout=vllm_server"]),
        (["rollout=vllm_server", "rollout.requires=", "rollout.transfer=nccl"], ["transfer=nccl", "rollout.device"]),
        (
            [
                "rollout=vllm_server",
                "rollout.requires=",
                "rollout.device=1",
                "rollout.transfer=nccl",
                "model.lora_rank=4",
            ],
            ["transfer=nccl", "merge_lora"],
        ),
        (["evaluation.samples=2"], ["evaluation.samples=2", "pass@4"]),
        (["k=[]"], ["k=[]"]),
        (["prompts.explain=just_do_it"], ["prompts.explain", "{answer}"]),
        (["positives.weight=-1"], ["positives.weight=-1"]),
        (["trainer.max_steps=0"], ["trainer.max_steps=0"]),
        (["seed=-1"], ["seed=-1"]),
        (["algorithm.kl_coef=-0.1"], ["algorithm.kl_coef=-0.1"]),
        (["rollout.top_p=0.9"], ["rollout.top_p=0.9", "off-policy"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]"]),
        (["trainer.precision=bf16-true"], ["trainer.precision=bf16-true", "bf16-mixed"]),
        (["dataset=custom"], ["dataset.path=null", "hub_id"]),
        (["dataset=custom", "dataset.hub_id=a/b", "algorithm=grpo_sft_gt_cot"], ["dataset.columns.solution"]),
        (["dataset=math", "dataset.eval_limit=0"], ["dataset.eval_limit=0"]),
        (["logger.wandb.project=x"], ["logger.wandb.project", "choose logger=wandb"]),
        (["algorithm=sft", "positives=none"], ["positives=self_explanation or positives=expert"]),
        (["optimizer.learning_rate=-1"], ["optimizer.learning_rate=-1", "above 0"]),
        (["logger=wandb", "logger.wandb.mode=foo"], ["logger.wandb.mode=foo", "offline"]),
        (["positives=none"], ["positives=none", "algorithm=grpo"]),
        (["algorithm=nurl", "hints=none"], ["hints=none", "algorithm=grpo"]),
        (["output_dir=pyproject.toml"], ["output_dir=pyproject.toml", "a folder"]),
        (["pretrain.max_steps=-5"], ["pretrain.max_steps=-5", "above 0"]),
        (["pretrain.heads=0"], ["pretrain.heads=0", "above 0"]),
        (["algoritm=grpo"], ["algoritm", "did you mean algorithm?"]),
        (["algorithm.clip_hgh=1"], ["clip_hgh", "did you mean clip_high?"]),
        (["optimizer.lr=1e-5"], ["optimizer.lr", "did you mean learning_rate?"]),
        (["learning_rate=1e-5"], ["learning_rate", "did you mean optimizer.learning_rate?"]),
        (["lr=1e-5"], ["lr", "optimizer.learning_rate"]),
        (["dataset=mine.jsonl"], ["did you mean dataset=custom dataset.path=mine.jsonl?"]),
        (["model=Qwen/Qwen2.5-0.5B"], ["did you mean model=hf model.path=Qwen/Qwen2.5-0.5B?"]),
        (["algorithm=grop"], ["algorithm/grop", "did you mean algorithm=grpo?"]),
        (["dataset/world=cler"], ["dataset/world/cler", "did you mean dataset/world=clear?"]),
        (["--cfgg", "job"], ["train: unrecognized arguments: --cfgg", "expo train --help"]),
        (["--cfg"], ["--cfg", "expected one argument"]),
        (["output_dir=/proc/x"], ["output_dir", "cannot be made"]),
        (["pretrain.hidden_size=100"], ["pretrain.hidden_size=100", "96"]),
        (["dataset.path=README.md"], ["dataset.path=README.md", ".jsonl.gz"]),
        (["dataset.hub_id=a/b"], ["dataset.hub_id=a/b", "dataset=custom"]),
        (["dataset.part=all"], ["dataset.part=all", "expo evaluate"]),
        (["prompts.solve={question}?"], ["""'prompts.solve="{question}?"'"""]),
        (["""prompts.solve="Say "x" {question}'s\""""], ["prompts.solve=", "quote the value"]),
        (["a b"], ["a b", "key=value"]),
        (["algorithm=exp_grpo_member", "positives.weight=0.2"], ["positives.weight=0.2", "positives.use=auxiliary"]),
        (["algorithm=luffy", "positives.aggregation=constant"], ["positives.aggregation=constant"]),
        (["algorithm=opsd", "algorithm.average_rate=0.1"], ["algorithm.average_rate=0.1", "teacher=average"]),
        (["algorithm.sampler_cap=3"], ["algorithm.sampler_cap=3", "algorithm.sampler_correction=token"]),
        (["algorithm=rlcsd", "algorithm.mix=0.1"], ["algorithm.mix=0.1", "signal=divergence"]),
        (["algorithm=rlcsd", "algorithm.top_k=5"], ["algorithm.top_k=5", "algorithm.top_k=0"]),
        (["algorithm=opsd", "algorithm.tail=false"], ["algorithm.tail=false", "algorithm.top_k"]),
        (["algorithm=sdpo", "algorithm.overlong_share=0.2"], ["algorithm.overlong_share=0.2", "no rewards"]),
        (["trainer.packing=true", "trainer.share_prompts=true"], ["trainer.share_prompts=true: has no effect"]),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, overrides, said):
    code, error = run_cli(monkeypatch, capsys, "train", f"output_dir={tmp_path}", *overrides)
    assert code == 2
    assert error.count("\n") == 1, error
    assert all(word in error for word in said), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.lora_alpha=8"], ["model.lora_alpha=8: has no effect", "model.lora_rank"]),
        (["model.revision=v1"], ["model.revision=v1: has no effect", "model.path=ladder"]),
        (["dataset=gsm8k", "model=random_tiny", "model.attention=eager"], ["model.attention=eager: has no effect"]),
        (["model=random_shape", "model.chat_template=plain"], ["model.chat_template=plain: has no effect"]),
        (["positives.snapshot_every=5"], ["positives.snapshot_every=5: has no effect", "positives.explainer=snapshot"]),
        (["algorithm=star", "positives.snapshot_every=5"], ["positives.snapshot_every=5: has no effect", "round"]),
        (["positives.rank_weight=0.1"], ["positives.rank_weight=0.1: has no effect", "two_properties"]),
        (["positives.min_lift=1"], ["positives.min_lift=1.0: has no effect", "positives.selection=threshold"]),
        (["positives.cache_max_drop=1"], ["positives.cache_max_drop=1.0: has no effect", "positives.cache_steps"]),
        (["algorithm=exp_dpo_offline", "positives.schedule=linear"], ["schedule=linear: has no effect", "weight=0"]),
        (["dataset.revision=v1"], ["dataset.revision=v1: has no effect"]),
        (["dataset.hub_configs=[a]"], ["dataset.hub_configs=[a]: has no effect", "dataset.hub_configs=[]"]),
        (["dataset.on_bad_row=stop"], ["dataset.on_bad_row=stop: has no effect"]),
        ([*REGEX, "verifier.kind=option"], ["verifier.kind=option: has no effect", "verifier=math"]),
        ([*REGEX, "dataset.answer_kind=option"], ["dataset.answer_kind=option: has no effect"]),
        ([*GYM, "positives=wrong_answer"], ["positives.shown_answer=wrong: verifier=reasoning_gym judges by the row"]),
        ([*GYM, "positives=shuffled_answer"], ["positives.shown_answer=shuffled: verifier=reasoning_gym"]),
        (["positives=star", "positives.cache_steps=5"], ["positives.cache_steps=5: an old explanation"]),
        (["dataset=ladder", "dataset.levels=[1,2,1]"], ["dataset.levels=[1, 2, 1]: has 1 twice"]),
        (["dataset=ladder", "dataset.eval_levels=[5,5]"], ["dataset.eval_levels=[5, 5]: has 5 twice"]),
        (
            [
                "dataset=function",
                "dataset.function=a.b",
                "dataset.name=mine",
                "dataset.hub_id=a/b",
                "model=random_tiny",
            ],
            ["dataset.hub_id=a/b: mine makes its problems"],
        ),
    ],
)
def test_a_key_without_effect_is_refused(overrides, said):
    with pytest.raises(UserError) as refused:
        config.check_anywhere(compose_config(*overrides))
    assert all(word in str(refused.value) for word in said)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout=vllm", "rollout.temperature=0.009"], "rollout.temperature=0.009: vLLM would sample at 0.01"),
        (["rollout=vllm_server", "evaluation.temperature=0.005"], "evaluation.temperature=0.005: vLLM would sample"),
        (["algorithm=pope", "prompts.final='{answer}'"], "prompts.final={answer}: does not tell where a solution"),
        (["algorithm=nurl", "prompts.final=' {answer}'"], "prompts.final= {answer}: does not tell where a solution"),
        (["positives.selection=threshold", "prompts.final='{answer}'"], "positives.selection=threshold: goes by"),
    ],
)
def test_what_would_be_done_otherwise_than_asked_is_refused(overrides, said):
    with pytest.raises(UserError) as refused:
        config.check_anywhere(compose_config(*overrides))
    assert str(refused.value).startswith(said)


def test_what_is_done_as_asked_is_not_refused(capsys):
    hinted = ["algorithm=nurl", "dataset=gsm8k", "prompts.solve_with_hint='{question} {hint}'"]
    for overrides in (
        ["rollout=vllm", "rollout.temperature=0.01"],
        ["evaluation.temperature=0.005"],
        [*hinted, "prompts.final='{answer}'"],
        ["algorithm=pope", "prompts.final='#### {answer}'"],
    ):
        config.check_anywhere(compose_config(*overrides))
    check(compose_config("prompts.final='{answer}'"))
    assert "state its answer twice; positives.measure_every=0" in capsys.readouterr().err
    check(compose_config("prompts.final='{answer}'", "positives.measure_every=0"))
    check(compose_config("prompts.final='= {answer}'"))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        ("rollout=hf", "none"),
        ("rollout=hf trainer.precision=bf16-mixed", "none"),
        ("rollout=vllm", "none"),
        ("rollout=vllm rollout.dtype=bfloat16", "token"),
        ("rollout=vllm_server trainer.precision=bf16-mixed", "token"),
        ("rollout=vllm rollout.dtype=float32 model.dtype=bfloat16", "token"),
        ("rollout=vllm rollout.dtype=bfloat16 algorithm.sampler_correction=none", "none"),
        ("rollout=vllm rollout.dtype=bfloat16 algorithm=sage hints.gradient=question", "none"),
    ],
)
def test_the_sampler_is_corrected_where_it_rounds_otherwise_than_the_trainer(overrides, chosen):
    """Of a healthy 16-bit engine, 7.5 % of tokens have a probability that is a tenth off; the same engine has none of
    them."""
    cfg = compose_config("dataset=ladder", "algorithm=grpo", *overrides.split())
    assert cfg.algorithm.sampler_correction == chosen
    given = [o for o in overrides.split() if "sampler" not in o]
    assert config.identity(cfg) == config.identity(
        compose_config("dataset=ladder", "algorithm=grpo", *given, f"algorithm.sampler_correction={chosen}")
    )


def test_help_and_version_are_where_people_look(monkeypatch, capsys):
    def told(*arguments):
        monkeypatch.setattr("sys.argv", ["expo", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    assert told("--version") == (0, f"expo {expo.__version__}\n")
    assert told("help") == told("--help")
    assert told("help", "runs") == told("runs", "--help")
    assert told("help", "train", "optimizer") == told("train", "--help", "optimizer")
    assert "learning_rate" in told("help", "train", "optimizer.learning_rate")[1]
    code, said = told("trian")
    assert (code, said.count("\n")) == (2, 1)
    assert "did you mean train?" in said


def test_bash_completes_commands_options_and_keys():
    source = f'''expo() {{ "{sys.executable}" -m expo "$@"; }}
eval "$(expo completion)"
complete -p expo
COMP_CWORD=1 COMP_LINE="expo ev"; _expo; echo "${{COMPREPLY[@]}}"
COMP_CWORD=2 COMP_LINE="expo train algorithm=grpo_"; _expo; echo "${{COMPREPLY[@]}}"
COMP_CWORD=3 COMP_LINE="expo evaluate seed=1 evaluation.gre"; _expo; echo "${{COMPREPLY[@]}}"
COMPREPLY=(); COMP_CWORD=2 COMP_LINE="expo demo se"; _expo; echo "nothing ${{COMPREPLY[@]}}"
COMP_CWORD=2 COMP_LINE="expo help dia"; _expo; echo "${{COMPREPLY[@]}}"
COMP_CWORD=2 COMP_LINE="expo table table3"; _expo; echo "${{COMPREPLY[@]}}"
'''
    done = subprocess.run(["bash", "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "complete -o default -o nospace -F _expo expo",
        "evaluate",
        "algorithm=grpo_sft_gt_cot",
        "evaluation.greedy=",
        "nothing ",
        "diagnose",
        "table3_levels",
    ]


def test_the_ladder_reads_no_file(monkeypatch, capsys, tmp_path, math_file):
    """A run whose name says `math` would have been one on the ladder."""
    for key in ("path", "eval_path"):
        code, error = run_cli(
            monkeypatch, capsys, "train", f"output_dir={tmp_path / 'out'}", f"dataset.{key}={math_file}"
        )
        assert code == 2
        assert f"dataset.{key}={math_file}: ladder_level5 makes its problems" in error
        assert "dataset=custom" in error


def test_the_home_folder_is_where_it_is(monkeypatch, capsys, tmp_path, math_file):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, error = run_cli(
        monkeypatch, capsys, "train", "dataset=math", "dataset.path=~/no.jsonl"
    )  # as a shell leaves it
    assert code == 2
    assert f"dataset.path={tmp_path}/no.jsonl: no such file" in error
    keys = ["dataset.path", "dataset.eval_path", "model.path", "output_dir", "pretrain.output"]
    cfg = compose_config("dataset=math", "model=hf", *(f'{key}="~/{math_file.name}"' for key in keys))  # as in a plan
    check(compose_config("dataset=math", f'dataset.path="~/{math_file.name}"'))
    paths = [cfg.dataset.path, cfg.dataset.eval_path, cfg.model.path, cfg.output_dir, cfg.pretrain.output]
    assert paths == [str(math_file)] * 5
    assert config.identity(cfg) != config.identity(compose_config("dataset=math", f"dataset.path={math_file}"))
    with pytest.raises(config.UserError, match=rf"run={tmp_path}/nothing: no run directory"):
        config_from_run("train", ["run=~/nothing"])


@pytest.mark.parametrize(
    ("prompt", "meant"),
    [
        (r"{question}\nThink.", True), (r"{question}\n\nThink", True), (r"{question}: \nnow", True), (r"{question}\n", True),  # noqa: E501
        ("{question}\nThink.", False), (r"{question} with $a \neq b$, " r"$\nu$, " r"\nabla_x, " r"$3 " r"\nmid " r"x$", False), ("{question}", False),  # noqa: E501
    ],
)  # fmt: skip
def test_a_backslash_and_an_n_in_a_prompt_are_said(capsys, prompt, meant):
    check(compose_config(f'prompts.solve="{prompt}"'))
    assert ("prompts.solve: has a backslash and an n" in capsys.readouterr().err) is meant


def test_what_a_prompt_does_not_fill_in_is_said(capsys):
    check(compose_config(r"prompts.solve='{question} {choices} {answer} \boxed{answer} {0}'"))
    said = capsys.readouterr().err
    assert "prompts.solve: the model reads {choices} as it stands; only {question} is filled in" in said
    assert "the model reads {answer} as it stands" in said
    assert said.count("as it stands") == 2
    check(
        compose_config(
            "dataset=gsm8k", "hints=abstracted", "model=hf", "model.path=Qwen/Qwen2.5-0.5B", "algorithm=grpo"
        )
    )
    assert "as it stands" not in capsys.readouterr().err


def test_a_rate_at_which_an_adapter_hardly_moves_is_said(capsys):
    for rate, said in (("1e-6", True), ("1e-4", False)):
        check(compose_config("model.lora_rank=8", f"optimizer.learning_rate={rate}"))
        assert ("a LoRA adapter hardly moves" in capsys.readouterr().err) is said


def test_a_key_of_another_option_of_the_group_is_no_remedy(monkeypatch, capsys):
    code, error = run_cli(monkeypatch, capsys, "train", "algorithm=sft", "algorithm.clip_low=0.3")
    assert code == 2
    assert "Key 'clip_low' not in 'SFTConf'" in error
    assert "did you mean" not in error


def test_a_terminal_of_ascii_ends_nothing():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    line = [sys.executable, "-m", "expo", "train", "--help", "algorithm"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2265" in done.stdout


LIMITS = "dataset.limit=7", "dataset.eval_limit=8", "dataset.part=train"


@pytest.mark.parametrize(
    ("command", "settings", "refused"),
    [
        ("train", ["dataset=ladder"], ["dataset.part=train"]),
        ("explain", ["dataset=math"], ["dataset.part=train"]),
        ("evaluate", ["dataset=ladder"], ["dataset.limit=7"]),
        ("evaluate", ["dataset=ladder", "dataset.part=train"], ["dataset.eval_limit=8"]),
        ("evaluate", ["dataset=gsm8k"], ["dataset.eval_limit=8"]),
        ("diagnose", ["dataset=math"], ["dataset.eval_limit=8"]),
        ("evaluate", ["dataset=math", "dataset.part=train"], ["dataset.eval_limit=8"]),
        ("evaluate", ["dataset=math", "dataset.path=x.jsonl"], []),  # both choose what is held out
        ("evaluate", ["dataset=math", "dataset.path=x.jsonl", "dataset.part=all"], ["dataset.eval_limit=8"]),
        ("evaluate", ["dataset=math", "dataset.path=x.jsonl", "dataset.part=train"], []),
        ("evaluate", ["dataset=math", "dataset.eval_path=x.jsonl"], ["dataset.eval_limit=8"]),
    ],
)
def test_a_number_of_problems_that_is_not_looked_at_is_refused(command, settings, refused):
    assert not [
        told for told in _refused(command, [*settings, "dataset.eval_limit=null", "dataset.limit=null"]) if told
    ]
    part = [o for o in settings if "part" in o]
    asked = [o for o in LIMITS if command in ("train", "explain") or "part" not in o]
    found = {o: told for o in asked if (told := _refused(command, [*settings, *part, o])[0])}
    assert [*found] == refused
    for told in found.values():
        assert f"expo {command} does not look at it here; " in told
        assert "dataset.limit takes fewer" in told or "dataset.eval_limit takes fewer" in told


def test_keys_of_training_are_refused_where_nothing_is_trained():
    for command in ("evaluate", "diagnose"):
        for given in ("trainer.devices=2", "trainer.max_steps=9", "optimizer.learning_rate=1e-3"):
            assert f"expo {command} does not look at it here" in _refused(command, [given])[0]
        assert not any(_refused(command, ["trainer.devices=1", "trainer.micro_batch_size=4"]))
    assert not any(_refused("train", ["trainer.max_steps=9", "optimizer.learning_rate=1e-3"]))


def test_greedy_completions_are_those_of_expo_evaluate():
    assert "expo train does not look at it here; expo evaluate run=" in _refused("train", ["evaluation.greedy=true"])[0]
    for command, value in (("train", "false"), ("train", "No"), ("evaluate", "true")):
        assert not any(_refused(command, [f"evaluation.greedy={value}"]))


@pytest.mark.parametrize(
    ("command", "key", "remedy"),
    [
        ("evaluate", "rollout.temperature=0.5", "set evaluation.temperature"),
        ("diagnose", "evaluation.temperature=0.5", "set rollout.temperature"),
        ("evaluate", "seed=1", "evaluation.seed=1 draws others"),
        ("evaluate", "optimizer=adamw_8bit", "nothing is trained"),
        ("diagnose", "optimizer.learning_rate=1", "nothing is trained"),
    ],
)
def test_sampling_that_a_command_does_not_look_at_is_refused(command, key, remedy):
    assert remedy in _refused(command, [key])[0]
    assert not any(_refused("train", [key]))
    for_command(compose_config(key), command, [key], of_table=True)  # whose arms share their keys
    assert not any(_refused(command, [key, "differs=''"]))  # a line of a table or a sweep


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["algorithm.clip_high=0.3"], "algorithm.updates_per_rollout=2 or more"),
        (["algorithm=sdpg", "algorithm.ratio_cap=3"], "algorithm.updates_per_rollout=2 or more"),
        (["algorithm.kl_estimator=k2"], "algorithm.kl_coef above 0"),
        (["algorithm=dapo", "algorithm.overlong_share=0", "algorithm.overlong_penalty=1"], "algorithm.overlong_share"),
    ],
)
def test_a_key_of_the_loss_that_others_make_idle_is_refused_where_it_is_typed(capsys, overrides, remedy):
    assert remedy in _refused("train", overrides)[0]
    assert not any(_refused("train", [*overrides, "differs=x"]))
    assert remedy in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=dapo"],
        ["algorithm=sdpg", "algorithm.kl_coef=0"],  # its estimator is the preset's
        ["algorithm.clip_high=0.3", "algorithm.updates_per_rollout=2"],
        ["algorithm.kl_estimator=k2", "algorithm.kl_coef=0.1"],
    ],
)
def test_a_key_of_the_loss_that_counts_or_is_a_presets_is_not_refused(overrides):
    assert not any(_refused("train", overrides))


def _refused(command: str, overrides: list[str]) -> list[str]:
    try:
        for_command(compose_config(*overrides), command, overrides)
    except config.UserError as error:
        return [str(error)]
    return [""]


def test_what_is_not_looked_at_is_said_in_the_account(tmp_path, math_file, capsys):
    def said(command, *overrides):
        cfg = compose_config("dataset=custom", *overrides)
        Run(cfg, tmp_path, command).keep_account(Account([Source("mine")]))
        kept = json.loads((tmp_path / "data.json").read_text())["ignored"]
        told = [line for line in capsys.readouterr().out.splitlines() if "not looked at" in line]
        assert [line.partition(" is not")[0] for line in told] == [*kept]
        return [*kept]

    own = [f"dataset.eval_path={math_file}"]
    assert said("evaluate", *own) == ["dataset.eval_limit=500"]  # custom.yaml's
    assert said("train", *own) == []
    assert said("evaluate", *own, "dataset.eval_limit=null") == []
    assert said("evaluate", f"dataset.path={math_file}") == []


def test_what_is_only_measured_is_called_by_its_own_name_and_its_own_data(tmp_path, math_file):
    other = tmp_path / "other.jsonl"
    other.write_bytes(math_file.read_bytes())
    data = ["dataset=math", f"dataset.path={math_file}", f"dataset.eval_path={other}", f"output_dir={tmp_path}"]
    overrides = [*data, "model=hf", "model.path=Qwen/Qwen2.5-0.5B-Instruct"]
    cfg = for_command(compose_config(*overrides), "evaluate", overrides)
    assert cfg.name == "Qwen2.5-0.5B-Instruct"
    assert config.run_dir(cfg, "evaluate").name.startswith("Qwen2.5-0.5B-Instruct-on-math-other-")
    run = Run(cfg, config.run_dir(cfg, "evaluate"), "evaluate")
    run.write_config()
    run.write_summary("done")
    row = run_folder(str(run.dir)).row
    assert (row["name"], row["data"]) == ("Qwen2.5-0.5B-Instruct", "math/other.jsonl")
    assert config.run_dir(cfg).parent.name == "math"  # math.jsonl, that it trains on
    assert for_command(compose_config(*overrides), "train", overrides).name == "exp_grpo"
    assert for_command(compose_config(*overrides, "name=mine"), "evaluate", [*overrides, "name=mine"]).name == "mine"
    overrides = [*data, "model=hf", "model.path=out/math/grpo-max_steps_4-s0-0123456789/checkpoints/final"]
    assert for_command(compose_config(*overrides), "diagnose", overrides).name == "grpo-max_steps_4"
    overrides = [*data, "dataset.part=train"]
    assert "-other-" not in config.run_dir(compose_config(*overrides), "evaluate").name


def test_unknown_command(monkeypatch, capsys):
    code, error = run_cli(monkeypatch, capsys, "trian")
    assert code == 2
    assert "command=trian" in error
    assert "train" in error


def test_help_and_config_errors_load_nothing_heavy():
    """What keeps them fast: neither torch nor transformers nor lightning is imported on the way to a config error."""
    script = (
        "import sys; from expo import cli; sys.argv = ['expo', 'train', 'algorithm.group_size=1']\n"
        "try: cli.main()\nexcept SystemExit as e: code = e.code\n"
        "print(code, sorted({'torch', 'transformers', 'lightning', 'datasets', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"


def test_what_only_measures_loads_no_trainer():
    script = (
        "import sys, expo.jobs.score, expo.jobs.measure\n"
        "print(sorted({'lightning', 'torchmetrics', 'datasets', 'pandas', 'wandb', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.runs
def test_identity_changes_with_what_changes_the_result_only(math_file):
    base = config.identity(compose_config())
    same = [
        "trainer.checkpoint_every=7",
        "trainer.stop_after=3",
        "trainer.micro_batch_size=1",
        "verifier.workers=1",
        "output_dir=elsewhere",
        "logger=wandb",
        "fresh=true",
        "trainer.threads=1",
        "name=other",
        "prompts.judge=x",
    ]
    server = [
        ("rollout=vllm_server", *o)
        for o in ([], ["rollout.device=1"], ["rollout.transfer=nccl"], ["rollout.merge_lora=true"])
    ]
    assert len({config.identity(compose_config(*o)) for o in server}) == 1
    other = ["seed=1", "positives.weight=0.1", "trainer.max_steps=7", "dataset.limit=9", "rollout.temperature=0.9"]
    assert {config.identity(compose_config(o)) for o in same} == {base}
    assert len({base, *(config.identity(compose_config(o)) for o in other)}) == len(other) + 1
    overrides = ["dataset=math", f"dataset.path={math_file}"]
    before = config.identity(compose_config(*overrides))
    math_file.write_text(math_file.read_text() + "\n")
    assert config.identity(compose_config(*overrides)) != before


def test_cfg_job_shows_the_config(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "expo", "train", "--cfg", "job"], capture_output=True, text=True, check=True,
        cwd=ROOT, env=os.environ,
    )  # fmt: skip
    assert "expo.algorithms.grpo.GRPO" in done.stdout


@pytest.mark.runs
def test_a_model_that_cannot_be_loaded_is_one_line_too(monkeypatch, capsys, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "no_such_model"}')
    code, error = run_cli(
        monkeypatch, capsys, "train", "model=hf", f"model.path={tmp_path / 'broken'}", f"output_dir={tmp_path / 'out'}"
    )
    assert code == 2
    assert error.startswith(f"expo: model.path={tmp_path / 'broken'}: cannot be loaded")
    assert "the folder needs config.json, weights and the tokenizer's files" in error  # and no network
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_of_a_command_lists_options_and_no_schema(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["expo", "train", "--help"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    printed = capsys.readouterr().out
    assert "exp_grpo, exp_grpo_distill, exp_grpo_member" in printed
    assert "  schema" not in printed  # the group of that name is no option


@pytest.mark.runs
def test_pairs_are_shared_by_what_does_not_change_them_only():
    base = config.pairs_identity(compose_config("algorithm=exp_dpo_offline"))
    same = [
        "algorithm.beta=0.5",
        "optimizer.learning_rate=1e-5",
        "positives.weight=1",
        "k=[1]",
        "algorithm.rejected=wrong",
    ]
    other = [
        "seed=1",
        "rollout.temperature=0.9",
        "algorithm.group_size=2",
        "trainer.max_steps=7",
        "trainer.precision=bf16-mixed",
        "positives.explainer=current",
        "algorithm.pairs_every=3",
    ]
    assert {config.pairs_identity(compose_config("algorithm=exp_dpo_offline", o)) for o in same} == {base}
    assert base not in {config.pairs_identity(compose_config("algorithm=exp_dpo_offline", o)) for o in other}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help", "seed"], "seed=0   (int; ≥ 0, ≤ 9.22337e+18)"),
        (["--help", "trainer.max_steps"], "trainer.max_steps=200   (int; > 0, ≤ 1e+08)"),
        (["--help", "debug"], "debug=tiny"),
        (["--help"], "keys in no group: k, seed, name"),
        (["algorithm=grpo", "-m", "--help"], "groups and their options"),
        (["--config-dir", "my_conf", "--help", "positives"], "Control: explanations of a wrong answer"),
        (["--help", "positives"], "keys of expert, self_explanation, star, expert_paraphrase"),
    ],
)
def test_help_explains_groups_options_and_keys(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["expo", "train", *arguments])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("launcher", "said"),
    [("slurm", "has no srun"), ("ray", "make setup EXTRA=ray")],
)
def test_a_launcher_that_cannot_start_is_one_line(monkeypatch, capsys, launcher, said):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, error = run_cli(monkeypatch, capsys, "train", "-m", "seed=0,1", f"hydra/launcher={launcher}")
    assert code == 2
    assert said in error
    assert error.count("\n") == 1


def test_no_limit_is_a_value_where_it_stands_for_one():
    for key in ("optimizer.max_grad_norm=inf", "positives.min_lift=-inf", "positives.min_logp=-inf"):
        config.check(compose_config(key, "positives.selection=threshold"))
    with pytest.raises(config.UserError, match=r"optimizer\.learning_rate=inf: not a finite number"):
        config.check(compose_config("optimizer.learning_rate=inf"))


@pytest.mark.parametrize(
    ("given", "taken", "said"), [(7, 4, True), (64, 64, False), (1000, 128, False), (63, 32, True)]
)
def test_a_micro_batch_that_does_not_divide_the_step_becomes_the_largest_that_does(capsys, given, taken, said):
    from expo.jobs.wiring import divide_evenly

    cfg = compose_config("trainer.problems_per_step=16", "algorithm.group_size=8", f"trainer.micro_batch_size={given}")
    check(cfg)
    divide_evenly(cfg)
    assert cfg.trainer.micro_batch_size == taken
    assert (f"trainer.micro_batch_size={given} does not divide the 128 rows" in capsys.readouterr().out) is said


def test_a_mapping_takes_names_of_its_own_on_the_command_line():
    cfg = compose_config("prompts.template_options={enable_thinking: false}", "prompts.template_options.depth=2")
    assert cfg.prompts.template_options == {"enable_thinking": False, "depth": 2}
    with pytest.raises(ConfigCompositionException, match=r"prompts.template_optoins"):
        compose_config("prompts.template_optoins={a: 1}")


def test_prompts_and_any_keys_come_from_files_to_the_letter(tmp_path):
    wanted = {
        "solve": 'What\'s {question}, "they" ask?\n\\boxed{$x} or ${y} \\${z} \\',
        "explain": "{question} {answer}, a\\\\'",
        "examples": 2,
        "template_options": {"enable_thinking": False},
        "system": None,
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(wanted))
    (tmp_path / "solve.txt").write_text("{question}: it's $\\frac{1}{2}$, or not\n\nend\n")
    prompts = compose_config("dataset=custom", "dataset.path=x.jsonl", f"prompts=@{tmp_path / 'my.yaml'}").prompts
    assert {name: getattr(prompts, name) for name in wanted} == wanted
    prompts = compose_config(f"prompts.solve=@{tmp_path / 'solve.txt'}").prompts
    assert prompts.solve == "{question}: it's $\\frac{1}{2}$, or not\n\nend"
    assert compose_config("prompts.solve='@{question}'").prompts.solve == "@{question}"


def test_a_list_of_texts_comes_from_a_file_to_the_letter(tmp_path):
    phrases = ["a, b", "c", "1", "true", "it's"]
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"leak_phrases": phrases}))
    assert compose_config(f"positives=@{tmp_path / 'my.yaml'}").positives.leak_phrases == phrases


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "cannot be read"), ("a: [", "cannot be read"), ("", "has no keys"), ("- 1", "has no keys")],
)
def test_a_file_of_keys_that_is_none_is_one_line(tmp_path, text, told):
    if text is not None:
        (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(config.UserError, match=rf"^prompts=@.*my.yaml: .*{told}"):
        compose_config(f"prompts=@{tmp_path / 'my.yaml'}")


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("k=[1,4", "a [ is not closed"),
        ("k=1,4", "k=1,4: several values; add -m to run each of them, or write a list"),
        ("k=choice(1,2)", "k=choice(1,2): several values; add -m"),
    ],
)
def test_what_hydras_grammar_does_not_take_is_told_with_what_to_write(argument, remedy, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["expo", "train", "--cfg", "job", argument])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert remedy in said.err
    assert len(said.err.splitlines()) == 1


def test_dropout_draws_by_what_deals_rows_out():
    from expo.jobs.wiring import divide_evenly

    small = ["trainer.problems_per_step=4", "algorithm=sft", "positives=expert", "trainer.micro_batch_size=16"]
    cfg = compose_config(*small, "trainer.dropout=true")
    before = config.identity(cfg)
    divide_evenly(cfg)
    assert cfg.trainer.micro_batch_size == 4
    assert config.identity(cfg) == before  # the run that is found is the run that is made
    for other in ("trainer.devices=2", "trainer.packing=true", "trainer.micro_batch_size=2"):
        assert config.identity(compose_config(*small, other)) == config.identity(compose_config(*small))
        assert config.identity(compose_config(*small, "trainer.dropout=true", other)) != before
