//! Look-ups in the service's own database: [`TenantSource`].

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_postgres::types::Type;

use super::pool::{Store, StoreError};
use crate::tenant::{Fault, SourceError, TenantSource};

impl TenantSource for Store {
    fn look_up<'a>(
        &'a self,
        query: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, SourceError>> {
        async move {
            // Postgres has no NUL in text, so no row can have this key.
            if key.contains('\0') {
                return Ok(None);
            }
            let client = self.client().await.map_err(|error| told(&error))?;
            let sql = first_column_as_text(query);
            let answered = self.bounded(client, async |client| {
                let statement = client.prepare_typed_cached(&sql, &[Type::TEXT]).await?;
                client.query_opt(&statement, &[&key]).await
            });
            match answered.await {
                Ok(row) => Ok(row.and_then(|row| row.get(0))),
                // A key that is no UUID, no number, no date: no row has it.
                Err(StoreError::Query(error)) if class(&error) == Some("22") => Ok(None),
                Err(error) => Err(told(&error)),
            }
        }
        .boxed()
    }
}

fn told(error: &StoreError) -> SourceError {
    SourceError { fault: fault(error), message: error.to_string() }
}

/// What a failure says of the look-ups to come.
pub(super) fn fault(error: &StoreError) -> Fault {
    match error {
        StoreError::Busy(_) => Fault::Busy,
        StoreError::Unavailable(_) => Fault::Away,
        StoreError::Query(error) => {
            match (class(error), error.code().map(tokio_postgres::error::SqlState::code)) {
                // Syntax, unknown tables and columns, types, permissions; a statement or a schema that is not there.
                (Some("42" | "26" | "3F"), _) => Fault::Broken,
                // Too many connections, out of memory; the statement's limit of time.
                (Some("53"), _) | (_, Some("57014")) => Fault::Busy,
                _ => Fault::Away,
            }
        }
    }
}

/// The class of an error's SQLSTATE.
fn class(error: &tokio_postgres::Error) -> Option<&str> {
    error.code().and_then(|code| code.code().get(..2))
}

/// `query` as a table of which only the first column is named; casting it on the server reads any type, where the
/// driver would have to know each. The line break ends a comment that the query may end with.
pub(super) fn first_column_as_text(query: &str) -> String {
    let query = query.trim().trim_end_matches(';');
    format!("SELECT answer.first::text FROM (\n{query}\n) AS answer(first) LIMIT 1")
}
