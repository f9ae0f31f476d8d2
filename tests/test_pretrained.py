"""The pretrained network that tests and benchmarks share."""

import numpy as np
import torch
from pretrained import Scale
from sklearn.datasets import load_sample_images


def test_features_know_which_photograph_a_crop_is_from(efficientnet_lite0):
    # A temple and a flower, in 8 crops each. Random weights fail this.
    crops = [
        photograph[y : y + 160, x : x + 160]
        for photograph in load_sample_images().images
        for y in (60, 220)
        for x in (80, 200, 320, 440)
    ]
    batch = torch.from_numpy(np.stack(crops)).movedim(-1, 1).float()
    with torch.no_grad():
        features = efficientnet_lite0(Scale()(batch))
    assert features.shape == (16, 1280)
    assert not efficientnet_lite0.training
    features = torch.nn.functional.normalize(features)
    similarity = (features @ features.T).fill_diagonal_(-1)
    nearest = similarity.argmax(dim=1)
    assert ((nearest < 8) == (torch.arange(16) < 8)).all()
