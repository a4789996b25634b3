"""Run directories made by hand, as a run leaves them; and what `expo runs` says of them."""

import json

import pytest
from conftest import compose_config
from omegaconf import OmegaConf

from expo.cli import main
from expo.config import arm_identity, identity, run_dir, run_id


def leave(root, *overrides, status="done", score=0.5, steps=2, wall_s=75.0):
    cfg = compose_config(f"output_dir={root}", *overrides)
    folder = run_dir(cfg)
    (folder / "checkpoints" / "final").mkdir(parents=True)
    (folder / "checkpoints" / "step000001.ckpt").write_bytes(b"x" * 2**20)
    OmegaConf.save(OmegaConf.structured(cfg), folder / "config.yaml")
    metrics = {"pass@1": score / 2, "pass@4": score, "pass@4_lo": score - 0.1, "pass@4_hi": score + 0.1}
    summary = {
        "status": status, "identity": identity(cfg), "id": run_id(cfg), "arm": arm_identity(cfg), "name": cfg.name,
        "seed": cfg.seed, "git": "abc", "versions": {}, "device": "a machine", "wall_s": wall_s, "metrics": metrics,
        "step": steps,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": i + 1, "loss/total": 0.1} for i in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def expo(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["expo", "runs", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr()


def listed(monkeypatch, capsys, root, *arguments):
    code, said = expo(monkeypatch, capsys, f"output_dir={root}", "--json", *arguments)
    assert code == 0
    return [row["run"] for row in json.loads(said.out)]


def save(cfg, folder):
    """Leave what a finished run leaves of its config and its model."""
    (folder / "checkpoints" / "final").mkdir(parents=True)
    (folder / "checkpoints" / "final" / "config.json").write_text("{}")
    OmegaConf.save(OmegaConf.structured(cfg), folder / "config.yaml")
    return folder
