"""`verbose=2` shows the steps of a round, whatever it is printed to."""

import re
import sys

import pytest

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit import checkpoints as checkpoints_module
from skdeepcluster._fit import progress as progress_module

QUICK = {"n_clusters": 5, "max_iter": 2, "epochs_per_iter": 2, "random_state": 0}


@pytest.fixture
def fit(digits_images, capsys):
    """Fit 130 images with verbose=2, and return what was printed."""

    def fit(**params):
        model = DeepClusterEstimator(**QUICK, verbose=2, **params)
        model.fit(digits_images[0][:130])
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return fit


@pytest.mark.parametrize("rich_is_there", [True, False])
def test_a_log_has_lines(fit, monkeypatch, rich_is_there):
    if not rich_is_there:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal that could show a bar
    monkeypatch.setattr(progress_module, "LOG_SECONDS", 0.0)
    lines = fit().splitlines()
    steps = [line for line in lines if "step" in line]
    # 130 images are 3 batches a pass, the rate of the first of which is not known.
    form = re.compile(r"round +(\d): step (\d) of 6, [\d,]+ images/s")
    counts = [form.fullmatch(line).groups() for line in steps]
    first = [("1", str(i)) for i in range(1, 7)]
    second = [("2", str(i)) for i in range(2, 7)]
    assert counts == first + second
    assert len(lines) == len(steps) + 2
    assert lines[-1].startswith("round   2: loss ")


def test_a_short_fit_writes_no_more_to_a_log_than_its_rounds(fit):
    assert len(fit().splitlines()) == 2


def test_a_terminal_has_a_bar_that_leaves_the_lines(fit, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress_module, "REFRESH_SECONDS", 0.0)
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", fit())
    for index in (1, 2):
        assert f"round {index} ━" in out
        assert re.search(rf"round {index} ━+ +6/6 steps +[\d,]+ images/s", out)
    assert re.findall(r"round +(\d): loss", out) == ["1", "2"]


def test_a_bar_changes_nothing(digits_images, monkeypatch, capsys):
    images = digits_images[0][:130]
    plain = DeepClusterEstimator(**QUICK).fit_transform(images)
    monkeypatch.setenv("FORCE_COLOR", "1")
    drawn = DeepClusterEstimator(**QUICK, verbose=2).fit_transform(images)
    assert (plain == drawn).all()


def test_the_bar_goes_on_where_a_stopped_fit_was(
    digits_images, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("safetensors")
    monkeypatch.setattr(progress_module, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints_module, "SECONDS", -1.0)
    images, calls = digits_images[0][:130], []

    def stop(batch):
        calls.append(1)
        if len(calls) == 4:
            raise InterruptedError
        return batch

    params = {**QUICK, "augment": stop, "checkpoint_dir": tmp_path, "verbose": 2}
    with pytest.raises(InterruptedError):
        DeepClusterEstimator(**params).fit(images)
    capsys.readouterr()
    DeepClusterEstimator(**params).fit(images)
    steps = re.findall(r"round +1: step (\d) of 6", capsys.readouterr().out)
    assert steps == ["5", "6"]
