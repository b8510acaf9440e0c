//! The database's side of what happened.
#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::{BY_THE_MINUTE, Quota};
use crate::postgres::Database;

/// What is in Postgres.
pub(super) struct Books<'a> {
    client: tokio_postgres::Client,
    database: &'a Database<'a>,
    quotas: Vec<Quota>,
}

impl<'a> Books<'a> {
    pub(super) async fn of(database: &'a Database<'a>, quotas: Vec<Quota>) -> Self {
        Self { client: database.connect().await, database, quotas }
    }

    /// How many calls of each tenant its quotas still have room for.
    pub(super) async fn calls_left(&self) -> BTreeMap<&'static str, u64> {
        let mut calls = BTreeMap::new();
        for (quota, settled) in self.settled().await {
            // As long as a call's need is there, one more is let through.
            let (mut left, mut more) = (quota.limit.saturating_sub(settled), 0);
            while left >= quota.needs {
                left = left.saturating_sub(quota.uses);
                more += 1;
            }
            calls.entry(quota.tenant).and_modify(|calls: &mut u64| *calls = more.min(*calls)).or_insert(more);
        }
        calls
    }

    /// Counters are the sums of their events, and the program says so, too.
    pub(super) async fn balance(&self) {
        let amounts = |of: Vec<(Quota, u64)>| of.into_iter().map(|(_, amount)| amount).collect::<Vec<_>>();
        assert_eq!(amounts(self.settled().await), amounts(self.sums()), "{:?}", self.quotas);
        let verified = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .arg("verify-quota")
            .env_clear()
            .env("DATABASE_URL", self.database.url())
            .output()
            .unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    }

    /// How much of each quota is settled.
    pub(super) async fn settled(&self) -> Vec<(Quota, u64)> {
        let query = "SELECT tenant_id, dimension, sum(settled)::bigint FROM quota_usage GROUP BY 1, 2";
        let rows = self.client.query(query, &[]).await.unwrap();
        let counters: BTreeMap<(String, String), i64> =
            rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
        let settled = |quota: &Quota| {
            let counter = counters.get(&(quota.tenant.to_owned(), quota.dimension.to_owned()));
            counter.map_or(0, |settled| u64::try_from(*settled).unwrap())
        };
        self.quotas.iter().map(|quota| (*quota, settled(quota))).collect()
    }

    /// At every COMMIT what is settled and what is promised are within the limit, but for debt.
    pub(super) async fn hold(&self) {
        let query = "SELECT u.tenant_id, u.dimension, u.window_start::text, u.settled,
                 coalesce(sum(greatest(l.granted - l.consumed, 0)), 0)::bigint
             FROM quota_usage u LEFT JOIN quota_leases l USING (tenant_id, dimension, window_start)
             GROUP BY 1, 2, 3, 4";
        for row in self.client.query(query, &[]).await.unwrap() {
            let (tenant, dimension): (&str, &str) = (row.get(0), row.get(1));
            let (settled, promised): (i64, i64) = (row.get(3), row.get(4));
            let quota =
                self.quotas.iter().find(|quota| (quota.tenant, quota.dimension) == (tenant, dimension));
            let by_the_minute = (tenant, dimension) == (BY_THE_MINUTE.0, "api_calls_per_minute");
            let most = quota.map(Quota::most).or(by_the_minute.then_some(BY_THE_MINUTE.1));
            let Some(most) = most else { continue };
            assert!(settled + promised <= most.cast_signed(), "{settled} and {promised} of {most}: {row:?}");
        }
    }

    /// Ids of rows that are not refusals: each once.
    pub(super) async fn admitted(&self) -> BTreeSet<String> {
        let query = "SELECT request_id FROM tenant_usage_realtime WHERE outcome <> 'refused'";
        let rows = self.client.query(query, &[]).await.unwrap();
        let ids: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(ids.len(), rows.len(), "none is recorded twice");
        ids
    }

    /// What the events say that each quota was charged.
    fn sums(&self) -> Vec<(Quota, u64)> {
        let sum = |quota: &Quota| {
            let column = match quota.dimension {
                "tokens_per_day" => "sum(coalesce((metadata ->> 'charged_tokens')::bigint, tokens_consumed))",
                "chat_messages_per_day" => "sum(chat_messages)",
                _ => "count(*)",
            };
            let sum = self.database.one(&format!(
                "SELECT coalesce({column}, 0) FROM tenant_usage_realtime
                 WHERE tenant_id = '{}' AND outcome <> 'refused'",
                quota.tenant
            ));
            (*quota, sum.parse().unwrap())
        };
        self.quotas.iter().map(sum).collect()
    }
}
