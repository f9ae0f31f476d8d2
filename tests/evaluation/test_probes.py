"""Linear probe, nearest neighbors and few labels."""

import warnings

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from skdeepcluster.evaluation import (
    _probes,
    fine_tune,
    knn_accuracy,
    linear_probe,
    low_shot,
    untrained,
)

# Quick fits may not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def column(table, name):
    return [row[name] for row in table]


def test_linear_probe_of_all_layers(digits_model, digits_split):
    table = linear_probe(digits_model, **digits_split)
    names = ["conv1", "conv2", "conv3", "conv4", "embedding"]
    assert column(table, "layer") == names
    assert column(table, "n_values") == [2048, 2048, 1024, 2048, 256]
    assert all(0.85 < accuracy <= 1 for accuracy in column(table, "accuracy"))
    assert [list(row) for row in table] == [["layer", "n_values", "accuracy"]] * 5


def test_linear_probe_of_selected_layers(digits_model, digits_split, capsys):
    names = ["embedding", "conv3", "trunk.3"]
    table = linear_probe(
        digits_model, **digits_split, layers=names, n_values=100, verbose=1
    )
    assert column(table, "layer") == names
    assert column(table, "n_values") == [256, 64, 32]
    assert len(capsys.readouterr().out.splitlines()) == 3
    single = linear_probe(digits_model, **digits_split, layers=["conv3"], n_values=100)
    assert single == [table[1]]


def test_linear_probe_ranks_trained_above_untrained(digits_model, digits_split):
    random_network = untrained(digits_model, random_state=0)
    trained, random = (
        linear_probe(model, **digits_split, layers=["embedding"])[0]["accuracy"]
        for model in (digits_model, random_network)
    )
    assert trained > random + 0.01


def test_linear_probe_does_not_depend_on_pass_bytes(
    digits_model, digits_split, monkeypatch
):
    table = linear_probe(digits_model, **digits_split)
    monkeypatch.setattr(_probes, "PASS_BYTES", 1)
    assert linear_probe(digits_model, **digits_split) == table


def test_linear_probe_takes_strings(digits_model, digits_split):
    names = np.array(list("abcdefghij"), dtype=object)
    named_split = dict(
        digits_split,
        y_train=names[digits_split["y_train"]],
        y_test=names[digits_split["y_test"]],
    )
    table = linear_probe(digits_model, **named_split, layers=["conv4"])
    assert table == linear_probe(digits_model, **digits_split, layers=["conv4"])


def test_linear_probe_with_a_class_missing_in_training(digits_model, digits_split):
    rows = digits_split["y_train"] != 3
    split = dict(
        digits_split,
        X_train=digits_split["X_train"][rows],
        y_train=digits_split["y_train"][rows],
    )
    table = linear_probe(digits_model, **split, layers=["conv4"])
    assert table[0]["accuracy"] <= np.mean(split["y_test"] != 3)


@pytest.mark.parametrize("layers", [["conv9"], ["conv1", "trunk.99"]])
def test_unknown_layer_lists_the_layers(digits_model, digits_split, layers):
    message = f"'{layers[-1]}' is not a layer.*conv4.*trunk.3"
    with pytest.raises(ValueError, match=message):
        linear_probe(digits_model, **digits_split, layers=layers)


def test_layer_that_returns_neither_maps_nor_vectors(digits_split):
    network = nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match=r"Layer '0' returns .*\[2, 1, 64\]"):
        linear_probe(network, **digits_split, layers=["0"])
    assert len(linear_probe(network, **digits_split, layers=["1"])) == 1


def test_n_values_must_be_positive(digits_model, digits_split):
    with pytest.raises(ValueError, match="'n_values' parameter"):
        linear_probe(digits_model, **digits_split, n_values=0)


def test_knn_accuracy_equals_scikit_learn(digits_model, digits_split):
    classifier = KNeighborsClassifier(3).fit(
        digits_model.transform(digits_split["X_train"]), digits_split["y_train"]
    )
    accuracy = knn_accuracy(digits_model, **digits_split, n_neighbors=3)
    assert isinstance(accuracy, float)
    assert accuracy == classifier.score(
        digits_model.transform(digits_split["X_test"]), digits_split["y_test"]
    )


def test_knn_accuracy_needs_as_many_images_as_neighbors(digits_model, digits_split):
    with pytest.raises(ValueError, match=r"n_neighbors=301 is more than the 300"):
        knn_accuracy(digits_model, **digits_split, n_neighbors=301)


def test_low_shot_accuracy_grows_with_labels(digits_model, digits_split):
    smallest = int(np.bincount(digits_split["y_train"]).min())
    n_labels = [16, 1, 4, smallest, smallest + 1]
    table = low_shot(
        digits_model, **digits_split, n_labels=n_labels, n_repeats=3, random_state=0
    )
    assert column(table, "n_labels") == n_labels[:-1]
    accuracies = dict(zip(n_labels, column(table, "accuracy"), strict=False))
    assert accuracies[1] < accuracies[4] < accuracies[16] <= 1
    assert all(deviation >= 0 for deviation in column(table, "accuracy_std"))


def test_low_shot_depends_on_random_state_only(digits_model, digits_split):
    tables = [
        low_shot(
            digits_model, **digits_split, n_labels=1, n_repeats=3, random_state=seed
        )
        for seed in (0, 0, 1)
    ]
    assert tables[0] == tables[1]
    assert tables[0][0]["accuracy"] != tables[2][0]["accuracy"]


def test_low_shot_trains_on_equally_many_labels_a_class(
    digits_model, digits_split, monkeypatch
):
    class_sizes = []
    fit_logistic = _probes._fit_logistic

    def record_class_sizes(points, y):
        class_sizes.append(np.bincount(y).tolist())
        return fit_logistic(points, y)

    monkeypatch.setattr(_probes, "_fit_logistic", record_class_sizes)
    low_shot(digits_model, **digits_split, n_labels=(2, 5), n_repeats=2)
    assert class_sizes == [[2] * 10, [5] * 10] * 2


def test_low_shot_draws_nested_labels(digits_model, digits_split, monkeypatch):
    labeled_sets = []
    fit_logistic = _probes._fit_logistic

    def record_points(points, y):
        labeled_sets.append({row.tobytes() for row in points})
        return fit_logistic(points, y)

    monkeypatch.setattr(_probes, "_fit_logistic", record_points)
    low_shot(digits_model, **digits_split, n_labels=(2, 5), n_repeats=2)
    assert labeled_sets[0] < labeled_sets[1]
    assert labeled_sets[2] < labeled_sets[3]
    assert labeled_sets[0] != labeled_sets[2]


def test_low_shot_rejects_wrong_n_labels(digits_model, digits_split):
    with pytest.raises(ValueError, match=r"n_labels=\[400\] are all more than the \d+"):
        low_shot(digits_model, **digits_split, n_labels=400)
    with pytest.raises(ValueError, match=r"n_labels=\(1, 0\) should be positive"):
        low_shot(digits_model, **digits_split, n_labels=(1, 0))


def test_probes_do_not_warn(digits_model, digits_split):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe(digits_model, **digits_split)
        low_shot(digits_model, **digits_split, n_repeats=1)
        fine_tune(digits_model, **digits_split, n_epochs=1)
