//! Limits guessing, for each address by itself. Only wrong attempts come here: a right token gets in whatever went before
//! it, so that a guesser never locks out an operator who shares an address with it (a proxy, a NAT).
//!
//! 1. The first wrong guesses of an address ([`Pace::burst`]) are answered at once.
//! 2. Past them each is told that it was too many, and is answered when its turn comes; turns come one every [`Pace::turn`].
//! 3. One whose turn is further away than [`Pace::patience`] is told so at once, and its connection ends. So a flood holds a
//!    bounded number of requests open, and each further guess costs a connection. What keeps a token from being guessed is
//!    its length: a short one is warned of.
//! 4. Memory is bounded: past [`MAX_PEERS`] addresses with wrong guesses, the newcomers share one allowance.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::client::network;

/// How fast attempts may come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Wrong attempts answered without waiting.
    pub(super) burst: u32,
    /// The time between two attempts past the burst, and what it takes to earn one of the burst back.
    pub(super) turn: Duration,
    /// The longest wait for a turn.
    pub(super) patience: Duration,
}

impl Pace {
    /// For credentials: ten wrong ones, then four a second, of which eight wait at most.
    pub(super) const GUESSES: Pace =
        Pace { burst: 10, turn: Duration::from_millis(250), patience: Duration::from_secs(2) };
    /// For audit rows about them: twenty, then one a second.
    pub(super) const RECORDS: Pace =
        Pace { burst: 20, turn: Duration::from_secs(1), patience: Duration::ZERO };
}

const MAX_PEERS: usize = 4096;

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Answer it now.
    Now,
    /// Answer it after this long.
    After(Duration),
    /// Have no more of its kind; there may be a turn after this long.
    Refuse(Duration),
}

/// The allowances of all addresses. A generic cell rate: for each one the instant at which all its attempts are
/// paid for; an address that isn't here has paid.
#[derive(Debug)]
pub(super) struct Throttle {
    pace: Pace,
    paid: Mutex<HashMap<IpAddr, Instant>>,
}

impl Throttle {
    /// Nobody has tried yet.
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, paid: Mutex::default() }
    }

    /// Charges a wrong attempt of `peer`, unless it is refused.
    pub(super) fn charge(&self, peer: IpAddr, now: Instant) -> Turn {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = key(&mut paid, peer, now);
        let due = paid.get(&peer).copied().unwrap_or(now).max(now);
        let wait = (due - now).saturating_sub(self.pace.turn * (self.pace.burst - 1));
        if wait > self.pace.patience {
            return Turn::Refuse(wait);
        }
        paid.insert(peer, due + self.pace.turn);
        if wait.is_zero() { Turn::Now } else { Turn::After(wait) }
    }
}

/// Whose allowance the newcomers share once the table is full.
const OVERFLOW: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0)); // nobody's: RFC 6666

fn key(paid: &mut HashMap<IpAddr, Instant>, peer: IpAddr, now: Instant) -> IpAddr {
    let peer = network(peer);
    if paid.contains_key(&peer) || paid.len() < MAX_PEERS {
        return peer;
    }
    paid.retain(|_, due| *due > now);
    if paid.len() < MAX_PEERS { peer } else { OVERFLOW }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Pace::GUESSES.turn;
    const BURST: u32 = Pace::GUESSES.burst;
    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn fault_94_guesses_past_the_burst_wait_and_a_flood_is_refused_unseen() {
        let (throttle, now) = (Throttle::new(Pace::GUESSES), Instant::now());
        let turns: Vec<Turn> = (0..100).map(|_| throttle.charge(PEER, now)).collect();
        let count = |f: fn(&Turn) -> bool| turns.iter().filter(|t| f(t)).count();
        assert_eq!(count(|t| *t == Turn::Now), BURST as usize);
        assert_eq!(count(|t| matches!(t, Turn::After(_))), 8);
        assert_eq!(count(|t| matches!(t, Turn::Refuse(_))), 82);
        assert_eq!(turns[BURST as usize], Turn::After(TURN));
        assert_eq!(throttle.charge(IpAddr::from([10, 0, 0, 1]), now), Turn::Now);
    }

    #[test]
    fn guesses_in_a_row_come_one_a_turn_for_ever() {
        let (throttle, start) = (Throttle::new(Pace::GUESSES), Instant::now());
        let mut now = start;
        for _ in 0..1000 {
            match throttle.charge(PEER, now) {
                Turn::Now => {}
                Turn::After(wait) => now += wait,
                Turn::Refuse(wait) => panic!("refused for {wait:?}"),
            }
        }
        assert!(now - start >= TURN * (1000 - BURST - 1), "{:?}", now - start);
    }

    #[test]
    fn time_heals() {
        let (throttle, now) = (Throttle::new(Pace::GUESSES), Instant::now());
        while throttle.charge(PEER, now) == Turn::Now {}
        assert_eq!(throttle.charge(PEER, now + TURN * (BURST + 8)), Turn::Now);
    }

    #[test]
    fn memory_is_bounded_and_one_network_is_one_peer() {
        let (throttle, now) = (Throttle::new(Pace::GUESSES), Instant::now());
        for n in 0..10_000u32 {
            throttle.charge(IpAddr::from(n.to_be_bytes()), now);
        }
        assert!(throttle.paid.lock().unwrap().len() <= MAX_PEERS + 1);
        let host = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        assert_eq!(network(host(1)), network(host(2)));
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), IpAddr::from([10, 0, 0, 1]));
    }
}
