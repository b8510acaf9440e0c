//! `tollgate verify-quota`: the counters that differ from their events.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::table::{columns, plain};
use crate::store::{Drift, Drifted};

/// What was found, for people or (`json`) programs.
pub(super) fn told(drift: &Drift, json: bool) -> String {
    if json { format!("{:#}\n", whole(drift)) } else { text(drift) }
}

fn whole(drift: &Drift) -> Value {
    let worst: Vec<Value> = drift.worst.iter().map(counter).collect();
    json!({"counters": drift.counters, "drifted": drift.drifted, "drift": drift.total, "worst": worst})
}

fn counter(counter: &Drifted) -> Value {
    json!({
        "tenant": counter.tenant,
        "dimension": counter.dimension,
        "window_start": counter.window_start.map(|at| at.to_string()),
        "window_end": counter.window_end.map(|at| at.to_string()),
        "settled": counter.settled,
        "events": counter.charged,
        "drift": counter.settled.saturating_sub(counter.charged),
    })
}

fn text(drift: &Drift) -> String {
    if drift.drifted == 0 {
        return format!("{} counters, each the sum of its events\n", drift.counters);
    }
    let instant = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let head = ["TENANT", "DIMENSION", "WINDOW", "UNTIL", "SETTLED", "EVENTS", "DRIFT"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(drift.worst.iter().map(|counter| {
        vec![
            plain(&counter.tenant),
            plain(&counter.dimension),
            instant(counter.window_start),
            instant(counter.window_end),
            counter.settled.to_string(),
            counter.charged.to_string(),
            counter.settled.saturating_sub(counter.charged).to_string(),
        ]
    }));
    let left_out = drift.drifted.saturating_sub(drift.worst.len() as u64);
    let more = if left_out > 0 { format!("and {left_out} more\n") } else { String::new() };
    format!("{}{more}", columns(&rows))
}
