"""Random views of a batch: crops, flips and changes of light, different per image."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from .._utils.distributed import SINGLE_PROCESS, Processes, Shard
from .sampling import choose_statistics_processes

# An augmentation takes a batch, float32 in the units of X, a generator and optionally a
# shard: the rows of a larger batch that this process holds. It returns a new batch.
Augment = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class RandomCrop:
    """Random crop, rotation, flip, contrast and brightness of a batch of images.

    Each image has its own parameters. The geometry of the whole batch is one kernel.

    Parameters
    ----------
    min_area : float
        Smallest share of the image's area that a crop keeps.
    max_stretch : float
        The aspect ratio of a crop, relative to the image's, lies between
        1 / `max_stretch` and `max_stretch`.
    max_angle : float
        Largest rotation in either direction, in degrees.
    flip : bool
        Mirror half of the images left to right.
    jitter : float
        Largest relative change of contrast. Brightness changes by at most this share of
        the standard deviation of the batch's pixels.
    tint : float
        Largest additional change of contrast and brightness of each channel.
    max_area : float
        Largest share of the image's area that a crop keeps.
    output_scale : float
        Sides of the returned crops, relative to the sides of the images.
    """

    min_area: float = 0.6
    max_stretch: float = 1.15
    max_angle: float = 10.0
    flip: bool = True
    jitter: float = 0.3
    tint: float = 0.1
    max_area: float = 1.0
    output_scale: float = 1.0

    def small(self) -> "RandomCrop":
        """Return the small crops of multi-crop: half the side, of a smaller area."""
        return replace(
            self, min_area=self.min_area / 3, max_area=self.min_area, output_scale=0.5
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
        sides = [max(1, round(self.output_scale * side)) for side in images.shape[2:]]
        # Every process draws the numbers of the whole batch and uses its own columns,
        # so that the crops do not depend on the number of processes.
        draws = torch.rand(8 + 2 * channels, shard.n_rows, generator=generator)
        draws = draws[:, shard.rows].to(images.device)
        maps = self._affine_maps(draws[:6], images)
        crops = functional.grid_sample(
            images,
            functional.affine_grid(maps, [n, channels, *sides], align_corners=False),
            padding_mode="border",
            align_corners=False,
        )
        common, tints = draws[6:8], draws[8:]
        contrast = 1 + self._random_changes(common[0], tints[:channels])
        brightness = self._random_changes(common[1], tints[channels:])
        mean, deviation = _mean_and_deviation(
            images, choose_statistics_processes(shard)
        )
        return (crops - mean) * contrast + (mean + deviation * brightness)

    def _random_changes(
        self, common: torch.Tensor, tints: torch.Tensor
    ) -> torch.Tensor:
        """Return changes (n, C, 1, 1) from uniform draws (n,) and (C, n)."""
        changes = self.jitter * (2 * common - 1) + self.tint * (2 * tints - 1)
        return changes.T[..., None, None]

    def _affine_maps(self, draws: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Return affine maps (n, 2, 3) from coordinates of crops to those of images."""
        size, ratio, x, y, mirror_draw, turn = draws
        scale = (self.min_area + (self.max_area - self.min_area) * size).sqrt()
        # The limit keeps both sides of the crop inside the image.
        max_log_stretch = (-scale.log()).clamp(max=math.log(self.max_stretch) / 2)
        stretch = torch.exp((2 * ratio - 1) * max_log_stretch)
        width, height = scale * stretch, scale / stretch
        mirror = torch.where(mirror_draw < 0.5, -1.0, 1.0) if self.flip else 1.0
        angle = (2 * turn - 1) * math.radians(self.max_angle)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        # Coordinates run from -1 to 1 along both sides, also if the lengths differ.
        aspect = images.shape[2] / images.shape[3]
        entries = [
            width * cosine * mirror,
            -height * sine * aspect,
            (2 * x - 1) * (1 - width),
            width * sine * mirror / aspect,
            height * cosine,
            (2 * y - 1) * (1 - height),
        ]
        return torch.stack(entries, dim=1).reshape(-1, 2, 3)


def _mean_and_deviation(
    images: torch.Tensor, processes: Processes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the images of all processes."""
    if processes.size == 1:
        return images.mean(), images.std()
    values = images.double()
    moments = [values.sum(), values.square().sum(), values.new_tensor(values.numel())]
    total, squares, n = processes.sum_tensor(torch.stack(moments))
    variance = (squares - total.square() / n) / (n - 1)
    return (total / n).to(images.dtype), variance.clamp(min=0).sqrt().to(images.dtype)


# Crops of the paper: random sizes and shapes, mirrored, without changes of light.
PAPER_CROPS = RandomCrop(
    min_area=0.08, max_stretch=4 / 3, max_angle=0, jitter=0, tint=0
)

# Changes that a good cluster should survive. They do not depend on `augment`.
MILD_CROP = RandomCrop(min_area=0.8, max_angle=5, flip=False, jitter=0.1, tint=0)


@dataclass(frozen=True)
class RowNoise:
    """Gaussian noise on rows, to measure how stable their clusters are.

    Parameters
    ----------
    relative_scale : float
        Standard deviation of the noise, relative to the deviation of the values.
    """

    relative_scale: float = 0.1

    def __call__(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return noisy `rows`, float (n, d)."""
        noise = torch.randn(rows.shape, generator=generator).to(rows.device)
        return rows + self.relative_scale * (rows - rows.mean(dim=0)).std() * noise


def mild_augment(item_ndim: int) -> Augment:
    """Return a mild change of images (3 dimensions) or rows (1 dimension)."""
    return MILD_CROP if item_ndim == 3 else RowNoise()


def make_views(
    images: torch.Tensor,
    augment: Augment | None,
    n_crops: tuple[int, int],
    generator: torch.Generator,
    shard: Shard | None = None,
) -> list[torch.Tensor]:
    """Return random views of a batch. A view has the pseudo-label of its image.

    Parameters
    ----------
    images : tensor of shape (n, C, H, W) or (n, d)
    augment : callable or None
        None returns the images unchanged.
    n_crops : (int, int)
        Number of views of each image, and of small views (multi-crop, Caron et al.,
        NeurIPS 2020, section 3.2).
    generator : torch.Generator
    shard : Shard or None
        Rows of a larger batch that these images are.

    Returns
    -------
    views : list of tensors
        The first tensor holds `n_crops[0]` views of each image, one copy of the batch
        after the other. The second, if any, holds `n_crops[1]` small views.
    """
    if augment is None:
        return [images]
    # Bytes cannot be interpolated.
    images = images.float()
    if n_crops == (1, 0):
        return [augment(images, generator, shard)]
    sizes = [(augment, n_crops[0])]
    if isinstance(augment, RandomCrop) and n_crops[1]:
        sizes.append((augment.small(), n_crops[1]))
    return [
        torch.cat([crop(images, generator, shard) for _ in range(count)])
        for crop, count in sizes
    ]


def apply_user_augment(
    function: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    generator: torch.Generator,
    shard: Shard | None = None,
) -> torch.Tensor:
    """Call a user's function on the batch of this process, and check its result.

    The generator and the shard complete the signature of an augmentation.

    Raises
    ------
    ValueError
        If the result is no tensor of the same shape, or is not finite.
    """
    augmented = function(images)
    if not isinstance(augmented, torch.Tensor) or augmented.shape != images.shape:
        shape = getattr(augmented, "shape", None)
        result = type(augmented).__name__ if shape is None else tuple(shape)
        raise ValueError(
            f"augment must return a tensor of shape {tuple(images.shape)}, like its "
            f"argument, but returned {result}."
        )
    augmented = augmented.to(images.dtype)
    if not bool(augmented.sum().isfinite()):
        raise ValueError(
            "augment returned NaN or infinite values. Check it on a batch of X as "
            "float32."
        )
    return augmented
