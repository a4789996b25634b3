"""Commands that print what others have written, or are called with too little."""

import subprocess
import sys

import pytest
from by_hand import leave
from conftest import compose_config

from expo.commands import doctor, evaluate, export, samples, verify
from expo.config import UserError


def test_what_is_left_out_of_a_command_is_one_line():
    with pytest.raises(UserError, match="samples: no run given; usage: expo samples RUN"):
        samples.main(["n=5"])
    with pytest.raises(UserError, match="verify: a right answer and at least one other are compared; usage"):
        verify.main(["1"])


def test_square_brackets_are_text_in_every_table(capsys, monkeypatch):
    verify.main(["1", "[/b]", "[x, y]"])
    metrics = {f"pass@1{end}": 0.5 for end in ("/[b]", "/[b]_lo", "/[b]_hi")} | {"eval/length_mean": 1.0}
    evaluate.print_metrics(compose_config(), metrics, 1)
    monkeypatch.setattr(doctor, "CHECKS", [lambda: [doctor.Finding("[x]", doctor.NOTE, "extra [vllm]", "[/y]")]])
    doctor.main([])
    said = capsys.readouterr().out
    for text in ("[/b]", "[x, y]", "[b]", "[x]", "extra [vllm]", "[/y]", doctor.NOTE):
        assert text in said


def test_the_mean_reward_of_a_reward_of_ones_own_stands_below_the_table(capsys):
    cfg = compose_config("reward=partial", "verifier=reasoning_gym", "dataset=reasoning_gym")
    evaluate.print_metrics(cfg, {"eval/length_mean": 1.0, "eval/reward_mean": 0.25}, 1)
    assert "mean reward (Partial): 0.250" in capsys.readouterr().out


def test_a_folder_that_another_export_has_made_meanwhile_is_not_written_over(tmp_path, monkeypatch):
    folder, real = leave(tmp_path / "out"), export.locked

    def after_the_other(*arguments):
        (tmp_path / "plain").mkdir()
        return real(*arguments)

    monkeypatch.setattr(export, "locked", after_the_other)
    with pytest.raises(UserError, match="plain: is there by now; give a folder that is not"):
        export.main([str(folder), f"output={tmp_path / 'plain'}"])
    assert list((tmp_path / "plain").iterdir()) == []


INTERRUPTED = """
import sys

class Interrupt:
    def find_spec(name, *_):
        if name == "hydra.errors":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt)
sys.argv = ["expo", "--version"]
from expo.cli import main
main()
"""


def test_ctrl_c_before_a_command_has_loaded_what_it_needs_prints_nothing():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
