"""Random crops and flips of a whole batch, each image with its own parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from .._utils.distributed import SINGLE_PROCESS, Shard

# Takes a batch, float32 in the source's own units, a generator and, where processes
# share a larger batch, which rows of it these are. Returns one of the same shape.
Augment = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class RandomCrop:
    """Random crop, rotation, flip, contrast and brightness of a batch of images.

    Each image has its own parameters; the geometry of the whole batch is one kernel.

    Parameters
    ----------
    min_area : float
        Smallest share of the image's area that a crop keeps.
    max_stretch : float
        The crop's aspect ratio, relative to the image's, lies between
        1 / `max_stretch` and `max_stretch`.
    max_angle : float
        Largest rotation to either side, in degrees.
    flip : bool
        Whether half of the images are mirrored left to right.
    jitter : float
        Largest relative change of contrast, and of brightness relative to the
        standard deviation of the batch's pixels.
    tint : float
        The same for each channel by itself, on top.
    max_area : float
        Largest share of the image's area that a crop keeps.
    side : float
        Sides of the crops that are returned, relative to those of the images.
    """

    min_area: float = 0.6
    max_stretch: float = 1.15
    max_angle: float = 10.0
    flip: bool = True
    jitter: float = 0.3
    tint: float = 0.1
    max_area: float = 1.0
    side: float = 1.0

    def small(self) -> "RandomCrop":
        """Return the crops of half the side that multi-crop adds, of smaller parts."""
        return replace(
            self, min_area=self.min_area / 3, max_area=self.min_area, side=0.5
        )

    def __call__(
        self,
        images: torch.Tensor,
        generator: torch.Generator,
        shard: Shard | None = None,
    ) -> torch.Tensor:
        """Return crops of `images`, float (n, C, H, W)."""
        n, channels = images.shape[:2]
        shard = SINGLE_PROCESS.shard(n) if shard is None else shard
        sides = [max(1, round(self.side * side)) for side in images.shape[2:]]
        draws = torch.rand(8 + 2 * channels, shard.n_rows, generator=generator)
        draws = draws[:, shard.rows].to(images.device)
        maps = self._maps(draws[:6], images)
        crops = functional.grid_sample(
            images,
            functional.affine_grid(maps, [n, channels, *sides], align_corners=False),
            padding_mode="border",
            align_corners=False,
        )
        whole, tints = draws[6:8], draws[8:]
        contrast = 1 + self._levels(whole[0], tints[:channels])
        brightness = self._levels(whole[1], tints[channels:])
        mean, spread = _mean_and_spread(images, shard)
        return (crops - mean) * contrast + (mean + spread * brightness)

    def _levels(self, whole: torch.Tensor, tints: torch.Tensor) -> torch.Tensor:
        """Return changes (n, C, 1, 1) from uniform draws (n,) and (C, n)."""
        levels = self.jitter * (2 * whole - 1) + self.tint * (2 * tints - 1)
        return levels.T[..., None, None]

    def _maps(self, draws: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return affine maps (n, 2, 3) from coordinates of crops to those of images."""
        size, ratio, x, y, side, turn = draws
        area = (self.min_area + (self.max_area - self.min_area) * size).sqrt()
        # Neither side is longer than the image's.
        longest = (-area.log()).clamp(max=math.log(self.max_stretch) / 2)
        stretch = torch.exp((2 * ratio - 1) * longest)
        width, height = area * stretch, area / stretch
        mirror = torch.where(side < 0.5, -1.0, 1.0) if self.flip else 1.0
        angle = (2 * turn - 1) * math.radians(self.max_angle)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        # Coordinates run from -1 to 1 along either side, whatever their lengths.
        aspect = images.shape[2] / images.shape[3]
        rows = [
            width * cosine * mirror,
            -height * sine * aspect,
            (2 * x - 1) * (1 - width),
            width * sine * mirror / aspect,
            height * cosine,
            (2 * y - 1) * (1 - height),
        ]
        return torch.stack(rows, dim=1).reshape(-1, 2, 3)


def _mean_and_spread(images: torch.Tensor, shard: Shard) -> tuple[torch.Tensor, ...]:
    """Return mean and standard deviation of a batch that processes share."""
    if shard.processes.size == 1:
        return images.mean(), images.std()
    values = images.double()
    moments = [values.sum(), values.square().sum(), values.new_tensor(values.numel())]
    total, squares, n = shard.processes.sum_tensor(torch.stack(moments))
    variance = (squares - total.square() / n) / (n - 1)
    return (total / n).to(images.dtype), variance.clamp(min=0).sqrt().to(images.dtype)


# Of random sizes and shapes and mirrored, and nothing else, as in the paper.
PAPER_CROPS = RandomCrop(
    min_area=0.08, max_stretch=4 / 3, max_angle=0, jitter=0, tint=0
)


@dataclass(frozen=True)
class RowNoise:
    """Gaussian noise on rows, for judging how stable their clusters are.

    Parameters
    ----------
    share : float
        Standard deviation of the noise, relative to that of the batch's values.
    """

    share: float = 0.1

    def __call__(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return noisy `rows`, float (n, d)."""
        noise = torch.randn(rows.shape, generator=generator).to(rows.device)
        return rows + self.share * (rows - rows.mean(dim=0)).std() * noise


def make_views(
    images: torch.Tensor,
    augment: Augment | None,
    n_crops: tuple[int, int],
    generator: torch.Generator,
    shard: Shard | None = None,
) -> list[torch.Tensor]:
    """Return random views of a batch (n, C, H, W), which are of the same pseudo-labels.

    The first tensor holds `n_crops[0]` views of each image, one batch after the other,
    the second, if there is one, `n_crops[1]` small ones (multi-crop, Caron et al.,
    NeurIPS 2020, section 3.2). With a `shard`, the images are those rows of a batch
    that processes share.
    """
    if augment is None:
        return [images]
    images = images.float()
    if n_crops == (1, 0):
        return [augment(images, generator, shard)]
    kinds = [(augment, n_crops[0])]
    if isinstance(augment, RandomCrop) and n_crops[1]:
        kinds.append((augment.small(), n_crops[1]))
    return [
        torch.cat([crop(images, generator, shard) for _ in range(count)])
        for crop, count in kinds
    ]


def apply_user_augment(
    function: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    generator: torch.Generator,
    shard: Shard | None = None,
) -> torch.Tensor:
    """Call a user's function on this process's batch, and hold it to its shape."""
    augmented = function(images)
    if not isinstance(augmented, torch.Tensor) or augmented.shape != images.shape:
        shape = getattr(augmented, "shape", None)
        got = type(augmented).__name__ if shape is None else tuple(shape)
        raise ValueError(
            f"augment must return a tensor of shape {tuple(images.shape)}, as it was "
            f"given, but returned {got}."
        )
    augmented = augmented.to(images.dtype)
    if not bool(augmented.sum().isfinite()):
        raise ValueError("augment returned values that are NaN or infinite.")
    return augmented
