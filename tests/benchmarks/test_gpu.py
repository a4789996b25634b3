"""`make gpu-check`: a check that fails is told, and keeps no other from being made. CI makes the checks themselves on
tiny shapes."""

import json
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import part
from benchmarks.gpu.place import NotRun, Place, needs, write_line
from benchmarks.gpu.right import some_rows
from benchmarks.gpu.varlen import row_by_row, varlen
from expo.config import UserError, compose_config
from expo.jobs import wiring
from expo.model.scoring import score


def test_a_check_that_fails_keeps_none_from_being_made(tmp_path, monkeypatch, capsys):
    def fails(place):
        raise AssertionError("it is\nwrong")

    def cannot(place):
        raise NotRun("needs two GPUs")

    def lacks(place):
        import a_package_that_nobody_has  # noqa: F401

    def measures(place):
        place.tell({"step": 1})
        return {"predicted": {"seconds": 2}, "seconds": 1.25}

    checks = {"first": fails, "second": cannot, "lacking": lacks, "third": measures}
    monkeypatch.setattr(part, "checks_of", lambda name, place: checks)
    monkeypatch.setattr(part, "set_up_process", lambda cfg: None)
    file = tmp_path / "results.jsonl"
    part.main("P1", file, "cpu", 600)
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [told["state"] for told in found] == ["failed", "not run", "not run", "measured", "ok"]
    assert all(told["device"] and told["commit"] for told in found)
    assert [told["what"] for told in found] == ["first", "second", "lacking", "third", "third"]
    assert (found[-1]["measured"], found[-1]["predicted"]) == ({"seconds": 1.25}, {"seconds": 2})
    assert found[-2]["predicted"] is None
    capsys.readouterr()
    assert gpu.show(file, "P1", "", tmp_path / "P1.log") == 1
    out = capsys.readouterr().out
    assert "failed   first" in out
    assert "AssertionError: it is wrong" in out
    assert "needs two GPUs" in out
    assert "no a_package_that_nobody_has" in out
    assert out.rstrip().endswith("seconds: 1.25 (predicted: seconds 2)")
    assert gpu.show(file, "P2", "was stopped after 3 s", tmp_path / "P2.log") == 1  # before its first check
    assert "was stopped after 3 s" in capsys.readouterr().out


def test_what_a_killed_part_has_measured_is_there(tmp_path, capsys):
    file, about = tmp_path / "results.jsonl", {"part": "P2", "what": "the update of 3B"}
    write_line(file, {**about, "state": "measured", "measured": {"rows": 2, "peak GB": 61.5}})
    with file.open("a") as lines:
        lines.write('{"part": "P2", "wh')  # killed as it wrote
    assert gpu.show(file, "P2", "was stopped after 130 s", tmp_path / "P2.log") == 1
    out = capsys.readouterr().out
    assert "measured the update of 3B" in out
    assert "61.5" in out


def test_a_package_of_our_own_that_is_missing_is_a_failure():
    assert part.outcome(ModuleNotFoundError("no", name="vllm.lora"))["why"] == "no vllm"
    assert part.outcome(ModuleNotFoundError("no", name="expo.gone"))["state"] == "failed"
    with pytest.raises(NotRun, match="no a_package_that_nobody_has"):
        needs("a_package_that_nobody_has")


def test_a_part_begins_nothing_for_which_it_has_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "checks_of", lambda name, place: {"first": lambda place: pytest.fail("it began")})
    monkeypatch.setattr(part, "set_up_process", lambda cfg: None)
    part.main("P1", tmp_path / "results.jsonl", "cpu", 0)
    told = json.loads((tmp_path / "results.jsonl").read_text())
    assert (told["state"], told["why"]) == ("not run", "no time left of 0 s")


def test_the_smallest_part_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "set_up_process", lambda cfg: None)
    part.main("P0", tmp_path / "results.jsonl", "cpu", 600)
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [told["state"] for told in found] == ["ok"] * 4
    assert found[0]["what"] == "products"
    assert found[0]["predicted"] == {"bfloat16, TFLOP/s": 790}
    assert found[0]["measured"]["bfloat16, TFLOP/s"] > 0


def test_attention_row_by_row_is_what_a_mask_computes():
    """The kernel of a GPU gets the same queries, keys and bounds."""
    model, _, _ = wiring.load_model(compose_config(["dataset=ladder", "model=random_shape", "model.path=tiny"]))
    batch = some_rows(torch.device("cpu"), 6, group=3)
    calls = []

    def kernel(query, key, value, starts, key_starts, most, keys, scale):
        calls.append((len(query), len(key), starts.tolist(), key_starts.tolist(), most))
        return row_by_row(query, key, value, starts, key_starts, most, keys, scale)

    def read():
        model.zero_grad()
        scores = score(model, batch, shared=True)
        scores.mean().backward()
        return scores.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    masked, gradient = read()
    with varlen(kernel):
        found, other = read()
    torch.testing.assert_close(found, masked, rtol=0, atol=1e-5)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6)
    # Prompts of 24 and 27 tokens, completions of at most 40, whose last token is read by nobody.
    ends = [0, 63, 126, 189, 255, 321, 387]
    assert calls == [(6 * 39, 387, [39 * n for n in range(7)], ends, 39)] * 2  # one for each layer


def test_the_largest_shape_comes_first(tmp_path):
    """Should the time be too short, it tells most."""
    for name in ("P2", "P5"):
        assert "3B" in next(iter(part.checks_of(name, Place("cuda", tmp_path))))


@pytest.mark.long
def test_the_checks_need_no_package_that_a_bare_gpu_machine_lacks(tmp_path):
    """vLLM, wandb, datasets and the like are not on a machine that is lent, and expo is a folder there."""
    code = """
import sys, importlib.metadata
sys.modules.update(dict.fromkeys(("vllm", "wandb", "datasets", "bitsandbytes", "trl", "mlflow", "wandb_workspaces")))
real = importlib.metadata.version
def version(name):
    if name == "expo":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.version = version
from benchmarks.gpu import part, place, __main__
import expo
[part.checks_of(name, place.Place("cpu", None)) for name in part.MODULES]
from expo.config import compose_config
from expo.runs.directory import Run
run = Run.find(compose_config(["dataset=ladder", "output_dir=" + sys.argv[1]]))
print(expo.__version__, "/", run.record("done")["versions"]["expo"], "/", "this is" in run.finished_line)
"""
    made = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert made.stdout.strip() == "not installed / not installed / False", made.stderr


@pytest.mark.parametrize(("gpu", "kind", "where"), [(True, "random_tiny", "cuda"), (True, "hf", "cpu"), (False, "random_tiny", "cpu")])  # fmt: skip  # noqa: E501
def test_random_weights_are_made_on_the_device(gpu, kind, where, monkeypatch):
    """A CPU takes a minute for those of 3B."""
    made = []

    def build(conf, of=None):
        if not made:
            modes = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)]
            made.append(str(modes[-1].device) if modes else "cpu")
            return None, None
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(wiring, "build", build)
    known = ["rollout.batch_size=8", "model.gradient_checkpointing=false"]  # else by the memory of the GPU
    with pytest.raises(InterruptedError):
        wiring.load_model(compose_config([*known, "dataset=ladder", "trainer.accelerator=auto", f"model={kind}"]))
    assert made == [where]


@pytest.mark.parametrize("name", gpu.PARTS)
def test_every_part_has_checks(name, tmp_path):
    for device in ("cpu", "cuda"):
        assert part.checks_of(name, Place(device, tmp_path))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["parts=P9"], "there is no part P9"),
        (["part=P1"], "did you mean parts"),
        (["often"], "not an option"),
        (["seconds=long"], "seconds=long: not a number"),
        ([], "torch sees no GPU"),
    ],
)
def test_a_mistake_is_one_line(arguments, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=told):
        gpu.main(arguments)


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path, monkeypatch, capsys):
    pid = tmp_path / "pid"
    child = (
        f"import os, subprocess, sys; p = subprocess.Popen(['sleep', '60']); open({str(pid)!r}, "
        "'w').write(str(p.pid)); p.wait()"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{child}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert gpu.main(["parts=P1", "cpu=true", "seconds=3", f"output={tmp_path / 'out'}"]) == 1
    assert "was stopped after 3 s" in capsys.readouterr().out
    with suppress(psutil.NoSuchProcess):
        child_process = psutil.Process(int(pid.read_text()))
        psutil.wait_procs([child_process], timeout=20)
        assert not child_process.is_running() or child_process.status() == psutil.STATUS_ZOMBIE
