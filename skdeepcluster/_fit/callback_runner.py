"""What looks on while a fit runs, and may end it."""

from collections.abc import Callable
from functools import cache
from typing import Any

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # before scikit-learn 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """An estimator to which scikit-learn has no callbacks to offer."""

        def _init_callback_context(self, **kwargs):
            return None


Fitted = Callable[[], Any]  # an estimator, as if the fit had ended here
Callback = Callable[[list[dict], Fitted], bool | None]


def check_callbacks(callbacks) -> list[Callback]:
    """Read the parameter `callbacks` as a list of functions.

    Raises
    ------
    TypeError
        If one is none.
    """
    if callbacks is None:
        return []
    functions = [callbacks] if callable(callbacks) else list(callbacks)
    for function in functions:
        if isinstance(function, type):
            name = function.__name__
            raise TypeError(f"callbacks holds the class {name}. Pass {name}().")
        if not callable(function):
            setter = hasattr(function, "on_fit_task_end")
            raise TypeError(
                f"callbacks holds {function!r}, which cannot be called. "
                + ("Set it with set_callbacks." if setter else "Pass functions.")
            )
    return functions


class CallbackRunner:
    """The functions, and scikit-learn's callbacks, that look at each round of a fit.

    Parameters
    ----------
    functions : list of callable
    context : sklearn.callback.CallbackContext or None
        Of the fit.
    task : dict
        What scikit-learn's callbacks are told: `estimator`, `X` and `y`.
    """

    def __init__(self, functions: list[Callback], context, task: dict):
        self.functions, self.context, self.task = functions, context, task
        self.round: Any = None  # its context

    def begin_round(self) -> None:
        """Tell scikit-learn's callbacks that a round begins."""
        if self.context is not None:
            self.round = self.context.subcontext("round")
            self.round.call_on_fit_task_begin(**self.task)

    def end_round(self, history: list[dict], fitted: Fitted) -> bool:
        """Show all what a round has come to; True ends the fit."""
        fitted = cache(fitted)
        wishes = [function(history, fitted) for function in self.functions]
        if self.round is not None:
            wish = self.round.call_on_fit_task_end(
                **self.task, reconstruction_attributes=lambda: vars(fitted())
            )
            wishes.append(wish)
        return any(wishes)
