"""Callbacks that run after each round of a fit, and may end it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in for the mixin of scikit-learn, which has none before 1.9."""

        def _init_callback_context(self, **kwargs):
            return None


# Function that returns the estimator as if the fit had ended after this round.
MakeFitted = Callable[[], Any]
# Function of `history_` and of a `MakeFitted`; it ends the fit if it returns True.
Callback = Callable[[list[dict], MakeFitted], bool | None]


def check_callbacks(callbacks) -> list[Callback]:
    """Return the parameter `callbacks` as a list of functions.

    Raises
    ------
    TypeError
        If one of the callbacks is not a function.
    """
    if callbacks is None:
        return []
    functions = [callbacks] if callable(callbacks) else list(callbacks)
    for function in functions:
        if isinstance(function, type):
            name = function.__name__
            raise TypeError(f"callbacks holds the class {name}. Pass {name}().")
        if not callable(function):
            is_sklearn_callback = hasattr(function, "on_fit_task_end")
            remedy = "Pass functions."
            if is_sklearn_callback:
                remedy = "Set it with set_callbacks."
            raise TypeError(
                f"callbacks holds {function!r}, which cannot be called. {remedy}"
            )
    return functions


def copy_history(history: list[dict]) -> list[dict]:
    """Return a copy of `history_`, in which all numbers are plain Python numbers.

    Callbacks and users may change the copy. The history of a fit decides its
    course, and goes into checkpoints and files.

    Raises
    ------
    ValueError
        If the history holds anything but records of numbers and text.
    """
    return [
        {
            str(name): _to_plain(value, f"history_[{i}][{name!r}]")
            for name, value in record.items()
        }
        for i, record in enumerate(history)
    ]


def _to_plain(value, label: str):
    """Return a number, a text or a sequence of these as values of Python."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(_to_plain(entry, label) for entry in value)
    if isinstance(value, bool | int | float | str | None):
        return value
    raise ValueError(
        f"{label} is a {type(value).__name__}, which is not saved. Remove it, or set "
        "it to a number."
    )


class CallbackRunner:
    """Runner of the parameter `callbacks` and of scikit-learn's callbacks.

    Parameters
    ----------
    functions : list of callable
        Functions of the parameter `callbacks`.
    context : sklearn.callback.CallbackContext or None
        Context of the fit, or None without callbacks of scikit-learn.
    task : dict
        Arguments of scikit-learn's callbacks: `estimator`, `X` and `y`.
    """

    def __init__(self, functions: list[Callback], context, task: dict):
        self.functions, self.context, self.task = functions, context, task
        self.round_context: Any = None

    def begin_round(self) -> None:
        """Report the start of a round to scikit-learn's callbacks."""
        if self.context is not None:
            self.round_context = self.context.subcontext("round")
            self.round_context.call_on_fit_task_begin(**self.task)

    def end_round(self, history: list[dict], fitted: MakeFitted) -> bool:
        """Run all callbacks after a round; return whether any callback ends the fit.

        Each callback gets a copy of the history. A callback ends the fit if it returns
        True: a number or an array is the result of a function that means no end.
        """
        # Several callbacks share one copy of the network.
        fitted = cache(fitted)
        stop_requests = [
            function(copy_history(history), fitted) for function in self.functions
        ]
        if self.round_context is not None:
            stop_request = self.round_context.call_on_fit_task_end(
                **self.task, reconstruction_attributes=lambda: vars(fitted())
            )
            stop_requests.append(stop_request)
        return any(isinstance(r, bool | np.bool_) and bool(r) for r in stop_requests)
