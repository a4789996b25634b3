"""TRL's side of `make bench`: its GRPOTrainer, a step at a time. `python -m benchmarks.bench.rival CASE FOLDER`."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.utils import logging

from benchmarks.bench.cases import Case
from benchmarks.bench.turns import Turns

SOLVE = "{question}\n\nReason step by step, and put your final answer within \\boxed{}."


class StepByStep(TrainerCallback):
    """Waits for its turn before each step."""

    def __init__(self) -> None:
        self.turns = Turns()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.turns()


def random_rewards(completions: list[Any], **_: Any) -> list[float | None]:
    """Return a random number for each rollout, so that every group trains."""
    return [random.random() for _ in completions]


def main(case: Case, folder: Path) -> None:
    """Train until stdin ends."""
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(case.threads)
    questions = [json.loads(line)["question"] for line in (folder / "rows.jsonl").open()]
    prompts = [[{"role": "user", "content": SOLVE.replace("{question}", q)}] for q in questions]
    lora: dict[str, Any] = {}
    if case.lora_rank:
        from peft import LoraConfig

        lora["peft_config"] = LoraConfig(r=case.lora_rank, lora_alpha=32, target_modules="all-linear")
    conf = GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        per_device_train_batch_size=case.micro, gradient_accumulation_steps=case.problems * case.group // case.micro,
        num_generations=case.group, max_completion_length=case.tokens, temperature=1.0, beta=case.kl, loss_type="grpo",
        learning_rate=1e-6, lr_scheduler_type="constant", max_steps=10000, save_strategy="no", logging_steps=1,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        reward_funcs=random_rewards,
        args=conf, train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"), callbacks=[StepByStep()], **lora,
    )  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    main(Case.of(sys.argv[1]), Path(sys.argv[2]))
