"""Refuse a config whose data, prompts and verifier do not fit each other or the model."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expo.config import Config, LadderConf, UserError
from expo.config.key import shown
from expo.config.world import CLEAR
from expo.ladder import problems as ladder
from expo.model.modes import causal_lm
from expo.verifier.extraction import extraction


def check_extraction(cfg: Config) -> None:
    """Raise UserError where the prompts ask for an answer in another place than the one where the verifier looks for
    it. What a pattern finds is asked of every row's own answer, as it is read."""
    how = cfg.verifier.extract
    places = extraction(how, cfg.prompts.final)
    if not how.startswith("regex:") and places.of(cfg.prompts.final.replace("{answer}", "7")) != "7":
        raise UserError(
            f"verifier.extract={how}: finds no answer in {cfg.prompts.final}, which is how prompts.final states one; "
            f"set \"prompts.final='{places.state}'\", or prompts=final_line verifier.extract=after:Answer:"
        )
    others = [
        mark
        for mark in ("\\boxed", "<answer>", "####")
        if mark not in places.state and mark in cfg.prompts.solve + cfg.prompts.explain
    ]
    if others and how != "whole":
        raise UserError(
            f"verifier.extract={how}: prompts.solve or prompts.explain asks for {others[0]}, where the verifier does "
            "not look; set prompts.solve and prompts.explain so that they ask for it (prompts=final_line asks for a "
            "line Answer: …)"
        )


def check_world(cfg: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a base policy of one world of the ladder in another."""
    vocabulary = tokenizer.get_vocab()
    if not isinstance(cfg.dataset, LadderConf) or any(word not in vocabulary for word in ladder.WORDS):
        return
    world, made_for = cfg.dataset.world.corpus, getattr(causal_lm(model).config, "expo_world", {})
    if world != made_for:
        name = min(name for name in {*world, *made_for} if world.get(name) != made_for.get(name))
        raise UserError(
            f"model.path={cfg.model.path}: was made for another world of the ladder: dataset.world.{name} is "
            f"{shown(getattr(cfg.dataset.world, name))} here, {shown(made_for.get(name, getattr(CLEAR, name)))} there; "
            "make one with expo pretrain and these keys of dataset.world"
        )
