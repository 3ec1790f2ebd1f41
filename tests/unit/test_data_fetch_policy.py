"""Which addresses are in the public internet, and which hosts are addresses in disguise."""

import ipaddress

import pytest

from data_prep.fetch.addresses import is_odd_address, is_public
from data_prep.fetch.policy import FetchPolicy


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "168.63.129.16", "100.64.0.1", "100.100.100.200"),  # metadata services, carrier-grade NAT
        *("224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "192.0.0.8", "198.18.0.1", "192.88.99.1"),
        *("192.0.2.1", "198.51.100.1", "203.0.113.1"),  # documentation
        *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "3fff::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),  # mapped, NAT64
        *("2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),  # 6to4, Teredo
    ],
)
def test_everything_else_is_not(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "1.2.3.4.", "1.2.3.256"]
)
def test_unusual_notations_are_noticed(host: str) -> None:
    assert is_odd_address(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "example.org", "1.example", "10.example.0xyz", "a1"])
def test_usual_hosts_are_not_odd(host: str) -> None:
    assert not is_odd_address(host)


def test_a_private_host_is_named_alone_or_with_its_port() -> None:
    policy = FetchPolicy(allowed_private_hosts=("Images.Internal", "127.0.0.1:8000", "[::1]:9000"))
    assert policy.allows_private("images.internal", 80)
    assert policy.allows_private("127.0.0.1", 8000)
    assert policy.allows_private("::1", 9000)
    assert not policy.allows_private("127.0.0.1", 8001)
    assert not policy.allows_private("::1", 80)
