"""The README inside an edge package: its code runs as it stands, and a test runs it."""

from collections.abc import Mapping

from training.model.image_encoder import Kind
from training.none_of_these import NoneOfTheseOfMatch
from training.parity import ParityCertificate

USAGE = """\
import json, sys
from pathlib import Path

import numpy as np, onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) != 2:
    sys.exit("usage: python classify.py PICTURE")
here = Path(__file__).parent
prep, labels = (json.loads((here / f"{name}.json").read_text(encoding="utf-8")) for name in ("preprocess", "labels"))
try:
    picture = ImageOps.exif_transpose(Image.open(sys.argv[1], formats=["JPEG", "PNG", "WEBP"]))
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to white
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    picture = picture.convert("RGBA")
except Exception as error:  # Pillow raises many kinds
    sys.exit(f"cannot read {sys.argv[1]}: {error}")
picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*prep["background"], 255)), picture).convert("RGB")
left, top = (picture.width - min(picture.size)) / 2, (picture.height - min(picture.size)) / 2
box = (left, top, picture.width - left, picture.height - top)
picture = picture.resize((prep["image_size"],) * 2, Image.Resampling.BICUBIC, box=box)
pixels = (np.asarray(picture, np.float32) / 255 - np.float32(prep["mean"])) / np.float32(prep["std"])
session = onnxruntime.InferenceSession(str(here / "model.onnx"))
scores, match, _ = session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})
for i in (-scores[0]).argsort()[:5]:
    print(f"{labels['labels'][i]}  score {scores[0, i]:.3f}  match {match[0, i]:.3f}")
if none := labels["none_of_these"]:
    best = np.clip(float(match.max()), 1e-12, 1 - 1e-6)
    logit = none["intercept"] + none["slope"] * np.log(best / (1 - best))
    print(f"none of these: {1 / (1 + np.exp(-logit)):.3f}")
"""

_TEXT = """\
# An image classifier for {num_labels:,} label{s}

`model.onnx` is a plain network: no text encoder, no hypernetwork, no code of its own. With `pip install onnxruntime pillow`:

```python
{usage}```

Save it as `classify.py` in this folder and run `python classify.py picture.jpg`.

| file | what it is |
|---|---|
| `model.onnx` | input `images` (N, 3, {size}, {size}) float32, any N; its metadata repeats labels and preprocessing |
| `labels.json` | the labels in the order of the scores, and the model they were made with |
| `preprocess.json` | from a picture to `images` |
| `certificate.json` | how closely `model.onnx` follows the model it was made from |

| output | shape | meaning |
|---|---|---|
| `scores` | (N, {num_labels}) | softmax: how the labels share the picture; a row sums to one |
| `match` | (N, {num_labels}) | sigmoid: each label for itself; low everywhere speaks for "none of these" |
| `image_features` | (N, {dim}) | unit vectors, comparable within this package only |

{none_of_these}
{generated}
Largest difference from the model over {num_inputs} inputs: scores {scores:.1e}, match {match:.1e}, features {features:.1e}.
Made from model `{digest}`; SHA-256 of `model.onnx`: `{sha256}`.
"""


def package_readme(
    certificate: ParityCertificate,
    *,
    image_size: int,
    embed_dim: int,
    num_generated: Mapping[Kind, int],
    none_of_these: NoneOfTheseOfMatch | None,
) -> str:
    """Args: num_generated, values made for these labels, by what they are; empty where the model generates none."""
    difference = certificate.max_abs_difference["onnx_vs_functional"]
    return _TEXT.format(
        usage=USAGE,
        num_labels=certificate.num_labels,
        s="" if certificate.num_labels == 1 else "s",
        size=image_size,
        dim=embed_dim,
        num_inputs=certificate.num_random_inputs + certificate.num_pictures,
        scores=difference.scores,
        match=difference.match,
        features=difference.image_features,
        digest=certificate.bundle_digest[:12],
        sha256=certificate.model_sha256,
        generated=_generated(num_generated),
        none_of_these=_none_of_these(none_of_these),
    )


def _none_of_these(calibration: NoneOfTheseOfMatch | None) -> str:
    if calibration is None:
        return 'The model was not calibrated: how low a `match` means "none of these" is for you to find out.\n'
    back = (1 - calibration.prior) / calibration.prior
    return (
        "`none_of_these` in `labels.json` turns the best `match` of a picture into the probability that it shows no label,\n"
        f"where a share of {calibration.prior:g} of the pictures shows none; the code above prints it. For another share `q` "
        f"multiply the odds\n`p / (1 - p)` by `q / (1 - q)`{'' if back == 1 else f' and by {back:.4g}'}.\n"
    )


def _generated(num_generated: Mapping[Kind, int]) -> str:
    if not num_generated:
        return "Nothing was generated for these labels: the encoder is the same for all.\n"
    parts = ", ".join(f"{kind} {count:,}" for kind, count in num_generated.items())
    kilobytes = 2 * sum(num_generated.values()) / 1000
    return f"Generated for these labels, and part of the weights now: {parts} values ({kilobytes:,.1f} kB in half precision).\n"
