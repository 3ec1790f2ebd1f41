"""Pictures that lose their colour in training."""

import numpy as np

from tests.unit.data_helpers import picture
from training.augment import augmented, grayscale
from training.config import AugmentConfig

PIXELS = np.random.default_rng(0).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)


def test_gray_is_the_mean_of_the_channels_and_contrast_the_distance_from_its_mean() -> None:
    plain, strong = (grayscale(PIXELS, high_contrast=strong) for strong in (False, True))
    mean = PIXELS.astype(float).mean(axis=2, keepdims=True)
    np.testing.assert_allclose(plain, mean, atol=1)  # rounded down
    middle = plain.astype(float).mean()
    np.testing.assert_allclose(strong, (middle + 2.5 * (plain - middle)).clip(0, 255), atol=3)  # 2.5 x the rounded middle


def test_the_share_of_pictures_without_colour_is_as_asked_and_the_others_are_untouched() -> None:
    out, reference = np.empty((16, 16, 3), np.uint8), np.empty((16, 16, 3), np.uint8)
    gray = 0
    for seed in range(200):
        augmented(picture(3), AugmentConfig(grayscale_share=0.3), out=out, rng=np.random.default_rng(seed))
        augmented(picture(3), AugmentConfig(), out=reference, rng=np.random.default_rng(seed))
        if (out == out[:, :, :1]).all():
            gray += 1
        else:
            np.testing.assert_array_equal(out, reference)
    assert 40 <= gray <= 80  # 60 expected, 6.5 the standard deviation
