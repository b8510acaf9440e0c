//! Operators' overrides: who goes before whom, and that replicas come to know the same whatever the order of the news.

use proptest::prelude::*;

use super::*;
use crate::quota::overrides::{Change, Override, Setting, Target};

const DIMENSIONS: [Dimension; 3] = [TOKENS, CALLS, MESSAGES];

fn set(version: i64, tenant: &str, setting: Setting, expires: Option<Timestamp>) -> Change {
    let (created, updated) = (noon(), noon());
    let set = Override { setting, reason: None, author: None, expires, created, updated };
    Change { version, tenant: super::tenant(tenant), target: set.setting.target(), set: Some(Arc::new(set)) }
}

fn removed(version: i64, tenant: &str, target: Target) -> Change {
    Change { version, tenant: super::tenant(tenant), target, set: None }
}

fn limited(version: i64, limit: u64) -> Change {
    set(version, "tn_one", Setting::Limit(TOKENS, Some(limit)), None)
}

fn tokens(overrides: &Overrides) -> Option<Limit> {
    let tenant = overrides.of(&tenant("tn_one"))?;
    tenant.limits(noon()).find(|(dimension, _)| *dimension == TOKENS).map(|(_, limit)| limit)
}

#[test]
fn what_is_known_is_not_undone_by_older_news() {
    let overrides = Overrides::new();
    overrides.learn(&[limited(7, 700)]);
    // A snapshot from before our own edit, and a change that came the slow way.
    overrides.replace(&[limited(3, 300)], 5);
    assert_eq!(tokens(&overrides), Some(Some(700)));
    overrides.catch_up(&[limited(7, 700), removed(8, "tn_one", Target::Limit(TOKENS))], 8);
    assert_eq!(tokens(&overrides), None);
    overrides.learn(&[limited(7, 700)]);
    assert_eq!((tokens(&overrides), overrides.tenants()), (None, 0), "what is gone leaves nothing behind");
}

#[test]
fn a_database_that_went_back_is_believed() {
    let overrides = Overrides::new();
    overrides.replace(&[limited(30, 300)], 30);
    overrides.replace(&[limited(3, 30)], 5);
    assert_eq!((tokens(&overrides), overrides.upto()), (Some(Some(30)), 5));
    overrides.catch_up(&[limited(6, 60)], 6);
    assert_eq!(tokens(&overrides), Some(Some(60)));
}

#[test]
fn a_blocked_tenant_is_blocked_until_that_expires() {
    let overrides = Overrides::new();
    let expires = at("2026-11-24T12:30:00Z");
    overrides.learn(&[set(1, "tn_one", Setting::Blocked, Some(expires))]);
    let trial = PlanConfig { limits: Limits::unlimited(), zone: "UTC".into() };
    let plans = BTreeMap::from([("trial".into(), trial)]);
    let plans =
        Plans::new(plans, BTreeMap::new(), "trial".into(), Metrics::new()).unwrap().with_admin(overrides);
    let blocked = |name, now| plans.entitlement(&tenant(name), None, now).blocked;
    assert!(blocked("tn_one", noon()) && !blocked("tn_one", expires) && !blocked("tn_two", noon()));
}

/// One layer of overrides for one tenant, as the model sees it: each part with its own expiry, in minutes after noon.
#[derive(Clone, Debug)]
struct Layer {
    plan: Option<(usize, Option<i64>)>,
    limits: Vec<(usize, Limit, Option<i64>)>,
}

fn layer() -> impl Strategy<Value = Layer> {
    let expiry = || proptest::option::of(-2..3i64);
    let plan = proptest::option::of((0..3usize, expiry()));
    let limits = proptest::collection::vec((0..3usize, proptest::option::of(0..9u64), expiry()), 0..3);
    (plan, limits).prop_map(|(plan, mut limits)| {
        limits.sort_by_key(|(dimension, ..)| *dimension);
        limits.dedup_by_key(|(dimension, ..)| *dimension);
        Layer { plan, limits }
    })
}

fn minute(minutes: i64) -> Timestamp {
    Timestamp::from_second(noon().as_second() + minutes * 60).unwrap()
}

fn holds(expiry: Option<i64>) -> bool {
    expiry.is_none_or(|minutes| 0 < minutes)
}

/// The plans: the default first; each has its own limits.
fn plan_names() -> [PlanName; 3] {
    ["trial".into(), "pro".into(), "enterprise".into()]
}

fn limit_of_plan(plan: usize, dimension: usize) -> Limit {
    Some(100 * (plan as u64 + 1) + dimension as u64)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// For each limit, and for the plan: the operator's, else the config's, else the plan's; those that expired are not
    /// there. The config's has one expiry for all of it.
    #[test]
    fn each_limit_comes_from_the_highest_layer_that_sets_it(
        admin in layer(), config in layer(), config_expiry in proptest::option::of(-2..3i64), service in proptest::option::of(0..4usize),
    ) {
        let names = plan_names();
        let plans = names.iter().enumerate().map(|(plan, name)| {
            let mut limits = Limits::unlimited();
            DIMENSIONS.iter().enumerate().for_each(|(at, d)| limits.set(*d, limit_of_plan(plan, at)));
            (name.clone(), PlanConfig { limits, zone: "UTC".into() })
        });
        let in_file = OverrideConfig {
            plan: config.plan.map(|(plan, _)| names[plan].clone()),
            limits: config.limits.iter().map(|(at, limit, _)| (DIMENSIONS[*at], *limit)).collect(),
            expires: config_expiry.map(minute),
            ..OverrideConfig::default()
        };
        let overrides = Overrides::new();
        let expires = |expiry: Option<i64>| expiry.map(minute);
        let plan = admin.plan.map(|(plan, expiry)| (Setting::Plan(names[plan].clone()), expires(expiry)));
        let limits = admin.limits.iter().map(|(at, limit, expiry)| {
            (Setting::Limit(DIMENSIONS[*at], *limit), expires(*expiry))
        });
        let changes: Vec<_> = plan.into_iter().chain(limits).zip(1..)
            .map(|((setting, expires), version)| set(version, "tn_one", setting, expires)).collect();
        overrides.learn(&changes);
        let plans = Plans::new(plans.collect(), BTreeMap::from([(tenant("tn_one"), in_file)]), names[0].clone(), Metrics::new())
            .unwrap().with_admin(overrides);

        let in_file_holds = holds(config_expiry);
        let operators = admin.plan.filter(|(_, expiry)| holds(*expiry)).map(|(plan, _)| (plan, Origin::Admin));
        let configs = config.plan.filter(|_| in_file_holds).map(|(plan, _)| (plan, Origin::Config));
        let set_plan = operators.or(configs);
        // The service may name a plan that the config does not know.
        let plan = set_plan.map_or(service.filter(|plan| *plan < 3).unwrap_or(0), |(plan, _)| plan);
        let named = service.map(|plan| names.get(plan).map_or("unheard of", PlanName::as_str));
        let entitlement = plans.entitlement(&tenant("tn_one"), named, noon());
        let layers = plans.layers(&tenant("tn_one"), noon());
        prop_assert_eq!(&entitlement.plan, &names[plan]);
        prop_assert_eq!(layers.plan().map(|(_, origin)| origin), set_plan.map(|(_, origin)| origin));
        for (at, dimension) in DIMENSIONS.into_iter().enumerate() {
            let operators = admin.limits.iter().find(|(d, _, expiry)| *d == at && holds(*expiry));
            let configs = config.limits.iter().find(|(d, ..)| *d == at && in_file_holds);
            let (limit, origin) = match (operators, configs) {
                (Some((_, limit, _)), _) => (*limit, Origin::Admin),
                (None, Some((_, limit, _))) => (*limit, Origin::Config),
                (None, None) => (limit_of_plan(plan, at), Origin::Plan),
            };
            prop_assert_eq!((entitlement.limits.limit(dimension), layers.origin(dimension)), (limit, origin));
        }
        prop_assert!(!entitlement.blocked);
        prop_assert_eq!(plans.entitlement(&tenant("tn_two"), named, noon()).limits.limit(TOKENS),
            limit_of_plan(service.filter(|plan| *plan < 3).unwrap_or(0), 0));
    }

    /// A replica that hears of edits at once, late, twice and through snapshots of any age never shows what was undone
    /// before the last it caught up with, and shows what the database holds once it has caught up.
    #[test]
    fn replicas_come_to_know_what_the_database_holds(
        edits in proptest::collection::vec((0..2usize, 0..3usize, proptest::option::of(0..9u64)), 1..20),
        news in proptest::collection::vec((0..4usize, 0..20usize, 0..20usize), 0..40),
    ) {
        let names = ["tn_one", "tn_two"];
        let history: Vec<Change> = edits.iter().zip(1..).map(|((tenant, at, limit), version)| match limit {
            Some(limit) => set(version, names[*tenant], Setting::Limit(DIMENSIONS[*at], Some(*limit)), None),
            None => removed(version, names[*tenant], Target::Limit(DIMENSIONS[*at])),
        }).collect();
        // The rows as they were when the first `count` edits were made: the last of each tenant and target.
        let rows = |count: usize| -> Vec<Change> {
            let known = &history[..count];
            known.iter().enumerate().filter(|(at, change)| {
                !known[at + 1..].iter().any(|later| later.tenant == change.tenant && later.target == change.target)
            }).map(|(_, change)| change.clone()).collect()
        };
        let overrides = Overrides::new();
        let shows = |overrides: &Overrides, known: usize, exactly: bool| {
            for name in names {
                for dimension in DIMENSIONS {
                    let of = |change: &&Change| change.tenant == tenant(name) && change.target == Target::Limit(dimension);
                    let shown = overrides.of(&tenant(name))
                        .and_then(|t| t.of(Target::Limit(dimension), noon()).map(|o| o.setting.clone()));
                    let after = |count| rows(count).iter().find(of).and_then(|c| c.set.as_ref().map(|o| o.setting.clone()));
                    let last = if exactly { known } else { history.len() };
                    assert!((known..=last).any(|count| after(count) == shown), "{name} {dimension}: {shown:?}");
                }
            }
        };
        for (kind, from, to) in news {
            let (from, to) = (from.min(to) % (history.len() + 1), from.max(to) % (history.len() + 1));
            match kind {
                // One edit, as the replica that made it applies it.
                0 => if let Some(change) = history.get(from) { overrides.learn(std::slice::from_ref(change)) },
                // What changed since what is known, as of some instant.
                1 | 2 => {
                    let (upto, to) = (overrides.upto(), to as i64);
                    if to >= upto {
                        let changes: Vec<_> =
                            rows(to as usize).into_iter().filter(|change| change.version > upto).collect();
                        overrides.catch_up(&changes, to);
                    }
                }
                // All, as of some instant that is not before what was read last.
                _ => if to as i64 >= overrides.upto() {
                    let there: Vec<_> = rows(to).into_iter().filter(|change| change.set.is_some()).collect();
                    overrides.replace(&there, to as i64);
                },
            }
            shows(&overrides, overrides.upto() as usize, false);
        }
        let (upto, end) = (overrides.upto(), history.len());
        let changes: Vec<_> = rows(end).into_iter().filter(|change| change.version > upto).collect();
        overrides.catch_up(&changes, end as i64);
        shows(&overrides, end, true);
        let there = names.iter().filter(|name| rows(end).iter().any(|c| c.tenant == tenant(name) && c.set.is_some()));
        prop_assert_eq!(overrides.tenants(), there.count(), "nothing is kept of what was removed");
    }
}
