"""Settings of runs: their data and model in sentences, and the settings in which arms differ."""

from collections.abc import Mapping
from typing import Any

from expo.config import LadderConf
from expo.config.key import shown
from expo.ladder.problems import LEVELS, SYMBOLS

LADDER = LadderConf._target_
Settings = Mapping[str, Any]  # flat, as `expo.runs.arms.settings_of` gives them


def data_sentences(arms: Mapping[str, Settings]) -> list[str]:
    """Say which data and which model the arms have; one sentence, or more where they differ."""
    told: dict[str, list[str]] = {}
    for arm, own in arms.items():
        told.setdefault(f"{_data(own)} Model: {own.get('model.path')}.", []).append(arm)
    return [sentence if len(told) == 1 else f"{', '.join(own)}: {sentence}" for sentence, own in told.items()]


def differing(arms: Mapping[str, Settings]) -> tuple[list[str], list[list[str]]] | None:
    """Return headings and rows: every key in which the arms differ, with its value in each; None where there is none.

    A key that an arm does not have is "–" there: its options have no such setting.
    """
    keys = sorted({key for own in arms.values() for key in own})
    rows = [
        [key, *(shown(own[key]) if key in own else "–" for own in arms.values())]
        for key in keys
        if len({repr(own.get(key, "–")) for own in arms.values()}) > 1
    ]
    return (["setting", *arms], rows) if rows else None


def _data(own: Settings) -> str:
    path, other, hub = (own.get(f"dataset.{key}") for key in ("path", "eval_path", "hub_id"))
    limit = own.get("dataset.eval_limit")
    held_out = f"{'a part' if limit is None else f'up to {limit} problems'} of it held out for evaluation"
    if path:
        told = f"{path}, evaluated on {other}" if other else f"{path}, {held_out}"
    elif hub:
        configs = f" ({', '.join(own['dataset.hub_configs'])})" if own.get("dataset.hub_configs") else ""
        on = other or f"its split {own.get('dataset.eval_split')}"
        told = f"{hub}{configs} on the hub, split {own.get('dataset.split')}, evaluated on {on}"
    elif other:
        told = f"evaluated on {other}"
    else:
        told = "generated"
    if own.get("dataset.levels"):
        told += f", levels {shown(own['dataset.levels'])}"
    world = [
        f"{key.removeprefix('dataset.')}={shown(own[key])}" for key in sorted(own) if key.startswith("dataset.world.")
    ]
    told += "".join(f", {setting}" for setting in world)
    if own.get("dataset.part"):
        told += f", part {own['dataset.part']}"
    levels = own.get("dataset.levels") or LEVELS
    symbols = ", ".join(f"{symbol} is {name}" for symbol, (level, name, _) in SYMBOLS.items() if level in levels)
    meaning = " (4 cat 1 = 41, 4 dif 1 = 3, 4 mul 1 = 4)" if "cat" in symbols or "dif" in symbols else ""
    ladder = f" In its questions and steps {symbols}{meaning}." if own.get("dataset._target_") == LADDER else ""
    heat = [own.get(f"{part}.temperature") for part in ("rollout", "evaluation")]
    sampled = f" Rollouts are sampled at temperature {heat[0]}, evaluations at {heat[1]}." if None not in heat else ""
    return f"Data: {own.get('dataset.name')} ({told}).{ladder}{sampled}"
