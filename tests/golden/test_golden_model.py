"""The numbers of the test model are those that were stored."""

from safetensors.torch import load_file
from torch.testing import assert_close

from tests.golden.make import PATH, golden_values


def test_the_test_model_gives_the_stored_numbers() -> None:
    stored, found = load_file(PATH), golden_values()
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        # processors and kernels differ by about 1e-6; a changed model or initialization by far more
        assert_close(found[name], value, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
