"""Set up the process that runs a job: its log, its threads, and how it keeps memory."""

import ctypes
import logging
import os
import warnings

import torch
from transformers.utils import logging as transformers_logging

from expo.config import Config, UserError

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def set_up_process(cfg: Config) -> None:
    """Silence all but expo's own lines on the terminal, and set the config's number of threads. Raises UserError for a
    GPU that there is not."""
    if cfg.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu: torch sees no GPU; use trainer.accelerator=auto or cpu")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.raiseExceptions = False  # a log of W&B's own that cannot be written is no stack trace on the terminal
    for name in ("lightning.pytorch", "huggingface_hub", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    keep_memory()
    grow_segments(cfg)


def keep_memory() -> None:
    """Let the C library keep up to 1 GiB that a step has freed: to get it anew is a tenth of a step on a CPU."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc's
        for parameter, value in ((TRIM_THRESHOLD, 2**30), (TOP_PAD, 2**26), (MMAP_THRESHOLD, 2**26)):
            library.mallopt(parameter, value)


def grow_segments(cfg: Config) -> None:
    """Let torch take a GPU's memory in growing segments, unless told how: rows of many lengths leave fewer holes.

    It is read when the first tensor gets there. vLLM that sleeps in this process has pools without such segments.
    """
    apart = cfg.rollout.in_place or getattr(cfg.rollout, "separate", False)
    if apart and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
