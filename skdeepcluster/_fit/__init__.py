"""One fit: rounds of clustering and training, resumed, recorded and reported."""
