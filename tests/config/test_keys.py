"""What follows from the declaration of every key: bounds, identity, help. And the identities of what was finished
before."""

import dataclasses
import json
from dataclasses import replace

import pytest
from conftest import ROOT, TESTS, compose_config

from expo import config
from expo.config.identity import changing, identity_before_lift
from expo.config.key import OPTIONS, declaration
from expo.config.reference import help_of_group, markdown
from expo.tables import plan as plans

GOLDEN = json.loads((TESTS / "golden_identities.json").read_text())
# What a key without a default is given here; and local files, which have to be there.
GIVEN = {"name": "x", "path": "x", "solve": "{question}", "explain": "{question}{answer}", "function": "a.b.c"}
FILES = {"dataset.path", "dataset.eval_path"}


def whole_configs():
    """A config for every option of every group, and each key of it that can be changed: (config, path of the key,
    field)."""
    base = compose_config()
    for (group, _), node in OPTIONS.items():
        required = [f.name for f in dataclasses.fields(node) if f.default == "???" and f.name != "_target_"]
        cfg = replace(base, **{group: node(**{name: GIVEN[name] for name in required})})
        yield from ((cfg, path, f) for path, f in keys_of(getattr(cfg, group), group))
    yield from ((base, path, f) for path, f in keys_of(base, "") if path.split(".")[0] not in {g for g, _ in OPTIONS})


def keys_of(node, prefix):
    for f in dataclasses.fields(node):
        path = f"{prefix}.{f.name}" if prefix else f.name
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(value):
            yield from keys_of(value, path)
        elif f.name != "_target_" and path not in FILES:
            yield path, f


def changed(node, path, value):
    name, _, rest = path.partition(".")
    return replace(node, **{name: changed(getattr(node, name), rest, value) if rest else value})


def get(node, path):
    for name in path.split("."):
        node = getattr(node, name)
    return node


def another(f, value):
    """A legal value that is not this one."""
    d = declaration(f)
    if isinstance(value, dict):
        return {"enable_thinking": False}
    if isinstance(value, list):
        return [*value[:-1]] if value else [d.choices[0]] if d.choices else [1] if "int" in str(f.type) else ["x"]
    if d.choices:
        same = d.absent if isinstance(d.absent, tuple) else ()
        return next(choice for choice in d.choices if choice != value and choice not in same)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) or (value is None and "str" in str(f.type)):
        return f"{value}x"
    if value is None:
        return 1
    if value == float("inf"):
        return 1.0
    step = 1 if isinstance(value, int) else 0.125
    return value - step if d.high is not None and value + step > d.high else value + step


KEYS = {
    (path, type(get(cfg, path.rpartition(".")[0]) if "." in path else cfg)): (cfg, path, f)
    for cfg, path, f in whole_configs()
}


def test_every_key_counts_in_the_identity_exactly_where_it_is_declared_to():
    for cfg, path, f in KEYS.values():
        other = changed(cfg, path, another(f, get(cfg, path)))
        counts = all(
            declaration(type(parent).__dataclass_fields__[name]).identity for parent, name in parents(cfg, path)
        )
        assert (config.identity(other) != config.identity(cfg)) is counts, path


def test_a_null_of_later_is_the_value_that_was_there_before():
    of = {
        value: compose_config("dataset=ladder", *([f"model.gradient_checkpointing={value}"] if value else []))
        for value in (None, "null", "false", "true")
    }
    assert of[None].model.gradient_checkpointing is None
    known = {value: config.identity(cfg) for value, cfg in of.items()}
    assert known[None] == known["null"] == known["false"] != known["true"]
    named = "model.gradient_checkpointing"
    assert changing({named: None}) == changing({named: False}) == {named: False}
    assert changing({named: True}) == {named: True}


def parents(cfg, path):
    for name in path.split("."):
        yield cfg, name
        cfg = getattr(cfg, name)


def test_every_bound_and_every_choice_is_kept_with_one_line_that_names_the_key():
    bounded = 0
    for cfg, path, f in KEYS.values():
        d, value = declaration(f), get(cfg, path)
        wrong = [bound - 1 for bound in (d.low, d.above) if bound is not None] + ([d.high + 1] if d.high else [])
        wrong += ["no_such_choice"] if d.choices else []
        wrong += [float("nan")] if isinstance(value, float) else []
        wrong += [float("inf")] if isinstance(value, float) and d.finite else []
        for bad in wrong:
            bounded += 1
            with pytest.raises(config.UserError) as error:
                config.check(changed(cfg, path, [bad] if isinstance(value, list) else bad))
            assert str(error.value).startswith(f"{path}={bad}: "), path
            assert "\n" not in str(error.value)
    assert bounded > 100


DECLARED = '''
from dataclasses import dataclass
from expo.config.key import key

@dataclass
class Mine:
    short: int = key(1, help="how many")
    long: int = key(
        2, low=0
    )
    """what takes
    two lines"""
    silent: int = key(3)
'''


def test_a_help_is_given_or_stands_below_its_key(tmp_path):
    (tmp_path / "mine.py").write_text(DECLARED)
    for file, below in ((str(tmp_path / "mine.py"), "what takes two lines"), ("<a cell of a notebook>", "")):
        scope = {"__name__": "mine"}
        exec(compile(DECLARED, file, "exec"), scope)
        told = {f.name: declaration(f).help for f in dataclasses.fields(scope["Mine"])}
        assert told == {"short": "how many", "long": below, "silent": ""}


def test_every_key_has_help_and_stands_in_the_reference():
    text = markdown()
    for _, path, f in KEYS.values():
        assert declaration(f).help, path
        assert f"`{path}`" in text, path
    assert (ROOT / "docs" / "keys.md").read_text() == text, "run make keys"
    assert all(line.startswith("|") for line in text.splitlines() if " | " in line)  # each row is one line


def test_help_of_a_group_shows_choices_default_and_meaning():
    said = help_of_group("algorithm")
    assert "algorithm.clip_high=0.2   (float; ≥ 0)" in said
    assert "algorithm.ratio=token   (str; token | sequence)" in said
    assert said.count("algorithm.kl_coef=") == 1
    assert "optimizer.betas=[0.9,0.999]" in help_of_group("optimizer")
    with pytest.raises(config.UserError, match=r"--help lr: no such group; did you mean .*optimizer\.learning_rate "):
        help_of_group("lr")
    for slip in ("maxsteps", "trainer.maxsteps"):
        with pytest.raises(config.UserError, match=rf"--help {slip}: .*did you mean trainer.max_steps\?"):
            help_of_group(slip)
    with pytest.raises(config.UserError, match=r"--help nope: no such group; use one of algorithm"):
        help_of_group("nope")


@pytest.mark.runs
def test_the_identities_of_before_stay():
    """Taken from version 0.1: a run that was finished then is finished now."""
    for overrides, identities in GOLDEN["options"].items():
        cfg = compose_config(*overrides.split())
        assert [config.identity(cfg), config.pairs_identity(cfg)] == identities, overrides


@pytest.mark.runs
@pytest.mark.parametrize("path", sorted(plans.EXPERIMENTS.glob("*/results/*/runs.json")), ids=lambda p: p.parts[-4])
def test_committed_runs_have_the_identities_of_their_plan(path, tmp_path, monkeypatch):
    name, scale = path.parts[-4], path.parts[-2]
    made = plans.load_plan(name).prepare
    for run in json.loads(path.read_text()):
        if not any(f"path: {where}" in run["config"] for folder in made for where in (folder, f"./{folder}")):
            golden = GOLDEN["tables"][f"{name}/{scale}/{run['arm']}/{run['seed']}"]
            assert golden == run["summary"]["identity"]


@pytest.mark.parametrize(
    ("setting", "same"), [("k=[1]", True), ("dataset.validation=5", False), ("prompts.examples=2", False)]
)
def test_the_name_of_a_file_of_which_rows_are_drawn_counts(tmp_path, math_file, setting, same):
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_bytes(math_file.read_bytes())
    line = "dataset=math", f"dataset.eval_path={math_file}", "dataset.eval_limit=null", setting
    one, other = (config.identity(compose_config(*line, f"dataset.path={file}")) for file in (math_file, renamed))
    assert (one == other) == same


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["algorithm=exp_grpo_member"], True),
        (["algorithm=exp_grpo_member", "algorithm.kl_coef=0.01"], False),
        (["algorithm=grpo_sft_gt_cot"], True),
        (["algorithm=grpo_sft_gt_cot", "model=hf", "model.path=ladder", "model.chat_template=plain"], False),
        (["algorithm=exp_grpo", "model=hf", "model.path=ladder", "model.chat_template=plain"], True),
        (["algorithm=exp_grpo", "hints=expert_prefix", "model.chat_template=plain", "dataset=gsm8k"], False),
        (["algorithm=dpo_expert_offline"], False),
        (["algorithm=dpo_expert_offline", "algorithm.rejected=wrong"], True),
        (["algorithm=opsd", "prompts.examples=2"], False),
        (["algorithm=exp_grpo", "prompts.examples=2"], True),
        (["algorithm=exp_grpo", "dataset.validation=4"], True),
        (["algorithm=exp_grpo", "dataset.validation=4", "evaluation.first=false"], False),
        (["algorithm=sft", "trainer.dropout=true"], False),
    ],
)
def test_a_run_whose_numbers_are_made_otherwise_now_is_another(overrides, same):
    cfg = compose_config(*overrides)
    assert (config.identity(cfg) == identity_before_lift(cfg)) == same
