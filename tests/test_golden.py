"""Golden parity: our losses against TRL's own functions and trainers, on the same tensors. Skipped without the `bench`
extra."""

import math
import random
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from conftest import clipped_at

from expo.algorithms import losses
from expo.algorithms.divergences import Divergence
from expo.model.scoring import score, token_batch
from expo.model.small import random_tiny

trl = pytest.importorskip("trl")

B, T = 6, 9
LENGTHS = torch.tensor([9, 4, 1, 7, 5, 2])
MASK = (torch.arange(T) < LENGTHS.unsqueeze(1)).float()
LIMIT = 20  # tokens that a completion may have


def tensors(count):
    rng = torch.Generator().manual_seed(0)
    return [-3 * torch.rand(B, T, generator=rng) for _ in range(count)]


class Loose(SimpleNamespace):
    """Enough of a trainer for one of its methods: one process, metrics that go nowhere."""

    def __init__(self, **settings):
        same = lambda x, **_: x  # noqa: E731
        accelerator = SimpleNamespace(
            device=torch.device("cpu"), gather=same, gather_for_metrics=same, reduce=same, num_processes=1
        )
        metrics = defaultdict(lambda: defaultdict(list))
        super().__init__(accelerator=accelerator, _metrics=metrics, aux_loss_enabled=False, **settings)


def trl_grpo(loss_type, level, kl_coef, logp, old, ref, advantages, sampler_ratio=None):
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = Loose(
        model=SimpleNamespace(training=False), loss_type=loss_type, importance_sampling_level=level, beta=kl_coef,
        epsilon_low=0.2, epsilon_high=0.28, max_completion_length=LIMIT, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, use_vllm=sampler_ratio is not None, vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, torch.zeros_like(logp), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(B, 1), "prompt_mask": torch.ones(B, 1), "completion_ids": torch.zeros(B, T),
        "completion_mask": MASK, "advantages": advantages, "old_per_token_logps": old, "ref_per_token_logps": ref,
        "num_items_in_batch": MASK.sum(), "importance_sampling_ratio": sampler_ratio,
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, None, inputs)


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize(
    ("aggregation", "loss_type", "level"),
    [
        ("sequence_mean", "grpo", "token"),
        ("token_mean", "dapo", "token"),
        ("constant", "dr_grpo", "token"),
        ("sequence_mean", "grpo", "sequence"),  # GSPO
    ],
)
def test_grpo_family(aggregation, loss_type, level, kl_coef):
    logp, old, ref = tensors(3)
    advantages = torch.tensor([1.0, -0.5, 0.0, 2.0, -1.5, 0.3])
    ours_logp, theirs_logp = (logp.clone().requires_grad_(True) for _ in range(2))
    per_token, _, _ = losses.policy_loss(ours_logp, old, MASK, advantages, clipped_at(0.2, 0.28, level))
    per_token = per_token + kl_coef * losses.kl(ours_logp, ref, "k3")
    ours = (losses.token_weights(MASK, aggregation, LIMIT) * per_token).sum()
    theirs = trl_grpo(loss_type, level, kl_coef, theirs_logp, old, ref, advantages)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours_logp.grad, theirs_logp.grad, atol=1e-5, rtol=0)


def test_truncated_importance_sampling():
    logp, old, ref, sampler = tensors(4)
    advantages = torch.linspace(-1, 1, B)
    weights = losses.sampler_weights(old, sampler, MASK, "token", 2.0)
    per_token, _, _ = losses.policy_loss(logp, old, MASK, advantages, clipped_at(0.2, 0.28, "token"))
    ours = (losses.token_weights(MASK, "sequence_mean", LIMIT) * weights * per_token).sum()
    # The ratio as TRL's token_truncate makes it, through TRL's own loss.
    theirs = trl_grpo("grpo", "token", 0.0, logp, old, ref, advantages, (old - sampler).exp().clamp(max=2.0))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("preference", "rpo"), [("sigmoid", 0.0), ("ipo", 0.0), ("sigmoid", 0.7)])
def test_dpo(preference, rpo):
    from trl.trainer.dpo_trainer import DPOTrainer

    logp, ref = tensors(2)
    half, flags = B // 2, torch.zeros(B, T, dtype=torch.bool)
    loss_types, weights = ([preference, "sft"], [1.0, rpo]) if rpo else ([preference], [1.0])
    trainer = Loose(
        model=SimpleNamespace(training=False),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=weights,
        beta=0.3,
        label_smoothing=0.0,
        use_weighting=False,
        _total_train_tokens=0,
    )

    def model(**kwargs):
        return SimpleNamespace(
            log_probs=theirs_logp * MASK, entropy=logp, mean_logits=logp, is_top1=flags, log_sum_sq_probs=logp
        )

    ours_logp, theirs_logp = (logp.clone().requires_grad_(True) for _ in range(2))
    ref_totals = (ref * MASK).sum(dim=1)
    mask = torch.cat([torch.zeros(B, 1), MASK], dim=1).long()
    inputs = {
        "input_ids": torch.zeros(B, T + 1, dtype=torch.long), "completion_mask": mask,
        "ref_chosen_logps": ref_totals[:half], "ref_rejected_logps": ref_totals[half:],
    }  # fmt: skip
    theirs = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    chosen, rejected = ((ours_logp * MASK).sum(dim=1) - ref_totals).chunk(2)
    lengths = LENGTHS.float().view(2, half)
    ours = losses.preference_loss(chosen, rejected, lengths, 0.3, 0.0, preference)[0].mean()
    nll = (losses.token_weights(MASK[:half], "token_mean", LIMIT) * losses.sft_loss(ours_logp[:half])).sum()
    ours = ours + rpo * nll
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours_logp.grad, theirs_logp.grad, atol=1e-5, rtol=0)


PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
COMPLETIONS = [[20, 21, 22, 23], [30], [40, 41, 42]]


def test_sft(tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = random_tiny()
    rows = [
        {"input_ids": [*p, *c], "completion_mask": [0] * len(p) + [1] * len(c)}
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    trainer = SFTTrainer(
        model,
        SFTConfig(
            str(tmp_path),
            per_device_train_batch_size=3,
            use_cpu=True,
            report_to=[],
            bf16=False,
            completion_only_loss=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    theirs = trainer.compute_loss(model, next(iter(trainer.get_train_dataloader())))
    batch = token_batch(PROMPTS, COMPLETIONS, 0, torch.device("cpu"))
    logp = score(model, batch)
    ours = (losses.token_weights(batch.mask, "token_mean", LIMIT) * losses.sft_loss(logp)).sum()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_leave_one_out_advantage(tmp_path):
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    model, tokenizer = random_tiny()
    rng = random.Random(0)
    seen = {}

    def reward(completions, **kwargs):
        seen["rewards"] = torch.tensor([[rng.random() for _ in range(4)] for _ in range(2)])
        return seen["rewards"].flatten().tolist()

    trainer = RLOOTrainer(
        model, reward_funcs=reward, processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "one"}, {"prompt": "two"}]),
        args=RLOOConfig(
            str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=3, beta=0.0,
            use_cpu=True, report_to=[], bf16=False,
        ),
    )  # fmt: skip
    rows = [{"prompt": prompt} for prompt in ("one", "two") for _ in range(4)]
    theirs = trainer._generate_and_score_completions(rows)["advantages"].view(2, 4)
    torch.testing.assert_close(losses.group_advantages(seen["rewards"], "leave_one_out"), theirs, atol=1e-5, rtol=0)


def test_kl_estimators_follow_schulman_where_trl_has_only_k3():
    """k1 and k2 are in no loss of TRL's; their mean over samples of p is KL(p || q), k2's approximately."""
    p, q = torch.tensor([0.6, 0.4]), torch.tensor([0.55, 0.45])
    exact = (p * (p / q).log()).sum().item()
    for estimator, tolerance in (("k1", 1e-6), ("k3", 1e-6), ("k2", 0.02 * exact)):
        estimate = (p * losses.kl(p.log(), q.log(), estimator)).sum().item()
        assert math.isclose(estimate, exact, abs_tol=tolerance), estimator


def next_words(seed):
    """Logits `[B, T, V]` of a student and of its teacher."""
    rng = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(B, T, 13, generator=rng, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("mix", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("top_k", "tail"), [(0, True), (4, True), (4, False)])
def test_self_distillation_divergences(mix, top_k, tail):
    """TRL's SDPO (and its SDFT, whose functions are the same), over the whole vocabulary and over the student's
    likeliest words."""
    from trl.experimental.sdpo import loss_utils as sdpo

    student, teacher = next_words(0)
    ours_in, theirs_in = (student.clone().requires_grad_(True) for _ in range(2))
    ours = Divergence(mix, top_k, tail)(ours_in.log_softmax(-1), teacher.log_softmax(-1))
    if top_k:
        theirs = sdpo.compute_topk_self_distillation_loss(
            theirs_in, teacher, distillation_topk=top_k, distillation_alpha=mix, distillation_add_tail=tail
        )
    else:
        theirs = sdpo.compute_full_logit_self_distillation_loss(theirs_in, teacher, distillation_alpha=mix)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    (ours * MASK).sum().backward()
    (theirs * MASK).sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_the_generalized_jsd_of_gkd(mix):
    from trl.experimental.gkd import GKDTrainer

    student, teacher = next_words(1)
    ours = Divergence(mix)(student.log_softmax(-1), teacher.log_softmax(-1))
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, beta=mix, reduction="none").sum(-1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_self_distillation_on_the_sampled_token():
    """Our advantage log p_T - log p_S gives TRL's gradient of reverse KL by policy gradient, in the first update."""
    from trl.experimental.sdpo.loss_utils import compute_sampled_token_self_distillation_loss

    student, teacher = next_words(2)
    ids = torch.randint(0, 13, (B, T), generator=torch.Generator().manual_seed(0))
    ours_in, theirs_in = (student.clone().requires_grad_(True) for _ in range(2))
    theirs = compute_sampled_token_self_distillation_loss(theirs_in, teacher, ids, distillation_alpha=1.0)
    logp, teacher_logp = (x.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1) for x in (ours_in, teacher))
    gap = (teacher_logp - logp).detach()
    ours, _, _ = losses.policy_loss(logp, logp.detach(), MASK, gap, clipped_at(0.2, 0.2, "token"))
    (ours * MASK).sum().backward()
    (theirs * MASK).sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-5, rtol=0)


def test_a_whole_step_of_sdpo():
    """Weights of tokens, rows without a demonstration, and the clipped importance ratio: against TRL's own trainer."""
    from trl.experimental.sdpo.sdpo_trainer import DistillationLogits, SDPOTrainer

    student, teacher = next_words(3)
    ids = torch.randint(0, 13, (B, T), generator=torch.Generator().manual_seed(0))
    there = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]).unsqueeze(1)
    old = tensors(1)[0].double()
    args = SimpleNamespace(
        distillation_mode="topk_logits", distillation_topk=4, distillation_alpha=0.5, distillation_add_tail=True,
        distillation_is_clip=2.0,
    )  # fmt: skip
    trainer = Loose(args=args, _log_self_distillation_metric=lambda *a: None)
    ours_in, theirs_in = (student.clone().requires_grad_(True) for _ in range(2))
    seen = DistillationLogits(
        completion_ids=ids,
        completion_mask=MASK,
        loss_mask=MASK * there,
        student_logits=theirs_in,
        teacher_logits=teacher,
    )
    theirs = SDPOTrainer._compute_self_distillation_loss(
        trainer, SimpleNamespace(training=True), {"old_per_token_logps": old}, seen
    )
    logp = ours_in.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    ratio = (logp.detach() - old).clamp(-20, 20).exp().clamp(max=2.0)
    apart = Divergence(0.5, 4)(ours_in.log_softmax(-1), teacher.log_softmax(-1))
    ours = (losses.token_weights(MASK * there, "sequence_mean", LIMIT) * ratio * apart).sum()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, atol=1e-5, rtol=0)
