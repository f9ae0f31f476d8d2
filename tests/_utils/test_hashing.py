"""Values have equal hashes if and only if their contents are equal."""

import copy
import datetime
import enum
import functools
import itertools
import math
import os
import pickle
import random
import subprocess
import sys
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn
from torchvision.transforms import v2

import skdeepcluster
from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit import checkpoints as checkpoints_module
from skdeepcluster._utils.hashing import hash_content

STRENGTH = 0.5


def scale(batch):
    return STRENGTH * batch


def scale_by(batch, factor=0.5):
    return factor * batch


def scale_by_keyword(batch, *, factor=0.5):
    return factor * batch


def scale_twice(batch):
    return scale(scale(batch))


def countdown(n):
    return n and countdown(n - 1)


def make_scale(factor):
    def scale(batch):
        return factor * batch

    return scale


def make_counting():
    n_calls = 0

    def count(batch):
        nonlocal n_calls
        n_calls += 1
        return batch

    return count


def with_attribute(value):
    def keep(batch):
        return batch

    keep.strength = value
    return keep


class Scale:
    offset = 0

    def __init__(self, factor, inner=None):
        self.factor, self.inner = factor, inner

    def __call__(self, batch):
        return self.factor * batch + self.offset

    def scale(self, batch):
        return self(batch)


class ScaleAndShift(Scale):
    offset = 1


@dataclass(frozen=True)
class FrozenScale:
    factor: float
    name: str | None = None


class NoisyScale(Scale):
    def __init__(self, factor):
        super().__init__(factor)
        self.rng = np.random.default_rng()
        self.python_rng, self.n_calls = random.Random(), 0

    def __call__(self, batch):
        self.n_calls += 1
        return batch + self.rng.normal() + self.python_rng.random()

    def __getstate__(self):
        return {n: v for n, v in vars(self).items() if n != "n_calls"}


class WithMethods:
    factors = (1, 2)

    @staticmethod
    def shift(batch):
        return batch + 1

    @classmethod
    def scale(cls, batch):
        return batch * 2

    @property
    def offset(self):
        return 3

    def __call__(self, batch):
        return self.scale(self.shift(batch)) + self.offset + self.factors[0]


GLOBAL_SCALE = Scale(0.5)
GLOBAL_WEIGHTS = np.arange(3.0)
GLOBAL_LOG = []


def use_globals(batch):
    GLOBAL_LOG.append(len(batch))
    return WithMethods()(GLOBAL_SCALE(batch)) + GLOBAL_WEIGHTS.sum()


class NoisyModule(nn.Module):
    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def forward(self, batch):
        return batch + self.strength


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def cyclic(value):
    values = [value]
    values.append(values)
    return values


# Each value differs from all others.
VALUES = {
    "paths": np.array(["a.png", "caf\udce9\n.png", "写" * 300], dtype=object),
    "other paths": np.array(["a.png", "caf\udce8\n.png", "写" * 300], dtype=object),
    "split paths": np.array(["a.pngcaf\udce9\n.png", "", "写" * 300], dtype=object),
    "None": None,
    "True": True,
    "int": 1,
    "float": 1.0,
    "complex": 1j,
    "str": "1",
    "bytes": b"1",
    "empty list": [],
    "empty tuple": (),
    "nested": [[1], 2],
    "flat": [1, 2],
    "tuple": (1, 2),
    "dict": {"a": 1, "b": 2},
    "swapped dict": {"a": 2, "b": 1},
    "set": {1, 2},
    "frozenset": frozenset([1, 2]),
    "deque": deque([1, 2]),
    "Counter": Counter("aab"),
    "cyclic": cyclic(1),
    "cyclic 2": cyclic(2),
    "float64": np.arange(6.0).reshape(2, 3),
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "shape": np.arange(6.0).reshape(3, 2),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "no rows": np.zeros((0, 3)),
    "no columns": np.zeros((3, 0)),
    "strings": np.array(["a", "bc"]),
    "objects": np.array(["a", None, 3], dtype=object),
    "tensor": torch.arange(6.0).reshape(2, 3),
    "bfloat16": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "path": Path("a") / "b",
    "other path": Path("a") / "c",
    "enum": Color.RED,
    "other enum": Color.BLUE,
    "date": datetime.date(2020, 1, 1),
    "range": range(3),
    "slice": slice(1, 3),
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "other dtype": torch.float64,
    "numpy's dtype": np.dtype("f4"),
    "class": Scale,
    "subclass": ScaleAndShift,
    "RandomState": np.random.RandomState(0),
    "other RandomState": np.random.RandomState(1),
    "function": scale,
    "function with default": scale_by,
    "function with keyword": scale_by_keyword,
    "function that calls another": scale_twice,
    "recursive function": countdown,
    "lambda": lambda batch: 2 * batch,
    "other lambda": lambda batch: 3 * batch,
    "lambda of two": lambda batch, other: 2 * batch,
    "nested lambda": lambda batch: (lambda x: 4 * x)(batch),
    "other nested lambda": lambda batch: (lambda x: 5 * x)(batch),
    "closure": make_scale(2),
    "other closure": make_scale(3),
    "attribute": with_attribute(1),
    "other attribute": with_attribute(2),
    "partial": functools.partial(scale_by, factor=2),
    "other partial": functools.partial(scale_by, factor=3),
    "positional partial": functools.partial(scale_by, 2),
    "cached": functools.cache(scale_by),
    "builtin": math.sqrt,
    "other builtin": math.exp,
    "ufunc": np.sqrt,
    "other ufunc": np.exp,
    "torch's function": torch.relu,
    "method": Scale(2).scale,
    "other method": Scale(3).scale,
    "callable object": Scale(2),
    "other callable object": Scale(3),
    "nested callable object": Scale(2, Scale(4)),
    "other nested callable object": Scale(2, Scale(5)),
    "object of another class": ScaleAndShift(2),
    "dataclass": FrozenScale(2),
    "other dataclass": FrozenScale(3),
    "module": linear(0),
    "other weights": linear(1),
    "other module": nn.Linear(3, 2, bias=False),
    "module with attribute": NoisyModule(0.1),
    "other module with attribute": NoisyModule(0.2),
    "transforms": v2.Compose([v2.RandomRotation(10), v2.RandomErasing(0.1)]),
    "other transforms": v2.Compose([v2.RandomRotation(20), v2.RandomErasing(0.1)]),
    "estimator": KMeans(3),
    "other estimator": KMeans(4),
    "random estimator": KMeans(3, random_state=np.random.RandomState(0)),
}


def make_hashes():
    return {name: hash_content(value) for name, value in VALUES.items()}


def test_different_contents_have_different_hashes():
    names_by_hash = {}
    for name, digest in make_hashes().items():
        assert len(digest) == 32
        names_by_hash.setdefault(digest, []).append(name)
    assert [names for names in names_by_hash.values() if len(names) > 1] == []


def test_hashes_are_equal_in_another_process():
    code = "import json, test_hashing as t; print(json.dumps(t.make_hashes()))"
    folders = [Path(__file__).parent, Path(skdeepcluster.__file__).parents[1]]
    out = subprocess.check_output(
        [sys.executable, "-c", code],
        text=True,
        # Another seed puts sets and dicts in another order than in this process.
        env=os.environ
        | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))},
    )
    expected = {name: f'"{name}": "{h}"' for name, h in make_hashes().items()}
    assert [name for name, text in expected.items() if text not in out] == []


@pytest.mark.parametrize("name", VALUES)
def test_copies_have_the_same_hash(name):
    value = VALUES[name]
    assert hash_content(copy.deepcopy(value)) == hash_content(value)
    try:
        content = pickle.dumps(value)
    except (pickle.PicklingError, AttributeError):
        return  # functions inside of functions
    assert hash_content(pickle.loads(content)) == hash_content(value)


def test_equal_contents_have_equal_hashes():
    array = np.arange(6.0).reshape(2, 3)
    tensor = torch.arange(6.0).reshape(2, 3)
    pairs = [
        (np.asfortranarray(array), array),
        (np.arange(12.0).reshape(2, 6)[:, ::2] / 2, array),
        (tensor.T.contiguous().T, tensor),
        (tensor.clone().requires_grad_(), tensor),
        (np.int64(3), 3),
        (np.float64(0.5), 0.5),
        (np.str_("a"), "a"),
        ({"a": 1, "b": {2, 3}}, {"b": {3, 2}, "a": 1}),
        (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
        (make_scale(2), make_scale(2)),
        (Scale(2), Scale(2)),
        (linear(0), linear(0)),
        (linear(0), torch.compile(linear(0))),
    ]
    for value, other in pairs:
        assert hash_content(value) == hash_content(other), value


def test_end_of_a_value_counts():
    values = [("ab", "c"), ("a", "bc"), ("abc",), ("", "abc"), (["a"], "bc"), ()]
    hashes = [hash_content(*value) for value in values]
    for one, other in itertools.combinations(hashes, 2):
        assert one != other


def test_globals_and_functions_of_the_module_count(monkeypatch):
    hashes = {hash_content(scale), hash_content(scale_twice), hash_content(scale_by)}
    monkeypatch.setitem(globals(), "STRENGTH", 0.7)
    hashes |= {hash_content(scale), hash_content(scale_twice)}
    assert len(hashes) == 5
    hashes.add(hash_content(scale_by))
    assert len(hashes) == 5


def test_class_attributes_and_methods_count(monkeypatch):
    value, other = Scale(2), ScaleAndShift(2)
    hashes = {hash_content(value), hash_content(other)}
    monkeypatch.setattr(Scale, "offset", 3)
    hashes.add(hash_content(value))
    monkeypatch.setattr(Scale, "__call__", lambda self, batch: batch)
    hashes |= {hash_content(value), hash_content(other)}
    assert len(hashes) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("factors", (1, 3)),
        ("shift", staticmethod(lambda batch: batch + 2)),
        ("scale", classmethod(lambda cls, batch: batch * 3)),
        ("offset", property(lambda self: 4)),
    ],
)
def test_all_kinds_of_class_attributes_count(monkeypatch, name, value):
    before = hash_content(WithMethods()), hash_content(use_globals)
    monkeypatch.setattr(WithMethods, name, value)
    assert hash_content(WithMethods()) != before[0]
    assert hash_content(use_globals) != before[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("GLOBAL_SCALE", Scale(0.6)), ("GLOBAL_WEIGHTS", np.arange(4.0))],
)
def test_global_objects_count(monkeypatch, name, value):
    before = hash_content(use_globals)
    use_globals(np.zeros(3))
    # The function has written to a log.
    assert hash_content(use_globals) == before
    monkeypatch.setitem(globals(), name, value)
    assert hash_content(use_globals) != before


def test_methods_of_modules_count(monkeypatch):
    modules = [NoisyModule(1), nn.Sequential(NoisyModule(1))]
    before = [hash_content(module) for module in modules]
    monkeypatch.setattr(NoisyModule, "forward", lambda self, batch: batch)
    for module, digest in zip(modules, before, strict=True):
        assert hash_content(module) != digest


def test_counters_and_generators_do_not_count():
    for function in (NoisyScale(2), make_counting()):
        before = hash_content(function)
        function(1.0)
        assert hash_content(function) == before
    assert hash_content(NoisyScale(2)) == hash_content(NoisyScale(2))
    assert hash_content(NoisyScale(2)) != hash_content(NoisyScale(3))


def test_objects_that_cannot_be_pickled_count_by_their_class():
    class Unpicklable:
        def __init__(self, value):
            self.value = value

        def __reduce_ex__(self, protocol):
            raise RuntimeError("no")

    assert hash_content(Unpicklable(1)) == hash_content(Unpicklable(2))
    assert hash_content(Unpicklable(1)) != hash_content(Scale(1))


# Checkpoints.

FUNCTIONS = [
    (lambda batch: 1.1 * batch, lambda batch: 1.2 * batch),
    (functools.partial(scale_by, factor=1.1), functools.partial(scale_by, factor=1.2)),
    (Scale(1.1), Scale(1.2)),
    (Scale(1.1), ScaleAndShift(1.1)),
    (make_scale(1.1), make_scale(1.2)),
]


@pytest.mark.parametrize(("augment", "other"), FUNCTIONS)
def test_checkpoint_of_another_function_is_refused(
    digits_images, tmp_path, monkeypatch, augment, other
):
    write = checkpoints_module.Checkpoints.write

    def write_and_stop(self, *args, **kwargs):
        write(self, *args, **kwargs)
        raise InterruptedError

    def make_model(augment):
        return DeepClusterEstimator(
            5,
            augment=augment,
            max_iter=2,
            epochs_per_iter=1,
            checkpoint_dir=tmp_path,
            random_state=0,
        )

    images = digits_images[0][:100]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints_module.Checkpoints, "write", write_and_stop)
        with pytest.raises(InterruptedError):
            make_model(augment).fit(images)
    with pytest.raises(ValueError, match=r"another fit: augment differ"):
        make_model(other).recover(images)
    assert make_model(copy.deepcopy(augment)).fit(images).n_iter_ == 2
