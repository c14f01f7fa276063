"""Which network addresses a fetcher may connect to: those of the public internet and no others."""

import ipaddress

_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        "64:ff9b::/96",  # NAT64, which leads to any IPv4 address
        "64:ff9b:1::/48",
        "2001::/23",  # Teredo and other special assignments
        "2002::/16",  # 6to4, which leads to any IPv4 address
        "fec0::/10",
        "::/96",  # IPv4-compatible
        "192.0.0.0/24",
        "192.88.99.0/24",
    )
]


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address belongs to the public internet.

    Private, loopback, link-local, multicast, shared, documentation and reserved addresses do not, nor do IPv6
    addresses that stand for IPv4 ones, save mapped ones whose IPv4 address is public.

    >>> is_public("93.184.216.34"), is_public("::ffff:10.0.0.1"), is_public("fe80::1%eth0")
    (True, False, False)
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local:
        return False
    return ip.is_global and not any(ip in network for network in _NOT_PUBLIC if network.version == ip.version)
