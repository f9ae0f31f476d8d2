"""scikit-learn's common checks, with real training and no expected failure."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from skdeepcluster import DeepClusterEstimator, FaissKMeans


# Two rounds instead of six check the same, in less than half of the time.
@parametrize_with_checks([DeepClusterEstimator(max_iter=2), FaissKMeans()])
def test_common_checks(estimator, check):
    check(estimator)
