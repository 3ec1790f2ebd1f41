"""The hypernetwork reads a set: no order, no padding, up to 10,000 names in bounded memory."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from training.bounds import MAX_SET_SIZE
from training.model.hypernetwork import Hypernetwork, HypernetworkConfig


def hypernetwork(basis: int | None = None, *, zero_mean: bool = False) -> Hypernetwork:
    torch.manual_seed(0)
    config = HypernetworkConfig(width=32, heads=2, layers=2, bottleneck=16, basis=basis, zero_mean=zero_mean)
    network = Hypernetwork(config, embed_dim=24, num_values=50)
    nn.init.normal_(network.output.weight, std=0.5)
    if network.output.bias is not None:
        nn.init.normal_(network.output.bias)
    return network.eval().requires_grad_(False)


def names(groups: int, count: int) -> torch.Tensor:
    return F.normalize(torch.randn(groups, count, 24, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_the_order_of_the_names_changes_nothing() -> None:
    features = names(1, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert_close(hypernetwork()(features[:, order]), hypernetwork()(features), atol=1e-5, rtol=0)  # sums in another order


def test_padding_is_masked_whatever_it_holds() -> None:
    network = hypernetwork()
    features = names(2, 12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 5:] = False
    expected = network(features, mask)
    features[1, 5:] = 1e3 * torch.randn(7, 24)
    assert torch.equal(network(features, mask), expected)
    assert_close(expected[1:], network(features[1:, :5]), atol=1e-5, rtol=0)
    assert_close(expected[:1], network(features[:1]), atol=1e-5, rtol=0)


def test_different_sets_give_different_deltas() -> None:
    first, second = hypernetwork()(names(2, 10))
    assert (first - second).abs().max() > 1e-2


def test_one_name_is_enough_and_none_or_too_many_are_refused() -> None:
    assert hypernetwork()(names(1, 1)).shape == (1, 50)
    with pytest.raises(ValueError, match="0 names; 1 to 10,000 are allowed"):
        hypernetwork()(torch.zeros(1, 0, 24))
    with pytest.raises(ValueError, match="10,001 names"):
        hypernetwork()(torch.zeros(1, MAX_SET_SIZE + 1, 24))


def test_a_delta_of_a_basis_is_a_mixture_of_its_deltas() -> None:
    network = hypernetwork(basis=6)
    code = network.code(names(3, 10))
    assert code.shape == (3, 6) and bool((code > 0).all())
    share = torch.cat([1 - code[:, :1], code[:, 1:]], dim=1)
    assert_close(share.sum(dim=1), torch.ones(3))
    common, learned = network.output.weight[:, 0], network.output.weight[:, 1:]
    assert_close(network(names(3, 10)), share[:, 1:] @ (learned + common[:, None]).T)  # way 0 is no delta
    assert network.output.bias is None and network.output.weight.shape == (50, 6)
    with pytest.raises(ValueError, match="basis=1: there must be at least two"):
        hypernetwork(basis=1)


@pytest.mark.parametrize("basis", [None, 6])
def test_deltas_have_zero_mean_over_the_sets_that_were_followed(basis: int | None) -> None:
    network = hypernetwork(basis, zero_mean=True)
    sets = names(8, 5)
    before = network(sets)
    for _ in range(400):  # 0.95 ** 400 is 1e-9
        network.follow(network.code(sets))
    found = network(sets)
    assert_close(found.mean(dim=0), torch.zeros(50), atol=1e-5, rtol=0)
    assert (before.mean(dim=0)).abs().max() > 0.1 and found.abs().max() > 0.01
    assert_close(found - found[:1], before - before[:1], atol=1e-5, rtol=0)  # differences between sets stay
    expected = network.code_mean.clone()
    network.follow(network.code(sets)[:0])  # a batch without a conditioned set
    assert torch.equal(network.code_mean, expected)


_MEMORY = """
import resource, sys
import torch
from tests.unit.model_helpers import trained_like
from training.model.registry import hyperclip_quickstart

torch.set_num_threads(1)
model = trained_like(hyperclip_quickstart())
features = torch.nn.functional.normalize(torch.randn(1, 10_000, model.config.text.embed_dim), dim=-1)
model.generate(features[:, :10])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
delta = model.generate(features)
assert torch.isfinite(delta).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_ten_thousand_names_fit_in_a_gibibyte() -> None:
    # attention over 10,000 names, written out, would take 1.6 GB for the four heads of one layer
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    grown_kib = int(run.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert grown_kib < 1 << 20
