"""Images of what a network has learned: filters, clusters and its embedding."""

from ._ascent import maximal_images
from ._filters import first_layer_filters, top_images
from ._plot.contact_sheet import ContactSheetDisplay
from ._plot.embedding import EmbeddingDisplay
from ._plot.filters import FiltersDisplay
from ._plot.tree import TreeDisplay
from ._sheets import contact_sheet

__all__ = [
    "ContactSheetDisplay",
    "EmbeddingDisplay",
    "FiltersDisplay",
    "TreeDisplay",
    "contact_sheet",
    "first_layer_filters",
    "maximal_images",
    "top_images",
]
