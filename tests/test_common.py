"""scikit-learn's common checks, with real training and no expected failure."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from skdeepcluster import DeepClusterEstimator, FaissKMeans


@parametrize_with_checks([DeepClusterEstimator(), FaissKMeans()])
def test_common_checks(estimator, check):
    check(estimator)
