"""Settings of runs: their data and model in sentences, and the settings in which arms differ."""

from collections.abc import Mapping
from typing import Any

from expo.config import LadderConf
from expo.config.dataset import MEASURING
from expo.config.key import shown
from expo.ladder.problems import LEVELS, SYMBOLS
from expo.tables.planned import OF_TRAINING

LADDER = LadderConf._target_
Settings = Mapping[str, Any]  # flat, as `expo.runs.arms.settings_of` gives them


def data_sentences(arms: Mapping[str, Settings]) -> list[str]:
    """Say which data and which model the arms have; one sentence, or more where they differ."""
    by_text: dict[str, list[str]] = {}
    for arm, settings in arms.items():
        by_text.setdefault(f"{_data(settings)} Model: {settings.get('model.path')}.", []).append(arm)
    return [sentence if len(by_text) == 1 else f"{', '.join(names)}: {sentence}" for sentence, names in by_text.items()]


def differing(arms: Mapping[str, Settings]) -> tuple[list[str], list[list[str]]] | None:
    """Return headings and rows: every key in which the arms differ, with its value in each; None where there is none.

    A key that an arm does not have is "–" there: its options have no such setting, or it trains nothing.
    """
    keys = sorted({key for settings in arms.values() for key in settings})
    rows = []
    for key in keys:
        of_training = key.startswith(OF_TRAINING) and key != "trainer.precision"
        asked = {arm: s for arm, s in arms.items() if not (of_training and _command(s) in MEASURING)}
        if len({repr(settings.get(key, "–")) for settings in asked.values()}) > 1:
            rows.append([key, *(shown(asked[arm][key]) if key in asked.get(arm, {}) else "–" for arm in arms)])
    return (["setting", *arms], rows) if rows else None


def _command(settings: Settings) -> str:
    return str(settings.get("command")).removeprefix("expo ")


def _data(settings: Settings) -> str:
    path, other, hub = (settings.get(f"dataset.{key}") for key in ("path", "eval_path", "hub_id"))
    limit = settings.get("dataset.eval_limit")
    held_out = f"{'a part' if limit is None else f'up to {limit} problems'} of it held out for evaluation"
    measured = "dataset.part" in settings or _command(settings) in MEASURING
    most = settings.get("dataset.limit") if measured else limit
    some = "" if most is None else f"up to {most} problems of "
    if path:
        sentence = f"{path}, evaluated on {some}{other}" if other else f"{path}, {held_out}"
    elif hub:
        configs = f" ({', '.join(settings['dataset.hub_configs'])})" if settings.get("dataset.hub_configs") else ""
        on = other or f"its split {settings.get('dataset.eval_split')}"
        sentence = f"{hub}{configs} on the hub, split {settings.get('dataset.split')}, evaluated on {some}{on}"
    elif other:
        sentence = f"evaluated on {some}{other}"
    else:
        sentence = "generated"
    levels, evaluated = (settings.get(f"dataset.{key}") for key in ("levels", "eval_levels"))
    if levels:
        sentence += f", levels {shown(levels)}"
    if evaluated is not None and evaluated != levels:
        sentence += f", evaluated on {f'levels {shown(evaluated)}' if evaluated else 'all levels'}"
    for key in sorted(key for key in settings if key.startswith("dataset.world.")):
        sentence += f", {key.removeprefix('dataset.')}={shown(settings[key])}"
    if settings.get("dataset.part"):
        sentence += f", part {settings['dataset.part']}"
    asked = {*(levels or LEVELS), *((levels if evaluated is None else evaluated) or LEVELS)}
    symbols = ", ".join(f"{symbol} is {name}" for symbol, (level, name, _) in SYMBOLS.items() if level in asked)
    meaning = " (4 cat 1 = 41, 4 dif 1 = 3, 4 mul 1 = 4)" if "cat" in symbols or "dif" in symbols else ""
    ladder = f" In its questions and steps {symbols}{meaning}." if settings.get("dataset._target_") == LADDER else ""
    heat = [settings.get(f"{part}.temperature") for part in ("rollout", "evaluation")]
    sampled = f" Rollouts are sampled at temperature {heat[0]}, evaluations at {heat[1]}." if None not in heat else ""
    return f"Data: {settings.get('dataset.name')} ({sentence}).{ladder}{sampled}"
