"""Forecast of the time of a fit, from its first steps."""

import time
from datetime import timedelta

from .state import FitState, Recipe

# The first steps compile kernels and allocate memory, so they take longer.
N_WARM_UP_STEPS = 3
N_TIMED_STEPS = 10
# Embedding an image costs about a third of a training step of it: the forward pass.
EMBEDDING_COST = 1 / 3
# Shorter fits need no advice.
PATIENCE_SECONDS = 60
# Rounds of more images take longer than the rounds of a sample of this size.
SAMPLE_SIZE = 10_000


class Forecast:
    """Line of text about the time of the remaining rounds, after a few steps.

    There is no line if a round has fewer steps: such fits take seconds.

    Parameters
    ----------
    recipe : Recipe
    n_images : int
    first_round : int, default=0
        Number of complete rounds at the first step.
    """

    def __init__(self, recipe: Recipe, n_images: int, first_round: int = 0):
        self.recipe, self.n_images = recipe, n_images
        self.first_round = first_round
        self.n_steps = 0
        self.start = 0.0

    def count_step(self, state: FitState) -> str | None:
        """Count a step, and return the line at the end of the timed steps.

        Parameters
        ----------
        state : FitState
            State after the step.
        """
        if state.n_rounds != self.first_round:
            # A round also embeds and clusters images, which is no part of a step.
            return None
        self.n_steps += 1
        if self.n_steps == N_WARM_UP_STEPS:
            self.start = time.perf_counter()
        if self.n_steps != N_WARM_UP_STEPS + N_TIMED_STEPS:
            return None
        seconds_per_step = (time.perf_counter() - self.start) / N_TIMED_STEPS
        return self.describe(seconds_per_step, self.recipe.max_iter - state.n_rounds)

    def describe(self, seconds_per_step: float, n_rounds: int) -> str:
        """Return the line about the time of `n_rounds` rounds.

        Parameters
        ----------
        seconds_per_step : float
        n_rounds : int
        """
        n_steps, batch_size = self.recipe.steps_per_round, self.recipe.batch_size
        n_step_equivalents = n_steps + EMBEDDING_COST * self.n_images / batch_size
        seconds = n_rounds * n_step_equivalents * seconds_per_step
        rounds = "1 round" if n_rounds == 1 else f"{n_rounds} rounds"
        line = (
            f"{rounds} of {n_steps:,} steps: about "
            f"{timedelta(seconds=max(1, round(seconds)))} "
            f"({batch_size / seconds_per_step:,.0f} images/s)"
        )
        advice = self._advise() if seconds > PATIENCE_SECONDS else []
        return f"{line}. Faster: {', '.join(advice)}" if advice else line

    def _advise(self) -> list[str]:
        """Return parameters that shorten the fit, each with its effect."""
        advice = []
        if self.recipe.max_iter > 1:
            advice.append(f"max_iter={self.recipe.max_iter // 2} (fewer rounds)")
        if self.n_images >= 2 * SAMPLE_SIZE:
            advice.append(f"fit {SAMPLE_SIZE:,} of the images and predict the rest")
        return advice
