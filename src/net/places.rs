//! How many connections there may be: in all, and for each client address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::model::client::network;

/// Room for connections.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    most_each: usize,
    /// Addresses that stand for many clients.
    exempt: Vec<IpNet>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// For anybody.
    All,
    /// For this client.
    Client,
}

impl Places {
    /// Room for `most` at once and `most_each` of one address (0: as many as in all), but for those that are `exempt`. In
    /// IPv6 a client is a /64: what a single one is given.
    pub(crate) fn new(most: usize, most_each: usize, exempt: Vec<IpNet>) -> Arc<Self> {
        Arc::new(Self { most, most_each, exempt, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of `peer`, until it is dropped.
    pub(crate) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Full> {
        let peer = peer.to_canonical();
        let counted = self.most_each > 0 && !self.exempt.iter().any(|net| net.contains(&peer));
        let client = counted.then(|| network(peer));
        let mut taken = self.taken();
        if taken.all >= self.most {
            return Err(Full::All);
        }
        if let Some(client) = client {
            let of_client = taken.by_client.entry(client).or_default();
            if *of_client >= self.most_each {
                return Err(Full::Client);
            }
            *of_client += 1;
        }
        taken.all += 1;
        Ok(Place { places: self.clone(), client })
    }
}

/// A connection's place.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    client: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(client) = self.client
            && let Some(of_client) = taken.by_client.get_mut(&client)
        {
            *of_client -= 1;
            if *of_client == 0 {
                taken.by_client.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    #[test]
    fn places_are_bounded_in_all_and_for_each_client_and_given_back() {
        let places = Places::new(4, 2, vec!["10.0.0.0/8".parse().unwrap()]);
        let first = places.take(at("192.0.2.1")).unwrap();
        let _second = places.take(at("::ffff:192.0.2.1")).unwrap();
        assert_eq!(places.take(at("192.0.2.1")).unwrap_err(), Full::Client);
        let proxied = [places.take(at("10.1.2.3")).unwrap(), places.take(at("10.1.2.3")).unwrap()];
        assert_eq!(places.take(at("192.0.2.2")).unwrap_err(), Full::All);
        drop(first);
        assert!(places.take(at("192.0.2.1")).is_ok());
        drop(proxied);
        let _one = places.take(at("2001:db8::1")).unwrap();
        let _other = places.take(at("2001:db8::ffff:0:1")).unwrap();
        assert_eq!(places.take(at("2001:db8::2")).unwrap_err(), Full::Client, "one network of one client");
        assert!(places.take(at("2001:db8:0:1::1")).is_ok());
        drop(_second);
        assert_eq!(places.taken().by_client.len(), 1, "who has left is forgotten");
    }

    #[test]
    fn without_a_bound_for_each_one_may_take_all() {
        let places = Places::new(3, 0, Vec::new());
        let held: Vec<_> = (0..3).map(|_| places.take(at("192.0.2.1")).unwrap()).collect();
        assert_eq!((held.len(), places.take(at("192.0.2.1")).unwrap_err()), (3, Full::All));
    }
}
