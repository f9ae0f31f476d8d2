"""The pretrained network that tests and benchmarks share."""

import numpy as np
import torch
from pretrained import Scale
from sklearn.datasets import load_sample_images


def test_features_recognize_the_gray_negative_of_an_image(efficientnet_lite0):
    # 8 crops of a temple and 8 of a flower. A network with random weights recognizes
    # none or one of them.
    crops = [
        photograph[y : y + 160, x : x + 160]
        for photograph in load_sample_images().images
        for y in (60, 220)
        for x in (80, 200, 320, 440)
    ]
    images = torch.from_numpy(np.stack(crops)).movedim(-1, 1).float()
    negatives = 255 - images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        features, negative_features = (
            torch.nn.functional.normalize(efficientnet_lite0(Scale()(batch)))
            for batch in (images, negatives)
        )
    assert features.shape == (16, 1280)
    assert not efficientnet_lite0.training
    most_similar = (negative_features @ features.T).argmax(dim=1)
    assert most_similar.tolist() == list(range(16))
