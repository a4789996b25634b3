"""Lightning around a run. Several devices: on_devices starts them, `Ranks.add_gradients` (ground) sums gradients under
ddp, and FSDP2 (rollout/sharded) under fsdp."""
