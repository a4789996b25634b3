"""Run directories that are links, hold links, lost a file, or are worked on: nothing outside of them changes, and
nothing old counts."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from by_hand import expo, leave, listed
from conftest import compose_config
from running import run, scalars

from expo import cli
from expo.commands import export
from expo.config import UserError, run_dir
from expo.config.from_run import config_from_run
from expo.data.account import Account
from expo.evaluation.files import save_rows
from expo.ground.files import Temporary, beside
from expo.jobs import fit
from expo.loggers.tracking import JsonlLogger
from expo.report import page
from expo.runs.directory import Run
from expo.runs.listing import find_runs
from expo.runs.reading import read_summary
from expo.training import callbacks, checkpoints
from expo.training.checkpoints import newest_checkpoint

SHORT = ["trainer.max_steps=2", "evaluation.every=0"]


def moved(folder, to):
    """Move a folder to another disk, as a user does, with a link in its place."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, to)
    folder.symlink_to(to, target_is_directory=True)
    return to


def again(root, *overrides):
    return Run.find(compose_config(f"output_dir={root}", *overrides))


def test_fresh_begins_anew_behind_a_link(tmp_path):
    real = moved(leave(tmp_path / "out"), tmp_path / "big" / "run")
    found = again(tmp_path / "out", "fresh=true")
    found.begin()
    assert found.dir.is_symlink()
    assert sorted(os.listdir(real)) == ["config.yaml"]


def test_fresh_leaves_what_is_no_run_behind_a_link(tmp_path):
    folder = leave(tmp_path / "out")
    shutil.rmtree(folder)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").touch()
    folder.symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match="a link to what is no run directory"):
        again(tmp_path / "out", "fresh=true").begin()
    assert (tmp_path / "home" / "thesis").is_file()


def test_a_delete_that_fails_is_told(tmp_path, monkeypatch):
    leave(tmp_path / "out")

    def refuse(*args, **options):
        raise PermissionError(1, "Operation not permitted")

    for name in ("unlink", "rmdir", "rename"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(UserError, match=r"cannot be removed \(Operation not permitted\)"):
        again(tmp_path / "out", "fresh=true").begin()


def test_a_final_model_is_saved_beside_a_link_and_not_through_it(tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in (".final.partial", "final"):
        (folder / name).symlink_to(outside)

    def save(policy, place, goes_on):
        place.mkdir(exist_ok=True)
        (place / "model.safetensors").write_text("ours")

    monkeypatch.setattr(checkpoints, "save_policy", save)
    tokenizer = SimpleNamespace(save_pretrained=lambda place: None)
    checkpoints.save_model(
        SimpleNamespace(config=None),
        tokenizer,
        folder / "final",
        compose_config(),
        {"metrics": {}, "git": "abc", "device": "cpu", "identity": "abc", "step": 3},
    )
    assert (folder / "final" / "model.safetensors").read_text() == "ours"
    assert os.listdir(outside) == []


def test_an_export_is_written_beside_a_link_and_not_through_it(tmp_path, monkeypatch):
    folder = leave(tmp_path / "out")
    (tmp_path / "outside").mkdir()
    (folder / ".export.partial").symlink_to(tmp_path / "outside")
    monkeypatch.setattr(export, "_save", lambda final, to, dtype: to.mkdir(exist_ok=True))
    assert export.main([str(folder)]) == 0
    assert (folder / "export" / "README.md").is_file()
    assert os.listdir(tmp_path / "outside") == []


def test_an_export_of_a_run_that_lost_its_summary_says_what_writes_it_again(tmp_path):
    folder = leave(tmp_path / "out")
    (folder / "summary.json").write_bytes(b"{")
    with pytest.raises(
        UserError, match=rf"summary.json: cannot be read \(.*\); expo train run={folder} writes it again"
    ):
        export.main([str(folder)])


@pytest.mark.runs
@pytest.mark.parametrize("damage", [None, b"", b'{"status": "done", "metrics": {}}', b'{"metrics": {"a": 1}}'])
def test_a_finished_run_that_lost_its_summary_has_it_again(tmp_path, damage):
    _, directory = run(tmp_path, *SHORT)
    (directory / "summary.json").rename(tmp_path / "before.json")
    before = json.loads((tmp_path / "before.json").read_text())
    if damage is not None:
        (directory / "summary.json").write_bytes(damage)
    assert run(tmp_path, *SHORT)[0] == 0
    after = read_summary(directory)
    assert (after["status"], after["metrics"]) == ("done", before["metrics"])


@pytest.mark.runs
def test_a_finished_run_that_lost_its_last_evaluation_too_is_evaluated_again(tmp_path):
    _, directory = run(tmp_path, *SHORT)
    before = read_summary(directory)["metrics"]
    (directory / "summary.json").unlink()
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:-1]))  # that before the first step stays
    assert run(tmp_path, *SHORT)[0] == 0
    assert (read_summary(directory)["status"], read_summary(directory)["metrics"]) == ("done", before)
    assert [line["step"] for line in scalars(directory)] == [0, 1, 2, 2]


@pytest.mark.runs
@pytest.mark.parametrize("lost", [["summary.json"], ["summary.json", "metrics.jsonl"]])
def test_a_stopped_run_that_lost_its_summary_goes_on(tmp_path, lost):
    small = ["trainer.max_steps=3", "evaluation.every=0"]
    _, directory = run(tmp_path, *small, "trainer.stop_after=1")
    for name in lost:
        (directory / name).unlink()
    assert run(tmp_path, *small)[0] == 0
    assert read_summary(directory)["status"] == "done"
    assert "pass@1" in read_summary(directory)["metrics"]


@pytest.mark.runs
def test_a_run_is_not_done_before_its_loggers_have_taken_all(tmp_path, monkeypatch):
    def fail(self, record):
        raise RuntimeError(f"no answer to {record['status']}")

    monkeypatch.setattr(JsonlLogger, "log_record", fail)
    with pytest.raises(RuntimeError, match="no answer to done"):
        run(tmp_path, *SHORT)
    (directory,) = tmp_path.glob("ladder_level5/*")
    assert read_summary(directory)["status"] == "stopped"
    monkeypatch.undo()
    assert run(tmp_path, *SHORT)[0] == 0
    assert read_summary(directory)["status"] == "done"


def test_a_run_at_work_is_known_by_every_spelling(tmp_path, monkeypatch, capsys):
    """The data folder is a link, the directory is one, or the path goes up and down."""
    folder = leave(tmp_path / "out")
    data = moved(folder.parent, tmp_path / "big" / "ladder")
    real = moved(data / folder.name, tmp_path / "huge" / "run")
    with again(tmp_path / "out").alone():
        for path in (folder, data / folder.name, real, real / "checkpoints" / "..", real / "checkpoints" / ".." / "."):
            code, said = expo(monkeypatch, capsys, "rm", path, "yes=true")
            assert code == 2
            assert "a process works on it" in said.err
        _, said = expo(monkeypatch, capsys, "gc", f"output_dir={tmp_path / 'out'}", "yes=true")
        assert "its checkpoints stay" in said.out
        assert (real / "checkpoints" / "step000001.ckpt").is_file()
    assert (real / "config.yaml").is_file()
    expo(monkeypatch, capsys, "rm", folder, "yes=true")
    assert not os.path.lexists(folder)
    assert not real.exists()


def test_a_path_that_goes_up_is_the_run_itself(tmp_path, monkeypatch, capsys):
    folder = leave(tmp_path / "out")
    assert expo(monkeypatch, capsys, "rm", folder / "checkpoints" / "..", "yes=true")[0] == 0
    assert not folder.exists()


def test_nothing_is_removed_behind_a_link_inside_a_run(tmp_path, monkeypatch, capsys):
    folder = leave(tmp_path / "out")
    outside = moved(folder / "checkpoints", tmp_path / "others")
    expo(monkeypatch, capsys, "gc", f"output_dir={tmp_path / 'out'}", "yes=true")
    assert (outside / "step000001.ckpt").is_file()
    expo(monkeypatch, capsys, "rm", folder, "yes=true")
    assert (outside / "step000001.ckpt").is_file()
    assert not folder.exists()


def test_a_removal_that_is_killed_leaves_no_run(tmp_path, monkeypatch, capsys):
    folder = leave(tmp_path / "out")
    rmtree = shutil.rmtree

    def killed(path, **options):
        rmtree(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    assert expo(monkeypatch, capsys, "rm", folder, "yes=true")[0] == 130
    monkeypatch.undo()
    assert listed(monkeypatch, capsys, tmp_path / "out") == []
    found = again(tmp_path / "out")
    assert not found.finished
    assert newest_checkpoint(found.dir) is None
    found.begin()
    assert set(os.listdir(found.dir)) == {"config.yaml", ".lock"}


@pytest.mark.parametrize("moves", range(4))
def test_a_removal_that_is_killed_at_any_move_leaves_no_finished_run(tmp_path, monkeypatch, capsys, moves):
    folder, left, rename = leave(tmp_path / "out"), [None] * moves, Path.rename

    def killed(path, to):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", killed)
    assert expo(monkeypatch, capsys, "rm", folder, "yes=true")[0] == 130
    monkeypatch.undo()
    assert again(tmp_path / "out").finished == (moves == 0)
    assert (newest_checkpoint(folder) is None) or moves < 3
    assert (
        listed(monkeypatch, capsys, tmp_path / "out", *(["status=done"] if not moves else [])) == [str(folder)][moves:]
    )
    assert expo(monkeypatch, capsys, "rm", folder, "yes=true")[0] == 0
    assert not folder.exists()


@pytest.mark.parametrize("name", ["completions", "data.json", "metrics.jsonl", "checkpoints/step000009.ckpt", "wandb"])
def test_a_run_writes_through_no_link_that_its_directory_holds(tmp_path, name):
    folder, outside = leave(tmp_path / "out"), tmp_path / "outside"
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    with pytest.raises(UserError, match=f"{name}: a link to {outside}; .*link the whole directory"):
        again(tmp_path / "out").begin()
    again(tmp_path / "out", "fresh=true").begin()
    assert not os.path.lexists(folder / name)


def test_links_within_a_run_are_its_own(tmp_path):
    folder = leave(tmp_path / "out")
    (folder / "latest.ckpt").symlink_to("checkpoints/step000001.ckpt")
    (folder / "wandb" / "run").mkdir(parents=True)
    (folder / "wandb" / "run" / "debug.log").symlink_to(tmp_path / "log of W&B")
    again(tmp_path / "out").begin()
    assert (folder / "latest.ckpt").is_file()


@pytest.mark.parametrize("link", ["{name}", ".{name}.{pid}.tmp", "{stem}.tmp"])
def test_a_file_takes_the_place_of_a_link(tmp_path, link):
    outside = tmp_path / "outside"
    writers = {
        "report.html": lambda path: page.write(page.Page("", "", [], []), [], path),
        "eval.parquet": lambda path: save_rows([{"a": 1}], path),
        "metrics.jsonl": lambda path: JsonlLogger(path, 0).log_metrics({}, 0),
        "data.json": lambda path: Run(compose_config(), path.parent).keep_account(Account([], {})),
        "summary.json": lambda path: Run(compose_config(), path.parent).write_summary("stopped"),
        "config.yaml": lambda path: Run(compose_config(), path.parent).write_config(),
    }
    for name, write in writers.items():
        path = tmp_path / name.partition(".")[0] / name
        path.parent.mkdir()
        outside.write_text("theirs")
        (path.parent / link.format(name=name, stem=path.stem, pid=os.getpid())).symlink_to(outside)
        write(path)
        assert outside.read_text() == "theirs", name
        assert path.is_file(), name
        assert not path.is_symlink(), name


def test_what_is_no_file_is_not_written_over(tmp_path, monkeypatch):
    (tmp_path / "report.html").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "report.html", tmp_path / "fifo", Path("/dev/null"), Path("/dev/stdout")):
        with pytest.raises(UserError, match="no file; remove it, or give another place"), beside(path):
            raise AssertionError(path)


def test_folders_above_a_run_may_be_links(tmp_path, monkeypatch):
    """What a run is called, and where runs like it are put, is told by the path that was given."""
    monkeypatch.chdir(tmp_path)
    folder = leave("out", "trainer.max_steps=2")
    up_and_down = config_from_run("train", [f"run={folder}/checkpoints/.."])
    assert run_dir(up_and_down) == tmp_path / folder
    moved(folder.parent, tmp_path / "big" / "data")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run_dir(config_from_run("train", [f"run={tmp_path / folder}"])) == tmp_path / folder
    measured = leave(tmp_path / "out2", "trainer.max_steps=3")
    measured.parent.rename(tmp_path / "out2" / "evaluate")
    moved(tmp_path / "out2" / "evaluate", tmp_path / "big" / "measured")
    assert [found.command for found in find_runs(tmp_path / "out2")] == ["evaluate"]


def test_what_killed_writers_have_left_goes_when_a_run_goes_on(tmp_path):
    folder = leave(tmp_path / "out")
    for name in (".config.yaml.1.tmp", "checkpoints/.step000001.ckpt.2.tmp"):
        (folder / name).write_bytes(b"half")
    again(tmp_path / "out").begin()
    assert not list(folder.rglob("*.tmp"))
    assert newest_checkpoint(folder) is None  # the file that `leave` makes is none
    assert (folder / "checkpoints" / "step000001.ckpt").is_file()


def test_a_run_that_has_not_begun_leaves_no_directory(tmp_path):
    found = again(tmp_path / "out")
    with found.alone():
        assert found.dir.is_dir()
    assert not found.dir.exists()


def test_data_that_change_while_a_run_waits_are_another_run(tmp_path, math_file, monkeypatch):
    cfg = compose_config(f"output_dir={tmp_path / 'out'}", "dataset=math", f"dataset.path={math_file}", *SHORT)

    def build_run(*_):
        math_file.write_text(math_file.read_text().replace("What is", "Tell what is"))
        return None, None, None

    monkeypatch.setattr(fit, "build_run", build_run)
    with pytest.raises(UserError, match=r"a file behind dataset.path.* has changed since it was read"):
        fit.make_run(cfg)
    assert not list(tmp_path.glob("out/math*/*"))


def test_a_sweeper_gets_the_score_of_a_run_that_was_made_afresh(tmp_path):
    leave(tmp_path, score=0.5)
    assert cli._score(compose_config(f"output_dir={tmp_path}", "fresh=true"), "train") == 0.5


def test_a_user_without_rights_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    """Tests may run as root, who has all rights."""
    folder, refused = leave(tmp_path / "out"), []
    unlink = os.unlink

    def refuse(path, **options):
        if str(path).endswith(".ckpt"):
            refused.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    code, said = expo(monkeypatch, capsys, "gc", f"output_dir={folder.parents[1]}", "yes=true")
    assert (code, len(refused)) == (2, 1)
    assert said.err.startswith(f"expo: {refused[0]}: Permission denied: this user may not do that there; ")
    assert said.err.count("\n") == 1


def test_a_lock_that_is_no_file_is_told(tmp_path):
    folder = leave(tmp_path / "out")
    (folder / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="no plain file, as a lock is; remove it"), again(tmp_path / "out").alone():
        pass
    assert not (tmp_path / "outside").exists()


def test_temporary_folders_of_killed_processes_go(tmp_path):
    left = tmp_path / "expo-x-1"
    left.mkdir()
    (left / ".lock").touch()
    (tmp_path / "expo-x-others").mkdir()  # not known to be ours
    with Temporary("expo-x-", str(tmp_path)) as one:
        with Temporary("expo-x-", str(tmp_path)) as two:
            assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "expo-x-others", *map(type(left), (one, two))])
        assert os.path.isdir(one)
    assert os.listdir(tmp_path) == ["expo-x-others"]


def test_a_run_that_is_killed_knows_its_seconds_until_its_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "save_checkpoint", lambda *_: None)
    run = Run(compose_config("trainer.checkpoint_every=5"), tmp_path)
    run.started -= 100
    for epoch, seconds in ((3, None), (4, pytest.approx(100, abs=20))):
        callbacks.KeepCheckpoint(run, "lineage").on_train_epoch_end(SimpleNamespace(current_epoch=epoch), None)
        assert read_summary(tmp_path).get("wall_s") == seconds
