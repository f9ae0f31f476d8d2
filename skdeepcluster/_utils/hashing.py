"""Hashes of values by their content, equal in every process that holds the same."""

import copyreg
import dis
import functools
import hashlib
import random
import re
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

DIGEST_BYTES = 16
PLAIN = (type(None), bool, int, float, complex, str, bytes)
GENERATORS = (
    np.random.Generator,
    np.random.RandomState,
    random.Random,
    torch.Generator,
)
# Globals of these types are other modules, or logs that a function may write to.
NO_GLOBALS = (
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    list,
    dict,
    set,
    deque,
    *GENERATORS,
)
METHODS = (types.FunctionType, staticmethod, classmethod, property)


def hash_content(*values) -> str:
    """Return a hash of values that depends on their content alone.

    The hash contains no addresses and does not depend on the order of sets and dicts,
    so it is the same in another process, and after a copy or a pickle.

    - Arrays and tensors count by dtype, shape and values, whatever their layout and
      device.
    - Functions count by bytecode, constants, defaults, closure and attributes. Their
      globals count, except for lists, dicts and sets, which may be logs, and for
      functions and classes of other modules.
    - Modules of torch count by class, `repr`, public attributes and weights, estimators
      of scikit-learn by type and parameters.
    - Any other object counts by the methods and plain attributes of its class, and by
      the state that pickle would store: `__getstate__` can leave out a counter or a
      cache. Random generators in the state do not count, since they advance.

    Parameters
    ----------
    *values : object
        Values to hash. An object that cannot be pickled counts by its class.

    Returns
    -------
    digest : str
        32 hexadecimal digits.
    """
    hasher = ContentHasher()
    hasher.update(values)
    return hasher.digest.hexdigest()


class ContentHasher:
    """Hash of a sequence of values of any type.

    Parameters
    ----------
    enclosing : iterable of int, default=()
        Identities of the objects that contain the values. An object may contain itself,
        for instance in a closure.
    """

    def __init__(self, enclosing: Iterable[int] = ()):
        self.digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self.enclosing = [*enclosing]

    def update(self, value) -> None:
        """Add one value."""
        if isinstance(value, np.generic):
            # A scalar of numpy is the same parameter as Python's.
            value = value.item()
        if type(value) in PLAIN:
            self._write(type(value).__name__, repr(value))
        elif id(value) in self.enclosing:
            self._write("cycle", self.enclosing.index(id(value)))
        else:
            self.enclosing.append(id(value))
            self._update_compound(value)
            self.enclosing.pop()

    def _write(self, *words) -> None:
        for word in words:
            text = str(word).encode()
            # The length separates the end of a text from the start of the next.
            self.digest.update(b"%d:%b" % (len(text), text))

    def _update_all(self, kind: str, *values) -> None:
        self._write(kind, len(values))
        for value in values:
            self.update(value)

    def _update_unordered(self, kind: str, values: Iterable) -> None:
        hashes = []
        for value in values:
            nested = ContentHasher(self.enclosing)
            nested.update(value)
            hashes.append(nested.digest.hexdigest())
        self._write(kind, *sorted(hashes))

    def _update_compound(self, value) -> None:
        kind = type(value).__qualname__
        if isinstance(value, np.ndarray):
            self._update_array(value)
        elif isinstance(value, torch.Tensor):
            self._update_tensor(value)
        elif isinstance(value, Mapping):
            self._update_unordered(kind, value.items())
        elif isinstance(value, Set):
            self._update_unordered(kind, value)
        elif type(value) in (list, tuple):
            self._update_all(kind, *value)
        elif isinstance(value, types.FunctionType):
            self._update_function(value)
        elif isinstance(value, types.CodeType):
            self._update_code(value)
        elif isinstance(value, types.MethodType):
            self._update_all("method", value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            self._update_all("partial", value.func, value.args, value.keywords)
        elif isinstance(value, type):
            self._update_all("class", value.__qualname__, _class_content(value))
        elif isinstance(value, staticmethod | classmethod):
            self._update_all(kind, value.__func__)
        elif isinstance(value, property):
            self._update_all(kind, value.fget)
        elif isinstance(value, torch.nn.Module):
            self._update_module(value)
        elif isinstance(value, BaseEstimator):
            self._update_all("estimator", kind, value.get_params(deep=False))
        elif isinstance(value, np.random.RandomState):
            self._update_all("RandomState", *value.get_state())
        else:
            self._update_object(value)

    def _update_array(self, array: np.ndarray) -> None:
        self._write("array", array.dtype.str, array.shape)
        if array.dtype.hasobject:
            self.update(array.tolist())
        elif array.nbytes:
            values = np.ascontiguousarray(array).reshape(-1)
            self.digest.update(values.view(np.uint8).data)

    def _update_tensor(self, tensor: torch.Tensor) -> None:
        self._write("tensor", tensor.dtype, tuple(tensor.shape))
        if tensor.numel() and not tensor.is_meta:
            values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
            # As bytes, because numpy has no bfloat16.
            self.digest.update(values.flatten().view(torch.uint8).numpy().data)

    def _update_function(self, function: types.FunctionType) -> None:
        helpers = [value for _, value in sorted(_same_module_functions(function))]
        for called in [function, *helpers]:
            self._update_all(
                "function",
                called.__code__,
                called.__defaults__,
                called.__kwdefaults__,
                [*_closure_values(called)],
                _global_values(called),
                vars(called),
            )

    def _update_code(self, code: types.CodeType) -> None:
        # The file, the line and the local names may change without the code.
        self._write("code", code.co_names, code.co_flags, code.co_argcount)
        self._update_all("code", code.co_code, code.co_exceptiontable, code.co_consts)

    def _update_module(self, module: torch.nn.Module) -> None:
        # torch.compile wraps the module in one that holds caches.
        module = getattr(module, "_orig_mod", module)
        # `repr` alone leaves out attributes of which `extra_repr` knows nothing.
        attributes = {
            (path, name): value
            for path, submodule in module.named_modules()
            for name, value in vars(submodule).items()
            if not name.startswith("_") and name != "training"
        }
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
        state = module.state_dict()
        # A release of torch may change its classes without a change of results.
        classes = {
            type(submodule)
            for submodule in module.modules()
            if type(submodule).__module__.partition(".")[0] != "torch"
        }
        self._update_all(
            "Module", text, classes, _without_generators(attributes), state
        )

    def _update_object(self, value) -> None:
        self._update_all("object", type(value), getattr(value, "__wrapped__", None))
        reduce = copyreg.dispatch_table.get(type(value))
        try:
            reduced: Any = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception:  # a class may refuse with any error
            return
        if isinstance(reduced, str):
            self._write(reduced)
            return
        constructor, args, state, *iterators = [*reduced, None, None, None][:5]
        entries = [items and [*items] for items in iterators]
        self._update_all("state", constructor, args, _without_generators(state))
        self._update_all("entries", *entries)


def _closure_values(function: types.FunctionType) -> Iterator[Any]:
    """Return the values of a closure, but for variables that the function assigns."""
    assigned = _names(function.__code__, "STORE_DEREF")
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield None if name in assigned else cell.cell_contents
        except ValueError:  # the variable has no value yet
            yield None


def _used_globals(function: types.FunctionType) -> dict[str, Any]:
    """Return the globals that a function reads and does not assign."""
    code, namespace = function.__code__, function.__globals__
    names = _names(code, "LOAD_GLOBAL") - _names(code, "STORE_GLOBAL")
    return {name: namespace[name] for name in names if name in namespace}


def _global_values(function: types.FunctionType) -> dict[str, Any]:
    """Return the globals of a function that count, except for functions."""
    return {
        name: value
        for name, value in _used_globals(function).items()
        if not isinstance(value, NO_GLOBALS)
        and not (
            isinstance(value, type)
            and value.__module__ != function.__globals__.get("__name__")
        )
    }


def _same_module_functions(
    function: types.FunctionType,
) -> set[tuple[str, types.FunctionType]]:
    """Return the functions of the same module that a function calls, also indirectly.

    Functions of other modules do not count: a release of a library may change their
    code without a change of results.
    """
    called: set[tuple[str, types.FunctionType]] = set()
    waiting = [function]
    while waiting:
        entries = {
            (name, value)
            for name, value in _used_globals(waiting.pop()).items()
            if isinstance(value, types.FunctionType)
            and value.__globals__ is function.__globals__
            and value is not function
        }
        waiting.extend(value for _, value in entries - called)
        called |= entries
    return called


def _names(code: types.CodeType, operation: str) -> set[str]:
    """Return the names to which code, and code nested in it, applies an operation."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == operation}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant, operation)
    return names


def _class_content(cls: type) -> dict[str, Any]:
    """Return the methods and plain attributes of a class, also inherited ones.

    Base classes of other modules do not count.
    """
    return {
        name: value
        for base in reversed(cls.__mro__)
        if base.__module__ == cls.__module__
        for name, value in vars(base).items()
        if name == "__call__" or not name.startswith("__")
        if isinstance(value, METHODS) or _is_plain(value)
    }


def _is_plain(value) -> bool:
    """Return whether a value is plain, or holds nothing but plain values."""
    if isinstance(value, Mapping):
        return all(_is_plain(entry) for item in value.items() for entry in item)
    if isinstance(value, list | tuple | Set):
        return all(map(_is_plain, value))
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return type(value) in PLAIN or isinstance(value, torch.Tensor)


def _without_generators(state):
    """Return the state of an object without its random generators."""
    if isinstance(state, dict):
        return {k: v for k, v in state.items() if not isinstance(v, GENERATORS)}
    if isinstance(state, tuple):
        return tuple(_without_generators(entry) for entry in state)
    return state
