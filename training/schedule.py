"""Learning rate: linear warm-up, then cosine to zero; a pure function of the step, so a resumed run needs no state for it."""

import math

from training.config import OptimizerConfig


def learning_rate_at(step: int, config: OptimizerConfig, *, num_steps: int) -> float:
    """Rate of the given step, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
