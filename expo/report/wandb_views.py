"""A saved view of a W&B workspace, and a W&B report, through W&B's own `wandb-workspaces`: the panels worth making,
grouped by arm."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expo.config import UserError
from expo.config.errors import first_line
from expo.config.key import installed, keep
from expo.report.page import Page

LIBRARY = "wandb-workspaces"


@dataclass(frozen=True)
class Section:
    """Panels that answer one question: a line of each metric over the steps, by arm or by a key of the config."""

    title: str
    metrics: Sequence[str]  # `time/*`: all that begin so, in one panel
    key: str | None = None


# docs/wandb.md has the same, for those who make them by hand.
SECTIONS = (
    Section("learning", ("pass@4", "pass@4/level5")),
    Section("is there a gradient", ("reward/all_wrong_frac", "policy/grad_norm")),
    Section("reward, without hints", ("reward/mean",)),
    Section("positives", ("positive/used_frac", "positive/filtered_frac", "weight/positive")),
    Section(
        "do explanations lean on the answer",
        ("positive/leak_gap", "positive/answer_lift", "positive/length_ratio"),
        key="positives.explainer",
    ),
    Section("are the explanations sound (ladder)", ("positive/sound_frac",), key="positives.explainer"),
    Section(
        "DPO: the loss can fall for nothing", ("loss/preference", "pass@4", "pair/chosen_logp", "pair/rejected_logp")
    ),
    Section("stability", ("policy/entropy", "policy/clip_frac", "policy/ratio_mean", "policy/sampler_kl")),
    Section("cost", ("throughput/tokens_generated", "throughput/tokens_trained", "time/*")),
)


@dataclass(frozen=True)
class Selection:
    """Selection of the runs of a W&B project that a view shows."""

    title: str
    project: str
    entity: str  # "": W&B's own default
    filters: str = ""  # in the language of wandb-workspaces; "": all runs
    arm: str = "config.name"  # what W&B calls the arm

    @classmethod
    def of_table(cls, name: str, scale: str, project: str, entity: str) -> "Selection":
        """Return the runs that `expo table` makes of a table at a scale."""
        filters = f"Metric('Group') = '{name}' and Metric('JobType') != 'table' and Tags() in ['{scale}']"
        return cls(f"{name}-{scale}", project, entity, filters, "JobType")

    @classmethod
    def of_runs(cls, title: str, ids: Sequence[str], project: str, entity: str) -> "Selection":
        return cls(title, project, entity, f"Metric('ID') in [{', '.join(repr(i) for i in ids)}]")


def check_library() -> None:
    """Raise UserError where W&B's library is not installed."""
    keep(installed("expo wandb", "wandb_workspaces", f"install it with pip install {LIBRARY}", LIBRARY))


def make_workspace(shown: Selection) -> Any:
    """Return a workspace of wandb-workspaces, which its `save` saves as a view."""
    import wandb_workspaces.workspaces as ws

    arm = ws.Metric(shown.arm) if shown.arm == "JobType" else ws.Config(shown.arm.removeprefix("config."))
    return ws.Workspace(
        entity=shown.entity,
        project=shown.project,
        name=shown.title,
        sections=[ws.Section(name=s.title, panels=_panels(s), is_open=True) for s in SECTIONS],
        runset_settings=ws.RunsetSettings(filters=shown.filters, groupby=[arm]),
    )


def make_report(shown: Selection, page: Page) -> Any:
    """Return a report of wandb-workspaces: the page's table, how it was made, and the panels."""
    import wandb_workspaces.reports.v2 as wr

    runs = wr.Runset(
        entity=shown.entity, project=shown.project if shown.entity else "", name=shown.title,
        filters=shown.filters, groupby=[shown.arm],
    )  # fmt: skip
    blocks = [wr.MarkdownBlock(text=text) for text in (_table(page), page.made, *page.notes)]
    for section in SECTIONS:
        blocks += [wr.H2(text=section.title), wr.PanelGrid(runsets=[runs], panels=_panels(section))]
    return wr.Report(
        entity=shown.entity, project=shown.project, title=page.title, description=f"expo wandb report: {shown.title}",
        blocks=blocks,
    )  # fmt: skip


def _panels(section: Section) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    by = {"groupby": wr.Config(section.key)} if section.key else {}
    return [
        wr.LinePlot(title=m, x="Step", **({"metric_regex": m.replace("*", ".*")} if "*" in m else {"y": [m]}), **by)
        for m in section.metrics
    ]


def _table(page: Page) -> str:
    rows = [page.heads, ["---"] * len(page.heads), *page.rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def specification(view: Any) -> dict[str, Any]:
    """Return a workspace or report as plain data, as W&B keeps it. The same each time: the library's random ids are
    counted instead."""
    spec = view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    text = json.dumps(spec)
    for number, name in enumerate(dict.fromkeys(_ids(spec)), 1):
        text = text.replace(f'"{name}"', f'"expo{number}"')
    counted: dict[str, Any] = json.loads(text)
    return counted


def _ids(node: Any) -> list[str]:
    """Return the ids in a specification, in its order."""
    if isinstance(node, list):
        return [id_ for child in node for id_ in _ids(child)]
    if not isinstance(node, Mapping):
        return []
    ids = [node[key] for key in ("id", "__id__") if isinstance(node.get(key), str) and node[key]]
    return ids + [id_ for child in node.values() for id_ in _ids(child)]


def save(view: Any) -> str:
    """Save a workspace or report in W&B. Returns its address. Raises UserError where W&B does not take it."""
    try:
        return str(view.save().url)
    except Exception as error:  # the library raises bare ones
        raise UserError(
            f"mode=online: W&B does not take it ({first_line(error)}); run `wandb login`, or use mode=offline"
        ) from error


def default_entity() -> str:
    """Return W&B's default entity. Raises UserError where W&B does not tell, as without a key."""
    import wandb

    try:
        return str(wandb.Api().default_entity)
    except Exception as error:  # W&B's own and those of three libraries below it
        raise UserError(
            f"mode=online: W&B cannot be asked ({first_line(error)}); run `wandb login`, or use mode=offline"
        ) from error
