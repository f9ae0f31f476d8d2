"""What a network has learned, as pictures: section 4.1 of the paper."""

from ._ascent import maximal_images
from ._filters import first_layer_filters, top_images
from ._sheets import contact_sheet

__all__ = ["contact_sheet", "first_layer_filters", "maximal_images", "top_images"]
