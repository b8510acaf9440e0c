//! Reading for operators: bounded in time, in one read-only snapshot, with values as Postgres prints them.
//!
//! Cells stay text: a `NUMERIC(14,8)` that goes through a float is no longer what was billed.

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row};

use super::instant::moment;
use super::pool::{Store, StoreError};

/// A half-open range of time: `start <= t < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Between {
    /// The first instant.
    pub start: Timestamp,
    /// The first instant after it.
    pub end: Timestamp,
}

/// What a column holds, which says how JSON and CSV spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// An instant.
    Time,
    /// JSON.
    Json,
}

/// A column of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name, in the table and in the answer.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
}

impl Column {
    /// SQL that prints the column as text: instants as RFC 3339 in UTC with microseconds, whatever the session's
    /// settings; JSON, numbers and the rest as Postgres prints them.
    pub(super) fn select(&self) -> String {
        // Quoted: `timestamp` is a column and a keyword.
        let name = format!("\"{}\"", self.name);
        match self.kind {
            Kind::Time => utc(&name),
            Kind::Text if self.name == "ip_address" => format!("host({name})"),
            // An array becomes one of JSON; JSON stays what it is.
            Kind::Json => format!("to_jsonb({name})::text"),
            Kind::Text | Kind::Number | Kind::Bool => format!("{name}::text"),
        }
    }
}

/// SQL that prints an instant as RFC 3339 in UTC with microseconds.
pub(super) fn utc(expression: &str) -> String {
    format!("to_char({expression} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
}

/// Rows with their columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The columns, in order.
    pub columns: Vec<Column>,
    /// The cells of each row, in the order of the columns; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    /// Takes the first `columns.len()` columns of each row, all text.
    pub(super) fn read(columns: Vec<Column>, rows: &[Row]) -> Result<Self, Error> {
        let cells = |row: &Row| (0..columns.len()).map(|at| row.try_get(at)).collect::<Result<Vec<_>, _>>();
        let rows = rows.iter().map(cells).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { columns, rows })
    }
}

/// The list of `columns`, for SELECT. A column keeps its name though it is text now, so ORDER BY must say which of
/// the two it means by naming the table.
pub(super) fn list(columns: &[Column]) -> String {
    columns.iter().map(Column::select).collect::<Vec<_>>().join(", ")
}

/// Parameters with their types: so a statement takes one round trip and leaves nothing prepared behind.
pub(super) struct Binds(Vec<(Box<dyn ToSql + Sync + Send>, Type)>);

impl Binds {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds text and gives its placeholder.
    pub(super) fn text(&mut self, value: impl Into<String>) -> String {
        self.add(value.into(), Type::TEXT)
    }

    /// Adds a whole number and gives its placeholder.
    pub(super) fn number(&mut self, value: i64) -> String {
        self.add(value, Type::INT8)
    }

    /// Adds an instant and gives an expression of type `timestamptz`.
    pub(super) fn instant(&mut self, value: Timestamp) -> String {
        format!("{}::timestamptz", self.text(value.to_string()))
    }

    /// Adds an instant as what it is, and gives its placeholder.
    pub(super) fn moment(&mut self, value: Timestamp) -> String {
        self.add(moment(value), Type::TIMESTAMPTZ)
    }

    fn add(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> String {
        self.0.push((Box::new(value), kind));
        format!("${}", self.0.len())
    }

    fn as_params(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.0.iter().map(|(value, kind)| (value.as_ref() as &(dyn ToSql + Sync), kind.clone())).collect()
    }
}

/// One snapshot of the database, read only.
pub(super) struct Snapshot<'a>(&'a ClientWrapper);

impl Snapshot<'_> {
    /// The rows of `sql`.
    pub(super) async fn rows(&self, sql: &str, binds: &Binds) -> Result<Vec<Row>, Error> {
        self.0.query_typed(sql, &binds.as_params()).await
    }
}

/// Lets `read` see one snapshot. What it runs is bounded as every statement is, and can't write, whatever it is.
pub(super) async fn snapshot<T>(
    store: &Store,
    read: impl AsyncFnOnce(&Snapshot<'_>) -> Result<T, Error>,
) -> Result<T, StoreError> {
    let client = store.client().await?;
    let work = async |client: &ClientWrapper| {
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let answer = read(&Snapshot(client)).await;
        client.batch_execute("COMMIT").await?;
        answer
    };
    store.bounded(client, work).await
}
