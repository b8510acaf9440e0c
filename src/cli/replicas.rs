//! `tollgate replicas`: the processes that share the database.

use super::table::{columns, plain};
use crate::store::replicas::Replica;

/// A table for people.
pub(super) fn told(replicas: &[Replica]) -> String {
    let head = ["ID", "STATE", "ADDRESS", "VERSION", "RUN", "HEARD OF", "LEASES", "OUTSTANDING"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(replicas.iter().map(|replica| {
        let or_none = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), plain);
        let outstanding: Vec<String> =
            replica.outstanding.iter().map(|(unit, amount)| format!("{}={amount}", plain(unit))).collect();
        vec![
            plain(&replica.id),
            plain(&replica.state),
            or_none(&replica.address),
            or_none(&replica.version),
            replica.run.to_string(),
            format!("{} ago", ago(replica.silent_secs)),
            replica.leases.to_string(),
            if outstanding.is_empty() { "-".to_owned() } else { outstanding.join(" ") },
        ]
    }));
    columns(&rows)
}

/// Seconds, or the largest unit that they fill.
fn ago(secs: f64) -> String {
    match secs {
        ..60.0 => format!("{secs:.1}s"),
        ..3600.0 => format!("{:.0}m", (secs / 60.0).floor()),
        ..86_400.0 => format!("{:.0}h", (secs / 3600.0).floor()),
        _ => format!("{:.0}d", (secs / 86_400.0).floor()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_ago_is_told_in_the_unit_that_it_fills() {
        let told = [0.31, 59.0, 60.0, 3599.0, 7300.0, 200_000.0].map(ago);
        assert_eq!(told, ["0.3s", "59.0s", "1m", "59m", "2h", "2d"]);
    }
}
