"""Keys of `dataset=reasoning_gym`: problems that the package reasoning-gym makes."""

from typing import Any

from expo.config.dataset import GeneratedConf
from expo.config.key import Config, Rules, installed, key, option

INSTALL = "pip install reasoning-gym==0.1.25 (make setup EXTRA=smol)"
WITH_SOLUTIONS = "gsm_symbolic"  # the task that works out its answers in words


@option("dataset", "reasoning_gym", alone=False)
class ReasoningGymConf(GeneratedConf):
    """Problems of one task of reasoning-gym, or of several. The splits train, test and table share no question."""

    no_solutions = f"and of the tasks of reasoning-gym {WITH_SOLUTIONS} alone has them; set dataset.task to it"
    splits = ("train", "test", "table")  # no question is in two of them
    _target_: str = "expo.data.reasoning.ReasoningGym"
    task: str | None = key(None, help="the task that makes the problems, such as chain_sum; null: see `tasks`")
    tasks: dict[str, Any] = key(dict)
    """several tasks in place of one, each with its share: {chain_sum: 2, leg_counting: 1}"""
    task_config: dict[str, Any] = key(dict)
    """the task's own settings, such as {max_terms: 3}; of several tasks, {chain_sum: {max_terms: 3}}"""
    level_by: str = key("")
    """setting of the task that a level is the value of: a name such as num_disks, or terms for both min_terms and
    max_terms; empty: the level of the task's own curriculum, from 0"""

    @property
    def shares(self) -> dict[str, float]:
        return {self.task: 1.0} if self.task is not None else self.tasks

    def settings(self, task: str) -> dict[str, Any]:
        settings: dict[str, Any] = self.task_config if self.task is not None else self.task_config.get(task, {})
        return settings

    @property
    def has_solutions(self) -> bool:
        return set(self.shares) <= {WITH_SOLUTIONS}

    @property
    def any_level(self) -> bool:
        return True

    def rules(self, cfg: Config) -> Rules:
        if (self.task is None) != bool(self.tasks):
            yield (
                f"dataset.task={self.task}: give one task, such as dataset.task=chain_sum, or else several with their "
                "shares, such as dataset.tasks={chain_sum: 2, leg_counting: 1}"
            )
        for task, share in self.tasks.items():
            if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < float("inf"):
                yield f"dataset.tasks.{task}={share}: its share must be a number above 0"
        for task, settings in self.task_config.items() if self.task is None else ():
            if task not in self.tasks or not isinstance(settings, dict):
                yield (
                    f"dataset.task_config.{task}={settings}: with several tasks, give the settings of each by its "
                    "name, such as dataset.task_config={chain_sum: {max_terms: 3}}"
                )
        if self.level_by and (not self.levels and not self.eval_levels):
            yield f"dataset.level_by={self.level_by}: has no effect without levels; set dataset.levels to some"
        yield from super().rules(cfg)

    def needs_here(self, cfg: Config) -> Rules:
        yield from installed(f"dataset={self.name}", "reasoning_gym", INSTALL, "reasoning-gym")
