//! Records into tables: [`EventSink`].
//!
//! 1. A batch is one transaction. Nothing of it is visible before COMMIT, everything after it.
//! 2. Exactly once: an event that is there already is left alone, and then adds nothing to the counters either; an
//!    amendment changes only a row that still says `reserved`. So a batch may be sent again, whole or cut differently,
//!    whether or not an earlier COMMIT's answer was lost. An amendment must not be sent before its event.
//! 3. Audit events are linked into a chain of their replica, whose row is locked from then on: see
//!    `migrations/0008_audit_chain.sql`.
//! 4. Counters are raised last, in key order: their rows are locked for the length of a COMMIT only, and two
//!    replicas lock them in the same order, so they never deadlock.
//! 5. No record poisons a batch by its size or its text: see `fitting`. One that Postgres refuses all the same is told
//!    apart from a database in trouble: see `verdict`.
//!
//! One round trip: BEGIN, the statements and COMMIT are sent together. What a later statement must know of an
//! earlier one (which events were really inserted) stays on the server, in a setting local to the transaction; asking
//! for it and sending it back would be a second round trip. A single statement with several WITH parts would not do:
//! they see one snapshot, so an amendment would miss its event when that is being committed on another connection.

mod charged;
mod fitting;
mod rows;
mod verdict;

use deadpool_postgres::ClientWrapper;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_postgres::Statement;

use self::rows::Batch;
use super::pool::{Store, StoreError};
use crate::model::event::{AuditEvent, Record};
use crate::record::{EventSink, SinkError};

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
const USAGE: &str = include_str!("events/usage.sql");
const AUDIT: &str = include_str!("events/audit.sql");
const CHAIN: &str = include_str!("events/chain.sql");
const AMEND: &str = include_str!("events/amend.sql");
const CHARGE: &str = include_str!("events/charge.sql");

impl EventSink for Store {
    fn write<'a>(&'a self, records: &'a [Record]) -> BoxFuture<'a, Result<(), SinkError>> {
        async move {
            let batch = Batch::of(records);
            let client = self.client().await.map_err(|error| SinkError::Transient(error.to_string()))?;
            self.bounded(client, async |client| send(client, &batch, self.replica_id()).await).await.map_err(
                |error| match error {
                    StoreError::Unavailable(why) | StoreError::Busy(why) => SinkError::Transient(why),
                    StoreError::Query(error) => verdict::verdict(&error),
                },
            )
        }
        .boxed()
    }
}

/// Sends the whole transaction at once and then reads the answers, in order. When a statement fails, those after it
/// fail for that reason and COMMIT rolls back, so the first error is the one to tell.
async fn send(
    client: &ClientWrapper,
    batch: &Batch<'_>,
    replica: Option<&str>,
) -> Result<(), tokio_postgres::Error> {
    let [usage, amend, audit, charge] = statements(client).await?;
    // Futures of the driver send when they are first polled, and join polls in order.
    let begin = client.batch_execute(BEGIN);
    let usage = unless(batch.usage.is_empty(), async { batch.usage.insert(client, &usage, replica).await });
    let amend = unless(batch.amend.is_empty(), async { batch.amend.apply(client, &amend).await });
    let audit = unless(batch.audit.is_empty(), async { batch.audit.chain(client, &audit, replica).await });
    let charge =
        unless(batch.charges.is_empty(), async { batch.charges.raise(client, &charge, replica).await });
    let commit = client.batch_execute("COMMIT");
    let (begin, usage, amend, audit, charge, commit) =
        futures_util::join!(begin, usage, amend, audit, charge, commit);
    begin.and(usage).and(amend).and(audit).and(charge).and(commit)
}

/// Writes an audit event in the transaction that is open on `client`, for what must not be there without it.
pub(super) async fn insert_audit(
    client: &ClientWrapper,
    event: AuditEvent,
) -> Result<(), tokio_postgres::Error> {
    let record = Record::Audit(Box::new(event));
    let batch = Batch::of(std::slice::from_ref(&record));
    batch.audit.insert(client, &client.prepare_cached(AUDIT).await?).await.map(drop)
}

async fn unless(
    nothing: bool,
    work: impl Future<Output = Result<u64, tokio_postgres::Error>>,
) -> Result<(), tokio_postgres::Error> {
    if nothing { Ok(()) } else { work.await.map(drop) }
}

/// Prepared once on each connection.
async fn statements(client: &ClientWrapper) -> Result<[Statement; 4], tokio_postgres::Error> {
    let (usage, amend, audit, charge) = futures_util::try_join!(
        client.prepare_cached(USAGE),
        client.prepare_cached(AMEND),
        client.prepare_cached(CHAIN),
        client.prepare_cached(CHARGE),
    )?;
    Ok([usage, amend, audit, charge])
}
