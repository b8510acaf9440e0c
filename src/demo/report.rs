//! What was metered, read back from Postgres, and held against what the visitors were told.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio_postgres::Row;

use super::traffic::{Tally, Visitor};
use crate::store::Store;

/// How long rows may take from an answer's end to Postgres. They take some tens of milliseconds; a machine that is
/// busy compiling gets more.
const PATIENCE: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(25);

/// One row for each tenant that called. The counters are the ones that quotas are held against.
const METERED: &str = "
    SELECT u.tenant_id,
           coalesce(t.plan, '') AS plan,
           count(*) FILTER (WHERE u.outcome <> 'refused') AS answered,
           count(*) FILTER (WHERE u.outcome = 'refused') AS refused,
           coalesce(sum(u.tokens_consumed), 0)::bigint AS tokens,
           coalesce(sum(u.tokens_consumed) FILTER (WHERE u.token_source = 'reported'), 0)::bigint AS reported,
           count(*) FILTER (WHERE u.token_source = 'reserved') AS uncounted,
           coalesce(string_agg(DISTINCT u.token_source, ', ') FILTER (WHERE u.token_source <> 'none'), '-') AS sources,
           coalesce(sum(u.cost_usd), 0)::text AS cost_usd,
           coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY u.api_response_time_ms)
                    FILTER (WHERE u.outcome <> 'refused'), 0)::bigint AS p50_ms,
           (SELECT sum(q.settled)::bigint FROM quota_usage q
             WHERE q.tenant_id = u.tenant_id AND q.dimension = 'tokens_per_day') AS counter
      FROM tenant_usage_realtime u
      LEFT JOIN tenants t ON t.tenant_id = u.tenant_id
     GROUP BY u.tenant_id, t.plan
     ORDER BY u.tenant_id";

/// A tenant's line in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    tenant: String,
    plan: String,
    answered: i64,
    refused: i64,
    tokens: i64,
    /// The part of `tokens` that answers reported.
    reported: i64,
    /// Rows whose count is still being made.
    uncounted: i64,
    sources: String,
    cost_usd: String,
    p50_ms: i64,
    /// Today's live counter of tokens; `None` where the tenant's plan limits none.
    counter: Option<i64>,
}

impl TryFrom<&Row> for Line {
    type Error = tokio_postgres::Error;

    fn try_from(row: &Row) -> Result<Self, Self::Error> {
        Ok(Self {
            tenant: row.try_get("tenant_id")?,
            plan: row.try_get("plan")?,
            answered: row.try_get("answered")?,
            refused: row.try_get("refused")?,
            tokens: row.try_get("tokens")?,
            reported: row.try_get("reported")?,
            uncounted: row.try_get("uncounted")?,
            sources: row.try_get("sources")?,
            cost_usd: row.try_get("cost_usd")?,
            p50_ms: row.try_get("p50_ms")?,
            counter: row.try_get("counter")?,
        })
    }
}

/// Waits, within bounds, until every call of the visitors has its row and its count; returns the table's lines.
pub(super) async fn arrived(store: &Store, visitors: &[&Visitor]) -> anyhow::Result<Vec<Line>> {
    let made: u64 = visitors.iter().map(|visitor| visitor.tally.answered + visitor.tally.refused).sum();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let lines = read(store).await?;
        let rows: i64 = lines.iter().map(|line| line.answered + line.refused).sum();
        let uncounted: i64 = lines.iter().map(|line| line.uncounted).sum();
        if rows >= made.cast_signed() && uncounted == 0 {
            return Ok(lines);
        }
        if tokio::time::Instant::now() > deadline {
            bail!(
                "{made} calls were made, but after {PATIENCE:?} Postgres has {rows}, {uncounted} of them uncounted"
            );
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn read(store: &Store) -> anyhow::Result<Vec<Line>> {
    let rows = store.client().await?.query(METERED, &[]).await.context("reading the usage back")?;
    Ok(rows.iter().map(Line::try_from).collect::<Result<_, _>>()?)
}

/// Holds the rows against what the visitors were told; the first difference is the error.
pub(super) fn check(lines: &[Line], visitors: &[&Visitor]) -> anyhow::Result<()> {
    for visitor in visitors {
        let tenant = visitor.tenant.id;
        let line = lines
            .iter()
            .find(|line| line.tenant == tenant)
            .with_context(|| format!("{tenant} has no row"))?;
        compare(line, visitor.tally).with_context(|| format!("{tenant} was not metered right"))?;
    }
    Ok(())
}

fn compare(line: &Line, told: Tally) -> anyhow::Result<()> {
    let same = |what: &str, rows: i64, told: u64| {
        ensure!(rows == told.cast_signed(), "{what}: {rows} in Postgres, {told} in the answers");
        Ok(())
    };
    same("calls answered", line.answered, told.answered)?;
    same("calls refused", line.refused, told.refused)?;
    same("tokens reported", line.reported, told.reported_tokens)?;
    if let Some(counter) = line.counter {
        ensure!(counter == line.tokens, "tokens: the live counter says {counter}, the rows {}", line.tokens);
    }
    Ok(())
}

/// The lines as a table for people.
pub(super) fn table(lines: &[Line]) -> String {
    let mut text = format!(
        "  {:<12}{:<12}{:>8}{:>9}{:>9}  {:<20}{:>12}{:>8}\n",
        "tenant", "plan", "calls", "refused", "tokens", "token source", "cost USD", "p50 ms"
    );
    for line in lines {
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "  {:<12}{:<12}{:>8}{:>9}{:>9}  {:<20}{:>12}{:>8}",
            line.tenant,
            line.plan,
            line.answered,
            line.refused,
            line.tokens,
            line.sources,
            line.cost_usd,
            line.p50_ms
        );
    }
    text
}

/// What [`check`] found right, in one sentence.
pub(super) fn summary(visitors: &[&Visitor]) -> String {
    let sum = |what: fn(&Tally) -> u64| visitors.iter().map(|visitor| what(&visitor.tally)).sum::<u64>();
    format!(
        "{} calls answered and {} refused: a row each. The answers reported {} tokens: the rows say the same, and so \
         do the live counters.",
        sum(|tally| tally.answered),
        sum(|tally| tally.refused),
        sum(|tally| tally.reported_tokens),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line {
            tenant: "tn_bakery".into(),
            plan: "trial".into(),
            answered: 10,
            refused: 3,
            tokens: 9_870,
            reported: 9_870,
            uncounted: 0,
            sources: "reported".into(),
            cost_usd: "0.00148050".into(),
            p50_ms: 4,
            counter: Some(9_870),
        }
    }

    const TOLD: Tally = Tally { answered: 10, refused: 3, reported_tokens: 9_870 };

    #[test]
    fn rows_that_say_what_the_answers_said_pass() {
        assert!(compare(&line(), TOLD).is_ok());
        assert!(
            compare(&Line { counter: None, ..line() }, TOLD).is_ok(),
            "an unlimited tenant has no counter"
        );
    }

    #[test]
    fn each_difference_is_told() {
        for (wrong, said) in [
            (Line { answered: 9, ..line() }, "calls answered: 9 in Postgres, 10 in the answers"),
            (Line { refused: 4, ..line() }, "calls refused: 4 in Postgres, 3 in the answers"),
            (Line { reported: 1, ..line() }, "tokens reported: 1 in Postgres, 9870 in the answers"),
            (Line { counter: Some(7), ..line() }, "tokens: the live counter says 7, the rows 9870"),
        ] {
            assert_eq!(compare(&wrong, TOLD).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn the_table_keeps_its_columns() {
        let table = table(&[line()]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0].len(), lines[1].len());
        assert!(lines[1].contains("tn_bakery") && lines[1].contains("0.00148050"), "{table}");
    }
}
