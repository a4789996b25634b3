"""`expo plan`: what a run would take on devices that are not at hand."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from rich.table import Column, Table

from expo.config import Config, UserError, build, check_anywhere
from expo.config.dataset import FunctionConf
from expo.config.key import shown
from expo.config.model import RandomShapeConf
from expo.cost.estimate import SURE
from expo.cost.machine import DEVICES, Device, this_machine
from expo.cost.memory import disk, memory, settled
from expo.cost.run import Work
from expo.cost.seconds import run_seconds, seconds, tokens
from expo.data.reader import Reader
from expo.model.shapes import config_of
from expo.runs.hub import ask_hub
from expo.tables.render import count_told, wide_console
from expo.verifier.pool import Verifier

Setting = tuple[str, object]  # a key and its value
# By whether the device is this machine, see docs/scaling.md.
HOW_SURE = {
    False: "how sure: no GPU has been measured yet; memory is counted, seconds (and hours, and money) rest on makers' "
    "data sheets and guesses of how much of them is reached, and may be off by a factor",
    True: "how sure: of three runs on a CPU, parts of a step took 0.8 to 2.0 times their estimates, and memory 1.1 to "
    "1.2 times",
}


def plan(cfg: Config) -> int:
    """Print memory, seconds, hours, disk and settings that fit, by numbers of devices. Returns the exit code."""
    if config_of(cfg.model.path) is None:
        if isinstance(cfg.model, RandomShapeConf):
            build(cfg.model)  # says which shapes there are
        ask_hub([], models=[cfg])
    device = this_machine(cfg.trainer.threads) if cfg.plan.device == "here" else DEVICES[cfg.plan.device]
    read = read_problems(cfg)
    works = [settled(replace(Work.of(cfg, n), read=read), device) for n in cfg.plan.devices]
    shape, length = works[0].shape, works[0].length
    print(
        f"{cfg.name}, {cfg.model.path}, {shape.parameters / 1e9:.2f} G parameters, "
        f"rollout._target_={cfg.rollout._target_}, trainer.strategy={cfg.trainer.strategy}, "
        f"trainer.precision={cfg.trainer.precision}: an estimate for {device.name}, not measured"
    )
    wide_console().print(as_table(works, device))
    generated = tokens(works[0])
    checkpoint, most = disk(works[0])
    prompt = cfg.plan.prompt_tokens or cfg.rollout.max_prompt_tokens
    print(f"prompts are taken to have {prompt} tokens; plan.prompt_tokens=… says how many they have")
    # Refills, and what hints make again, are as many as there may be.
    at_most = "" if cfg.plan.completion_tokens and works[0].generated == works[0].rollouts else " at most"
    tokens_told = f"{count_told(generated)} tokens generated{at_most}"
    print(f"{tokens_told}; disk: {checkpoint / 1e9:.1f} GB each checkpoint, {most / 1e9:.1f} GB at a time")
    print(length)
    for work in works:
        m, rows = work.cfg.model, work.cfg.rollout.at_once
        keep = str(m.gradient_checkpointing).lower()
        print(f"{work.devices} {device.name}: rollout.batch_size={rows} model.gradient_checkpointing={keep}")
        print(advice(work, device))
    print(HOW_SURE[cfg.plan.device == "here"])
    return 0


def read_problems(cfg: Config) -> tuple[int, int] | None:
    """Return how many problems to train on, and held out, are in files or a function of one's own; None without them.
    Raises UserError for what cannot be read."""
    data = cfg.dataset
    if data.path is None and not isinstance(data, FunctionConf):
        return None
    with Verifier(cfg.verifier, final=cfg.prompts.final) as verifier:
        reader: Reader = build(data, verifier, of=Reader)
        return len(reader.train()), len(reader.evaluation())


def as_table(works: Sequence[Work], device: Device) -> Table:
    columns = (Column(str(work.devices), justify="right") for work in works)
    table = Table("", *columns, title=f"each of so many devices ({device.memory / 1e9:.0f} GB)")
    sizes, times = [memory(work, device) for work in works], [seconds(work, device) for work in works]
    for part in dict.fromkeys(part for size in sizes for part in size if part != "peak"):
        table.add_row(f"{part}, GB", *(f"{size.get(part, 0.0) / 1e9:.1f}" for size in sizes))
    peaks = (f"{size['peak'] / 1e9:.1f}" for size in sizes)
    table.add_row("most at a time, GB", *peaks, end_section=True, style="bold")
    for part in dict.fromkeys(part for size in times for part in size):
        table.add_row(f"{part}, s", *(f"{size.get(part, 0.0):.2f}" for size in times))
    table.add_row("a step, s", *(f"{sum(size.values()):.2f}" for size in times), end_section=True, style="bold")
    hours = [run_seconds(work, device) / 3600 for work in works]
    table.add_row("the run, h", *(f"{h:.1f}" for h in hours))
    device_hours = [h * work.devices for h, work in zip(hours, works, strict=True)]
    table.add_row("the run, device hours", *(f"{h:.0f}" for h in device_hours))
    if price := works[0].cfg.plan.price:
        table.add_row(f"the run, money (plan.price={price:g})", *(f"{h * price:,.2f}" for h in device_hours))
    return table


def advice(work: Work, device: Device) -> str:
    """Say whether a run fits its devices; if not, name the smallest change with which it fits, or say there is none."""
    on, needed = f"{work.devices} {device.name}", memory(work, device)
    if problem := _problem(work.cfg):
        return f"{on}: {problem}"
    sure = SURE * device.memory
    if needed["peak"] <= sure:
        return f"{on}: fits"
    largest = max((part for part in needed if part not in ("peak", "reserved")), key=needed.__getitem__)
    needed_gb = f"{needed['peak'] / 1e9:.0f} GB"
    over = f"{needed_gb} do not fit {device.memory / 1e9:.0f}"
    tight = f"tight: {needed_gb} are {needed['peak'] / device.memory:.0%} of its memory, and an estimate may be low"
    message = f"{on}: {tight if needed['peak'] <= device.memory else over}; the most are its {largest}"
    for settings in changes(work):
        other = changed(work, settings)
        if memory(other, device)["peak"] <= sure and not _problem(other.cfg):
            devices = [f"trainer.devices={work.devices}"] if work.devices > 1 else []
            keys = [*devices, *(f"{key}={shown(value)}" for key, value in settings)]
            return f"{message}; it fits with {' '.join(keys)}"
    return f"{message}; no setting of one key or a few fits it"


def _problem(cfg: Config) -> str:
    """Return why a config cannot be run, whatever the machine; "" where it can."""
    try:
        check_anywhere(cfg)
    except UserError as error:
        return str(error)
    return ""


def changes(work: Work) -> Iterator[list[Setting]]:
    """Yield settings that take less memory, first those that change least and leave the result as it is."""
    cfg = work.cfg
    micro, rows = cfg.trainer.micro_batch_size, cfg.rollout.at_once
    # The value as it is, then others; the last keys change least.
    options: dict[str, list[object]] = {
        "model.load_in_4bit": [cfg.model.load_in_4bit, *([True] if cfg.rollout.in_place else [])],
        "model.lora_rank": [cfg.model.lora_rank, 32],
        "trainer.strategy": [cfg.trainer.strategy, *(["fsdp"] if work.devices > 1 else [])],
        "model.gradient_checkpointing": [cfg.model.gradient_checkpointing, True],
        "rollout.batch_size": [rows // by for by in (1, 2, 4, 8) if rows // by],
        "trainer.micro_batch_size": [micro // by for by in (1, 2, 4, 8, 16) if micro // by],
    }
    _, *places = product(*(range(len(values)) for values in options.values()))
    for chosen in sorted(places, key=lambda place: (*place[:4], place[4] + place[5])):
        settings = [(key, options[key][place]) for key, place in zip(options, chosen, strict=True) if place]
        yield settings[::-1]


def changed(work: Work, settings: Sequence[Setting]) -> Work:
    cfg = work.cfg
    for key, value in settings:
        group, _, name = key.partition(".")
        cfg = replace(cfg, **{group: replace(getattr(cfg, group), **{name: value})})
    return replace(work, cfg=cfg)
