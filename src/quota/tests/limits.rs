//! Limits of cost, of exchanges at once, and limits that let through.

use super::*;
use crate::model::quota::Unit;
use crate::model::window::Window;

const COST: Dimension = Dimension { unit: Unit::Cost, window: Window::Day };

/// A message that is expected to cost `cost` and is one of those at once.
fn costing(cost: u64) -> Amounts {
    Amounts { cost_nanousd: cost, concurrent: 1, ..message(150) }
}

fn softened(limits: &[(Dimension, Limit)], soft: &[Dimension]) -> Entitlement {
    let mut entitlement = limited(limits);
    Arc::make_mut(&mut entitlement.limits).soften(soft);
    entitlement
}

#[test]
fn cost_is_reserved_settled_and_corrected_like_tokens() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(COST, Some(1_000))]));
    let held = enforcer.reserve(&tenant("tn_one"), &plan, costing(900), true, noon()).unwrap();
    let refusal = enforcer.reserve(&tenant("tn_one"), &plan, costing(101), true, noon()).unwrap_err();
    assert_eq!((refusal.standing.dimension, refusal.standing.used, refusal.needed), (COST, 900, 101));
    let charges = held.settle(Amounts { cost_nanousd: 300, ..message(40) });
    assert_eq!((amount(&charges, COST), used(&enforcer, &plan, COST, noon())), (Some(300), 300));
    let cost = charges.iter().find(|charge| charge.dimension == COST).unwrap();
    enforcer.amend(&tenant("tn_one"), &[Charge { amount: -50, ..cost.clone() }]);
    assert_eq!(used(&enforcer, &plan, COST, noon()), 250);
}

#[test]
fn tokens_that_cost_nothing_yet_are_charged_so_that_a_later_count_can_correct_it() {
    let (enforcer, plan) = (Enforcer::new(Metrics::new()), limited(&[(COST, Some(1_000))]));
    let settled = |used| {
        let held = enforcer.reserve(&tenant("tn_one"), &plan, costing(0), true, noon()).unwrap();
        amount(&held.settle(used), COST)
    };
    assert_eq!(settled(message(40)), Some(0));
    assert_eq!(settled(message(0)), None);
}

#[test]
fn so_many_at_once_and_no_more_however_long_they_take() {
    let plan = limited(&[(Dimension::CONCURRENT, Some(2))]);
    let enforcer = Enforcer::new(Metrics::new());
    let take = |now| enforcer.reserve(&tenant("tn_one"), &plan, costing(0), true, now);
    let (first, second) = (take(noon()).unwrap(), take(noon()).unwrap());
    // No window turns: what is in flight since yesterday is in flight.
    let tomorrow = at("2026-11-25T12:00:00Z");
    let refusal = take(tomorrow).unwrap_err();
    assert_eq!(refusal.standing.dimension, Dimension::CONCURRENT);
    assert_eq!((refusal.standing.used, refusal.standing.remaining()), (2, Some(0)));
    assert_eq!(refusal.standing.span.end, at("2026-11-25T12:00:01Z"), "it may be free in a second");
    let charges = first.settle(message(40));
    assert_eq!(amount(&charges, Dimension::CONCURRENT), None, "nothing is charged");
    let third = take(tomorrow).unwrap();
    drop(second);
    assert_eq!(used(&enforcer, &plan, Dimension::CONCURRENT, tomorrow), 1);
    drop(third);
    assert_eq!(used(&enforcer, &plan, Dimension::CONCURRENT, tomorrow), 0);
    enforcer.evict(at("2026-11-27T12:00:00Z"));
    assert_eq!(enforcer.asking().metrics.tenants.get(), 0);
}

#[test]
fn who_holds_on_while_evictions_go_by_is_counted_still() {
    let plan = limited(&[(Dimension::CONCURRENT, Some(1))]);
    let enforcer = Enforcer::new(Metrics::new());
    let held = enforcer.reserve(&tenant("tn_one"), &plan, costing(0), true, noon()).unwrap();
    let later = at("2026-12-24T12:00:00Z");
    enforcer.evict(later);
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, costing(0), true, later).is_err());
    drop(held);
    assert!(enforcer.reserve(&tenant("tn_one"), &plan, costing(0), true, later).is_ok());
}

#[test]
fn exchanges_at_once_are_held_without_a_lease() {
    let plan = limited(&[(Dimension::CONCURRENT, Some(1))]);
    let enforcer = Enforcer::new(Metrics::new());
    enforcer.stand(Footing::Leased);
    let held = enforcer.reserve(&tenant("tn_one"), &plan, costing(0), true, noon());
    assert!(held.is_ok());
    assert!(enforcer.asking().take(true, 10).is_empty(), "and nothing is asked for it");
}

#[test]
fn over_a_soft_limit_it_passes_and_the_first_in_a_window_is_known() {
    let plan = softened(&[(MESSAGES, Some(1)), (TOKENS, Some(10_000))], &[MESSAGES]);
    let enforcer = Enforcer::new(Metrics::new());
    let over = |now| {
        let held = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, now).unwrap();
        let over = held.over_soft().to_vec();
        held.settle(message(150));
        over
    };
    assert_eq!(over(noon()), []);
    assert_eq!(over(noon()), [(MESSAGES, true)]);
    assert_eq!(over(noon()), [(MESSAGES, false)]);
    let tomorrow = at("2026-11-25T12:00:00Z");
    assert_eq!(over(tomorrow), []);
    assert_eq!(over(tomorrow), [(MESSAGES, true)]);
}

#[test]
fn a_soft_limit_waits_for_no_lease_and_a_hard_one_beside_it_still_refuses() {
    let plan = softened(&[(MESSAGES, Some(0)), (TOKENS, Some(100))], &[MESSAGES]);
    let enforcer = Enforcer::new(Metrics::new());
    let refusal = enforcer.reserve(&tenant("tn_one"), &plan, message(150), true, noon()).unwrap_err();
    assert_eq!(refusal.standing.dimension, TOKENS);
    enforcer.stand(Footing::Leased);
    let only_soft = softened(&[(MESSAGES, Some(0))], &[MESSAGES]);
    let held = enforcer.reserve(&tenant("tn_one"), &only_soft, message(150), true, noon()).unwrap();
    assert_eq!(held.over_soft(), [(MESSAGES, true)], "what was refused marked nothing");
    let charges = held.settle(message(150));
    let messages = charges.iter().find(|charge| charge.dimension == MESSAGES).unwrap();
    assert_eq!(messages.limit, None, "who reads the counter is to let pass what passes here");
}

#[test]
fn a_stream_grows_past_a_soft_limit_of_tokens() {
    let plan = softened(&[(TOKENS, Some(100))], &[TOKENS]);
    let enforcer = Enforcer::new(Metrics::new());
    let mut held = enforcer.reserve(&tenant("tn_one"), &plan, message(50), true, noon()).unwrap();
    assert!(held.extend(1_000));
}

#[test]
fn an_override_in_the_config_says_itself_which_limits_are_soft() {
    let mut limits = Limits::unlimited();
    limits.set(TOKENS, Some(10));
    limits.soften(&[TOKENS]);
    let plan = PlanConfig { limits, zone: "UTC".into() };
    let hard = OverrideConfig { soft: Some(Vec::new()), ..OverrideConfig::default() };
    let overrides = [(tenant("tn_hard"), hard)].into();
    let plans =
        Plans::new([("trial".into(), plan)].into(), overrides, "trial".into(), Metrics::new()).unwrap();
    let soft = |name| plans.entitlement(&tenant(name), None, noon()).limits.is_soft(TOKENS);
    assert_eq!((soft("tn_any"), soft("tn_hard")), (true, false));
}
