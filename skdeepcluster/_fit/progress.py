"""How far a round has come, on a terminal, in a notebook or in a log."""

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator

from .state import FitState, Recipe

REFRESH_SECONDS = 0.2  # between two pictures of a bar
LOG_SECONDS = 10.0  # between two lines, where a bar cannot be drawn

Show = Callable[[int, FitState], None]  # of a round, by its number


@contextlib.contextmanager
def progress_bar(recipe: Recipe, wanted: bool) -> Iterator[Show]:
    """Show the steps of each round: as a bar that rich draws, or else by lines."""
    if not wanted:
        yield lambda index, progress: None
        return
    steps = Steps(recipe)
    console = drawing_console()
    if console is None:
        yield Lines(steps)
        return
    from rich import progress as rich

    columns = [
        rich.TextColumn("round {task.fields[round]}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("steps  {task.fields[rate]}"),
        rich.TimeRemainingColumn(),
    ]
    # No thread draws beside the fit: processes are forked from it.
    with rich.Progress(
        *columns, console=console, auto_refresh=False, transient=True
    ) as bar:
        task = bar.add_task("", total=steps.n, round=0, rate="", visible=False)
        drawn = 0.0

        def show(index: int, progress: FitState) -> None:
            nonlocal drawn
            n_done, rate = steps(index, progress)
            now = time.monotonic()
            if index != bar.tasks[0].fields["round"]:
                bar.reset(task, round=index, rate="", completed=n_done, visible=True)
            elif now - drawn < REFRESH_SECONDS and n_done < steps.n:
                return
            drawn = now
            bar.update(task, completed=n_done, rate=rate, refresh=True)

        yield show


def drawing_console():
    """Return rich's console, or None without rich or where nothing can be redrawn."""
    if importlib.util.find_spec("rich") is None:
        return None
    from rich.console import Console

    console = Console()
    widgets = importlib.util.find_spec("ipywidgets") is not None
    redrawn = widgets if console.is_jupyter else console.is_terminal
    return console if redrawn else None


class Steps:
    """Steps of a round that are done, and images per second since the first call.

    Their rate is in words, of which there are none before the second call.
    """

    def __init__(self, recipe: Recipe):
        self.n, self.batch_size = recipe.steps_per_round, recipe.batch_size
        self.round = 0

    def __call__(self, index: int, progress: FitState) -> tuple[int, str]:
        n_done = progress.schedule.last_epoch - progress.n_rounds * self.n
        now = time.monotonic()
        if index != self.round:
            self.round, self.start, self.n_before = index, now, n_done
        n_images = (n_done - self.n_before) * self.batch_size
        seconds = max(now - self.start, 1e-9)
        return n_done, f"{n_images / seconds:,.0f} images/s" if n_images else ""


class Lines:
    """Lines of plain text, some seconds apart."""

    def __init__(self, steps: Steps):
        self.steps, self.printed = steps, time.monotonic()

    def __call__(self, index: int, progress: FitState) -> None:
        n_done, rate = self.steps(index, progress)
        if rate and time.monotonic() - self.printed >= LOG_SECONDS:
            self.printed = time.monotonic()
            steps = f"step {n_done:,} of {self.steps.n:,}"
            print(f"round {index:3d}: {steps}, {rate}", flush=True)
