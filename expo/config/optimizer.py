"""Keys of `optimizer=`."""

from expo.config.key import Config, Rules, installed, key, option


@option("optimizer", "adamw")
class OptimizerConf:
    """AdamW with linear warm-up, then a learning rate that stays or falls."""

    _target_: str = key("expo.model.optimizers.adamw", absent="expo.model.optimizers.adamw")
    learning_rate: float = key(1e-6, above=0, high=10, help="learning rate after the warm-up")
    weight_decay: float = key(0.0, low=0, high=100, help="decoupled weight decay")
    betas: list[float] = key([0.9, 0.999], low=0, help="AdamW's β₁ and β₂")
    eps: float = key(1e-8, above=0, high=1, absent=1e-8)
    """AdamW's ε: a weight whose gradients are much smaller hardly moves"""
    warmup_steps: int = key(0, low=0, help="optimizer steps of linear warm-up")
    schedule: str = key("constant", choices=("constant", "linear", "cosine"), absent="constant")
    """the learning rate after the warm-up: it stays, or falls towards 0 at trainer.max_steps"""
    max_grad_norm: float = key(1.0, above=0, finite=False, help="gradients are clipped to this norm; inf: never")

    @property
    def why_not_extendable(self) -> str | None:
        """Return why a longer run cannot go on from a shorter one: its first steps differ. None where it can."""
        return None if self.schedule == "constant" else "the learning rate falls towards the last step"

    def rules(self, cfg: Config) -> Rules:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield (f"optimizer.betas={self.betas}: AdamW takes two numbers in [0, 1); set optimizer.betas=[0.9,0.999]")


@option("optimizer", "adamw_8bit")
class AdamW8bitConf(OptimizerConf):
    """AdamW whose momentum and variance are kept in 8 bits, by bitsandbytes: two bytes for each trained weight instead
    of eight."""

    _target_: str = key("expo.model.optimizers.adamw_8bit")

    def needs_here(self, cfg: Config) -> Rules:
        remedy = "install it with pip install bitsandbytes, or use optimizer=adamw"
        yield from installed("optimizer=adamw_8bit", "bitsandbytes", remedy)
