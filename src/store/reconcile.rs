//! What was recorded of each model, day by day, to hold invoices against.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::instant::moment;
use super::pool::{Store, StoreError};

/// How long the reading may take: a quarter of many tenants' hours.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Cost is summed in nano-dollars, as it is counted; sums of what 64 bits hold need more than 64 bits, so all are text.
const RECORDED: &str = "
    SELECT d.at, u.model, sum(u.calls)::text, sum(u.tokens)::text, sum(u.estimated_tokens)::text,
        sum(u.input_tokens)::text, sum(u.output_tokens)::text, (sum(u.cost_usd) * 1000000000)::numeric(40, 0)::text
    FROM unnest($1::timestamptz[], $2::timestamptz[]) WITH ORDINALITY d(starts, ends, at)
    JOIN tenant_model_usage u ON u.hour >= d.starts AND u.hour < d.ends
    WHERE u.hour >= $3 AND u.hour < $4
    GROUP BY d.at, u.model ORDER BY d.at, u.model";

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// The days' models; those that were not called are not there.
    pub models: Vec<ModelDay>,
    /// What is before it is not known whole: its events were gone when usage by model began to be kept. `None`: all is
    /// known.
    pub complete_from: Option<Timestamp>,
}

/// A model's use on a day, over all tenants. Refused calls reached no model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDay {
    /// Which of the days asked for.
    pub day: usize,
    /// As answers name it; empty where they name none.
    pub model: String,
    /// Calls that were not refused.
    pub calls: i128,
    /// Tokens charged.
    pub tokens: i128,
    /// The part of them that no answer reported.
    pub estimated_tokens: i128,
    /// Input tokens, cached ones included.
    pub input_tokens: i128,
    /// Output tokens, reasoning included.
    pub output_tokens: i128,
    /// Cost by the configured prices, in nano-dollars.
    pub cost_nanousd: i128,
}

impl Store {
    /// What was recorded of each model on `days`, in order: each a half-open range that begins and ends with a UTC hour.
    /// Events that came since the last aggregation are aggregated first.
    ///
    /// # Errors
    /// When the database is away or has no schema.
    pub async fn recorded_by_model(&self, days: &[(Timestamp, Timestamp)]) -> Result<Recorded, StoreError> {
        let (Some((first, _)), Some((_, last))) = (days.first(), days.last()) else {
            return Ok(Recorded::default());
        };
        self.aggregate().await?;
        let (first, last) = (moment(*first), moment(*last));
        let starts: Vec<SystemTime> = days.iter().map(|(start, _)| moment(*start)).collect();
        let ends: Vec<SystemTime> = days.iter().map(|(_, end)| moment(*end)).collect();
        let state =
            "SELECT CASE WHEN isfinite(models_from) THEN models_from END FROM usage_aggregation_state";
        self.patient(PATIENCE, async |client| {
            let rows = client.query(RECORDED, &[&starts, &ends, &first, &last]).await?;
            let models = rows.iter().map(model_day).collect::<Result<_, _>>()?;
            let complete_from: Option<SystemTime> = client.query_one(state, &[]).await?.try_get(0)?;
            let complete_from = complete_from.and_then(|at| Timestamp::try_from(at).ok());
            Ok(Recorded { models, complete_from })
        })
        .await
    }
}

fn model_day(row: &tokio_postgres::Row) -> Result<ModelDay, tokio_postgres::Error> {
    // Digits by the statement's own making.
    let number = |at: usize| row.try_get::<_, String>(at).map(|text| text.parse().unwrap_or(i128::MAX));
    Ok(ModelDay {
        day: usize::try_from(row.try_get::<_, i64>(0)? - 1).unwrap_or(usize::MAX),
        model: row.try_get(1)?,
        calls: number(2)?,
        tokens: number(3)?,
        estimated_tokens: number(4)?,
        input_tokens: number(5)?,
        output_tokens: number(6)?,
        cost_nanousd: number(7)?,
    })
}
