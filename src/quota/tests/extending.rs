//! Reservations that grow while their exchange goes on.

use super::*;
use crate::model::quota::Unit;
use crate::model::window::Window;

const TOKENS_A_MINUTE: Dimension = Dimension { unit: Unit::Tokens, window: Window::Minute };

#[test]
fn a_reservation_grows_to_a_total_while_there_is_room_and_is_settled_as_a_whole() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(1000))]));
    let mut held = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap();
    assert!(held.extend(100), "it has more already");
    assert_eq!((held.amounts().tokens, used(&enforcer, &plan, TOKENS, noon())), (150, 150));
    assert!(held.extend(1000));
    assert_eq!((held.amounts().tokens, used(&enforcer, &plan, TOKENS, noon())), (1000, 1000));
    assert!(!held.extend(1001));
    assert_eq!((held.amounts().tokens, used(&enforcer, &plan, TOKENS, noon())), (1000, 1000));
    assert_eq!(used(&enforcer, &plan, CALLS, noon()), 1, "only tokens grow");
    held.settle(message(420));
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 420);
    assert_eq!(enforcer.reservations(), 0);
}

#[test]
fn one_dimension_without_room_takes_nothing_in_the_other() {
    let plan = limited(&[(TOKENS, Some(1000)), (TOKENS_A_MINUTE, Some(200))]);
    let enforcer = Enforcer::new(Metrics::new());
    let mut held = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap();
    assert!(!held.extend(201));
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 150);
    assert_eq!(used(&enforcer, &plan, TOKENS_A_MINUTE, noon()), 150);
    assert!(held.extend(200));
    drop(held);
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 0);
}

#[test]
fn a_window_that_turned_holds_nothing_and_is_no_limit() {
    let plan = limited(&[(TOKENS, Some(1000)), (TOKENS_A_MINUTE, Some(200))]);
    let enforcer = Enforcer::new(Metrics::new());
    let mut held = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap();
    let later = at("2026-11-24T12:01:00Z");
    let other = enforcer.reserve(&tenant("tn_one"), &plan, message(10), true, later).unwrap();
    assert!(held.extend(500), "the minute it was made in is over");
    assert!(!held.extend(991), "the day is not");
    assert_eq!(used(&enforcer, &plan, TOKENS_A_MINUTE, later), 10);
    assert_eq!(used(&enforcer, &plan, TOKENS, later), 510);
    drop((held, other));
    assert_eq!(used(&enforcer, &plan, TOKENS, later), 0);
}

#[test]
fn unlimited_tokens_always_grow() {
    let enforcer = Enforcer::new(Metrics::new());
    let plan = limited(&[]);
    let mut held = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap();
    assert!(held.extend(u64::MAX));
    drop(held);
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 0);
}

#[test]
fn however_many_grow_at_once_the_limit_holds() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(10_000))]));
    let barrier = Barrier::new(8);
    let held: Vec<_> = std::thread::scope(|scope| {
        let growing = (0..8).map(|_| {
            let (enforcer, plan, barrier) = (&enforcer, &plan, &barrier);
            scope.spawn(move || {
                let mut held = enforcer.reserve(&tenant("tn_one"), plan, message(7), true, noon()).unwrap();
                barrier.wait();
                while held.extend(held.amounts().tokens + 64) {}
                held
            })
        });
        growing.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let taken: u64 = held.iter().map(|held| held.amounts().tokens).sum();
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), taken);
    assert!((10_000 - 63..=10_000).contains(&taken), "{taken}");
    drop(held);
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 0);
}
