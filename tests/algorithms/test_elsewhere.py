"""Every algorithm takes two steps on a pretended accelerator: nothing mixes its tensors with the CPU's. See
`elsewhere`."""

import pytest
import torch
from conftest import compose_config
from elsewhere import ELSEWHERE, Elsewhere, Mixed
from lightning.pytorch.strategies import SingleDeviceStrategy

from expo.algorithms import losses
from expo.algorithms.base import Algorithm
from expo.config import conf_dir
from expo.jobs import fit, wiring
from expo.runs.directory import Run
from expo.training.callbacks import Stop
from expo.verifier.pool import Verifier

ALGORITHMS = sorted(file.stem for file in (conf_dir() / "algorithm").glob("*.yaml"))


@pytest.fixture
def two_steps(tmp_path, monkeypatch):
    load = wiring.load_model

    def load_there(cfg, to_device=True, commit=None):
        model, *rest = load(cfg, to_device, commit)
        return (model.to(ELSEWHERE) if to_device else model, *rest)

    monkeypatch.setattr(wiring, "load_model", load_there)
    monkeypatch.setattr(SingleDeviceStrategy, "model_to_device", lambda self: None)
    monkeypatch.setattr(Algorithm, "device", property(lambda self: ELSEWHERE), raising=False)

    def make(*overrides: str) -> tuple[int, Algorithm]:
        cfg = compose_config(
            "dataset=ladder",
            "dataset.levels=[2]",
            "debug=tiny",
            "trainer.max_steps=2",
            "evaluation.every=0",
            f"output_dir={tmp_path}",
            "trainer.accelerator=cpu",
            *overrides,
        )
        with Elsewhere() as mode, Verifier(cfg.verifier) as verifier:
            module, evaluator, _ = wiring.build_run(cfg, verifier)
            run = Run.find(cfg)
            run.begin()
            fit.make_trainer(cfg, run, evaluator, Stop(None), None).fit(module)
        return mode.calls, module

    return make


OPTIONS = (
    "algorithm=exp_grpo algorithm.kl_coef=0.05 positives.bank=false",
    "algorithm=exp_grpo algorithm.kl_coef=0.05 model.lora_rank=4",
    "algorithm=exp_grpo trainer.packing=true",
    "algorithm=exp_grpo trainer.share_prompts=false positives.selection=two_properties positives.samples=2",
    "algorithm=grpo algorithm.updates_per_rollout=2 algorithm.sampler_correction=token",
    "algorithm=star algorithm.restart_every=1",
    "algorithm=opsd_answer algorithm.signal=sampled trainer.packing=true",
    "algorithm=sdpo model.lora_rank=4",
    "algorithm=exp_grpo_distill model.lora_rank=4",
)


@pytest.mark.long
@pytest.mark.runs
@pytest.mark.parametrize("overrides", [*(f"algorithm={name}" for name in ALGORITHMS), *OPTIONS])
def test_no_step_mixes_tensors_of_two_devices(overrides, two_steps):
    calls, module = two_steps(*overrides.split())
    assert calls > 10_000  # that were made there
    assert module.last_metrics["policy/updates_skipped"] == 0


def test_a_tensor_that_was_forgotten_on_the_cpu_is_found(two_steps, monkeypatch):
    weights = losses.token_weights
    monkeypatch.setattr(losses, "token_weights", lambda mask, *rest: weights(mask.cpu(), *rest))
    with pytest.raises(Mixed, match="CPU"):
        two_steps("algorithm=grpo")


def test_what_a_gpu_allows_and_what_it_does_not():
    with Elsewhere():
        there, here = torch.randn(3, 4).to(ELSEWHERE), torch.ones(3, 4)
        assert (
            there.device == torch.zeros_like(there).device == torch.arange(3, device=there.device).device == ELSEWHERE
        )
        assert there.cpu().device == here.device == torch.device("cpu")
        assert (there * torch.tensor(2.0)).device == there[torch.tensor([0])].device == ELSEWHERE  # a number, an index
        assert torch.equal(here.to(there).cpu(), here)
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([here, there]),
            there.numpy,
            lambda: torch.where(here > 0, there, there),
        ):
            with pytest.raises(Mixed):
                mixed()
        layer = torch.nn.Linear(4, 4).to(ELSEWHERE)
        layer(there).sum().backward()
        assert layer.weight.grad.device == ELSEWHERE
        with pytest.raises(Mixed):
            layer(here)
