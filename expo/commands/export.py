"""`expo export`: the finished model of a run as one plain Hugging Face folder, LoRA merged."""

import os
from pathlib import Path

import yaml

from expo.config import ModelConf, UserError, make_folder, restore, take_options
from expo.config.foreign import summary_with
from expo.config.from_run import finished_model, run_directory
from expo.ground.files import locked, remove
from expo.runs.arms import TRAINED_BY, settings_of
from expo.runs.card import model_card

USAGE = "usage: expo export RUN [output=RUN/export] [dtype=float32|bfloat16|float16]"
DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: list[str]) -> int:
    """Write the folder. Returns the exit code. Raises UserError for an unfinished run, and a folder that is there."""
    options, subjects = take_options([a.removeprefix("run=") for a in arguments], output="", dtype="")
    if len(subjects) != 1 or "=" in subjects[0]:
        raise UserError(f"export {' '.join(subjects)}: not one run; {USAGE}")
    run = run_directory(subjects[0])
    cfg = restore(run)
    final, output = finished_model(run), Path(options["output"] or run / "export")
    if os.path.lexists(output):
        raise UserError(f"output={output}: is there already; give a folder that is not")
    if options["dtype"] not in ("", *DTYPES):
        raise UserError(f"dtype={options['dtype']}: no such number format; use one of {', '.join(DTYPES)}")
    summary = summary_with(run, "metrics", "device", "identity", "git", "versions", "step")
    make_folder(output.parent, "output")
    partial = output.with_name(f".{output.name}.partial")
    with locked(output.with_name(f".{output.name}.lock"), f"{output}: waits for another export to it"):
        if os.path.lexists(output):
            raise UserError(f"output={output}: is there by now; give a folder that is not")
        remove(partial)
        gguf = _save(final, partial, options["dtype"] or cfg.model.dtype)
        merged = (final / "adapter_config.json").is_file() or options["dtype"] not in ("", cfg.model.dtype)
        (partial / "README.md").write_text(model_card(cfg, summary, adapter=False, gguf=gguf, exported=merged))
        (partial / TRAINED_BY).write_text(yaml.safe_dump(settings_of(run)))
        partial.rename(output)
    print(f"{output}: load it with AutoModelForCausalLM.from_pretrained({str(output)!r})")
    return 0


def _save(final: Path, folder: Path, dtype: str) -> str:
    """Save a run's final model, merged into its base. Returns the GGUF file of its first weights, or ""."""
    from transformers.utils import logging

    from expo.model.policy import load_policy, share_weights
    from expo.training.space import disk_errors

    logging.disable_progress_bar()
    model, tokenizer = load_policy(ModelConf(path=str(final), dtype=dtype))
    with disk_errors(folder):
        model.save_pretrained(folder)
        share_weights(folder)
    tokenizer.save_pretrained(folder)
    return getattr(model.config, "expo_gguf", "")
