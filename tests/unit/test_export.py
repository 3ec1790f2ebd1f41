"""An exported package computes what the model computes, or it does not exist."""

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from infra.errors import BadInputError, ParityError
from tests.unit.model_helpers import KINDS, LABELS, config_with, make_bundle, picture_bytes, random_images
from training.bundle import Bundle
from training.export import ExportReport, Packager, export_package
from training.fold import fold_image_encoder
from training.model.image_encoder import ImageEncoder, Kind
from training.model.parameter_delta import GroupDelta
from training.model.registry import siglip_twin
from training.none_of_these import Coefficients, NoneOfThese
from training.package_readme import USAGE
from training.parity import BOUND, ParityCertificate
from training.preprocess import preprocess
from training.specialize import SpecializedEncoder, specialize

FILES = ["README.md", "certificate.json", "labels.json", "model.onnx", "preprocess.json"]
NETWORKS = [("test_efficientnet", 32), ("tinynet_e", 48), ("mobilenetv3_small_100", 32)]


class Exported:
    """A package and what it was made from."""

    def __init__(self, folder: Path, trunk: str, size: int) -> None:
        self.bundle: Bundle = make_bundle(folder / "bundle", config_with(trunk, size))
        self.encoder: SpecializedEncoder = specialize(self.bundle, LABELS)
        self.size = size
        self.folder = folder / "package"
        self.report: ExportReport = export_package(
            self.bundle, self.encoder, self.folder, pictures=[picture_bytes(60, 40, mode="RGBA")]
        )

    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(str(self.folder / "model.onnx"), options)


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network[0])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("export"), *request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, SpecializedEncoder]:
    bundle = make_bundle(tmp_path_factory.mktemp("small") / "bundle")
    return bundle, specialize(bundle, LABELS)


@pytest.mark.parametrize("batch", [1, 5])
def test_the_file_computes_what_the_model_computes(exported: Exported, batch: int) -> None:
    images = random_images(batch, exported.size, seed=9)
    scores, match, features = exported.session().run(None, {"images": images.numpy()})
    expected = exported.encoder.scores(exported.bundle, images)
    neutral = exported.bundle.model.encode_image(images)
    specialized = exported.bundle.model.encode_image(images, GroupDelta(exported.encoder.delta[None]))
    assert (specialized - neutral).abs().max() > 100 * BOUND  # so that a forgotten delta would be seen
    np.testing.assert_allclose(scores, expected.softmax, atol=BOUND)
    np.testing.assert_allclose(match, expected.match, atol=BOUND)
    np.testing.assert_allclose(features, specialized, atol=BOUND)


@pytest.mark.parametrize("generates", KINDS[1:], ids="+".join)
def test_every_kind_of_delta_is_exported(tmp_path: Path, generates: tuple[Kind, ...]) -> None:
    bundle = make_bundle(tmp_path / "bundle", config_with(generates=generates))
    encoder = specialize(bundle, LABELS)
    report = export_package(bundle, encoder, tmp_path / "package")
    images = random_images(6, seed=9)
    _, _, features = onnxruntime.InferenceSession(str(tmp_path / "package" / "model.onnx")).run(
        None, {"images": images.numpy()}
    )
    per_batch = bundle.model.encode_image(images, GroupDelta(encoder.delta[None]))
    deltas = torch.stack([torch.zeros_like(encoder.delta), encoder.delta])
    per_sample = bundle.model.encode_image(images, GroupDelta(deltas, torch.ones(6, dtype=torch.long)))
    np.testing.assert_allclose(features, per_batch, atol=1e-5)  # sums in another order
    np.testing.assert_allclose(per_sample, per_batch, atol=1e-5)
    assert (per_batch - bundle.model.encode_image(images)).abs().max() > 1e-3  # the delta does something
    worst = max(max(pair.model_dump().values()) for pair in report.certificate.max_abs_difference.values())
    assert worst <= 1e-5
    said = (tmp_path / "package" / "README.md").read_text()
    for kind, count in bundle.model.num_generated.items():
        assert f"{kind} {count:,}" in said
    assert f"({encoder.delta.numel() * 2 / 1000:,.1f} kB in half precision)" in said


def test_a_twins_package_says_that_nothing_was_generated(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", siglip_twin(config_with()))
    export_package(bundle, specialize(bundle, LABELS), tmp_path / "package")
    assert "Nothing was generated" in (tmp_path / "package" / "README.md").read_text()


def test_the_package_is_five_plain_files(exported: Exported) -> None:
    assert sorted(path.name for path in exported.folder.iterdir()) == FILES
    assert [path.name for path in exported.folder.parent.iterdir() if path.name.startswith(".")] == []
    data = (exported.folder / "model.onnx").read_bytes()
    assert exported.report.model_bytes == len(data)
    assert b"site-packages" not in data and str(Path(__file__).parents[2]).encode() not in data


def test_norms_of_the_network_are_gone(exported: Exported) -> None:
    operators = {node.op_type for node in onnx.load(exported.folder / "model.onnx").graph.node}
    assert "Conv" in operators and "BatchNormalization" not in operators


def test_labels_and_preprocessing_come_back_from_the_file_alone(exported: Exported) -> None:
    metadata = exported.session().get_modelmeta().custom_metadata_map
    assert json.loads(metadata["hyperclip.labels"]) == list(exported.encoder.task.labels)
    assert json.loads(metadata["hyperclip.templates"]) == list(exported.encoder.task.templates)
    assert metadata["hyperclip.bundle_digest"] == exported.bundle.digest
    assert metadata["hyperclip.schema_version"] == "1"
    preprocessing = json.loads((exported.folder / "preprocess.json").read_text())
    assert json.loads(metadata["hyperclip.preprocess"]) == preprocessing
    assert preprocessing["image_size"] == exported.size
    labels = json.loads((exported.folder / "labels.json").read_text())
    assert labels["labels"] == LABELS and labels["bundle_digest"] == exported.bundle.digest


def test_the_certificate_is_about_this_file(exported: Exported) -> None:
    certificate = ParityCertificate.model_validate_json((exported.folder / "certificate.json").read_text())
    assert certificate == exported.report.certificate
    assert certificate.model_sha256 == sha256((exported.folder / "model.onnx").read_bytes()).hexdigest()
    assert (certificate.num_random_inputs, certificate.num_pictures, certificate.batch_sizes) == (16, 1, (1, 5, 11))
    assert set(certificate.max_abs_difference) == {"onnx_vs_functional", "onnx_vs_folded", "folded_vs_functional"}
    for difference in certificate.max_abs_difference.values():
        assert max(difference.scores, difference.match, difference.image_features) <= certificate.bound == BOUND
    assert certificate.top1_agreement + certificate.top1_ties / 17 == 1
    assert certificate.versions["onnxruntime"] == onnxruntime.__version__


def classify_as_a_device_would(folder: Path, *arguments: str, cwd: Path, code: str = USAGE) -> subprocess.CompletedProcess[str]:
    """The code of the package's README, saved beside the model as it says and called from another folder."""
    readme = (folder / "README.md").read_text()
    assert f"```python\n{USAGE}```" in readme
    (cwd / "package").mkdir(exist_ok=True)
    for name in ("model.onnx", "labels.json", "preprocess.json"):
        (cwd / "package" / name).write_bytes((folder / name).read_bytes())
    (cwd / "package" / "classify.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-I", "package/classify.py", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False, encoding="utf-8",
        env={"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def pixels_on_device(folder: Path, picture: bytes, *, cwd: Path) -> np.ndarray:
    """(3, S, S): what the README's code gives to the model."""
    (cwd / "photo").write_bytes(picture)
    before_the_model = USAGE.partition("session = ")[0] + 'np.save("pixels.npy", pixels.transpose(2, 0, 1))\n'
    run = classify_as_a_device_would(folder, "photo", cwd=cwd, code=before_the_model)
    assert run.returncode == 0, run.stderr
    pixels: np.ndarray = np.load(cwd / "pixels.npy")
    return pixels


def test_the_readmes_code_classifies_without_ours(exported: Exported, tmp_path: Path) -> None:
    data = picture_bytes(70, 50, mode="RGBA", seed=4)
    (tmp_path / "picture.png").write_bytes(data)
    run = classify_as_a_device_would(exported.folder, "picture.png", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    image = torch.from_numpy(preprocess(data, exported.bundle.preprocess))[None]
    expected = exported.encoder.scores(exported.bundle, image).softmax[0]
    printed = {label: float(rest.split()[0]) for label, rest in (line.split("  score ") for line in run.stdout.splitlines())}
    assert printed.keys() == set(LABELS)
    for label, score in zip(LABELS, expected.tolist(), strict=True):
        assert abs(printed[label] - score) < 0.02  # three digits, and transparency is blended with another rounding


@pytest.mark.parametrize("exported", NETWORKS[:1], indirect=True, ids=lambda network: network[0])
@pytest.mark.parametrize("suffix", ["JPEG", "WEBP"])
def test_a_device_turns_pictures_upright_as_the_service_does(exported: Exported, tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # as a phone held upright writes it
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[None, :], ramp[::-1, None], np.uint8(90)), axis=2)  # looks other when turned
    buffers = {}
    for name, extra in (("turned", {"exif": exif}), ("flat", {})):
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, suffix, quality=95, **extra)
        buffers[name] = buffer.getvalue()
    on_device = pixels_on_device(exported.folder, buffers["turned"], cwd=tmp_path)
    served, not_turned = (preprocess(buffers[name], exported.bundle.preprocess) for name in ("turned", "flat"))
    assert np.abs(on_device - served).max() < 0.05  # about three levels of 255: the two JPEG decoders differ by one or two
    assert np.abs(on_device - not_turned).max() > 1


@pytest.mark.parametrize("exported", NETWORKS[:1], indirect=True, ids=lambda network: network[0])
def test_a_device_reads_16_bit_grey_as_the_service_does(exported: Exported, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)).save(buffer, "PNG")
    on_device = pixels_on_device(exported.folder, buffer.getvalue(), cwd=tmp_path)
    assert np.abs(on_device - preprocess(buffer.getvalue(), exported.bundle.preprocess)).max() < 1e-5


@pytest.mark.parametrize("exported", NETWORKS[:1], indirect=True, ids=lambda network: network[0])
def test_the_readmes_code_says_what_is_wrong_in_one_line(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("just text")
    (tmp_path / "cut.png").write_bytes(picture_bytes(70, 50)[:200])
    for arguments, says in (
        ([], "usage: python classify.py PICTURE"),
        (["none.jpg"], "cannot read none.jpg: "),
        (["text.jpg"], "cannot read text.jpg: cannot identify image file"),
        (["cut.png"], "cannot read cut.png: "),
    ):
        run = classify_as_a_device_would(exported.folder, *arguments, cwd=tmp_path)
        assert run.returncode == 1 and run.stdout == ""
        assert run.stderr.startswith(says) and run.stderr.count("\n") == 1


@pytest.mark.parametrize("exported", NETWORKS[:1], indirect=True, ids=lambda network: network[0])
def test_the_zip_is_the_same_package(exported: Exported) -> None:
    with zipfile.ZipFile(io.BytesIO(Packager(exported.bundle).zipped(exported.encoder))) as archive:
        assert sorted(archive.namelist()) == FILES
        assert archive.testzip() is None
        # the same task gives the same bytes: a cache may go by their hash
        assert archive.read("model.onnx") == (exported.folder / "model.onnx").read_bytes()


def test_a_calibrated_package_says_none_of_these_as_the_model_does(
    small: tuple[Bundle, SpecializedEncoder], tmp_path: Path
) -> None:
    bundle, encoder = small
    calibration = NoneOfThese(
        bundle_digest=bundle.digest,
        coefficients={"specialized": Coefficients(intercept=-11.0, best_match=-1.5, num_labels=0.5)},
        prior=0.25,
        num_labels=(2, 50),
        fitted_on="a test",
        fitted_on_identity="0",
        num_predictions=100,
    )
    export_package(replace(bundle, none_of_these=calibration), encoder, tmp_path / "package")
    assert "a share of 0.25 of the pictures shows none" in (tmp_path / "package" / "README.md").read_text()
    assert "multiply the odds\n`p / (1 - p)` by `q / (1 - q)` and by 3." in (tmp_path / "package" / "README.md").read_text()
    data = picture_bytes(70, 50, seed=4)
    (tmp_path / "picture.png").write_bytes(data)
    run = classify_as_a_device_would(tmp_path / "package", "picture.png", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    match = float(encoder.scores(bundle, torch.from_numpy(preprocess(data, bundle.preprocess))[None]).match.max())
    expected = calibration.probability(match, num_labels=len(LABELS), parameters="specialized")
    assert expected is not None
    assert 0.01 < expected < 0.99
    said = run.stdout.splitlines()[-1]
    assert said.startswith("none of these: ")
    assert abs(float(said.rpartition(" ")[2]) - expected) < 0.01


def without_delta(encoder: ImageEncoder, delta: Tensor) -> nn.Module:
    return fold_image_encoder(encoder, torch.zeros_like(delta))


def test_a_wrong_fold_leaves_nothing(small: tuple[Bundle, SpecializedEncoder], tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"onnx_vs_functional: scores 0\.\d+, match .*bound 0\.0001.*Nothing was written"):
        export_package(*small, tmp_path / "package", fold=without_delta)
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_use_is_not_touched(small: tuple[Bundle, SpecializedEncoder], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for output in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(BadInputError, match="not an empty folder"):
            export_package(*small, output)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_encoder_of_another_model_is_refused(small: tuple[Bundle, SpecializedEncoder], tmp_path: Path) -> None:
    bundle, encoder = small
    foreign = replace(encoder, task=encoder.task.rebuilt(bundle_digest="0" * 64))
    with pytest.raises(BadInputError, match="made by model 000000000000"):
        export_package(bundle, foreign, tmp_path / "package")


def test_a_damaged_picture_is_refused_before_anything_is_written(
    small: tuple[Bundle, SpecializedEncoder], tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match="damaged"):
        export_package(*small, tmp_path / "package", pictures=[picture_bytes(60, 40)[:200]])
    assert list(tmp_path.iterdir()) == []


_IMPORTS = """
import sys
import training.export
print(sorted({"ray", "mlflow", "deepspeed", "img2dataset"} & sys.modules.keys()))
"""


def test_exporting_needs_no_ray_no_mlflow_and_no_deepspeed() -> None:
    run = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
