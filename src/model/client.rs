//! Whom an address stands for.

use std::net::{IpAddr, Ipv6Addr};

/// The address that one party controls: an IPv6 network of 64 bits is handed to single hosts.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}
