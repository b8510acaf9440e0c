//! Claims about plans and overrides.

use super::*;

fn plan(tokens: Limit) -> PlanConfig {
    let mut limits = Limits::unlimited();
    limits.set(TOKENS, tokens);
    PlanConfig { limits, zone: "UTC".into() }
}

fn plans(overrides: &[(&str, OverrideConfig)], metrics: Arc<Metrics>) -> Plans {
    let plans = BTreeMap::from([("trial".into(), plan(Some(10))), ("pro".into(), plan(Some(500)))]);
    let overrides = overrides.iter().map(|(name, config)| (tenant(name), config.clone())).collect();
    Plans::new(plans, overrides, "trial".into(), metrics).unwrap()
}

#[test]
fn the_services_plan_holds_and_an_unknown_one_is_the_default_and_counted() {
    let metrics = Metrics::new();
    let plans = plans(&[], metrics.clone());
    let tokens = |plan| plans.entitlement(&tenant("tn_one"), plan, noon()).limits.limit(TOKENS);
    assert_eq!((tokens(Some("pro")), tokens(None)), (Some(500), Some(10)));
    assert_eq!(metrics.unknown_plans.get(), 0);
    assert_eq!(tokens(Some("platinum")), Some(10));
    assert_eq!(metrics.unknown_plans.get(), 1);
}

#[test]
fn overrides_go_before_the_plan_and_end_when_they_expire() {
    let expires = at("2026-11-24T12:30:00Z");
    let config = OverrideConfig {
        plan: Some("pro".into()),
        limits: vec![(MESSAGES, Some(7)), (CALLS, None)],
        expires: Some(expires),
        reason: Some("pilot".into()),
        ..OverrideConfig::default()
    };
    let plans = plans(&[("tn_one", config.clone())], Metrics::new());
    let during = plans.entitlement(&tenant("tn_one"), Some("trial"), noon());
    assert_eq!(during.plan, PlanName::from("pro"));
    assert_eq!((during.limits.limit(TOKENS), during.limits.limit(MESSAGES)), (Some(500), Some(7)));
    let layers = |now| plans.layers(&tenant("tn_one"), now);
    let origins = [MESSAGES, CALLS, TOKENS].map(|dimension| layers(noon()).origin(dimension));
    assert_eq!(origins, [Origin::Config, Origin::Config, Origin::Plan]);
    assert_eq!(layers(noon()).plan(), Some((&"pro".into(), Origin::Config)));
    assert_eq!(layers(noon()).config(), Some(&config));

    let after = plans.entitlement(&tenant("tn_one"), Some("trial"), expires);
    assert_eq!((after.plan.as_str(), after.limits.limit(TOKENS)), ("trial", Some(10)));
    assert_eq!((layers(expires).config(), layers(expires).plan()), (None, None));
    let other = plans.entitlement(&tenant("tn_two"), Some("trial"), noon());
    assert_eq!(other.limits.limit(MESSAGES), None, "an override is one tenant's");
}

#[test]
fn an_override_that_expires_mid_run_refuses_the_next_request() {
    let limits = vec![(TOKENS, Some(1000))];
    let expires = at("2026-11-24T12:30:00Z");
    let config = OverrideConfig { limits, expires: Some(expires), ..OverrideConfig::default() };
    let (plans, enforcer) = (plans(&[("tn_one", config)], Metrics::new()), Enforcer::new(Metrics::new()));
    let reserve = |now| {
        let entitlement = plans.entitlement(&tenant("tn_one"), None, now);
        enforcer.reserve(&tenant("tn_one"), &entitlement, message(20), true, now)
    };
    reserve(noon()).unwrap().settle(message(20));
    reserve(noon()).unwrap().settle(message(20));
    assert_eq!(reserve(expires).unwrap_err().standing.limit, Some(10));
}

#[test]
fn every_fault_of_the_plans_is_named_at_once() {
    let mut bad = plan(None);
    bad.zone = "Mars/Olympus".into();
    let overriding = OverrideConfig { plan: Some("gold".into()), ..OverrideConfig::default() };
    let error = Plans::new(
        BTreeMap::from([("pro".into(), bad)]),
        BTreeMap::from([(tenant("tn_one"), overriding)]),
        "trial".into(),
        Metrics::new(),
    )
    .unwrap_err();
    for name in ["Mars/Olympus", "gold", "tn_one", "trial"] {
        assert!(error.contains(name), "{error}");
    }
}
