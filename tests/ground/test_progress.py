"""Progress of what takes minutes, where nobody watches a terminal."""

from dataclasses import replace

import torch

from expo.config import RolloutConf
from expo.ground import progress
from expo.model.scoring import token_batch, token_logp
from expo.rollout.engine import Request, Sampling
from expo.rollout.noise import EVALUATE, NoiseKey
from expo.rollout.transformers_engine import TransformersEngine


def test_an_engine_says_how_far_it_is_where_a_command_asks_for_it(ladder, monkeypatch, capsys):
    model, tokenizer, _ = ladder
    clock = iter(range(0, 10**6, 30))  # seconds, by looks at it
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    engine = TransformersEngine(replace(RolloutConf(), batch_size=2), model, tokenizer)
    requests = [Request((5, 6), NoiseKey(0, EVALUATE, 0, i)) for i in range(4)]
    sampling = Sampling(1.0, 1.0, 0, 4)
    quiet = engine.generate(requests, sampling)
    assert capsys.readouterr().out == ""
    with progress.telling("own CoT"):
        assert engine.generate(requests, sampling) == quiet
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("own CoT: ") and " of 4 completions" in line for line in lines)
    assert "own CoT: 2 of 4 completions, at most " in "".join(lines)
    engine.generate(requests, sampling)
    assert capsys.readouterr().out == ""


def test_time_left_is_what_the_rest_takes_at_this_pace(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.telling("problems 1 to 8 of 8"), progress.counting(32) as at:
        for now[0], done in ((10, 1), (60, 8), (90, 9), (120, 24), (130, 32)):
            at(done)
    assert capsys.readouterr().out == (
        "problems 1 to 8 of 8: 8 of 32 completions, at most 3 min left\n"
        "problems 1 to 8 of 8: 24 of 32 completions, at most 1 min left\n"
    )


def test_scoring_says_how_far_it_is_where_a_command_asks_for_it(ladder, monkeypatch, capsys):
    model, tokenizer, _ = ladder
    clock = iter(range(0, 10**6, 61))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    batch = token_batch([[5, 6]] * 4, [[7, 8, 9]] * 4, tokenizer.pad_token_id, torch.device("cpu"))
    quiet = token_logp(model, batch, 2)
    assert capsys.readouterr().out == ""
    with progress.telling("likelihood"):
        assert torch.equal(token_logp(model, batch, 2), quiet)
    assert "likelihood: 2 of 4 completions, at most " in capsys.readouterr().out
