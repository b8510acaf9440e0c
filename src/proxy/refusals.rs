//! What refusals leave in the tables. Refusing is cheap, and anyone who is over a limit can have it done as often as a
//! connection can ask; a row and an audit event for each would cost the disk more than a call.
//!
//! 1. The first [`EACH`] refusals of a tenant for one reason in a minute are recorded one by one, [`EACH_IN_ALL`] of all
//!    tenants together. Those that follow are summed: one row and its audit events, which say how many refusals they stand
//!    for (`refusals`).
//! 2. There are at most [`SUMS`] sums a minute; what is beyond is summed under the tenant [`OTHERS`], by reason.
//! 3. A sum is recorded when its minute is over, and at the stop. A process that is killed takes with it what it had summed
//!    in that minute, and nothing else.
//! 4. Every refusal is in exactly one row: the sum over rows of `refusals` (1, where there is none) is what was refused.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::model::event::{PROVISIONAL, REFUSALS, Record};
use crate::model::tenant::TenantId;
use crate::record::Records;

/// Refusals of a tenant for one reason in a minute that are recorded one by one.
const EACH: u32 = 20;

/// Refusals of all tenants in a minute that are.
const EACH_IN_ALL: u32 = 1_000;

/// Sums in a minute, but for those of [`OTHERS`].
const SUMS: usize = 1_000;

/// Whose refusals are summed that have no sum of their own.
const OTHERS: &str = "others";

/// What a refusal is summed under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    minute: i64,
    tenant: TenantId,
    by: Box<str>,
}

/// What becomes of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Weighed {
    /// It is recorded by itself.
    Each,
    /// It begins a sum: its records are to be handed over.
    First(Key),
    /// It was added to a sum.
    Summed,
}

/// The refusals of the minute.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Minute>);

#[derive(Debug, Default)]
struct Minute {
    number: i64,
    /// Recorded one by one, of all tenants.
    each: u32,
    /// The same by tenant and reason.
    seen: HashMap<Key, u32>,
    sums: HashMap<Key, Sum>,
}

#[derive(Debug, Default)]
struct Sum {
    /// Of the first; empty until they are handed over.
    records: Records,
    refusals: u64,
}

impl Refusals {
    /// Counts a refusal of `tenant`, for the reason `by`.
    pub(crate) fn weigh(&self, tenant: &TenantId, by: &str, now: Timestamp) -> Weighed {
        let mut minute = self.lock();
        let number = now.as_second().div_euclid(60);
        if minute.number != number {
            (minute.number, minute.each) = (number, 0);
            minute.seen.clear();
        }
        let mut key = Key { minute: number, tenant: tenant.clone(), by: by.into() };
        if minute.each < EACH_IN_ALL {
            let seen = minute.seen.entry(key.clone()).or_default();
            if *seen < EACH {
                *seen += 1;
                minute.each += 1;
                return Weighed::Each;
            }
        }
        if let Some(sum) = minute.sums.get_mut(&key) {
            sum.refusals += 1;
            return Weighed::Summed;
        }
        if minute.sums.len() >= SUMS {
            key.tenant = others();
        }
        let sum = minute.sums.entry(key.clone()).or_default();
        sum.refusals += 1;
        if sum.refusals == 1 { Weighed::First(key) } else { Weighed::Summed }
    }

    /// Takes over the records of the first refusal of a sum.
    pub(crate) fn begin(&self, key: &Key, records: Records) {
        if let Some(sum) = self.lock().sums.get_mut(key) {
            sum.records = records;
        }
    }

    /// The records of sums whose minute is over.
    pub fn due(&self, now: Timestamp) -> Vec<Records> {
        let number = now.as_second().div_euclid(60);
        self.take(|key| key.minute != number)
    }

    /// The records of all sums.
    pub fn all(&self) -> Vec<Records> {
        self.take(|_| true)
    }

    fn take(&self, due: impl Fn(&Key) -> bool) -> Vec<Records> {
        let mut minute = self.lock();
        // One whose first refusal is just being written up waits for the next time.
        let taken = minute.sums.extract_if(|key, sum| due(key) && !sum.records.is_empty());
        let taken: Vec<(Key, Sum)> = taken.collect();
        drop(minute);
        taken.into_iter().map(|(key, sum)| summed(&key, sum)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Minute> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn others() -> TenantId {
    TenantId::parse(OTHERS).unwrap_or_else(|_| TenantId::unresolved())
}

/// The records of the first refusal, which now stand for all of the sum.
fn summed(key: &Key, sum: Sum) -> Records {
    let Sum { mut records, refusals } = sum;
    for record in &mut records {
        match record {
            Record::Usage(event) => {
                event.tenant_id = key.tenant.clone();
                // It is of many sessions, and moves to no one's tenant.
                event.chat_session_id = None;
                event.metadata.remove(PROVISIONAL);
                event.metadata.insert(REFUSALS.into(), json!(refusals));
            }
            Record::Audit(event) => {
                event.tenant_id = Some(key.tenant.clone());
                let values = event.new_values.get_or_insert_with(|| json!({}));
                if let Value::Object(values) = values {
                    values.insert(REFUSALS.into(), json!(refusals));
                }
            }
            Record::Amend(_) => {}
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::AuditEvent;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn records() -> Records {
        let id = uuid::Uuid::nil();
        let event = AuditEvent::new(id, at(0), "quota_exceeded", "error", "execute");
        [Record::Audit(Box::new(event))].into_iter().collect()
    }

    /// Refusals as they would be recorded one by one, and as sums.
    fn refuse(refusals: &Refusals, tenant: &str, by: &str, second: i64) -> u64 {
        match refusals.weigh(&TenantId::parse(tenant).unwrap(), by, at(second)) {
            Weighed::Each => 1,
            Weighed::First(key) => {
                refusals.begin(&key, records());
                0
            }
            Weighed::Summed => 0,
        }
    }

    fn counted(taken: &[Records]) -> u64 {
        let count = |record: &Record| match record {
            Record::Audit(event) => event.new_values.as_ref().unwrap()[REFUSALS].as_u64().unwrap(),
            _ => 0,
        };
        taken.iter().flatten().map(count).sum()
    }

    #[test]
    fn the_first_are_written_one_by_one_and_the_rest_as_one_when_the_minute_is_over() {
        let refusals = Refusals::default();
        let each: u64 = (0..1_000).map(|n| refuse(&refusals, "tn_a", "tokens_per_day", n % 60)).sum();
        assert_eq!(each, u64::from(EACH));
        assert!(refusals.due(at(59)).is_empty());
        let taken = refusals.due(at(60));
        assert_eq!((taken.len(), counted(&taken)), (1, 1_000 - u64::from(EACH)));
        assert!(refusals.all().is_empty());
        assert_eq!(refuse(&refusals, "tn_a", "tokens_per_day", 61), 1, "a new minute begins anew");
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(32))]
        #[test]
        fn what_was_refused_is_what_is_recorded_and_both_are_bounded(
            calls in proptest::collection::vec((0u32..3_000, 0u8..3, 0i64..180), 0..6_000)
        ) {
            let refusals = Refusals::default();
            let (mut each, mut rows, mut summed) = (0, 0, 0);
            let mut calls = calls;
            calls.sort_by_key(|(_, _, second)| *second);
            for (tenant, by, second) in &calls {
                each += refuse(&refusals, &format!("tn_{tenant}"), ["a", "b", "c"][usize::from(*by)], *second);
                let taken = refusals.due(at(*second));
                rows += taken.len();
                summed += counted(&taken);
            }
            let taken = refusals.all();
            rows += taken.len();
            summed += counted(&taken);
            proptest::prop_assert_eq!(each + summed, calls.len() as u64);
            proptest::prop_assert!(each <= 3 * u64::from(EACH_IN_ALL));
            proptest::prop_assert!(rows <= 3 * (SUMS + 3));
        }
    }
}
