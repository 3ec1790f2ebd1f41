"""Learning rate: linear warm-up, then cosine to zero, lower in a second stage.

A pure function of the step, so a resumed run needs no state for it.
"""

import math

from training.config import OptimizerConfig, TrainConfig


def learning_rate_at(step: int, config: OptimizerConfig, *, num_steps: int) -> float:
    """Rate of the given step, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def rate_of_step(step: int, config: TrainConfig) -> float:
    """The same for a whole run, whose second stage has a lower one."""
    rate = learning_rate_at(step, config.optimizer, num_steps=config.num_steps)
    return rate * config.unfrozen_lr_scale if config.freeze and step >= config.freeze_steps else rate
