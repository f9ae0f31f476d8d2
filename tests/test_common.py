"""scikit-learn's common checks, with real training and no expected failure."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from skdeepcluster import DeepClusterEstimator, FaissKMeans

ESTIMATORS = [
    # Two rounds instead of six check the same, in less than half of the time.
    DeepClusterEstimator(max_iter=2),
    # Rows are the embedding.
    DeepClusterEstimator(fine_tune=False),
    FaissKMeans(),
]


@parametrize_with_checks(ESTIMATORS)
def test_common_checks(estimator, check):
    check(estimator)
