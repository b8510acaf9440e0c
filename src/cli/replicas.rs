//! `tollgate replicas`: the processes that share the database.

use super::table::{ago, columns, plain};
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
