"""Fine-tuning with labels, and networks with new weights."""

import numpy as np
import pytest
import torch
from torch import nn

from skdeepcluster.evaluation import fine_tune, linear_probe, untrained

# Quick fits may not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def column(table, name):
    return [row[name] for row in table]


def assert_same_weights(weights, expected):
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(weights[name], values), name


def test_fine_tune_learns_and_does_not_change_the_model(
    digits_model, digits_split, module_state
):
    before = module_state(digits_model.module_)
    table, module = fine_tune(digits_model, **digits_split, n_epochs=3, random_state=0)
    assert module_state(digits_model.module_) == before
    assert column(table, "epoch") == [1, 2, 3]
    assert table[-1]["loss"] < table[0]["loss"]
    # Measured: 0.88 to 0.93, depending on the processor.
    assert table[-1]["accuracy"] > 0.8
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(submodule.training for submodule in module.modules())
    assert linear_probe(module.network, **digits_split)[-1]["layer"] == "embedding"


def test_fine_tune_reports_the_accuracy_of_the_returned_module(
    digits_model, digits_split
):
    table, module = fine_tune(digits_model, **digits_split, n_epochs=3, random_state=0)
    with torch.no_grad():
        logits = module(torch.from_numpy(digits_split["X_test"][:, None]).float())
    predictions = logits.argmax(dim=1).numpy()
    assert (
        float(np.mean(predictions == digits_split["y_test"])) == table[-1]["accuracy"]
    )


def test_fine_tune_from_scratch(digits_model, digits_split, capsys):
    table, _ = fine_tune(
        untrained(digits_model, random_state=0),
        **digits_split,
        n_epochs=6,
        learning_rate=0.03,
        random_state=0,
        verbose=1,
    )
    assert table[-1]["accuracy"] > 0.85
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[5].startswith("epoch   6  loss 0.")


@pytest.mark.parametrize(
    ("from_layer", "n_frozen"), [(None, 0), ("conv3", 7), ("trunk.7", 7), ("conv4", 10)]
)
def test_fine_tune_freezes_layers_before_from_layer(
    digits_model, digits_split, from_layer, n_frozen
):
    _, module = fine_tune(
        digits_model, **digits_split, from_layer=from_layer, n_epochs=1
    )
    assert all(parameter.requires_grad for parameter in module.parameters())
    weights = module.network.state_dict()
    for name, values in digits_model.module_.state_dict().items():
        if name.startswith("trunk.") and not name.endswith("tracked"):
            is_frozen = int(name.split(".")[1]) < n_frozen
            assert torch.equal(values, weights[name]) == is_frozen, name


def test_fine_tune_from_embedding_trains_the_classifier_only(
    digits_model, digits_split
):
    table, module = fine_tune(
        digits_model, **digits_split, from_layer="embedding", n_epochs=3
    )
    assert_same_weights(module.network.state_dict(), digits_model.module_.state_dict())
    assert table[-1]["loss"] < table[0]["loss"]


def test_fine_tune_keeps_frozen_parameters(digits_split, make_plain_network):
    network = make_plain_network()
    network[0].requires_grad_(False)
    _, module = fine_tune(network, **digits_split, n_epochs=1)
    assert torch.equal(module.network[0].weight, network[0].weight)
    assert not torch.equal(module.network[4].weight, network[4].weight)
    assert not module.network[0].weight.requires_grad


def test_fine_tune_depends_on_random_state_only(digits_model, digits_split):
    weights = [
        fine_tune(digits_model, **digits_split, n_epochs=1, random_state=seed)[
            1
        ].state_dict()
        for seed in (0, 0, 1)
    ]
    assert_same_weights(weights[0], weights[1])
    assert not torch.equal(
        weights[0]["classifier.weight"], weights[2]["classifier.weight"]
    )


def test_fine_tune_errors(digits_model, digits_split, make_plain_network):
    with pytest.raises(ValueError, match="Lower learning_rate=1e"):
        fine_tune(digits_model, **digits_split, learning_rate=1e25, n_epochs=3)
    with pytest.raises(ValueError, match="'conv7' is not a layer"):
        fine_tune(digits_model, **digits_split, from_layer="conv7")
    with pytest.raises(ValueError, match=r"model returns maps of shape \(4, 8, 8\)"):
        fine_tune(make_plain_network()[:3], **digits_split)


def test_untrained_does_not_change_the_model(digits_model, module_state):
    before = module_state(digits_model.module_)
    untrained(digits_model, random_state=3)
    assert module_state(digits_model.module_) == before


def test_untrained_is_reproducible(digits_model, module_state):
    first, second = (untrained(digits_model, random_state=3) for _ in range(2))
    assert module_state(first) == module_state(second)


def test_untrained_resets_weights_and_batch_norm(digits_model):
    weights = digits_model.module_.state_dict()
    new_weights = untrained(digits_model, random_state=3).state_dict()
    assert weights.keys() == new_weights.keys()
    for name, values in new_weights.items():
        if name.startswith("front."):
            assert torch.equal(values, weights[name]), name
        elif values.ndim == 4:
            assert not torch.equal(values, weights[name]), name
        elif name.endswith(("mean", "bias", "tracked")):
            assert not values.any(), name
        else:
            assert (values == 1).all(), name
    assert all(values.isfinite().all() for values in new_weights.values())


def test_untrained_keeps_frozen_weights(make_plain_network):
    network = make_plain_network()
    network[0].requires_grad_(False)
    assert torch.equal(untrained(network)[0].weight, network[0].weight)
    assert not torch.equal(untrained(network)[4].weight, network[4].weight)


def test_untrained_needs_reset_parameters():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    message = "'1' of the model has weights but no method reset_parameters"
    with pytest.raises(ValueError, match=message):
        untrained(nn.Sequential(nn.Linear(2, 2), Scale()))
