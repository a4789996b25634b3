"""No secret of the environment is in anything that a command leaves or says."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from faults import PLAN

CANARIES = {
    "OPENAI_API_KEY": "canary-openai-7f3a1c",
    "HF_TOKEN": "hf_canary7f3a2c",
    "WANDB_API_KEY": "ca4a" * 10,
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-7f3a4c",
    "MLFLOW_TRACKING_USERNAME": "canary-user-7f3a5c",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-7f3a6c",
    "MY_OWN_SECRET": "canary-own-7f3a7c",
}
SMALL = [
    "dataset=ladder",
    "dataset.levels=[1]",
    "dataset.limit=20",
    "dataset.eval_limit=2",
    "trainer.max_steps=1",
    "trainer.problems_per_step=2",
    "evaluation.every=0",
    "k=[1]",
    "rollout.max_completion_tokens=64",
]

KEYS = []  # that the judge was asked with


class Judge(BaseHTTPRequestHandler):
    """Answers, and keeps the key that it was sent."""

    def do_POST(self):
        KEYS.append(self.headers["Authorization"])
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": "right: 1, wrong: 1"}}]}).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def judge():
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def holding(secret, files):
    return [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_no_command_leaves_or_says_a_secret(tmp_path, judge, math_file):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.yaml").write_text(PLAN)
    said = []

    def expo(*arguments: str, code: int = 0) -> None:
        line = [sys.executable, "-m", "expo", *arguments]
        done = subprocess.run(
            line, cwd=tmp_path, env=os.environ | CANARIES, capture_output=True, text=True, check=False
        )
        said.append(done.stdout + done.stderr)
        assert done.returncode == code, (arguments, said[-1])

    expo("train", "algorithm=grpo", *SMALL, "logger=wandb", "logger.wandb.mode=offline")
    for logger in ("tensorboard", "csv", "mlflow"):
        expo("train", "algorithm=sft", *SMALL, f"logger={logger}", "seed=1", f"name={logger}")
    (run,) = tmp_path.glob("outputs/ladder/grpo-*")
    expo("evaluate", f"run={run}")
    asked = [f"diagnose.judge.base_url={judge}", "diagnose.judge.model=m", "prompts.judge='{completion}'"]
    short = ["dataset.eval_limit=2", "rollout.max_completion_tokens=64", "logger=none"]
    mine = [*short, "dataset=math", f"dataset.path={math_file}", "model=random_tiny"]
    expo("diagnose", *mine, "diagnose.problems=1", "diagnose.samples=1", *asked)
    assert f"Bearer {CANARIES['OPENAI_API_KEY']}" in KEYS, "the judge must have been asked with the key"
    expo("table", "plan/plan.yaml", *SMALL)
    expo("report", str(run))
    expo("report", "plan/plan.yaml", *SMALL)
    expo("export", str(run))
    expo("runs")
    expo("runs", "show", str(run))
    expo("doctor")
    expo("wandb", "sweep", "plan/plan.yaml")
    expo("train", "algorithm=grpo", *SMALL, "dataset.name=${oc.env:MY_OWN_SECRET}/x", code=2)
    expo("train", "algorithm=grpo", *SMALL, "model=hf", "model.path=no/such-model", code=2)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 60
    assert any(path.suffix == ".wandb" for path in files)
    (tmp_path / "found").write_text(f"a {CANARIES['HF_TOKEN']} b")
    assert holding(CANARIES["HF_TOKEN"], [*files, tmp_path / "found"]) == [tmp_path / "found"]
    for name, secret in CANARIES.items():
        assert holding(secret, files) == [], name
        typed = name == "MY_OWN_SECRET"  # who types an interpolation is told what it comes to
        assert [text for text in said[: -2 if typed else None] if secret in text] == [], name
