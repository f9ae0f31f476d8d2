"""Functions and scikit-learn's callbacks look at each round, and may end the fit."""

import pickle
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from skdeepcluster import DeepClusterEstimator
from skdeepcluster.callbacks import MLflow, StopWhenStable, TensorBoard

# Quick fits may well say that they are.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"n_clusters": 5, "max_iter": 3, "epochs_per_iter": 1, "random_state": 0}


def quick(**params) -> DeepClusterEstimator:
    return DeepClusterEstimator(**QUICK | params)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:120]


@pytest.fixture(scope="module")
def expected(images):
    return quick().fit(images)


def assert_same(model, other, images):
    assert_array_equal(model.labels_, other.labels_)
    assert_array_equal(model.transform(images), other.transform(images))
    assert_array_equal(model.predict(images), other.predict(images))


# Functions.


@pytest.mark.parametrize("form", ["one", "list", "tuple"])
def test_functions_see_each_round(images, form):
    seen = []

    def look(history, fitted):
        seen.append(history)

    model = quick(callbacks={"one": look, "list": [look], "tuple": (look, look)}[form])
    model.fit(images)
    times = 2 if form == "tuple" else 1
    assert [len(history) for history in seen[::times]] == [1, 2, 3]
    assert len(seen) == 3 * times
    assert seen[-1] == model.history_


@pytest.mark.parametrize(
    "params", [{}, {"head": "centroids"}, {"n_pseudo_labels": 5}], ids=str
)
def test_fitted_is_what_the_fit_would_be_if_it_ended_there(images, params):
    models = []

    def at_the_second(history, fitted):
        models.append(fitted())
        assert fitted() is models[-1]
        return len(history) == 2

    ended = quick(callbacks=at_the_second, **params).fit(images)
    assert ended.n_iter_ == 2
    assert len(models) == 2
    assert_same(models[1], ended, images)
    assert_array_equal(models[1].cluster_centers_, ended.cluster_centers_)
    assert models[1].history_ == ended.history_
    # That of the first round is not changed by the second.
    first = quick(callbacks=lambda history, fitted: True, **params).fit(images)
    assert_same(models[0], first, images)
    assert len(models[0].history_) == models[0].n_iter_ == 1


def test_any_true_ends_the_fit_and_its_checkpoints(images, tmp_path):
    functions = [lambda history, fitted: None, lambda history, fitted: True]
    for callbacks in (functions, functions[::-1]):
        model = quick(callbacks=callbacks, checkpoint_dir=tmp_path).fit(images)
        assert model.n_iter_ == 1
        assert list(tmp_path.iterdir()) == []
        assert_array_equal(model.predict(images), model.labels_)


def test_looking_changes_nothing(images):
    backbone = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 8))

    def disturb(history, fitted):
        torch.rand(7)
        for weight in fitted().module_.parameters():
            weight.data.zero_()

    plain = quick(backbone=backbone).fit(images)
    watched = quick(backbone=backbone, callbacks=disturb).fit(images)
    assert_same(watched, plain, images)


def test_what_a_function_raises_ends_a_fit_that_leaves_nothing(images):
    def fail(history, fitted):
        raise KeyError("of the user's")

    model = quick(callbacks=fail)
    before = dict(vars(model))
    with pytest.raises(KeyError, match="of the user's"):
        model.fit(images)
    assert vars(model) == before


class Unhooked:
    def on_fit_task_end(self, estimator, context):
        raise AssertionError


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([StopWhenStable], r"the class StopWhenStable. Pass StopWhenStable\(\)"),
        (StopWhenStable, r"the class StopWhenStable. Pass StopWhenStable\(\)"),
        (
            ["tensorboard"],
            "holds 'tensorboard', which cannot be called. Pass func",
        ),
        ([Unhooked()], "cannot be called. Set it with set_callbacks"),
    ],
)
def test_what_is_no_function_is_refused_before_any_work(callbacks, message):
    with pytest.raises(TypeError, match=message):
        quick(callbacks=callbacks).fit("no folder is looked for")


def test_copies_and_searches(images):
    model = quick(callbacks=[StopWhenStable(tol=1.0, n_rounds=2)])
    assert clone(pickle.loads(pickle.dumps(model))).fit(images).n_iter_ == 2
    search = GridSearchCV(model, {"callbacks": [StopWhenStable(tol=1.0)]}, cv=2)
    assert search.fit(images).best_estimator_.n_iter_ == 3


def test_callbacks_are_not_saved(images, tmp_path):
    model = quick(max_iter=1, callbacks=[StopWhenStable()]).fit(images)
    with pytest.warns(UserWarning, match="callbacks is a list, which is not saved"):
        model.save(tmp_path / "model")
    assert DeepClusterEstimator.load(tmp_path / "model").callbacks is None


def test_a_stopped_fit_goes_on_with_other_callbacks(images, tmp_path, expected):

    def fail(history, fitted):
        if len(history) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        quick(callbacks=fail, checkpoint_dir=tmp_path).fit(images)
    seen = []
    model = quick(
        callbacks=lambda history, fitted: seen.append(len(history)),
        checkpoint_dir=tmp_path,
    )
    assert_same(model.fit(images), expected, images)
    assert seen == [2, 3]


# Those of the package.


def records(**columns):
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("values", "n_rounds", "ends"),
    [
        ([0.5], 2, False),
        ([0.5, 0.505], 2, True),
        ([0.5, 0.52], 2, False),
        ([0.5, 0.505], 3, False),
        ([0.1, 0.5, 0.505, 0.5], 3, True),
        ([0.1, 0.5, 0.505, 0.515], 3, False),
    ],
)
def test_stop_when_stable(values, n_rounds, ends):
    stop = StopWhenStable("loss", tol=0.01, n_rounds=n_rounds)
    assert stop(records(loss=values), None) is ends


def test_stop_when_stable_names_the_columns_there_are(images):
    with pytest.raises(ValueError, match=r"column='nmi_y' is none of .*nmi_previous"):
        quick(callbacks=StopWhenStable("nmi_y")).fit(images)
    for bad in ({"tol": -1}, {"n_rounds": 1}, {"column": 3}):
        with pytest.raises(ValueError, match=f"The '{next(iter(bad))}' parameter"):
            StopWhenStable(**bad)


def test_tensorboard_reads_what_was_written(images, tmp_path):
    events = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(events).EventAccumulator
    model = quick(callbacks=TensorBoard(tmp_path)).fit(images)
    again = clone(pickle.loads(pickle.dumps(model)))
    assert again.callbacks.log_dir == tmp_path
    events = reader(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(model.history_[0]) - {"round"}
    for name in ("loss", "nmi_previous", "largest_cluster"):
        curve = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(row["round"], np.float32(row[name])) for row in model.history_]
        assert curve == wanted


def test_mlflow_has_what_was_logged(images, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        model = quick(callbacks=[MLflow()]).fit(images)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    curve = [(metric.step, metric.value) for metric in history]
    assert curve == [(row["round"], row["loss"]) for row in model.history_]


@pytest.mark.parametrize(
    ("package", "make"),
    [("tensorboard", lambda: TensorBoard("logs")), ("mlflow", MLflow)],
)
def test_a_missing_package_is_named_at_once(monkeypatch, package, make):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'skdeepcluster\[{package}\]'"):
        make()


# Those of scikit-learn.


class Log:
    """A callback of scikit-learn's that writes down what it is told."""

    max_propagation_depth = None

    def __init__(self, stop_at=None):
        self.events, self.stop_at = [], stop_at

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(f"{context.task_name} {context.task_id} begins")

    def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
        self.events.append(f"{context.task_name} {context.task_id} ends")
        self.fitted, self.shape = fitted_estimator, np.shape(X)
        return context.task_id == self.stop_at and context.task_name == "round"


@pytest.fixture
def sklearn_callback():
    return pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9")


def test_callbacks_of_sklearn_are_told_of_each_round(
    images, expected, sklearn_callback
):
    log = Log()
    model = quick().set_callbacks(log)
    assert_same(model.fit(images), expected, images)
    rounds = [f"round {i} {what}" for i in range(3) for what in ("begins", "ends")]
    assert log.events == ["setup", "fit 0 begins", *rounds, "fit 0 ends", "teardown"]
    assert log.shape == images.shape
    assert_same(log.fitted, expected, images)
    assert not any("_ctx" in name for name in vars(model))


def test_a_callback_of_sklearn_ends_a_fit(images, sklearn_callback):
    log = Log(stop_at=0)
    model = quick().set_callbacks(log).fit(images)
    assert model.n_iter_ == 1
    assert log.events[-3:] == ["round 0 ends", "fit 0 ends", "teardown"]


def test_callbacks_of_sklearn_are_torn_down_where_a_fit_fails(sklearn_callback):
    log = Log()
    model = quick().set_callbacks(log)
    with pytest.raises(ValueError, match="n_clusters"):
        model.fit(np.zeros((3, 8, 8)))
    assert log.events == ["setup", "fit 0 begins", "teardown"]
    assert not any("_ctx" in name for name in vars(model))


def test_callbacks_of_sklearn_reach_the_fits_of_a_search(images, sklearn_callback):
    log = Log()
    search = GridSearchCV(quick(max_iter=2), {"n_clusters": [2, 3]}, cv=2)
    search.set_callbacks(log).fit(images)
    assert log.events.count("round 1 ends") == 5
    assert log.events.count("setup") == 1


def test_progress_bar_and_scoring_monitor_of_sklearn(
    digits_images, images, sklearn_callback, capsys
):
    pytest.importorskip("rich")
    classes = digits_images[1][:120]
    monitor = sklearn_callback.ScoringMonitor(scoring="adjusted_rand_score")
    model = quick().set_callbacks(monitor, sklearn_callback.ProgressBar())
    model.fit(images, classes)
    scores = [row["adjusted_rand_score"] for row in monitor.get_logs().data]
    assert len(scores) == 4
    assert scores[0] == scores[-1] > 0.2
    assert "DeepClusterEstimator - fit" in capsys.readouterr().out
