"""The graph of a model is kept from task to task, and nothing of one task stays in it for the next."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.unit.model_helpers import LABELS, config_with, make_bundle, random_images
from training.export import Packager, export_package
from training.parity import BOUND
from training.specialize import specialize


@pytest.mark.parametrize(("trunk", "size"), [("test_efficientnet", 32), ("tinynet_e", 48), ("mobilenetv3_small_100", 32)])
def test_a_package_does_not_depend_on_those_made_before(tmp_path: Path, trunk: str, size: int) -> None:
    """However many labels each has."""
    bundle = make_bundle(tmp_path / "bundle", config_with(trunk, size))
    encoder = specialize(bundle, LABELS)
    export_package(bundle, encoder, tmp_path / "package")
    packager = Packager(bundle)
    others = [specialize(bundle, labels) for labels in (["alone"], [f"thing {number}" for number in range(9)])]
    before = [packager.files(other)[0] for other in others]
    files, _ = packager.files(encoder)
    assert files["model.onnx"] == (tmp_path / "package" / "model.onnx").read_bytes()
    assert packager.files(others[0])[0] == before[0]
    for other, data in zip(others, before, strict=True):
        session = onnxruntime.InferenceSession(data["model.onnx"])
        assert [output.shape for output in session.get_outputs()][:2] == [["N", len(other.task.labels)]] * 2
        images = random_images(3, size, seed=9)
        scores, _, _ = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(scores, other.scores(bundle, images).softmax, atol=BOUND)
