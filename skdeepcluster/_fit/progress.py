"""Progress of the steps of a round, on a terminal, in a notebook or in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from .._utils.optional import import_optional
from .state import FitState, Recipe

# Seconds between two redraws of a bar.
REFRESH_SECONDS = 0.2
# Seconds between two lines of text, for output that cannot be redrawn.
LOG_SECONDS = 10.0
BAR_FORMAT = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps "
    "[{elapsed}<{remaining}{postfix}]"
)

# Function of the round's number and the state after a step.
ShowStep = Callable[[int, FitState], None]


@contextlib.contextmanager
def progress_bar(recipe: Recipe, enabled: bool) -> Iterator[ShowStep]:
    """Return a function that shows each step of a round, as a bar or by lines.

    The bar of tqdm is drawn on a terminal and in a notebook. Lines are printed without
    tqdm, and to a file or pipe.

    Parameters
    ----------
    recipe : Recipe
    enabled : bool
        If False, nothing is shown.
    """
    if not enabled:
        yield lambda index, state: None
        return
    counter = StepCounter(recipe)
    bar_class = _find_bar_class()
    if bar_class is None:
        yield LinePrinter(counter)
        return
    bar = StepBar(counter, bar_class)
    try:
        yield bar
    finally:
        bar.close()


def _find_bar_class() -> Any:
    """Return tqdm's class, or None if tqdm is missing or output cannot be redrawn."""
    try:
        cls = import_optional("tqdm.auto", extra="progress").tqdm
        notebook_class = import_optional("tqdm.notebook", extra="progress").tqdm
    except ImportError:
        return None
    if not (issubclass(cls, notebook_class) or _has_terminal()):
        return None
    # Without tqdm's monitor: no other thread may run when data workers are forked.
    return type("Bar", (cls,), {"monitor_interval": 0})


def _has_terminal() -> bool:
    """Return whether stderr, to which tqdm writes, is a terminal."""
    # pythonw on Windows has no stderr.
    return sys.stderr is not None and sys.stderr.isatty()


class StepCounter:
    """Number of steps of a round, and images per second since its first call.

    Parameters
    ----------
    recipe : Recipe
    """

    def __init__(self, recipe: Recipe):
        self.n_steps, self.batch_size = recipe.steps_per_round, recipe.batch_size
        self.round = 0

    def count(self, index: int, state: FitState) -> tuple[int, str]:
        """Return the number of complete steps, and the rate as text.

        The first call of a round starts the clock and returns an empty text.
        """
        n_steps = state.n_steps - state.n_rounds * self.n_steps
        now = time.monotonic()
        if index != self.round:
            self.round, self.start_time, self.start_step = index, now, n_steps
        n_images = (n_steps - self.start_step) * self.batch_size
        seconds = max(now - self.start_time, 1e-9)
        return n_steps, f"{n_images / seconds:,.0f} images/s" if n_images else ""


class StepBar:
    """Bar that starts anew with each round.

    Parameters
    ----------
    counter : StepCounter
    bar_class : subclass of tqdm
    """

    def __init__(self, counter: StepCounter, bar_class):
        self.counter, self.bar_class = counter, bar_class
        self.bar: Any = None
        self.round = 0

    def __call__(self, index: int, state: FitState) -> None:
        """Show the state after a step."""
        n_steps, rate = self.counter.count(index, state)
        if index != self.round:
            self.round = index
            self._start_round(n_steps)
        self.bar.set_postfix_str(rate, refresh=False)
        self.bar.update(n_steps - self.bar.n)
        if n_steps == self.counter.n_steps:
            self.bar.refresh()
            # The line is free for the text that `verbose` or a callback prints next.
            self.bar.clear()

    def _start_round(self, n_steps: int) -> None:
        description = f"round {self.round}"
        if self.bar is None:
            self.bar = self.bar_class(
                desc=description,
                total=self.counter.n_steps,
                initial=n_steps,
                bar_format=BAR_FORMAT,
                leave=False,
                # The remaining time follows from the mean rate of the round.
                smoothing=0,
                mininterval=REFRESH_SECONDS,
                # tqdm would adapt this number of steps and miss a slower phase.
                miniters=1,
            )
            return
        self.bar.set_description_str(description, refresh=False)
        self.bar.set_postfix_str("", refresh=False)
        self.bar.reset()
        self.bar.n = self.bar.initial = self.bar.last_print_n = n_steps
        self.bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


class LinePrinter:
    """Lines of plain text, `LOG_SECONDS` apart.

    Parameters
    ----------
    counter : StepCounter
    """

    def __init__(self, counter: StepCounter):
        self.counter, self.last_time = counter, time.monotonic()

    def __call__(self, index: int, state: FitState) -> None:
        """Print the state after a step if the last line is old enough."""
        n_steps, rate = self.counter.count(index, state)
        now = time.monotonic()
        if rate and now - self.last_time >= LOG_SECONDS:
            self.last_time = now
            steps = f"step {n_steps:,} of {self.counter.n_steps:,}"
            print(f"round {index:3d}: {steps}, {rate}", flush=True)
