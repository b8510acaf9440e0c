//! Claims about quotas as the exchange sees them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::*;
use crate::model::quota::{Amounts, Charge, Dimension, Limit, Limits};
use crate::model::tenant::{PlanName, TenantId};
use crate::telemetry::Metrics;

mod admit;
mod extending;
mod leases;
mod limits;
mod model;
mod overrides;
mod plans;

const TOKENS: Dimension = Dimension::STANDARD[0];
const CALLS: Dimension = Dimension::STANDARD[1];
const MESSAGES: Dimension = Dimension::STANDARD[2];
const EMBEDDINGS: Dimension = Dimension::STANDARD[3];

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn noon() -> Timestamp {
    at("2026-11-24T12:00:00Z")
}

fn tenant(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

fn limited(limits: &[(Dimension, Limit)]) -> Entitlement {
    limited_in("UTC", limits)
}

fn limited_in(zone: &str, limits: &[(Dimension, Limit)]) -> Entitlement {
    let mut all = Limits::unlimited();
    limits.iter().for_each(|(dimension, limit)| all.set(*dimension, *limit));
    Entitlement {
        plan: "test".into(),
        limits: Arc::new(all),
        zone: TimeZone::get(zone).unwrap(),
        blocked: false,
    }
}

fn message(tokens: u64) -> Amounts {
    Amounts { tokens, api_calls: 1, chat_messages: 1, embeddings: 0, ..Amounts::default() }
}

fn used(enforcer: &Enforcer, entitlement: &Entitlement, dimension: Dimension, now: Timestamp) -> u64 {
    let standings = enforcer.standings(&tenant("tn_one"), entitlement, now);
    standings.iter().find(|standing| standing.dimension == dimension).unwrap().used
}

fn amount(charges: &[Charge], dimension: Dimension) -> Option<i64> {
    charges.iter().find(|charge| charge.dimension == dimension).map(|charge| charge.amount)
}

#[test]
fn a_reservation_is_replaced_by_what_was_used() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(1000))]));
    let held = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap();
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 150);
    assert_eq!(held.standings()[0].remaining(), Some(850));
    assert_eq!(enforcer.reservations(), 1);
    let charges = held.settle(message(42));
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 42);
    assert_eq!(enforcer.reservations(), 0);
    assert_eq!(amount(&charges, TOKENS), Some(42));
    assert_eq!(amount(&charges, CALLS), Some(1), "unlimited dimensions are charged too");
    assert_eq!(amount(&charges, EMBEDDINGS), None, "nothing used, nothing charged");
    assert_eq!(charges[0].limit, Some(1000));
}

#[test]
fn a_dropped_reservation_gives_everything_back() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(CALLS, Some(1))]));
    for _ in 0..3 {
        drop(enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap());
        assert_eq!(used(&enforcer, &plan, CALLS, noon()), 0);
        assert_eq!(enforcer.reservations(), 0);
    }
}

#[test]
fn a_refusal_takes_nothing_in_any_dimension() {
    let plan = limited(&[(TOKENS, Some(1000)), (MESSAGES, Some(0))]);
    let enforcer = Enforcer::new(Metrics::new());
    let refusal = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap_err();
    assert_eq!(refusal.standing.dimension, MESSAGES);
    assert_eq!((refusal.needed, refusal.standing.used), (1, 0));
    assert_eq!(refusal.standings.len(), 4);
    for dimension in [TOKENS, CALLS, MESSAGES] {
        assert_eq!(used(&enforcer, &plan, dimension, noon()), 0);
    }
    assert_eq!(enforcer.reservations(), 0);
}

#[test]
fn a_dimension_that_is_not_needed_never_refuses() {
    let plan = limited(&[(EMBEDDINGS, Some(0))]);
    let enforcer = Enforcer::new(Metrics::new());
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).is_ok());
    let embedding = Amounts { embeddings: 1, ..Amounts::default() };
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, embedding, true, noon()).is_err());
}

#[test]
fn of_several_exhausted_dimensions_the_one_that_resets_last_is_named() {
    let plan = limited(&[(CALLS, Some(0)), (TOKENS, Some(0))]);
    let refusal = Enforcer::new(Metrics::new())
        .reserve(&tenant("tn_one"), &plan, message(1), true, noon())
        .unwrap_err();
    assert_eq!(refusal.standing.dimension, TOKENS);
    assert_eq!(refusal.standing.span.end, at("2026-11-25T00:00:00Z"));
}

#[test]
fn use_beyond_the_reservation_is_debt_of_the_same_window() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(1000))]));
    enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap().settle(message(1700));
    let refusal = enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, noon()).unwrap_err();
    assert_eq!((refusal.standing.used, refusal.standing.remaining()), (1700, Some(0)));
    let raised = limited(&[(TOKENS, Some(1701))]);
    assert!(
        enforcer.reserve(&tenant("tn_one"), &raised, message(1), true, noon()).is_ok(),
        "a raise works at once"
    );
}

#[test]
fn shadow_mode_takes_and_says_what_would_have_been_refused() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(100))]));
    let held = enforcer.reserve(&tenant("tn_one"), &plan, message(150), false, noon()).unwrap();
    let refusal = held.would_refuse().unwrap();
    assert_eq!((refusal.standing.dimension, refusal.standing.used, refusal.needed), (TOKENS, 0, 150));
    assert_eq!(held.standings()[0].used, 150);
    assert_eq!(amount(&held.settle(message(150)), TOKENS), Some(150));
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 150);
}

#[test]
fn an_unlimited_tenant_is_counted_and_never_refused() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[]));
    for _ in 0..3 {
        let held = enforcer.reserve(&tenant("tn_one"), &plan, message(u64::MAX), true, noon()).unwrap();
        let charges = held.settle(message(10));
        assert_eq!((amount(&charges, TOKENS), charges[0].limit), (Some(10), None));
    }
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 30);
}

#[test]
fn amounts_beyond_every_sense_neither_wrap_nor_panic() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(1000))]));
    enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, noon()).unwrap().settle(message(u64::MAX));
    enforcer
        .reserve(&tenant("tn_one"), &plan, message(u64::MAX), false, noon())
        .unwrap()
        .settle(message(u64::MAX));
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, noon()).is_err());
}

#[test]
fn a_reservation_of_a_past_window_is_charged_there_and_leaves_this_one_alone() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(CALLS, Some(2))]));
    let held = enforcer.reserve(&tenant("tn_one"), &plan, message(5), true, noon()).unwrap();
    let next = at("2026-11-24T12:01:00Z");
    let other = enforcer.reserve(&tenant("tn_one"), &plan, message(5), true, next).unwrap();
    let charges = held.settle(message(7));
    let calls = charges.iter().find(|charge| charge.dimension == CALLS).unwrap();
    assert_eq!((calls.window_start, calls.window_end), (noon(), next));
    assert_eq!(used(&enforcer, &plan, CALLS, next), 1, "only the exchange of this minute");
    assert_eq!(used(&enforcer, &plan, TOKENS, next), 12, "the day is the same: 7 used, 5 reserved");
    drop(other);
    assert_eq!(used(&enforcer, &plan, CALLS, next), 0);
}

#[test]
fn days_on_which_the_clocks_turn_have_one_quota() {
    for (first, last, next) in [
        ("2026-03-28T23:00:00Z", "2026-03-29T21:59:59Z", "2026-03-29T22:00:00Z"),
        ("2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z", "2026-10-25T23:00:00Z"),
    ] {
        let (enforcer, plan) =
            (Enforcer::new(Metrics::new()), limited_in("Europe/Berlin", &[(MESSAGES, Some(1))]));
        let charges = enforcer
            .reserve(&tenant("tn_one"), &plan, message(1), true, at(first))
            .unwrap()
            .settle(message(1));
        let day = charges.iter().find(|charge| charge.dimension == MESSAGES).unwrap();
        assert_eq!((day.window_start, day.window_end), (at(first), at(next)));
        assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, at(last)).is_err());
        assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, at(next)).is_ok());
    }
}

#[test]
fn fault_82_a_clock_that_goes_back_neither_reopens_nor_doubles_a_window() {
    let plan = limited(&[(MESSAGES, Some(1)), (CALLS, Some(1))]);
    let refused = |enforcer: &Arc<Enforcer>, now: &str| {
        enforcer
            .reserve(&tenant("tn_one"), &plan, message(1), true, at(now))
            .err()
            .map(|r| r.standing.dimension)
    };
    let enforcer = Enforcer::new(Metrics::new());
    // The 24th is used up, then the 25th.
    for now in ["2026-11-24T12:00:00Z", "2026-11-25T00:30:00Z"] {
        enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, at(now)).unwrap().settle(message(1));
    }
    assert_eq!(
        refused(&enforcer, "2026-11-24T23:30:10Z"),
        Some(MESSAGES),
        "an hour back: the 24th stays closed"
    );
    assert_eq!(
        refused(&enforcer, "2026-11-25T00:40:00Z"),
        Some(MESSAGES),
        "and the 25th has not been doubled"
    );
    assert_eq!(refused(&enforcer, "2026-11-26T00:00:00Z"), None);
}

#[test]
fn fault_82_a_jump_longer_than_the_window_moves_it_with_its_use() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(CALLS, Some(1))]));
    let held = enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, noon()).unwrap();
    let back = at("2026-11-24T11:00:10Z");
    let refusal = enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, back).unwrap_err();
    assert_eq!(refusal.standing.span.end, at("2026-11-24T11:01:00Z"), "not an hour from now");
    drop(held);
    enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, back).unwrap().settle(message(1));
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, back).is_err());
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, at("2026-11-24T11:01:00Z")).is_ok());
}

#[test]
fn fault_82_a_clock_that_goes_a_day_forward_opens_the_next_window_once() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(MESSAGES, Some(1))]));
    let tomorrow = at("2026-11-25T12:00:00Z");
    for now in [noon(), tomorrow] {
        enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, now).unwrap().settle(message(1));
    }
    for now in [noon(), tomorrow] {
        assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, now).is_err(), "{now}");
    }
}

#[test]
fn fault_59_parallel_requests_at_the_last_unit_exactly_the_limit_passes() {
    const THREADS: usize = 16;
    const EACH: u64 = 200;
    const LIMIT: u64 = 1000;
    let enforcer = Enforcer::new(Metrics::new());
    let plan = limited(&[(TOKENS, Some(LIMIT * 3)), (CALLS, Some(LIMIT)), (MESSAGES, Some(LIMIT + 1))]);
    let (admitted, settled) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (enforcer, plan, start, admitted, settled) = (&enforcer, &plan, &start, &admitted, &settled);
            scope.spawn(move || {
                start.wait();
                for round in 0..EACH {
                    if let Ok(held) = enforcer.reserve(&tenant("tn_one"), plan, message(3), true, noon()) {
                        // Every admitted exchange uses less than it reserved of what is not scarce, so that settling
                        // races with reserving.
                        admitted.fetch_add(1, Ordering::Relaxed);
                        let tokens = 1 + (thread as u64 + round) % 3;
                        settled.fetch_add(tokens, Ordering::Relaxed);
                        held.settle(message(tokens));
                    }
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), LIMIT);
    assert_eq!(used(&enforcer, &plan, CALLS, noon()), LIMIT);
    assert_eq!(used(&enforcer, &plan, MESSAGES, noon()), LIMIT);
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), settled.into_inner());
    assert_eq!(enforcer.reservations(), 0);
}

#[test]
fn concurrent_first_requests_of_an_unknown_tenant_share_one_quota() {
    const THREADS: usize = 8;
    let metrics = Metrics::new();
    let (enforcer, plan) = (Enforcer::new(metrics.clone()), limited(&[(CALLS, Some(1))]));
    let admitted = AtomicU64::new(0);
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for round in 0..200 {
                    start.wait();
                    let tenant = tenant(&format!("tn_{round}"));
                    if let Ok(held) = enforcer.reserve(&tenant, &plan, message(1), true, noon()) {
                        admitted.fetch_add(1, Ordering::Relaxed);
                        held.settle(message(1));
                    }
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 200, "one for each of 200 tenants");
    assert_eq!(metrics.tenants.get(), 200);
}

#[test]
fn a_restart_forgets_nothing() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(1000))]));
    let day = TOKENS.window.span(&TimeZone::UTC, noon());
    let charge = |amount| Charge {
        dimension: TOKENS,
        window_start: day.start,
        window_end: day.end,
        amount,
        limit: Some(1000),
    };
    enforcer.replay(&tenant("tn_one"), &[charge(300)]);
    enforcer.replay(&tenant("tn_one"), &[charge(-100)]);
    enforcer.reserve(&tenant("tn_one"), &plan, message(50), true, noon()).unwrap().settle(message(50));
    let settled = |amount, start: &str, end: &str| Settled {
        tenant: tenant("tn_one"),
        dimension: TOKENS,
        window_start: at(start),
        window_end: at(end),
        amount,
    };
    enforcer.hydrate(&[
        settled(700, "2026-11-24T00:00:00Z", "2026-11-25T00:00:00Z"),
        settled(5000, "2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"),
    ]);
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 950, "today's, and nothing of yesterday's");
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(51), true, noon()).is_err());
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(50), true, noon()).is_ok());
}

#[test]
fn a_window_that_is_over_when_it_is_looked_at_counts_for_nothing() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(CALLS, Some(1))]));
    let minute = CALLS.window.span(&TimeZone::UTC, noon());
    let old = Settled {
        tenant: tenant("tn_one"),
        dimension: CALLS,
        window_start: minute.start,
        window_end: minute.end,
        amount: 99,
    };
    enforcer.hydrate(&[old]);
    assert_eq!(used(&enforcer, &plan, CALLS, noon()), 99);
    assert_eq!(used(&enforcer, &plan, CALLS, minute.end), 0);
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, minute.end).is_ok());
}

#[test]
fn changing_a_plans_zone_gives_nobody_a_second_quota() {
    let (enforcer, berlin) =
        (Enforcer::new(Metrics::new()), limited_in("Europe/Berlin", &[(MESSAGES, Some(10))]));
    enforcer.reserve(&tenant("tn_one"), &berlin, message(1), true, noon()).unwrap().settle(message(1));
    let day = MESSAGES.window.span(&TimeZone::UTC, noon());
    enforcer.hydrate(&[Settled {
        tenant: tenant("tn_one"),
        dimension: MESSAGES,
        window_start: day.start,
        window_end: day.end,
        amount: 9,
    }]);
    assert!(enforcer.reserve(&tenant("tn_one"), &berlin, message(1), true, noon()).is_err());
}

#[test]
fn a_late_count_corrects_the_window_it_belongs_to() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(1000))]));
    let held = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap();
    let mut correction = held.settle(message(150));
    correction.retain(|charge| charge.dimension == TOKENS);
    correction[0].amount = -100;
    enforcer.amend(&tenant("tn_one"), &correction);
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 50);
    let tomorrow = at("2026-11-25T12:00:00Z");
    drop(enforcer.reserve(&tenant("tn_one"), &plan, message(1), true, tomorrow).unwrap());
    enforcer.amend(&tenant("tn_one"), &correction);
    enforcer.amend(&tenant("tn_nobody"), &correction);
    assert_eq!(used(&enforcer, &plan, TOKENS, tomorrow), 0, "yesterday's correction is yesterday's");
}

#[test]
fn a_correction_that_comes_before_what_it_corrects_grants_nothing() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(TOKENS, Some(100))]));
    let day = TOKENS.window.span(&TimeZone::UTC, noon());
    let correction =
        Charge { dimension: TOKENS, window_start: day.start, window_end: day.end, amount: -500, limit: None };
    enforcer.replay(&tenant("tn_one"), &[correction]);
    assert_eq!(used(&enforcer, &plan, TOKENS, noon()), 0);
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, message(101), true, noon()).is_err());
}

#[test]
fn tenants_with_nothing_left_are_forgotten_and_others_are_not() {
    let metrics = Metrics::new();
    let (enforcer, plan) = (Enforcer::new(metrics.clone()), limited(&[]));
    let call = Amounts { api_calls: 1, ..Amounts::default() };
    enforcer.reserve(&tenant("tn_minute"), &plan, call, true, noon()).unwrap().settle(call);
    enforcer.reserve(&tenant("tn_day"), &plan, message(9), true, noon()).unwrap().settle(message(9));
    drop(enforcer.reserve(&tenant("tn_gave_back"), &plan, message(9), true, noon()).unwrap());
    let in_flight = enforcer.reserve(&tenant("tn_in_flight"), &plan, call, true, noon()).unwrap();
    enforcer.evict(noon());
    assert_eq!(metrics.tenants.get(), 3, "all but the one that gave everything back");
    let next = at("2026-11-24T12:01:00Z");
    enforcer.evict(next);
    assert_eq!(metrics.tenants.get(), 2, "the minute is over; the day is not, nor the exchange");
    drop(in_flight);
    enforcer.evict(at("2026-11-25T00:00:00Z"));
    assert_eq!(metrics.tenants.get(), 0);
}

#[test]
fn asking_how_an_unknown_tenant_stands_remembers_nothing() {
    let metrics = Metrics::new();
    let enforcer = Enforcer::new(metrics.clone());
    let standings = enforcer.standings(&tenant("tn_one"), &limited(&[(TOKENS, Some(5))]), noon());
    assert_eq!(standings.len(), 4);
    assert_eq!(standings[0].remaining(), Some(5));
    assert_eq!(metrics.tenants.get(), 0);
}

#[test]
fn forgetting_tenants_while_requests_run_forgets_no_use() {
    const THREADS: u64 = 4;
    const TENANTS: u64 = 5_000;
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(CALLS, Some(1))]));
    let (admitted, running) = (AtomicU64::new(0), AtomicU64::new(THREADS));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                // A tenant is idle, and may go, until its first exchange has taken something.
                for number in 0..TENANTS {
                    if let Ok(held) =
                        enforcer.reserve(&tenant(&number.to_string()), &plan, message(1), true, noon())
                    {
                        admitted.fetch_add(1, Ordering::Relaxed);
                        held.settle(message(1));
                    }
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        while running.load(Ordering::Acquire) > 0 {
            enforcer.evict(noon());
        }
    });
    assert_eq!(admitted.into_inner(), TENANTS, "one for each");
    assert_eq!(enforcer.reservations(), 0);
}
