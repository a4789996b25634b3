"""The model card of a finished run, in the hub's form: what the model is, how it was made, what was measured."""

import textwrap
from typing import Any

import yaml

from expo.config import Config
from expo.config.model import PACKAGED, is_gguf, looks_local


def model_card(cfg: Config, summary: dict[str, Any], adapter: bool, gguf: str = "", exported: bool = False) -> str:
    """Return README.md of a model folder.

    Args: summary, the run's summary.json; adapter, whether the folder has an adapter alone; gguf, the file that the
    model's first weights are from; exported, whether the weights are others than the measured ones, if by rounding.
    """
    base, data = cfg.model.path, cfg.dataset
    front: dict[str, Any] = {"library_name": "peft" if adapter else "transformers", "tags": ["expo", cfg.name]}
    hub_id = PACKAGED[base].hub_id if base in PACKAGED else base
    if not looks_local(hub_id) and not is_gguf(hub_id) and "/" in hub_id:
        front["base_model"] = hub_id
    if data.hub_id and not data.path:
        front["datasets"] = [data.hub_id]
    metrics = summary["metrics"]
    rows = [
        f"| {name} | {100 * value:.1f} | [{100 * metrics[f'{name}_lo']:.1f}, {100 * metrics[f'{name}_hi']:.1f}] |"
        for name, value in metrics.items()
        if f"{name}_lo" in metrics
    ]
    source = data.path or data.eval_path or data.hub_id or "generated"
    version = summary.get("git") or summary["versions"]["expo"]
    rounded = ""
    if adapter and cfg.model.load_in_4bit:
        rounded = "The base was held in 4 bits (NF4, bitsandbytes) in training, and for the numbers below.\n"
    if exported:
        rounded += "The numbers below were measured before the export, which merges adapters and rounds anew.\n"
    if gguf:
        rounded += f"Its first weights are those of the GGUF file {gguf}, rounded as they are there, and plain since.\n"
    prompts, top_k = cfg.prompts, f", top_k {cfg.evaluation.top_k}" if cfg.evaluation.top_k else ""
    around = [
        *(["without a system message"] if not prompts.template_system else []),
        *([f"the system message {prompts.system!r}"] if prompts.system else []),
        *([f"{prompts.examples} worked examples before it"] if prompts.examples else []),
    ]
    asked = f"In the chat template's form, {', '.join(around)}:" if around else "In the chat template's form:"
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---
# {cfg.name} on {data.name}

`{base}`, trained by {cfg.name} for {summary["step"]} steps with seed {cfg.seed}, on {data.name} ({source}).
{rounded}Made with expo ({version}) on {summary["device"]}; identity of the run: {summary["identity"]}.

## Prompt

{asked}

{textwrap.indent(prompts.solve, "    ")}

## Measured

Held-out problems of {data.name}, after these steps, in percent, with 95 % intervals over problems. Sampled with
temperature {cfg.evaluation.temperature:g}, top_p {cfg.evaluation.top_p:g}{top_k}, at most {cfg.rollout.max_completion_tokens} tokens.

| | | 95 % interval |
|---|---|---|
{chr(10).join(rows)}

The numbers are those of this data, this prompt and this verifier; other evaluations differ in all three.
"""  # noqa: E501
