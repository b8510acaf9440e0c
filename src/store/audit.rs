//! Audit events, as operators ask for them, and resolving one.

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use uuid::Uuid;

use super::pool::{Store, StoreError};
use super::report::{Between, Binds, Column, Kind, Snapshot, Table, list, snapshot};
use crate::model::tenant::TenantId;

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text }
}

/// The columns of `audit_events`.
const EVENTS: [Column; 20] = [
    text("event_id"),
    text("tenant_id"),
    text("event_type"),
    text("category"),
    text("entity_type"),
    text("entity_id"),
    text("action"),
    text("actor_type"),
    text("actor_id"),
    Column { name: "old_values", kind: Kind::Json },
    Column { name: "new_values", kind: Kind::Json },
    text("changes_summary"),
    text("result"),
    text("error_message"),
    text("resolution"),
    Column { name: "resolved_at", kind: Kind::Time },
    text("ip_address"),
    text("user_agent"),
    text("request_id"),
    Column { name: "timestamp", kind: Kind::Time },
];

/// A place in the list of events, latest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// When the last event shown happened.
    pub at: Timestamp,
    /// Which one it was, of those at that instant.
    pub event_id: Uuid,
}

/// The question that [`events`] answers; a `None` asks for any.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Concerning whom.
    pub tenant: Option<&'a TenantId>,
    /// Of which type.
    pub event_type: Option<&'a str>,
    /// Of which category.
    pub category: Option<&'a str>,
    /// With which result.
    pub result: Option<&'a str>,
    /// Happening when.
    pub between: Between,
    /// How many at most.
    pub limit: u32,
    /// Only those that come after this place.
    pub after: Option<Place>,
}

/// The events, latest first, and the place of the last one when there are more.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn events(store: &Store, question: &Question<'_>) -> Result<(Table, Option<Place>), StoreError> {
    let (sql, binds) = statement(question);
    let mut rows = snapshot(store, async |db: &Snapshot<'_>| db.rows(&sql, &binds).await).await?;
    let more = rows.len() > question.limit as usize;
    rows.truncate(question.limit as usize);
    let next = match rows.last() {
        Some(row) if more => {
            let (at, event_id) = (row.try_get(EVENTS.len())?, row.try_get(EVENTS.len() + 1)?);
            Timestamp::from_microsecond(at).ok().map(|at| Place { at, event_id })
        }
        _ => None,
    };
    Ok((Table::read(EVENTS.to_vec(), &rows)?, next))
}

fn statement(question: &Question<'_>) -> (String, Binds) {
    let mut binds = Binds::new();
    let mut tests = vec![
        format!("\"timestamp\" >= {}", binds.instant(question.between.start)),
        format!("\"timestamp\" < {}", binds.instant(question.between.end)),
    ];
    let equals = [
        ("tenant_id", question.tenant.map(TenantId::as_str)),
        ("event_type", question.event_type),
        ("category", question.category),
        ("result", question.result),
    ];
    for (column, value) in equals {
        tests.extend(value.map(|value| format!("{column} = {}", binds.text(value))));
    }
    if let Some(place) = question.after {
        let (at, id) = (binds.instant(place.at), binds.text(place.event_id.to_string()));
        tests.push(format!("(\"timestamp\", event_id) < ({at}, {id}::uuid)"));
    }
    let sql = format!(
        "SELECT {}, (extract(epoch FROM \"timestamp\") * 1000000)::bigint, event_id FROM audit_events a
         WHERE {} ORDER BY a.\"timestamp\" DESC, a.event_id DESC LIMIT {}",
        list(&EVENTS),
        tests.join(" AND "),
        binds.number(i64::from(question.limit) + 1),
    );
    (sql, binds)
}

/// What came of resolving an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It is resolved now.
    Resolved,
    /// It was resolved before, and what was said then stands.
    Already,
    /// There is no such event.
    Missing,
}

/// Resolves an event and keeps `resolution`, which must not be blank.
///
/// # Errors
/// When the database is away, has no schema, or the time for a statement runs out.
pub async fn resolve(store: &Store, event_id: Uuid, resolution: &str) -> Result<Resolution, StoreError> {
    let client = store.client().await?;
    let work = async |client: &ClientWrapper| {
        let row = client.query_one("SELECT resolve_audit_event($1, $2)", &[&event_id, &resolution]).await?;
        if row.try_get(0)? {
            return Ok(Resolution::Resolved);
        }
        // Events are not taken back but by retention, so looking afterwards is as good as looking before.
        let known =
            client.query_opt("SELECT FROM audit_events WHERE event_id = $1 LIMIT 1", &[&event_id]).await?;
        Ok(if known.is_some() { Resolution::Already } else { Resolution::Missing })
    };
    store.bounded(client, work).await
}
