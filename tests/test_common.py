"""scikit-learn's common checks, with real training."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from skdeepcluster import DeepClusterEstimator, FaissKMeans

ESTIMATORS = [
    # Two rounds instead of six check the same, in less than half of the time.
    DeepClusterEstimator(max_iter=2),
    # Rows are the embedding.
    DeepClusterEstimator(fine_tune=False),
    FaissKMeans(),
]


def expected_failures(estimator):
    """Return the reasons for checks that fail, by the names of the checks."""
    if getattr(estimator, "fine_tune", True) is False:
        return {"check_transformer_n_iter": "n_iter_ is 0 without training"}
    return {}


@parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_failures)
def test_common_checks(estimator, check):
    check(estimator)
