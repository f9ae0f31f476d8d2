"""Results in files: embeddings of any number of images, and folders of clusters."""

from ._embeddings import write_embeddings
from ._export import export_clusters

__all__ = ["export_clusters", "write_embeddings"]
