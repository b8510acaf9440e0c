//! Records into tables: [`EventSink`].
//!
//! 1. A batch is one transaction. Nothing of it is visible before COMMIT, everything after it.
//! 2. Exactly once: an event that is there already is left alone, and then adds nothing to the counters either; an
//!    amendment changes only a row that still says `reserved`. So a batch may be sent again, whole or cut differently,
//!    whether or not an earlier COMMIT's answer was lost. An amendment must not be sent before its event.
//! 3. Counters are raised last, in key order: their rows are locked for the length of a COMMIT only, and two
//!    replicas lock them in the same order, so they never deadlock.
//! 4. No record poisons a batch by its size or its text: see [`rows`]. One that Postgres refuses all the same is told
//!    apart from a database in trouble: see [`verdict`].
//!
//! One round trip: BEGIN, the statements and COMMIT are sent together. What a later statement must know of an
//! earlier one (which events were really inserted) stays on the server, in a setting local to the transaction; asking
//! for it and sending it back would be a second round trip. A single statement with several WITH parts would not do:
//! they see one snapshot, so an amendment would miss its event when that is being committed on another connection.

mod rows;
mod verdict;

use deadpool_postgres::ClientWrapper;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_postgres::Statement;

use self::rows::Batch;
use super::pool::{Store, StoreError};
use crate::model::event::Record;
use crate::record::{EventSink, SinkError};

/// Events. Which of them are new is kept for `CHARGE`.
const USAGE: &str = "\
WITH landed AS (
    INSERT INTO tenant_usage_realtime (
        event_id, tenant_id, event_type, event_timestamp, api_method, api_endpoint, api_status_code,
        api_response_time_ms, upstream_first_byte_ms, chat_session_id, chat_messages, embeddings,
        embedding_tokens, search_query_tokens, search_result_count, tokens_consumed,
        input_tokens, output_tokens, cached_input_tokens, cache_write_input_tokens, reasoning_tokens,
        model, token_source, outcome, streamed, cost_usd, request_id, metadata, replica_id)
    SELECT id, tenant, kind, at, method, endpoint, status,
        response_ms, first_byte_ms, session, messages, embeddings,
        CASE kind WHEN 'embedding' THEN tokens END, CASE kind WHEN 'search' THEN tokens END, found, tokens,
        input, output, cached, written, reasoning,
        model, source, outcome, streamed, round(nanousd * 0.000000001, 8), request, metadata::jsonb, $26
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::int[],
        $8::int[], $9::int[], $10::text[], $11::int[], $12::int[], $13::int[], $14::bigint[],
        $15::bigint[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[],
        $20::text[], $21::text[], $22::text[], $23::bool[], $24::bigint[], $25::text[], $27::text[])
        AS e(id, tenant, kind, at, method, endpoint, status, response_ms, first_byte_ms, session, messages, embeddings,
            found, tokens, input, output, cached, written, reasoning, model, source, outcome, streamed, nanousd,
            request, metadata)
    ON CONFLICT (event_id, event_timestamp) DO NOTHING
    RETURNING event_id
)
SELECT set_config('tollgate.landed', coalesce(string_agg(event_id::text, ','), ''), true) FROM landed";

const AUDIT: &str = "\
INSERT INTO audit_events (
    event_id, tenant_id, event_type, category, entity_type, entity_id, action, actor_type, actor_id,
    old_values, new_values, changes_summary, result, error_message, ip_address, user_agent, request_id, \"timestamp\")
SELECT id, tenant, kind, category, entity, entity_id, action, actor, actor_id,
    old::jsonb, new::jsonb, summary, result, error, ip, agent, request, at
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::inet[], $16::text[],
    $17::text[], $18::timestamptz[])
    AS e(id, tenant, kind, category, entity, entity_id, action, actor, actor_id, old, new, summary, result, error,
        ip, agent, request, at)
ON CONFLICT (event_id, \"timestamp\") DO NOTHING";

/// Amendments, of rows that still say `reserved`. Which of them applied is kept for `CHARGE`. The bounds of time let
/// the planner leave out the other partitions.
const AMEND: &str = "\
WITH amended AS (
    UPDATE tenant_usage_realtime AS t
    SET tokens_consumed = a.tokens, input_tokens = a.input, output_tokens = a.output,
        cached_input_tokens = a.cached, cache_write_input_tokens = a.written, reasoning_tokens = a.reasoning,
        embedding_tokens = CASE t.event_type WHEN 'embedding' THEN a.tokens END,
        search_query_tokens = CASE t.event_type WHEN 'search' THEN a.tokens END,
        token_source = a.source, cost_usd = round(a.nanousd * 0.000000001, 8), updated_at = now()
    FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
        $8::bigint[], $9::text[], $10::bigint[])
        AS a(id, at, tokens, input, output, cached, written, reasoning, source, nanousd)
    WHERE t.event_id = a.id AND t.event_timestamp = a.at
      AND t.event_timestamp >= $11 AND t.event_timestamp <= $12
      AND t.token_source = 'reserved'
    RETURNING t.event_id
)
SELECT set_config('tollgate.amended', coalesce(string_agg(event_id::text, ','), ''), true) FROM amended";

/// The charges of what really landed. Sums are numeric and saturate: an absurd count must not stop the counters.
const CHARGE: &str = "\
WITH done AS (
    SELECT false AS amends, unnest(string_to_array(current_setting('tollgate.landed', true), ',')::uuid[]) AS id
    UNION ALL
    SELECT true, unnest(string_to_array(current_setting('tollgate.amended', true), ',')::uuid[])
)
INSERT INTO quota_usage AS q (tenant_id, dimension, window_start, window_end, settled, limit_value)
SELECT c.tenant, c.dimension, c.starts, max(c.ends),
    least(greatest(sum(c.amount), -9223372036854775807), 9223372036854775807)::bigint,
    (array_agg(c.most ORDER BY c.place DESC))[1]
FROM unnest($1::uuid[], $2::bool[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::bigint[],
    $8::bigint[]) WITH ORDINALITY AS c(id, amends, tenant, dimension, starts, ends, amount, most, place)
JOIN done USING (id, amends)
GROUP BY c.tenant, c.dimension, c.starts
ORDER BY c.tenant, c.dimension, c.starts
ON CONFLICT (tenant_id, dimension, window_start) DO UPDATE SET
    settled = least(greatest(q.settled::numeric + excluded.settled, -9223372036854775807), 9223372036854775807)::bigint,
    limit_value = excluded.limit_value, updated_at = now()";

impl EventSink for Store {
    fn write<'a>(&'a self, records: &'a [Record]) -> BoxFuture<'a, Result<(), SinkError>> {
        async move {
            let batch = Batch::of(records);
            let client = self.client().await.map_err(|error| SinkError::Transient(error.to_string()))?;
            self.bounded(client, async |client| send(client, &batch, self.replica_id()).await).await.map_err(
                |error| match error {
                    StoreError::Unavailable(why) => SinkError::Transient(why),
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
    let (usage, audit, amend, charge) = statements(client).await?;
    // Futures of the driver send when they are first polled, and join polls in order.
    let begin = client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED");
    let usage = unless(batch.usage.is_empty(), async { batch.usage.insert(client, &usage, replica).await });
    let audit = unless(batch.audit.is_empty(), async { batch.audit.insert(client, &audit).await });
    let amend = unless(batch.amend.is_empty(), async { batch.amend.apply(client, &amend).await });
    let charge = unless(batch.charges.is_empty(), async { batch.charges.raise(client, &charge).await });
    let commit = client.batch_execute("COMMIT");
    let (begin, usage, audit, amend, charge, commit) =
        futures_util::join!(begin, usage, audit, amend, charge, commit);
    begin.and(usage).and(audit).and(amend).and(charge).and(commit)
}

async fn unless(
    nothing: bool,
    work: impl Future<Output = Result<u64, tokio_postgres::Error>>,
) -> Result<(), tokio_postgres::Error> {
    if nothing { Ok(()) } else { work.await.map(drop) }
}

/// Prepared once on each connection.
async fn statements(
    client: &ClientWrapper,
) -> Result<(Statement, Statement, Statement, Statement), tokio_postgres::Error> {
    futures_util::try_join!(
        client.prepare_cached(USAGE),
        client.prepare_cached(AUDIT),
        client.prepare_cached(AMEND),
        client.prepare_cached(CHARGE),
    )
}
