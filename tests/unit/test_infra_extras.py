"""Each image installs the extra of its room alone: what runs in it must not import anything else.

A child process refuses to import every installed package that the extra, with all it requires, does not bring.
"""

import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHILD = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r} (not in the extra)", name=name)

modules, refused = sys.argv[1].split(","), set(sys.argv[2].split(","))
sys.meta_path.insert(0, Refuse())
for module in modules:
    importlib.import_module(module)
"""
MODULES = {
    "data": [
        *("data_prep.download", "data_prep.fan_out", "data_prep.partition", "data_prep.curation.curate", "data_prep.reshard"),
        "data_prep.import_pictures",
    ],
    # `hyperclip serve` is what the image starts, and its other commands on trained models should work there too
    "serve": [
        "serving.app",
        "serving.client",
        "pipeline.cli",
        "pipeline.showcase_steps",
        "pipeline.model_source",
        "pipeline.classify",
        "training.export",
    ],
}
ABSENT = {
    "data": {"torch", "deepspeed", "timm", "onnxruntime"},
    "serve": {"deepspeed", "img2dataset", "imagehash", "webdataset"},
}


def brought_by(extra: str) -> set[str]:
    """Names of the distributions that `pip install hyperclip[extra]` installs."""
    found: set[tuple[str, str]] = set()
    waiting = [("hyperclip", extra), ("hyperclip", "")]
    while waiting:
        if (here := waiting.pop()) in found:
            continue
        found.add(here)
        name, wanted = here
        try:
            requirements = [Requirement(text) for text in requires(name) or ()]
        except ModuleNotFoundError:
            continue  # for another platform
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                required = canonicalize_name(requirement.name)
                waiting += [(required, ""), *((required, other) for other in requirement.extras)]
    return {name for name, _ in found}


@pytest.mark.parametrize("room", MODULES)
def test_a_room_imports_nothing_that_its_extra_does_not_bring(room: str) -> None:
    brought = brought_by(room)
    vendored = {path.name for path in (Path(ray.__file__).parent / "thirdparty_files").iterdir()}  # Ray's own copies
    refused = {
        module
        for module, distributions in packages_distributions().items()
        if module not in sys.stdlib_module_names | vendored
        and not brought & {canonicalize_name(name) for name in distributions}
    }
    assert refused >= ABSENT[room]
    command = [sys.executable, "-c", CHILD, ",".join(MODULES[room]), ",".join(sorted(refused))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-1500:]
