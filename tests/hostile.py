"""Hostile run directories × commands: what others may have left, beside a good run, and every command that reads it.

    python tests/hostile.py [only=NAME] [pairs=N] [minutes=M] [seed=0]

N of all pairs, or as many as fit into M minutes, drawn by the seed: first each directory once, with the commands in
turn.

Each pair must end within seconds and little memory, with exit code 0 or 2 (1: a W&B server that is not there), without
a stack trace, in one
line where it is refused; it runs nothing of the directory and writes nothing outside; and `expo runs` must list the
good run beside.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

from faults import launch, wait

LONGEST_S = 40
MOST = 2 * 2**30  # bytes of memory beyond what the imports take
TINY = ["train", "algorithm=grpo", "dataset=ladder", "debug=tiny", "logger=none", "output_dir=out"]
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


def text(name: str, value: str | bytes) -> Callable[[Path], None]:
    """Return what replaces a file of the run."""
    return lambda run: (run / name).write_bytes(value if isinstance(value, bytes) else value.encode())  # type: ignore[return-value]


def more(name: str, value: str) -> Callable[[Path], None]:
    """Return what stands at the end of a file of the run."""

    def change(run: Path) -> None:
        with (run / name).open("a") as file:
            file.write(value)

    return change


def summary(**values: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(*names: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        path = run / "summary.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in names}))

    return change


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Return what puts something else in the place of a file or folder."""

    def change(run: Path) -> None:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        make(path)

    return change


def setting(key: str, value: str) -> Callable[[Path], None]:
    """Return what gives a top-level part of config.yaml another value."""

    def change(run: Path) -> None:
        import yaml

        path = run / "config.yaml"
        tree = yaml.safe_load(path.read_text())
        *groups, name = key.split(".")
        node = tree
        for group in groups:
            node = node[group]
        node[name] = "PLACE"
        path.write_text(yaml.safe_dump(tree).replace("PLACE", value))

    return change


def each(pattern: str, content: bytes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for path in run.glob(pattern):
            path.write_bytes(content)

    return change


SHAPES = {"null": None, "list": [1], "text": "x", "number": 7, "NaN": float("nan"), "deep": {"a": {"b": [None]}}}
HOSTILE: dict[str, Callable[[Path], None]] = {
    # YAML
    "yaml: aliases": text("config.yaml", BOMB),
    "yaml: recursion": text("config.yaml", "a: &a [*a]\n"),
    "yaml: own mapping": text("config.yaml", "&a {a: *a}\n"),
    "yaml: not UTF-8": text("config.yaml", b"\xff\xfe\x80name: x"),
    "yaml: a text": text("config.yaml", "just text"),
    "yaml: a list": text("config.yaml", "[1, 2]"),
    "yaml: empty": text("config.yaml", ""),
    "yaml: python": text("config.yaml", "a: !!python/object/apply:os.system ['touch hacked']"),
    "yaml: interpolation": setting("name", "${oc.env:HOME}"),
    "yaml: many brackets": text("config.yaml", "a: " + "[" * 50_000),
    "yaml: many maps": text("config.yaml", "{a: " * 50_000),
    "yaml: 40 MiB": text("config.yaml", "a: x\n" + "# " + "x" * 40 * 2**20),
    "yaml: a date": setting("name", "2026-01-01"),
    "yaml: bytes": setting("name", "!!binary aGVsbG8="),
    "yaml: a set": setting("name", "!!set {a, b}"),
    "yaml: numbers as keys": more("config.yaml", "1: 2\n3.5: 4\nnull: 5\n"),
    "yaml: a list as key": more("config.yaml", "? [a, b]\n: c\n"),
    "yaml: twice": more("config.yaml", "name: other\n"),
    "yaml: two documents": more("config.yaml", "---\na: b\n"),
    "yaml: tabs": more("config.yaml", "\t\tx: y\n"),
    "yaml: NUL": more("config.yaml", "x: \0\n"),
    "yaml: a fifo": instead("config.yaml", os.mkfifo),
    "yaml: a folder": instead("config.yaml", Path.mkdir),
    "yaml: a link to zeros": instead("config.yaml", lambda p: p.symlink_to("/dev/zero")),
    "yaml: a link to itself": instead("config.yaml", lambda p: p.symlink_to(p)),
    **{
        f"config: {key} is {name}": setting(key, value)
        for key in (
            "name",
            "seed",
            "dataset",
            "dataset.name",
            "dataset.path",
            "model",
            "model.path",
            "k",
            "trainer.max_steps",
            "differs",
            "output_dir",
        )
        for name, value in {
            "a list": "[[1], {a: b}]",
            "null": "null",
            "10^400": "1" + "0" * 400,
            "an empty map": "{}",
            "markup": "'[/red][link=x]\\e[2J'",
        }.items()
    },
    # summary.json
    **{
        f"summary: {key} is {name}": summary(**{key: value})
        for key in ("status", "metrics", "wall_s", "seed", "versions", "data", "collapses", "name")
        for name, value in SHAPES.items()
    },
    **{
        f"summary: a metric is {name}": summary(metrics={"pass@1": value, "pass@1_lo": value, "pass@1_hi": 1})
        for name, value in SHAPES.items()
    },
    "summary: 10^400": text(
        "summary.json", '{"status": "done", "name": "x", "seed": 0, "metrics": {"pass@4": 1' + "0" * 400 + "}}"
    ),
    "summary: 1e400": text(
        "summary.json", '{"status": "done", "name": "x", "seed": 0, "metrics": {"pass@4": 1e400}, "wall_s": 1e400}'
    ),
    "summary: 10^5000": text("summary.json", '{"seed": 1' + "0" * 5000 + "}"),
    "summary: half an interval": summary(metrics={"pass@1": 0.5, "pass@1_lo": 0.1}),
    "summary: a long name of a metric": summary(metrics={"pass@" + "9" * 6000: 0.5}),
    "summary: other digits": summary(metrics={"pass@²": 0.5, "pass@٣": 0.5}),
    "summary: nothing": text("summary.json", "{}"),
    "summary: empty": text("summary.json", ""),
    "summary: half": text("summary.json", '{"status": "do'),
    "summary: not UTF-8": text("summary.json", b"\xff\xfe{}"),
    "summary: a list": text("summary.json", "[1]"),
    "summary: many brackets": text("summary.json", "[" * 200_000),
    "summary: 40 MiB": text("summary.json", '{"a": "' + "x" * 40 * 2**20 + '"}'),
    "summary: a fifo": instead("summary.json", os.mkfifo),
    "summary: a folder": instead("summary.json", Path.mkdir),
    "summary: a link to zeros": instead("summary.json", lambda p: p.symlink_to("/dev/zero")),
    "summary: markup": summary(name="[/red]", device="[link=x]y", git="\x1b[2J", reason="[/]"),
    **{
        f"summary: no {key}": without(key)
        for key in ("status", "name", "seed", "metrics", "git", "device", "versions", "wall_s", "identity", "problems")
    },
    # metrics.jsonl
    "metrics: a line of 200 MiB": instead(
        "metrics.jsonl", lambda p: p.write_text('{"step": 1, "x": "' + "x" * 200 * 2**20)
    ),
    "metrics: other shapes": more(
        "metrics.jsonl", '{"step": 9, "reward/mean": "x"}\n{"step": 9, "loss/total": [1]}\n{"step": true}\n[1]\n7\n'
    ),
    "metrics: large numbers": more(
        "metrics.jsonl", '{"step": 1' + "0" * 400 + '}\n{"step": 9, "reward/mean": 1' + "0" * 400 + "}\n"
    ),
    "metrics: NaN": more("metrics.jsonl", '{"step": 9, "reward/mean": NaN, "pass@4": Infinity}\n'),
    "metrics: not UTF-8": more("metrics.jsonl", "\udcff" if False else "\x80\n"),
    "metrics: a fifo": instead("metrics.jsonl", os.mkfifo),
    "metrics: a folder": instead("metrics.jsonl", Path.mkdir),
    "metrics: negative steps": more("metrics.jsonl", '{"step": -5, "reward/mean": 1}\n'),
    # other files
    "data.json: other shapes": text("data.json", '{"sources": 7, "parts": []}'),
    "data.json: many brackets": text("data.json", "[" * 200_000),
    "data.json: a fifo": instead("data.json", os.mkfifo),
    "report.html: a folder": instead("report.html", Path.mkdir),
    "report.html: a fifo": instead("report.html", os.mkfifo),
    "completions: garbage": each("completions/*.parquet", b"PAR1 garbage PAR1"),
    "completions: empty": each("completions/*.parquet", b""),
    "completions: a fifo": instead("completions/eval-step000002.parquet", os.mkfifo),
    "completions: a folder": instead("completions/eval-step000002.parquet", Path.mkdir),
    "completions: a file": instead("completions", lambda p: p.write_text("x")),
    "completions: other columns": lambda run: [_table(path, [{"x": 1}]) for path in run.glob("completions/*.parquet")],  # type: ignore[return-value,func-returns-value]
    "completions: other kinds": lambda run: [
        _table(
            path,
            [
                {
                    "problem": [1],
                    "verdict": 5,
                    "level": "x",
                    "question": None,
                    "answer": 2.5,
                    "completion": None,
                    "positive": 3,
                    "subject": 4,
                }
            ],
        )
        for path in run.glob("completions/*.parquet")
    ],  # type: ignore[return-value,func-returns-value]
    "completions: far steps": lambda run: shutil.copy(
        next(run.glob("completions/eval*")), run / f"completions/eval-step{'9' * 50}.parquet"
    ),  # type: ignore[return-value,func-returns-value]
    "model: auto_map": lambda run: _model(
        run, auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}, model_type="evil"
    ),
    "model: config is a list": text("checkpoints/final/config.json", "[1]"),
    "model: config of many brackets": text("checkpoints/final/config.json", "[" * 200_000),
    "model: adapter is a list": text("checkpoints/final/adapter_config.json", "[1]"),
    "model: weights are garbage": text("checkpoints/final/model.safetensors", b"\xff" * 1000),
    "model: a fifo": instead("checkpoints/final/config.json", os.mkfifo),
    "model: a file": instead("checkpoints/final", lambda p: p.write_text("x")),
    "checkpoints: a file": instead("checkpoints", lambda p: p.write_text("x")),
    "checkpoints: garbage": lambda run: (run / "checkpoints/step000009.ckpt").write_bytes(b"x" * 1000),  # type: ignore[return-value]
    "checkpoints: a fifo": lambda run: os.mkfifo(run / "checkpoints/step000009.ckpt"),
    "wandb: garbage": lambda run: _offline(run, b":W&B\0\0\0" + b"\xff" * 40_000),
    "wandb: empty": lambda run: _offline(run, b""),
    "wandb: another file": lambda run: _offline(run, b"hello"),
    "wandb: a fifo": lambda run: _offline(run, None),
    "lock: a fifo": instead(".lock", os.mkfifo),
    "lock: a folder": instead(".lock", Path.mkdir),
}


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.Table.from_pylist(rows), path)


def _model(run: Path, **values: Any) -> None:
    folder = run / "checkpoints" / "final"
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    (folder / "evil.py").write_text("import os\nos.system('touch hacked')\nclass Evil: pass\n")
    summary(final=None)(run)
    without("final")(run)


def _offline(run: Path, content: bytes | None) -> None:
    folder = run / "wandb" / "offline-run-20260101_000000-x"
    folder.mkdir(parents=True)
    if content is None:
        os.mkfifo(folder / "run-x.wandb")
    else:
        (folder / "run-x.wandb").write_bytes(content)


def commands(run: str, good: str) -> dict[str, list[str]]:
    return {
        "runs": ["runs", "output_dir=out"],
        "runs --json": ["runs", "output_dir=out", "--json", "sort=-pass@4", "trainer.max_steps>=1"],
        "runs show": ["runs", "show", run],
        "runs diff": ["runs", "diff", run, good],
        "runs rm": ["runs", "rm", run],
        "runs gc": ["runs", "gc", "output_dir=out"],
        "report": ["report", run, good, "output=page.html"],
        "report alone": ["report", run],
        "compare": ["compare", run, good],
        "export": ["export", run, "output=exported"],
        "evaluate": [
            "evaluate",
            f"run={run}",
            "dataset.eval_limit=2",
            "k=[1]",
            "logger=none",
            "rollout.max_completion_tokens=4",
        ],
        "train": ["train", f"run={run}", "trainer.stop_after=1", "logger=none"],
        "config": ["train", f"run={run}", "--cfg", "job"],
        "wandb sync": ["wandb", "sync", "out"],
    }


def limited() -> None:
    """Limit the memory of a process, and let it read nothing from the terminal but a yes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST, used + MOST))
    reading, writing = os.pipe()
    os.write(writing, b"y\n" * 100)
    os.dup2(reading, 0)


def pair(folder: Path, name: str, command: list[str], log: Path, codes: tuple[int, ...] = (0, 1, 2)) -> str:
    """Run one command in the folder. Returns what is wrong; "" where nothing is. Args: codes, exit codes that it may
    end with."""
    pid = launch(command, folder, log, limited)
    code = wait(pid, time.monotonic() + LONGEST_S)
    if code is None:
        os.kill(pid, 9)
        wait(pid)
        return "hangs"
    said = log.with_suffix(".err").read_text(errors="replace").splitlines()
    out = log.with_suffix(".out").read_text(errors="replace")
    if any(line.startswith("Traceback") for line in said) or code < 0:
        return f"stack trace, exit code {code}: {said[-1] if said else ''}"
    if code not in codes or (code and not any(line.startswith("expo: ") for line in said)):
        return f"exit code {code}: {said[-1:]}"
    if list(folder.rglob("hacked")):
        return "ran its code"
    if name == "runs" and "a-good-run" not in out:
        return "the good run is not listed"
    return ""


def drawn(names: list[str], lines: list[str], seed: int) -> list[tuple[str, str]]:
    """Return all pairs in the order of a seed: first each directory once, with the commands in turn."""
    rng = random.Random(seed)
    rng.shuffle(names)
    rng.shuffle(lines)
    first = [(name, lines[number % len(lines)]) for number, name in enumerate(names)]
    rest = [(name, line) for name in names for line in lines]
    rng.shuffle(rest)
    return list(dict.fromkeys(first + rest))


def main() -> int:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    from expo.jobs.fit import make_run  # noqa: F401

    root = Path(tempfile.mkdtemp(prefix="hostile-"))  # TemporaryDirectory would remove it at the end of each fork
    first = root / "first"
    first.mkdir()
    assert wait(launch(TINY, first, root / "first")) == 0, (root / "first.err").read_text()
    (made,) = (path.parent for path in first.glob("out/*/*/summary.json"))
    folder, log = root / "trial", root / "trial"
    good = folder / "out" / "ladder" / f"a-good-run-s0-{'0' * 10}"
    run = folder / "out" / "ladder" / made.name
    lines = commands(str(run.relative_to(folder)), str(good.relative_to(folder)))
    pairs = drawn(
        [name for name in HOSTILE if options.get("only", "") in name], list(lines), int(options.get("seed", 0))
    )
    pairs = pairs[: int(options.get("pairs", len(pairs)))]

    def lay_out() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, good)
        shutil.copytree(made, run)
        for stream in ("out", "err"):
            log.with_suffix(f".{stream}").unlink(missing_ok=True)

    for command in lines:  # a run that no command reads would pass everything
        lay_out()
        assert not (wrong := pair(folder, command, lines[command], log, (0,))), f"a good run × {command}: {wrong}"
    failed, tried, end = 0, 0, time.monotonic() + 60 * float(options.get("minutes", "inf"))
    for name, command in pairs:
        if time.monotonic() > end:
            break
        tried += 1
        lay_out()
        HOSTILE[name](run)
        if wrong := pair(folder, command, lines[command], log):
            failed += 1
            print(f"{tried}: {name} × {command}: {wrong}", flush=True)
    print(
        json.dumps({"directories": len(HOSTILE), "commands": len(lines), "tried": tried, "failed": failed}),
        flush=True,
    )
    shutil.rmtree(root)
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
