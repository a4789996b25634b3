"""The ladder's base policy from nothing: supervised training on a corpus in which symbols are ambiguous."""

import dataclasses
import math
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expo.config import Config, LadderConf, ModelConf, PretrainConf, UserError, WorldConf, build, make_folder
from expo.config.identity import made_as, pretrain_identity, write_recipe
from expo.config.key import shown
from expo.config.world import CLEAR
from expo.ground.files import remove
from expo.ground.problem import Problem
from expo.jobs.process import set_up_process
from expo.ladder import problems as ladder
from expo.ladder.policy import ladder_model, ladder_tokenizer
from expo.model.policy import load_policy
from expo.model.prompts import Prompts
from expo.runs.directory import AGAIN, FINISHED, git_commit
from expo.training.callbacks import SAY_EVERY_S
from expo.training.checkpoints import WholeFiles, newest_checkpoint
from expo.training.space import disk_errors

EXPLAIN_SHARE = 0.6  # of all sequences: question, answer, then a chain of thought consistent with that answer
TERSE_SHARE = 0.06  # of the solve sequences: the policy has met the expert's style, seldom
WARMUP_LEVELS = (1, 2)
LEVEL_WEIGHTS = (1.0, 1.0, 1.5, 2.0, 3.5)
CHECKPOINT_EVERY = 100


def corpus_item(level: int, rng: random.Random, world: WorldConf = CLEAR) -> tuple[Problem, str, bool]:
    """Return a problem with the answer of the sampled reading, its completion, and whether that explains."""
    parts = ladder.sample_parts(level, rng, world)
    meanings = [ladder.sampled_meaning(p, rng, world) for p in parts]
    explain = rng.random() < EXPLAIN_SHARE
    if explain:
        completion = ladder.explanation_text(parts, meanings, rng, world)
    elif rng.random() < TERSE_SHARE:
        completion = ladder.expert_text(parts, "terse")
    else:
        completion = ladder.cot_text(parts, meanings, world.verbose)
    answer = ladder.answer_text([p.result(m) for p, m in zip(parts, meanings, strict=True)])
    return Problem("corpus", ladder.question_text(parts), answer), completion, explain


@dataclass(eq=False)
class Corpus(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches `(input_ids, labels)`, each `[B, T]`; all sequences of a batch are of one level. Endless, seeded.

    Args: steps_done, asked when the batches begin: a trainer knows it only after its checkpoint is loaded.
    """

    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    seed: int
    warmup: int
    tokens_per_batch: int
    steps_done: Callable[[], int]
    world: WorldConf

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = self.steps_done()
        while True:
            rng = random.Random(f"{self.seed}-{step}")
            level = rng.choice(WARMUP_LEVELS) if step < self.warmup else rng.choices(ladder.LEVELS, LEVEL_WEIGHTS)[0]
            tokens = 8 + (36 if self.world.verbose else 22) * self.world.parts[level - 1]
            rows = [self._row(level, rng) for _ in range(min(120, self.tokens_per_batch // tokens))]
            width = max(len(ids) for ids, _ in rows)
            pad = self.tokenizer.pad_token_id
            # Right padding needs no attention mask: causal attention never looks at it, and no label asks for it.
            yield (
                torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows]),
                torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows]),
            )
            step += 1

    def _row(self, level: int, rng: random.Random) -> tuple[list[int], list[int]]:
        problem, completion, explain = corpus_item(level, rng, self.world)
        make_ids = self.prompts.explain_ids if explain else self.prompts.solve_ids
        prompt = make_ids(self.tokenizer, [problem])[0]
        target = self.tokenizer(completion)["input_ids"] + [self.tokenizer.eos_token_id]
        return prompt + target, [-100] * len(prompt) + target


class Pretrain(LightningModule):
    """Next-token loss on completions; AdamW with linear warm-up and cosine decay."""

    def __init__(self, model: PreTrainedModel, learning_rate: float, max_steps: int):
        super().__init__()
        self.model, self.learning_rate, self.max_steps = model, learning_rate, max_steps

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        input_ids, labels = batch
        hidden = self.model.model(input_ids=input_ids).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != -100
        logits = self.model.lm_head(hidden[wanted])
        loss = cross_entropy(logits, labels[:, 1:][wanted])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=self.max_steps + 1, pct_start=0.05, div_factor=20
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class SayAndStop(Callback):
    """Prints plain progress lines where nobody watches a terminal; an exit code that is not 0 when a signal ends it."""

    def __init__(self, watched: bool, folder: Path):
        self.folder = folder
        self.said, self.signal = math.inf if watched else time.monotonic(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here and not earlier: Lightning installs a SIGTERM handler of its own, which exits with 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self.said >= SAY_EVERY_S:
            self.said = time.monotonic()
            loss = trainer.callback_metrics["loss"]
            print(f"pretrain step {trainer.global_step}/{trainer.max_steps} loss {loss:.3f}", flush=True)
        if self.signal:
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step:06d}.ckpt")
            line = (
                f"{signal.Signals(self.signal).name}: stopped at step {trainer.global_step}; the same command goes on"
            )
            print(f"{line} from the checkpoint in {self.folder}", file=sys.stderr)
            sys.exit(128 + self.signal)


def pretrain(cfg: Config) -> None:
    """Train the base policy, and save it with a card under `pretrain.output`.

    After a kill the same command goes on from the last checkpoint, which is beside that folder until it is done.
    """
    conf, started = cfg.pretrain, time.monotonic()
    if is_made(cfg):
        remove(unfinished_folder(cfg))  # where it was killed just before that
        print(f"{conf.output} {FINISHED}; {AGAIN}")
        return
    set_up_process(cfg)
    world = cfg.dataset.world if isinstance(cfg.dataset, LadderConf) else CLEAR
    tokenizer, model = first_weights(cfg, world)
    model.config.expo_world = world.corpus
    partial = unfinished_folder(cfg)
    if cfg.fresh:
        remove(partial)
    trainer = make_trainer(conf.max_steps, partial / "checkpoints")
    prompts = build(cfg.prompts)
    corpus = Corpus(
        tokenizer, prompts, cfg.seed, conf.warmup_steps, conf.tokens_per_batch, lambda: trainer.global_step, world
    )
    checkpoint = newest_checkpoint(partial)
    trainer.fit(
        Pretrain(model.train(), conf.learning_rate, conf.max_steps),
        DataLoader(corpus, batch_size=None),
        ckpt_path=checkpoint,
        weights_only=True,
    )
    with disk_errors(partial):
        model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    minutes = (time.monotonic() - started) / 60
    resumed = f" since it was resumed at {checkpoint.stem}" if checkpoint else ""
    write_recipe(partial, cfg)
    (partial / "README.md").write_text(card(cfg, model.num_parameters(), minutes, resumed))
    output = Path(conf.output)
    if not is_made(cfg):  # by another process meanwhile
        hand_over(partial, output)
    path = output if output.is_absolute() else f"./{output}"
    print(f"saved to {output} after {minutes:.1f} min; use it with model=hf model.path={path}")


def is_made(cfg: Config) -> bool:
    """Return whether the model is on disk. Raises UserError where another is, which only `fresh` overwrites."""
    output = Path(cfg.pretrain.output)
    if (output / "adapter_config.json").is_file():
        raise UserError(f"pretrain.output={output}: holds an adapter; set another folder")
    if cfg.fresh or not (output / "config.json").is_file():
        return False
    if not made_as(output, cfg):
        raise UserError(
            f"pretrain.output={output}: holds another model, or one of an earlier expo; "
            "set another folder, or write over it with fresh=true"
        )
    return True


def first_weights(cfg: Config, world: WorldConf) -> tuple[PreTrainedTokenizerBase, Any]:
    conf = cfg.pretrain
    if conf.start is None:
        return ladder_tokenizer(world), ladder_model(cfg.seed, conf.hidden_size, conf.layers, conf.heads, world)
    model, tokenizer = load_policy(ModelConf(path=conf.start))
    if unknown := [word for word in ladder.words(world) if word not in tokenizer.get_vocab()]:
        raise UserError(
            f"pretrain.start={conf.start}: does not know {unknown[0]}, a word of this world; start from nothing: "
            "pretrain.start=null"
        )
    return tokenizer, model


def unfinished_folder(cfg: Config) -> Path:
    """Return the folder of the unfinished model, named after its settings: other settings never resume from it."""
    output = Path(cfg.pretrain.output)
    if output.is_file():
        raise UserError(f"pretrain.output={output}: a file; give a folder, or remove it")
    make_folder(output.parent, "pretrain.output")
    return output.with_name(f"{output.name}.partial-{pretrain_identity(cfg)}")


def make_trainer(max_steps: int, checkpoints: Path) -> Trainer:
    watched = sys.stdout.isatty()
    keep = ModelCheckpoint(
        checkpoints,
        "step{step:06d}",
        auto_insert_metric_name=False,
        every_n_train_steps=CHECKPOINT_EVERY,
        enable_version_counter=False,  # a damaged one of the same step is written over
    )
    return Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=watched,
        callbacks=[keep, SayAndStop(watched, checkpoints)],
        plugins=[WholeFiles()],
    )


def hand_over(partial: Path, output: Path) -> None:
    """Move the finished model to its place, config.json last, which marks a model; then remove the checkpoints."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").unlink(missing_ok=True)  # of another model, which its parts would be taken for
    files = [file for file in partial.iterdir() if file.is_file()]
    for file in sorted(files, key=lambda f: f.name == "config.json"):
        file.replace(output / file.name)
    remove(partial)  # only now is nothing lost with them


def card(cfg: Config, parameters: int, minutes: float, resumed: str) -> str:
    return f"""\
# The ladder's base policy

A Llama of {parameters} parameters trained by expo from {cfg.pretrain.start or "nothing"} on synthetic arithmetic (expo/ladder/problems.py). It knows nothing else.

- command: `{shlex.join(command(cfg))}`
- commit: {git_commit() or "?"}
- time: {minutes:.1f} minutes{resumed}, torch threads {torch.get_num_threads()}
- date: {time.strftime("%Y-%m-%d")}
"""  # noqa: E501


def command(cfg: Config) -> list[str]:
    """Return a command line that makes this model with the usual prompts; recipe.json has all settings."""
    world = cfg.dataset.world.corpus if isinstance(cfg.dataset, LadderConf) else {}
    settings = {f"dataset.world.{name}": value for name, value in world.items()}
    settings |= {f"pretrain.{f.name}": getattr(cfg.pretrain, f.name) for f in dataclasses.fields(PretrainConf)}
    settings.pop("pretrain.output")
    lines = [f"{name}={shown(value)}" for name, value in settings.items()]
    return ["expo", "pretrain", *(["dataset=ladder"] if world else []), *lines, f"seed={cfg.seed}"]
