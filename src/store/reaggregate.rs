//! Aggregates of rows that changed, in the transaction that changed them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use tokio_postgres::Error;

use super::instant::moment;

/// As `aggregate_usage_metrics()` has them.
const AGGREGATING: &str =
    "SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL work_mem = '128MB';
    SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_nestloop = off; SET LOCAL jit = off";

const AGGREGATE: &str =
    "SELECT tollgate_write_usage($1, $2::timestamptz, $2::timestamptz + ('1 ' || $3)::interval, $4, $5)";

/// Computes the hours that hold `rows` (tenant and time) anew, and merges the days and months that they are in. In a
/// transaction that holds the aggregation's lock; what is set here ends with it.
pub(super) async fn reaggregate<'a>(
    client: &ClientWrapper,
    rows: impl Iterator<Item = (&'a str, Timestamp)>,
) -> Result<(), Error> {
    client.batch_execute(AGGREGATING).await?;
    let mut days: BTreeMap<Timestamp, Vec<(&str, SystemTime)>> = BTreeMap::new();
    for (tenant, at) in rows {
        days.entry(start_of(at, 86_400)).or_default().push((tenant, moment(start_of(at, 3600))));
    }
    let mut months: Vec<Timestamp> = Vec::new();
    for (day, mut hours) in days {
        hours.sort_unstable();
        hours.dedup();
        let (tenants, hours): (Vec<&str>, Vec<SystemTime>) = hours.into_iter().unzip();
        let none: (Vec<&str>, Vec<SystemTime>) = (Vec::new(), Vec::new());
        client.query(AGGREGATE, &[&"hourly", &moment(day), &"day", &tenants, &hours]).await?;
        client.query(AGGREGATE, &[&"daily", &moment(day), &"day", &none.0, &none.1]).await?;
        let date = jiff::tz::TimeZone::UTC.to_datetime(day).date().first_of_month();
        let month = jiff::tz::TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).unwrap_or(day);
        if !months.contains(&month) {
            months.push(month);
        }
    }
    let none: (Vec<&str>, Vec<SystemTime>) = (Vec::new(), Vec::new());
    for month in months {
        client.query(AGGREGATE, &[&"monthly", &moment(month), &"month", &none.0, &none.1]).await?;
    }
    Ok(())
}

/// The beginning of the hour or day, in UTC, that holds `at`.
fn start_of(at: Timestamp, seconds: i64) -> Timestamp {
    Timestamp::from_second(at.as_second().div_euclid(seconds) * seconds).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_and_days_begin_in_utc_before_and_after_the_epoch() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(start_of(at("2026-11-30T03:59:59.9Z"), 3600), at("2026-11-30T03:00:00Z"));
        assert_eq!(start_of(at("1969-12-31T23:00:01Z"), 86_400), at("1969-12-31T00:00:00Z"));
    }
}
