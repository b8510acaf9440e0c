//! Reading for operators: bounded in time, in one read-only snapshot, with values as Postgres prints them.
//!
//! Cells stay text: a `NUMERIC(14,8)` that goes through a float is no longer what was billed.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{IsolationLevel, Row};

use super::{Store, StoreError};

/// How long one statement of a report may take.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a whole report may take, a connection included. The client's own clock, for a server that hangs.
const REPORT_TIMEOUT: Duration = Duration::from_secs(15);

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
            Kind::Text | Kind::Number | Kind::Bool | Kind::Json => format!("{name}::text"),
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
    pub(super) fn read(columns: Vec<Column>, rows: &[Row]) -> Result<Self, StoreError> {
        let cells = |row: &Row| (0..columns.len()).map(|at| row.try_get(at)).collect::<Result<Vec<_>, _>>();
        let rows = rows.iter().map(cells).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { columns, rows })
    }
}

/// The list of `columns`, for SELECT.
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

    fn add(&mut self, value: impl ToSql + Sync + Send + 'static, kind: Type) -> String {
        self.0.push((Box::new(value), kind));
        format!("${}", self.0.len())
    }

    fn as_params(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.0.iter().map(|(value, kind)| (value.as_ref() as &(dyn ToSql + Sync), kind.clone())).collect()
    }
}

/// One snapshot of the database, read only.
pub(super) struct Snapshot<'a>(deadpool_postgres::Transaction<'a>);

impl Snapshot<'_> {
    /// The rows of `sql`.
    pub(super) async fn rows(&self, sql: &str, binds: &Binds) -> Result<Vec<Row>, StoreError> {
        Ok(self.0.query_typed(sql, &binds.as_params()).await?)
    }
}

/// A connection on which `read` sees one snapshot, with the time limits of this module.
pub(super) async fn snapshot<T, F>(store: &Store, read: F) -> Result<T, StoreError>
where
    F: AsyncFnOnce(&Snapshot<'_>) -> Result<T, StoreError>,
{
    bounded(async {
        let mut client = store.client().await?;
        let builder =
            client.build_transaction().read_only(true).isolation_level(IsolationLevel::RepeatableRead);
        let transaction = builder.start().await?;
        transaction.batch_execute(&limits()).await?;
        let snapshot = Snapshot(transaction);
        let answer = read(&snapshot).await?;
        snapshot.0.commit().await?;
        Ok(answer)
    })
    .await
}

/// SQL that bounds the statements of the transaction it runs in.
pub(super) fn limits() -> String {
    format!("SET LOCAL statement_timeout = {0}; SET LOCAL lock_timeout = {0}", STATEMENT_TIMEOUT.as_millis())
}

/// Gives up on `work` when the server doesn't answer at all.
pub(super) async fn bounded<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = |_| Err(StoreError::Unavailable(format!("no answer within {} s", REPORT_TIMEOUT.as_secs())));
    tokio::time::timeout(REPORT_TIMEOUT, work).await.unwrap_or_else(late)
}
