"""A stand-in for W&B's server: as much of its GraphQL and file stream as wandb-core asks for when it starts, logs and
resumes a run.

It keeps what it is sent, and knows nothing else: no users, no sweeps, no checks. Artifacts are taken as known already,
so that no file of theirs is sent.
"""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from conftest import ROOT

KEY = "a" * 40  # of the length that wandb takes for a key
STREAMS = ("wandb-history.jsonl", "wandb-events.jsonl", "output.log")


@dataclass
class ServerRun:
    """A run as the server keeps it."""

    name: str
    config: str = "{}"
    summary: str = "{}"
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    files: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))  # line by offset
    sessions: int = 0  # how often it was started or resumed
    exit_code: int | None = None

    def lines(self, file: str) -> list[str]:
        return [line for _, line in sorted(self.files[file].items())]

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines("wandb-history.jsonl")]

    @property
    def steps(self) -> list[int]:
        return [line["_step"] for line in self.history]


class WandbServer:
    """The server, in threads of its own on a free port. `stop` and `start` make it gone for a while: it forgets
    nothing."""

    def __init__(self) -> None:
        self.runs: dict[str, ServerRun] = {}
        self.views: list[dict[str, Any]] = []  # variables of what was saved as a view: workspaces and reports
        self.unknown: list[str] = []  # GraphQL operations that it has no answer to
        self.port = 0
        self.http: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to take it for W&B."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "WANDB_SILENT": "true"}

    def start(self) -> None:
        class Handler(_Handler):
            server_of = self

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        assert self.http is not None
        self.http.shutdown()
        self.http.server_close()
        self.http = None

    # GraphQL operations, by name.

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        operation = re.search(r"(?:query|mutation)\s*(\w*)", query)[1]
        known = getattr(self, f"on_{operation}", None)
        if known is None:
            self.unknown.append(operation)
            return {}
        return known(variables)

    def on_Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}

    def on_ServerFeaturesQuery(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def on_OrganizationCoreWeaveOrganizationID(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"entity": None}

    def on_RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(variables["name"])
        model = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}, "bucket": None}
        if run is not None:
            count = {stream: len(run.files[stream]) for stream in STREAMS}
            model["bucket"] = {
                "id": run.name, "name": run.name, "summaryMetrics": run.summary, "displayName": run.name,
                "logLineCount": count["output.log"], "historyLineCount": count["wandb-history.jsonl"],
                "eventsLineCount": count["wandb-events.jsonl"], "config": run.config, "tags": run.tags, "notes": None,
                "historyTail": json.dumps(run.lines("wandb-history.jsonl")[-1:]), "wandbConfig": '{"t": 1}',
                "eventsTail": json.dumps(run.lines("wandb-events.jsonl")[-1:]),
            }  # fmt: skip
        return {"model": model}

    def on_UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.setdefault(variables["name"], ServerRun(variables["name"]))
        run.config = variables.get("config") or run.config
        run.summary = variables.get("summaryMetrics") or run.summary
        run.group = variables.get("groupName") or run.group
        run.job_type = variables.get("jobType") or run.job_type
        run.tags = variables.get("tags") or run.tags
        if variables.get("displayName"):  # of the first of a session, not of an update
            run.sessions += 1
        project = {"id": "p", "name": variables.get("project") or "expo", "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": run.name, "name": run.name, "displayName": run.name, "description": None, "config": run.config,
            "sweepName": None, "project": project, "historyLineCount": len(run.history),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": run.sessions == 1}}

    def on_CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def on_ArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"artifact": None}}

    def on_CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    # What wandb-workspaces asks for.

    def on_GetDefaultEntity(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self.on_Viewer(variables)

    def on_GetProjects(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project = {
            "id": "p", "name": "expo", "entityName": variables["entity"], "createdAt": "2026-01-01T00:00:00Z",
            "isBenchmark": False, "user": None,
        }  # fmt: skip
        edges = [{"cursor": "c", "node": project}]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def on_UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.views.append(variables)
        return {"upsertView": {"view": {"id": "v", "name": variables["name"]}, "inserted": True}}

    def on_upsertView(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.views.append(variables)
        view = {
            "id": "v",
            "name": variables["name"],
            "displayName": variables["displayName"],
            "spec": variables["spec"],
        }
        return {"upsertView": {"view": view | {"description": variables["description"]}, "inserted": True}}

    def on_ProjectInternalId(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"id": "p", "internalId": "p1"}}

    # The file stream.

    def stream(self, name: str, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        for file, chunk in (sent.get("files") or {}).items():
            if file == "wandb-summary.json":
                run.summary = chunk["content"][-1]
            else:
                run.files[file] |= dict(enumerate(chunk["content"], chunk["offset"]))
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
        return {"exitcode": None, "limits": {}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: WandbServer

    def do(self) -> None:
        data, answer = self.read(), {}
        if self.server_of.http is None:  # stopped, while this connection was open
            self.close_connection = True
            return
        if self.path == "/graphql":
            request = json.loads(data)
            answer = {"data": self.server_of.answer(request["query"], request.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            answer = self.server_of.stream(self.path.split("/")[-2], json.loads(data))
        out = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    do_GET = do_POST = do_PUT = do  # noqa: N815  (names of http.server)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def start(server: WandbServer, cwd: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(cwd)} | server.environment | environment
    command = [sys.executable, "-m", "expo", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def expo(server: WandbServer, cwd: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    process = start(server, cwd, *arguments, **environment)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said
