"""A run directory: config, metrics, checkpoints, completions, and the summary that other programs read."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from expo.config import Config, arm_identity, data_content, identity, make_folder, run_dir, run_id, run_mark
from expo.config.key import shown
from expo.config.own_code import changed_code, own_code
from expo.data.account import Account
from expo.ground.files import CHECKOUT, LOCK, beside, check_links, clear, locked, remove, sweep, version_of
from expo.runs.reading import read_summary

FINISHED, AGAIN = "is finished already", "fresh=true makes it again"
PACKAGES = ("expo", "torch", "transformers", "lightning", "hydra-core", "math-verify")


@dataclass
class Run:
    """One run of one config in its directory. `metrics` are those of the last evaluation."""

    cfg: Config
    dir: Path
    command: str = "train"
    started: float = field(default_factory=time.monotonic)
    earlier_s: float = 0.0  # wall-clock seconds of earlier sessions of the same run
    metrics: dict[str, float] = field(default_factory=dict)
    collapses: list[dict[str, Any]] = field(default_factory=list)  # see `expo.runs.health`
    model_commit: str | None = None  # of a model of the hub
    code: dict[str, str] = field(default_factory=dict)  # of the user's own, with which the run began, see `own_code`
    writes: bool = True  # False in all processes of a run but the first

    # All as of when the run was found: a data file that changes meanwhile changes none of them.
    identity = cached_property(lambda run: identity(run.cfg))
    arm = cached_property(lambda run: arm_identity(run.cfg))  # the identity without the seed
    mark = cached_property(lambda run: run_mark(run.cfg, run.command))  # the end of the directory's name
    id = cached_property(lambda run: run_id(run.cfg, run.command))  # in every logger
    data = cached_property(lambda run: data_content(run.cfg))  # a hash of each local data file

    @classmethod
    def find(cls, cfg: Config, command: str = "train") -> "Run":
        """Return the run that `expo <command>` makes of this config, with earlier metrics; makes nothing yet."""
        run = cls(cfg, run_dir(cfg, command), command)
        _ = run.identity, run.arm, run.mark, run.id, run.data
        run.code = own_code(cfg)
        if not cfg.fresh:
            earlier = run.summary()
            run.earlier_s, run.metrics = earlier.get("wall_s", 0.0), earlier.get("metrics", {})
        return run

    @property
    def code_mark(self) -> str:
        """Return a short mark of what judges: expo's version and the user's own code."""
        judging = [version_of("expo") or CHECKOUT, sorted(self.code.items())]
        return hashlib.sha256(json.dumps(judging).encode()).hexdigest()[:8]

    @property
    def finished(self) -> bool:
        """Return whether the run is done, with metrics in its summary."""
        summary = self.summary()
        return not self.cfg.fresh and summary.get("status") == "done" and bool(summary.get("metrics"))

    @property
    def finished_line(self) -> str:
        """Return the message about a run that is not made again, and about what has changed since it was made."""
        summary, version = self.summary(), version_of("expo") or CHECKOUT
        made_by = summary.get("versions", {}).get("expo", version)
        files = changed_code(summary.get("own_code", {}))
        changes = [f"it was made before a change of {', '.join(files)}"] if files else []
        changes += [f"it was made by expo {made_by}, and this is {version}"] if made_by != version else []
        return "; ".join([f"{self.dir} {FINISHED}", *changes, AGAIN])

    @contextmanager
    def alone(self) -> Iterator[list[IO[str]]]:
        """Wait until no other process works on this very run, and keep others waiting. The caller has to find the
        directory again: another process may have made it meanwhile.

        Gives the locked files: a process that has them open keeps the locks, too.
        """
        locks, message = Path(self.cfg.output_dir, ".locks"), f"{self.dir}: waiting for the process that works on it"
        make_folder(locks, "output_dir")
        # By the run's mark, not its name: two names may mean one run, whose directory is not made yet.
        with locked(locks / f"{self.command}-{self.mark}", message) as of_mark:
            directory = run_dir(self.cfg, self.command, self.mark)
            make_folder(directory, "output_dir")
            with locked(directory / LOCK, message) as of_directory:
                assert of_mark is not None
                assert of_directory is not None
                try:
                    yield [of_mark, of_directory]
                finally:
                    if not directory.is_symlink() and os.listdir(directory) == [LOCK]:  # it has not begun
                        remove(directory)

    def begin(self) -> None:
        """Make the directory and write config.yaml. With `fresh`, empty it: old checkpoints would be resumed from."""
        if self.cfg.fresh and self.dir.is_dir():
            clear(self.dir)
        self.enter()
        self.write_config()

    def enter(self) -> None:
        """Make the directory, or enter an existing one. Raises UserError where a link in it leads elsewhere."""
        make_folder(self.dir, "output_dir")
        check_links(self.dir)
        sweep(self.dir)

    def write_config(self) -> None:
        with beside(self.dir / "config.yaml") as partial:
            OmegaConf.save(OmegaConf.structured(self.cfg), partial)

    def keep_account(self, account: Account) -> None:
        """Write data.json, and print the account of the rows that were read; generated data has none."""
        unread = {
            f"dataset.{key}={shown(value)}": remedy
            for key, remedy in self.cfg.dataset.unread(self.command).items()
            if (value := getattr(self.cfg.dataset, key)) is not None and key != "part"
        }
        with beside(self.dir / "data.json") as partial:
            partial.write_text(json.dumps(account.record() | {"ignored": unread}, indent=1))
        account.show()
        if account.sources:
            for key, remedy in unread.items():
                print(f"{key} is not looked at: {remedy}")

    def summary(self) -> dict[str, Any]:
        return read_summary(self.dir)

    def record(self, status: str, **more: Any) -> dict[str, Any]:
        """Return the content of summary.json. `status` is done, stopped or failed."""
        return {
            "status": status,
            "identity": self.identity,
            "id": self.id,
            "arm": self.arm,
            "name": self.cfg.name,
            "seed": self.cfg.seed,
            "git": git_commit(),
            "versions": {"python": platform.python_version()}
            | {name: version_of(name) or CHECKOUT for name in PACKAGES},
            "device": device_name(),
            "wall_s": round(self.earlier_s + time.monotonic() - self.started, 1),
            "metrics": self.metrics,
            **({"data": self.data} if self.data else {}),
            **({"own_code": self.code} if self.code else {}),
            **({"collapses": self.collapses} if self.collapses else {}),
            **({"model_commit": self.model_commit} if self.model_commit else {}),
            **more,
        }

    def write_summary(self, status: str, **more: Any) -> None:
        """Write summary.json of this status, in the process that writes."""
        if self.writes:
            self.write(self.record(status, **more))

    def write(self, record: Mapping[str, Any]) -> None:
        """Write summary.json. `done` is written last: what fails after it would not be made again."""
        with beside(self.dir / "summary.json") as partial:
            partial.write_text(json.dumps(record, indent=1))


def git_commit(*folders: str) -> str | None:
    """Return the commit of the checkout that expo runs from; None for an installed wheel.

    It ends in `-dirty` where expo's code, its configs, or further `folders` of the checkout differ. Rendered tables are
    in the checkout, too, and make no run another one.
    """
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    done = subprocess.run([*git, "describe", "--always", "--abbrev=10"], capture_output=True, text=True, check=False)
    code = [*git, "diff", "--quiet", "HEAD", "--", *(f":(top){folder}" for folder in ("expo", "conf", *folders))]
    dirty = done.stdout and subprocess.run(code, capture_output=True, check=False).returncode
    return (done.stdout.strip() + ("-dirty" if dirty else "")) or None


def device_name() -> str:
    """Return the GPU's name, or the processor with its cores and torch's threads."""
    import torch  # seconds that reading a run back does not need

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    name = next(iter(names), platform.processor() or platform.machine())
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
