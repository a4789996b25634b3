"""A hub that does not answer is told in seconds, before anything starts."""

import http.server
import os
import socket
import threading

import pytest
from conftest import compose_config

from expo.commands import doctor
from expo.commands.plan import plan
from expo.config import UserError
from expo.runs import hub

FROM_HUB = ["model=hf", "model.path=some/model"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(hub.ASKED, "")
    hub.unreachable.cache_clear()
    yield
    hub.unreachable.cache_clear()


@pytest.fixture
def silent(monkeypatch):
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "LIMIT_S", 0.2)
        yield


@pytest.fixture
def answering(monkeypatch):
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()


def test_a_silent_hub_is_told_with_the_key(silent):
    with pytest.raises(
        UserError,
        match=r"model.path=some/model: not in the local cache, and the hub cannot be reached .*no answer within",
    ):
        hub.ask_hub([compose_config(*FROM_HUB)])
    with pytest.raises(UserError, match=r"dataset.hub_id=EleutherAI/hendrycks_math: not in the local cache"):
        hub.ask_hub([compose_config("dataset=math", "model=ladder")])


def test_a_refused_connection_is_told(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="Connection refused"):
        hub.ask_hub([compose_config(*FROM_HUB)])


def test_a_plan_asks_for_the_model_alone_and_only_where_its_shape_is_not_known(silent):
    with pytest.raises(UserError, match=r"model.path=some/model: not in the local cache"):
        plan(compose_config(*FROM_HUB, "dataset=math"))
    with pytest.raises(UserError, match=r"model.path=9B: no shape that is known; use one of 0.5B"):
        plan(compose_config("model=random_shape", "model.path=9B", "dataset=math"))
    assert plan(compose_config("model=qwen2.5-3b-instruct", "dataset=math", "plan.devices=[1]")) == 0


def test_what_needs_no_hub_asks_nobody(silent, math_file):
    for overrides in (["model=ladder"], ["model=random_tiny", "dataset=math", f"dataset.path={math_file}"]):
        hub.ask_hub([compose_config(*overrides)])
    scored = compose_config("model=random_tiny", "dataset=math", f"dataset.eval_path={math_file}")
    hub.ask_hub([], [scored])
    assert hub.unreachable.cache_info().misses == 0


def test_what_reads_the_hub_for_another_part_asks(silent, math_file):
    evaluated = ["model=random_tiny", "dataset=math", f"dataset.eval_path={math_file}"]
    for trained, scored in (([evaluated], []), ([], [[*evaluated, "dataset.part=train"]]), ([], [evaluated[:2]])):
        with pytest.raises(UserError, match=r"dataset.hub_id=EleutherAI/hendrycks_math: not in the local cache"):
            hub.ask_hub([compose_config(*o) for o in trained], [compose_config(*o) for o in scored])


def test_the_hub_is_asked_once_for_many_runs(answering):
    hub.ask_hub([compose_config(*FROM_HUB)] * 3)
    hub.ask_hub([compose_config(*FROM_HUB)])
    assert answering == ["/"]
    assert os.environ[hub.ASKED] == "1"  # the runs of a sweep need not ask again


def test_what_is_cached_is_used_without_the_hub(silent, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "_cached_model", lambda hub_id: True)
    hub.ask_hub([compose_config(*FROM_HUB)])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert huggingface_hub.constants.HF_HUB_OFFLINE


def test_the_doctor_says_it(silent):
    (found,) = [f for f in doctor.accounts() if "cannot be reached" in f.found]
    assert (found.what, found.state) == ("hugging face", doctor.NOTE)
