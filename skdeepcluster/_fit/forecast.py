"""Estimate of the remaining time of a fit, from its first steps."""

import time
from datetime import timedelta

from .state import FitState, Recipe

# The first steps compile kernels and allocate memory, so they take longer.
N_WARM_UP_STEPS = 3
# Largest number of steps that are timed.
N_TIMED_STEPS = 10
# Embedding an image costs about a third of training on it: the forward pass.
EMBEDDING_COST = 1 / 3
# Advice is printed only for longer fits.
MIN_SECONDS_FOR_ADVICE = 60
# Number of images that the advice suggests fitting, if there are many more.
ADVISED_N_IMAGES = 10_000


class Forecast:
    """Estimate the remaining time of training from the first steps.

    There is no estimate if a round has fewer than five steps. The line of the first
    round has the remaining time as well.

    Parameters
    ----------
    recipe : Recipe
    n_images : int
    first_round : int, default=0
        Number of complete rounds at the first step. More than 0 is a resumed fit.
    """

    def __init__(self, recipe: Recipe, n_images: int, first_round: int = 0):
        self.recipe, self.n_images = recipe, n_images
        self.first_round = first_round
        self.n_timed = min(N_TIMED_STEPS, recipe.steps_per_round - N_WARM_UP_STEPS - 1)
        self.n_steps = 0
        self.start = 0.0

    def count_step(self, state: FitState) -> str | None:
        """Count a step, and return the estimate after the last timed step.

        Parameters
        ----------
        state : FitState
            State after the step, or before the first round.
        """
        # A round also clusters images, which is not part of a step.
        is_step = state.training is not None and state.n_rounds == self.first_round
        if not is_step or self.n_timed < 1:
            return None
        self.n_steps += 1
        if self.n_steps == N_WARM_UP_STEPS:
            self.start = time.perf_counter()
        if self.n_steps != N_WARM_UP_STEPS + self.n_timed:
            return None
        seconds_per_step = (time.perf_counter() - self.start) / self.n_timed
        return self.format_estimate(
            seconds_per_step, self.recipe.max_iter - state.n_rounds
        )

    def format_estimate(self, seconds_per_step: float, n_rounds: int) -> str:
        """Return the line about the time of `n_rounds` rounds.

        Parameters
        ----------
        seconds_per_step : float
        n_rounds : int
        """
        n_steps, batch_size = self.recipe.steps_per_round, self.recipe.batch_size
        n_steps_with_embedding = n_steps + EMBEDDING_COST * self.n_images / batch_size
        seconds = n_rounds * n_steps_with_embedding * seconds_per_step
        rounds = "1 round" if n_rounds == 1 else f"{n_rounds} rounds"
        line = (
            f"{rounds} of {n_steps:,} steps: training takes about "
            f"{timedelta(seconds=max(1, round(seconds)))} "
            f"({batch_size / seconds_per_step:,.0f} images/s)"
        )
        # Other parameters would discard the rounds of a resumed fit.
        is_new = self.first_round == 0
        suggestions = self._suggest(n_rounds) if is_new else []
        if seconds < MIN_SECONDS_FOR_ADVICE or not suggestions:
            return line
        return f"{line}. To shorten it: {', or '.join(suggestions)}"

    def _suggest(self, n_rounds: int) -> list[str]:
        """Return changes that shorten the fit, each with its effect."""
        suggestions = []
        if n_rounds > 1:
            suggestions.append(f"max_iter={n_rounds // 2} (half the rounds)")
        if self.n_images >= 2 * ADVISED_N_IMAGES:
            suggestions.append(
                f"fit {ADVISED_N_IMAGES:,} of the images and predict the rest"
            )
        return suggestions
