//! Rounds of leases in real Postgres, held against the arithmetic that the schedules of `quota::tests::leases` go by.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tollgate::model::quota::{Dimension, Limit};
use tollgate::model::tenant::TenantId;
use tollgate::quota::{Ask, Grant, Grants, LeaseError, LeaseKey, LeaseSource, Round};
use tollgate::record::EventSink;
use tollgate::store::Store;

use self::database::Database as Model;
use super::records::{DAY, charge, chat, usage};
use crate::postgres::shared;

#[path = "../../../src/quota/tests/leases/database.rs"]
mod database;

/// Numbers that are the same in every run (Knuth's MMIX constants).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn key(tenant: &str, now: Timestamp) -> LeaseKey {
    let span = DAY.window.span(&TimeZone::UTC, now);
    LeaseKey { tenant: TenantId::parse(tenant).unwrap(), dimension: DAY, span }
}

fn ask(key: &LeaseKey, known: Option<i64>, at_least: i64, at_most: i64, limit: Limit) -> Ask {
    Ask { key: key.clone(), known, at_least, at_most, limit }
}

#[tokio::test]
async fn postgres_grants_what_the_model_grants() {
    let database = shared().migrated();
    let (names, now) = (["a", "b", "c"], Timestamp::now());
    let stores: Vec<Store> = names.iter().map(|name| database.store().with_replica_id(name)).collect();
    let tenants = ["tn_x", "tn_y"].map(|tenant| key(tenant, now));
    let (mut model, mut numbers) = (Model::default(), Numbers(20_261_124));
    let (mut rounds, mut runs) = ([0; 3], [1; 3]);
    for step in 0..400_u64 {
        let which = numbers.below(3) as usize;
        let (name, store) = (names[which], &stores[which]);
        let quota = |key: &LeaseKey| (key.tenant.clone(), key.dimension, key.span.start);
        match numbers.below(10) {
            0..6 => {
                // Sometimes a round that comes too late; sometimes one key twice, to hand back and then to ask.
                let number = if numbers.below(10) == 0 { rounds[which] } else { rounds[which] + 1 };
                rounds[which] = rounds[which].max(number);
                let round = Round { run: runs[which], number, reclaim_after: None };
                let mut asks = Vec::new();
                for key in &tenants {
                    for _ in 0..numbers.below(3) {
                        let known = (numbers.below(6) > 0).then_some(0);
                        let at_least = numbers.below(120).cast_signed();
                        let at_most = at_least + numbers.below(60).cast_signed();
                        let limit = (numbers.below(4) > 0).then_some(150);
                        asks.push(ask(key, known, at_least, at_most, limit));
                    }
                }
                let (real, expected) = (store.lease(round, &asks).await, model.lease(name, round, &asks));
                match (real, expected) {
                    (Ok(mut real), Ok(mut expected)) => {
                        real.wanted.sort();
                        expected.wanted.sort();
                        assert_eq!(real, expected, "step {step}: {asks:?}");
                    }
                    (real, expected) => {
                        let void = |error| matches!(error, Err(LeaseError::Void(_)));
                        assert!(void(real) && void(expected), "step {step}");
                    }
                }
            }
            6..9 => {
                let key = &tenants[numbers.below(2) as usize];
                let amount = numbers.below(40).cast_signed();
                let mut event = chat(key.tenant.as_str(), amount.unsigned_abs(), now);
                event.charges = vec![charge(DAY, now, amount)];
                event.lease_run = runs[which];
                let record = usage(event);
                for _ in 0..2 {
                    store.write(std::slice::from_ref(&record)).await.unwrap();
                    let known = model.has(step);
                    assert_eq!(model.lands(step), !known);
                }
                model.charge(name, runs[which], quota(key), amount, true);
            }
            _ => {
                runs[which] += 1;
                rounds[which] = 0;
                store.release_before(runs[which]).await.unwrap();
                model.release_before(name, runs[which]);
            }
        }
        model.clock += Duration::from_millis(1);
    }
    for key in &tenants {
        let quota = (key.tenant.clone(), key.dimension, key.span.start);
        let of = |what: &str, table: &str| {
            database.one(&format!("SELECT {what} FROM {table} WHERE tenant_id = '{}'", key.tenant))
        };
        assert_eq!(of("settled", "quota_usage"), model.settled[&quota].to_string());
        let outstanding = of("coalesce(sum(greatest(granted - consumed, 0)), 0)", "quota_leases");
        assert_eq!(outstanding, model.outstanding(&quota).to_string());
    }
}

#[tokio::test]
async fn a_run_that_was_not_heard_of_loses_what_it_holds_and_is_told_so() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let (dead, heir) = (database.store().with_replica_id("dead"), database.store().with_replica_id("heir"));
    let (key, after) = (key("tn_one", now), Some(Duration::from_secs(10)));
    let round = |number, reclaim_after| Round { run: 1, number, reclaim_after };
    let asks = [ask(&key, None, 90, 90, Some(100))];
    let granted = |grants: Result<Grants, LeaseError>| grants.unwrap().grants[0].granted;
    assert_eq!(granted(dead.lease(round(1, after), &asks).await), 90);
    assert_eq!(granted(heir.lease(round(1, after), &asks).await), 10, "it is alive");

    database.rows(
        "UPDATE gateway_replicas SET heartbeat_at = now() - interval '11 seconds' WHERE replica_id = 'dead';
         UPDATE quota_leases SET granted_at = now() - interval '11 seconds' WHERE replica_id = 'dead'",
    );
    let more = [ask(&key, Some(10), 90, 90, Some(100))];
    assert_eq!(
        granted(heir.lease(round(2, after), &more).await),
        10,
        "it may still be spending: clocks differ"
    );
    let void = dead.lease(round(2, after), &asks).await.unwrap_err();
    assert!(matches!(void, LeaseError::Void(_)), "{void}");

    database.rows(
        "UPDATE gateway_replicas SET heartbeat_at = now() - interval '13 seconds' WHERE replica_id = 'dead';
         UPDATE quota_leases SET granted_at = now() - interval '13 seconds' WHERE replica_id = 'dead'",
    );
    assert_eq!(
        granted(heir.lease(round(3, None), &more).await),
        10,
        "nothing is reclaimed before the window ends"
    );
    assert_eq!(granted(heir.lease(round(4, after), &more).await), 90);
    let again = Round { run: 2, ..round(1, after) };
    assert_eq!(granted(dead.lease(again, &asks).await), 10, "a new run begins with what is left");
}
