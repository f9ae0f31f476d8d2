"""`verbose=2` shows the steps of a round on a terminal and in a log."""

import re
import sys
from types import SimpleNamespace

import pytest

from skdeepcluster import DeepClusterEstimator
from skdeepcluster._fit import checkpoints as checkpoints_module
from skdeepcluster._fit import progress as progress_module
from skdeepcluster._fit.forecast import Forecast
from skdeepcluster._fit.progress import progress_bar

# 130 images are 3 batches a pass, so a round has 6 steps.
QUICK = {"n_clusters": 5, "max_iter": 2, "epochs_per_iter": 2, "random_state": 0}


@pytest.fixture
def fit(digits_images, capsys):
    """Fit 130 images with verbose=2, and return the text on stdout and stderr."""

    def fit(**params):
        model = DeepClusterEstimator(**QUICK, verbose=2, **params)
        model.fit(digits_images[0][:130])
        return capsys.readouterr()

    return fit


@pytest.fixture
def terminal(monkeypatch):
    """Simulate a terminal, which is redrawn at each step."""
    monkeypatch.setattr(progress_module, "_has_terminal", lambda: True)
    monkeypatch.setattr(progress_module, "REFRESH_SECONDS", 0.0)


@pytest.mark.parametrize("has_tqdm", [True, False])
def test_log_has_lines(fit, monkeypatch, request, has_tqdm):
    if not has_tqdm:
        request.getfixturevalue("terminal")
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(progress_module, "LOG_SECONDS", 0.0)
    out, err = fit()
    assert err == ""
    lines = out.splitlines()
    steps = [line for line in lines if ": step " in line]
    # The rate of a round's first batch is unknown, except after the initial state.
    form = re.compile(r"round +(\d): step (\d) of 6, [\d,]+ images/s")
    counts = [form.fullmatch(line).groups() for line in steps]
    first = [("1", str(i)) for i in range(1, 7)]
    second = [("2", str(i)) for i in range(2, 7)]
    assert counts == first + second
    # The estimate, and the lines of two rounds.
    assert len(lines) == len(steps) + 3
    assert lines[-1].startswith("round   2: loss ")


def test_log_of_a_short_fit_has_one_line_per_round(fit):
    out, err = fit()
    estimate, *rounds = out.splitlines()
    assert "training takes about" in estimate
    assert len(rounds) == 2
    assert err == ""


def test_terminal_has_a_bar(fit, terminal):
    pytest.importorskip("tqdm")
    out, err = fit()
    assert re.findall(r"round +(\d): loss", out) == ["1", "2"]
    assert len(out.splitlines()) == 3
    for index in (1, 2):
        for step in range(1, 7):
            assert re.search(rf"round {index}: +\d+%\|.*\| {step}/6 steps", err)
        # After the last step the line is blank.
        assert re.search(
            rf"round {index}: 100%\|█+\| 6/6 steps \[[\d:]+<00:00, [\d,]+ images/s\]"
            r"\r +\r",
            err,
        )
    assert "\n" not in err
    assert re.search(r"\r +\r+$", err)


def test_bar_starts_no_thread(terminal, capsys, monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm.tqdm, "monitor", None)
    recipe = SimpleNamespace(steps_per_round=6, batch_size=64)
    with progress_bar(recipe, True) as show_step:
        for step in range(1, 7):
            show_step(1, SimpleNamespace(n_steps=step, n_rounds=0))
    assert "6/6 steps" in capsys.readouterr().err
    assert tqdm.tqdm.monitor is None


def test_bar_does_not_change_the_fit(digits_images, terminal):
    images = digits_images[0][:130]
    expected = DeepClusterEstimator(**QUICK).fit_transform(images)
    embedding = DeepClusterEstimator(**QUICK, verbose=2).fit_transform(images)
    assert (embedding == expected).all()


class StopOnce:
    """An augmentation that raises at its fourth call."""

    def __init__(self):
        self.n_calls = 0

    def __call__(self, batch):
        self.n_calls += 1
        if self.n_calls == 4:
            raise InterruptedError
        return batch

    def __getstate__(self):
        # The counter is no part of the parameter.
        return {}


# Whether one pseudo-label grows large in so short a fit depends on the processor.
@pytest.mark.filterwarnings("ignore:After round:sklearn.exceptions.ConvergenceWarning")
def test_progress_of_a_resumed_fit_starts_at_the_checkpoint(
    digits_images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(progress_module, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints_module, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    images = digits_images[0][:130]
    params = {**QUICK, "augment": StopOnce(), "checkpoint_dir": tmp_path, "verbose": 2}
    with pytest.raises(InterruptedError):
        DeepClusterEstimator(**params).fit(images)
    capsys.readouterr()
    DeepClusterEstimator(**params).fit(images)
    steps = re.findall(r"round +1: step (\d) of 6", capsys.readouterr().out)
    assert steps == ["5", "6"]


def test_forecast_comes_before_the_first_round(digits_images, capsys):
    images = digits_images[0][:130]
    # 40 steps in a round, of which the first 13 give the estimate.
    model = DeepClusterEstimator(
        5, max_iter=2, epochs_per_iter=8, batch_size=26, random_state=0, verbose=1
    )
    model.fit(images)
    first_line, *round_lines = capsys.readouterr().out.splitlines()
    assert re.match(
        r"2 rounds of 40 steps: training takes about \d:\d\d:\d\d \(", first_line
    )
    assert len(round_lines) == model.n_iter_


def test_forecast_of_a_long_fit_names_what_shortens_it():
    recipe = SimpleNamespace(steps_per_round=200, batch_size=64, max_iter=6)
    forecast = Forecast(recipe, n_images=6400)
    line = forecast.format_estimate(seconds_per_step=0.3, n_rounds=6)
    # 6 rounds of 200 steps, and of 100 batches that are embedded.
    assert "about 0:07:00" in line
    assert "max_iter=3" in line
    assert "predict the rest" not in line
    many = Forecast(recipe, n_images=64_000)
    line = many.format_estimate(seconds_per_step=0.3, n_rounds=6)
    assert "predict the rest" in line
    line = forecast.format_estimate(seconds_per_step=0.001, n_rounds=6)
    assert "max_iter" not in line
    # Another max_iter would discard the rounds of a resumed fit.
    resumed = Forecast(recipe, n_images=64_000, first_round=3)
    line = resumed.format_estimate(seconds_per_step=0.3, n_rounds=3)
    assert "To shorten it" not in line


@pytest.mark.parametrize(("n_steps", "n_counted"), [(40, 13), (6, 5), (4, None)])
def test_forecast_comes_inside_the_first_round(n_steps, n_counted):
    recipe = SimpleNamespace(steps_per_round=n_steps, batch_size=64, max_iter=6)
    forecast = Forecast(recipe, n_images=640)
    start = SimpleNamespace(n_rounds=0, training=None)
    step = SimpleNamespace(n_rounds=0, training=object())
    lines = [forecast.count_step(state) for state in [start, *[step] * n_steps]]
    counts = [i for i, line in enumerate(lines) if line is not None]
    assert counts == ([] if n_counted is None else [n_counted])
