"""Functions and scikit-learn's callbacks run after each round and may end a fit."""

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

# Fits of a few steps warn that they did not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"n_clusters": 5, "max_iter": 3, "epochs_per_iter": 1, "random_state": 0}


def make_model(**params) -> DeepClusterEstimator:
    return DeepClusterEstimator(**QUICK | params)


@pytest.fixture(scope="module")
def images(digits_images):
    return digits_images[0][:120]


@pytest.fixture(scope="module")
def expected(images):
    return make_model().fit(images)


def assert_same(model, expected, images):
    assert_array_equal(model.labels_, expected.labels_)
    assert_array_equal(model.transform(images), expected.transform(images))
    assert_array_equal(model.predict(images), expected.predict(images))


# Functions.


@pytest.mark.parametrize("form", ["function", "list", "tuple"])
def test_functions_get_the_history_of_each_round(images, form):
    histories = []

    def record(history, fitted):
        histories.append(history)

    forms = {"function": record, "list": [record], "tuple": (record, record)}
    model = make_model(callbacks=forms[form])
    model.fit(images)
    n_functions = 2 if form == "tuple" else 1
    assert [len(history) for history in histories[::n_functions]] == [1, 2, 3]
    assert len(histories) == 3 * n_functions
    assert histories[-1] == model.history_


def clear(history, fitted):
    history.clear()


def clear_record(history, fitted):
    history[-1].clear()


def change_numbers(history, fitted):
    history[-1].update(round=-1, loss=np.nan, inertia=np.float32(1))
    history[0]["nmi_previous"] = torch.tensor(1.0)
    history[-1]["figure"] = np.zeros(3)
    history.append({})


def change_fitted(history, fitted):
    model = fitted()
    model.history_[-1].clear()
    model.recipe_.clear()
    for value in vars(model).values():
        if isinstance(value, np.ndarray) and value.flags.writeable:
            value.fill(0)
    for weights in model.module_.state_dict().values():
        weights.zero_()


@pytest.mark.parametrize("change", [clear, clear_record, change_numbers, change_fitted])
def test_callbacks_cannot_change_the_fit(images, expected, tmp_path, change):
    histories = []

    def record(history, fitted):
        histories.append(history)

    model = make_model(callbacks=[change, record], checkpoint_dir=tmp_path / "folder")
    model.fit(images)
    assert_same(model, expected, images)
    assert_array_equal(model.cluster_centers_, expected.cluster_centers_)
    assert [len(history) for history in histories] == [1, 2, 3]
    for history in (histories[-1], model.history_):
        assert [record["loss"] for record in history] == [
            record["loss"] for record in expected.history_
        ]
        assert [[*record] for record in history] == [
            [*record] for record in expected.history_
        ]
    model.set_params(callbacks=None).save(tmp_path / "model")
    loaded = DeepClusterEstimator.load(tmp_path / "model")
    assert loaded.history_ == model.history_


@pytest.mark.parametrize(
    "params", [{}, {"head": "centroids"}, {"n_pseudo_labels": 5}], ids=str
)
def test_fitted_equals_the_result_of_a_fit_that_ends_there(images, params):
    models = []

    def stop_at_second(history, fitted):
        models.append(fitted())
        assert fitted() is models[-1]
        return len(history) == 2

    ended = make_model(callbacks=stop_at_second, **params).fit(images)
    assert ended.n_iter_ == 2
    assert len(models) == 2
    assert_same(models[1], ended, images)
    assert_array_equal(models[1].cluster_centers_, ended.cluster_centers_)
    assert models[1].history_ == ended.history_
    # The second round does not change the model of the first.
    shorter = make_model(callbacks=lambda history, fitted: True, **params).fit(images)
    assert_same(models[0], shorter, images)
    assert len(models[0].history_) == models[0].n_iter_ == 1


def test_one_true_ends_the_fit_and_removes_its_checkpoints(images, tmp_path):
    functions = [lambda history, fitted: None, lambda history, fitted: True]
    for callbacks in (functions, functions[::-1]):
        model = make_model(callbacks=callbacks, checkpoint_dir=tmp_path).fit(images)
        assert model.n_iter_ == 1
        assert list(tmp_path.iterdir()) == []
        assert_array_equal(model.predict(images), model.labels_)


def test_callbacks_do_not_change_the_fit(images):
    backbone = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 8))

    def disturb(history, fitted):
        torch.rand(7)
        for weight in fitted().module_.parameters():
            weight.data.zero_()

    expected = make_model(backbone=backbone).fit(images)
    model = make_model(backbone=backbone, callbacks=disturb).fit(images)
    assert_same(model, expected, images)


def test_error_of_a_function_leaves_the_estimator_unchanged(images):
    def fail(history, fitted):
        raise KeyError("an error of the user")

    model = make_model(callbacks=fail)
    before = dict(vars(model))
    with pytest.raises(KeyError, match="an error of the user"):
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
def test_other_objects_are_refused_before_the_fit_starts(callbacks, message):
    with pytest.raises(TypeError, match=message):
        make_model(callbacks=callbacks).fit("no folder")


def test_callbacks_work_in_copies_and_searches(images):
    model = make_model(callbacks=[StopWhenStable(tol=1.0, n_rounds=2)])
    assert clone(pickle.loads(pickle.dumps(model))).fit(images).n_iter_ == 2
    search = GridSearchCV(model, {"callbacks": [StopWhenStable(tol=1.0)]}, cv=2)
    assert search.fit(images).best_estimator_.n_iter_ == 3


def test_callbacks_are_not_saved(images, tmp_path):
    model = make_model(max_iter=1, callbacks=[StopWhenStable()]).fit(images)
    with pytest.warns(UserWarning, match="callbacks is a list, which is not saved"):
        model.save(tmp_path / "model")
    assert DeepClusterEstimator.load(tmp_path / "model").callbacks is None


def test_interrupted_fit_resumes_with_other_callbacks(images, tmp_path, expected):

    def fail(history, fitted):
        if len(history) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        make_model(callbacks=fail, checkpoint_dir=tmp_path).fit(images)
    n_rounds = []
    model = make_model(
        callbacks=lambda history, fitted: n_rounds.append(len(history)),
        checkpoint_dir=tmp_path,
    )
    assert_same(model.fit(images), expected, images)
    assert n_rounds == [2, 3]


# Callbacks of the package.


def make_history(**columns):
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
    assert stop(make_history(loss=values), None) is ends


def test_stop_when_stable_names_the_columns_of_history(images):
    with pytest.raises(ValueError, match=r"column='nmi_y' is no column .*nmi_previous"):
        make_model(callbacks=StopWhenStable("nmi_y")).fit(images)
    for invalid in ({"tol": -1}, {"n_rounds": 1}, {"column": 3}):
        name = next(iter(invalid))
        with pytest.raises(ValueError, match=f"The '{name}' parameter"):
            StopWhenStable(**invalid)


def test_tensorboard_reads_the_curves(images, tmp_path):
    events = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(events).EventAccumulator
    model = make_model(callbacks=TensorBoard(tmp_path)).fit(images)
    copied = clone(pickle.loads(pickle.dumps(model)))
    assert copied.callbacks.log_dir == tmp_path
    events = reader(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(model.history_[0]) - {"round"}
    for name in ("loss", "nmi_previous", "largest_cluster"):
        curve = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row["round"], np.float32(row[name])) for row in model.history_]
        assert curve == expected


def test_mlflow_has_the_curves(images, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    with mlflow.start_run() as run:
        model = make_model(callbacks=[MLflow()]).fit(images)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    curve = [(metric.step, metric.value) for metric in history]
    assert curve == [(row["round"], row["loss"]) for row in model.history_]


@pytest.mark.parametrize(
    ("package", "make"),
    [("tensorboard", lambda: TensorBoard("logs")), ("mlflow", MLflow)],
)
def test_missing_package_is_named_before_the_fit(monkeypatch, package, make):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"pip install 'skdeepcluster\[{package}\]'"):
        make()


# Callbacks of scikit-learn.


class Log:
    """A callback for scikit-learn that records its calls."""

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


def test_sklearn_callbacks_run_for_each_round(images, expected, sklearn_callback):
    log = Log()
    model = make_model().set_callbacks(log)
    assert_same(model.fit(images), expected, images)
    rounds = [f"round {i} {event}" for i in range(3) for event in ("begins", "ends")]
    assert log.events == ["setup", "fit 0 begins", *rounds, "fit 0 ends", "teardown"]
    assert log.shape == images.shape
    assert_same(log.fitted, expected, images)
    assert not any("_ctx" in name for name in vars(model))


def test_sklearn_callback_ends_a_fit(images, sklearn_callback):
    log = Log(stop_at=0)
    model = make_model().set_callbacks(log).fit(images)
    assert model.n_iter_ == 1
    assert log.events[-3:] == ["round 0 ends", "fit 0 ends", "teardown"]


def test_sklearn_callbacks_are_torn_down_after_an_error(sklearn_callback):
    log = Log()
    model = make_model().set_callbacks(log)
    with pytest.raises(ValueError, match="n_clusters"):
        model.fit(np.zeros((3, 8, 8)))
    assert log.events == ["setup", "fit 0 begins", "teardown"]
    assert not any("_ctx" in name for name in vars(model))


def test_sklearn_callbacks_of_a_search_reach_its_fits(images, sklearn_callback):
    log = Log()
    search = GridSearchCV(make_model(max_iter=2), {"n_clusters": [2, 3]}, cv=2)
    search.set_callbacks(log).fit(images)
    assert log.events.count("round 1 ends") == 5
    assert log.events.count("setup") == 1


def test_progress_bar_and_scoring_monitor_of_sklearn(
    digits_images, images, sklearn_callback, capsys
):
    pytest.importorskip("rich")
    classes = digits_images[1][:120]
    monitor = sklearn_callback.ScoringMonitor(scoring="adjusted_rand_score")
    model = make_model().set_callbacks(monitor, sklearn_callback.ProgressBar())
    model.fit(images, classes)
    scores = [row["adjusted_rand_score"] for row in monitor.get_logs().data]
    assert len(scores) == 4
    assert scores[0] == scores[-1] > 0.2
    assert "DeepClusterEstimator - fit" in capsys.readouterr().out
