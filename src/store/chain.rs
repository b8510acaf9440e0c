//! The chains of audit events: their heads, and the walk that proves them whole. docs/audit.md says what that proves.
//!
//! 1. What an entry's hash is made of is defined once, in SQL (`migrations/0008_audit_chain.sql`), for the writers and for
//!    the walk.
//! 2. The walk reads in pieces, so its memory is bounded, and in one snapshot, so that what is written meanwhile is no
//!    break. It holds the partitions: retention leaves those alone until it is over.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use deadpool_postgres::ClientWrapper;
use jiff::Timestamp;
use tokio_postgres::{Error, Row, Statement};

use super::instant::moment;
use super::pool::{Store, StoreError};

const WALK: &str = include_str!("chain/walk.sql");

/// One snapshot, and indexes whatever the planner knows of the table (at a cost that would make it compile the plan). The
/// lock first: a partition that is dropped between snapshot and lock would leave a gap.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; LOCK TABLE audit_events IN ACCESS SHARE MODE; \
     SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; SET LOCAL jit = off";

/// The chain of what SQL inserted, and that of how events were resolved: those that replicas share.
const SHARED: [&str; 2] = ["database", "resolutions"];

/// How long a walk may take. It reads every audit event that is kept.
const PATIENCE: Duration = Duration::from_secs(4 * 60 * 60);

/// Entries read at once.
const PIECE: usize = 2000;

/// The last entry of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which chain.
    pub chain: String,
    /// The entry's number; 0 where there is none.
    pub seq: i64,
    /// Its hash, in hex.
    pub hash: String,
}

/// What is to be walked.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// A chain, or a replica's id for all of its chains; `None` is all that there are.
    pub chain: Option<String>,
    /// From the first entry of this time or later on; `None` is from the oldest that is kept.
    pub since: Option<Timestamp>,
    /// Entries whose hashes were noted outside.
    pub anchors: Vec<Head>,
}

impl Question {
    fn asks_for(&self, chain: &str) -> bool {
        self.chain.as_deref().is_none_or(|name| {
            chain.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Each chain, by name.
    pub chains: Vec<Chain>,
    /// Events without a chain.
    pub unchained: i64,
    /// Of them, those that are no older ones: the number above what there was when chains began, or 1 where one is
    /// younger than the youngest of these.
    pub slipped_in: i64,
}

impl Walked {
    /// Whether no break was found.
    pub fn is_whole(&self) -> bool {
        self.slipped_in == 0 && self.chains.iter().all(|chain| chain.fault.is_none())
    }
}

/// What a walk found of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Entries that were read.
    pub entries: u64,
    /// The first of them, from which on the chain is proven.
    pub from: Option<(i64, Timestamp)>,
    /// The last good one.
    pub upto: Option<Head>,
    /// Anchors that it agrees with.
    pub anchors_met: u64,
    /// Anchors older than what was walked: they prove nothing.
    pub anchors_passed: u64,
    /// The first break.
    pub fault: Option<Break>,
}

/// Where a chain breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// At which number.
    pub seq: i64,
    /// The event there, if one is.
    pub event_id: Option<String>,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The row is not what its hash was made of.
    #[error("the entry was changed: it is not what its hash was made of")]
    Changed,
    /// Rows are gone, up to before this number.
    #[error("entries are missing, up to before number {0}")]
    Missing(i64),
    /// Rows are gone before the first, and it was not retention that took them.
    #[error("the entries before it are missing, and were not due to be removed")]
    Beginning,
    /// Its predecessor's hash is another.
    #[error("it does not follow the entry before it: one of the two was replaced")]
    Link,
    /// Another row has the same number.
    #[error("another entry has the same number: one was inserted")]
    Twice,
    /// Said to be removed by retention, and too young for that.
    #[error("it is said to have been removed by retention, and was not due")]
    TooYoung,
    /// The event is resolved otherwise than its resolution says.
    #[error("the event's resolution is not the one that was recorded")]
    Resolution,
    /// The last entries are gone.
    #[error("the entries from here to number {0} are missing at the end")]
    Truncated(i64),
    /// The last entry is not the one noted in `audit_chains`.
    #[error("the last entry is not the one that the head names")]
    Head,
    /// An anchor says otherwise.
    #[error("its hash is not the anchored one: the chain was made anew")]
    Anchor,
}

impl Store {
    /// The heads of this replica's chains and of those that all share, as far as they have an entry.
    ///
    /// # Errors
    /// When the database is away or has no schema.
    pub async fn audit_heads(&self) -> Result<Vec<Head>, StoreError> {
        const SQL: &str = "SELECT chain, seq, head FROM audit_chains \
             WHERE (chain = ANY ($1) OR chain = $2 OR chain LIKE $2 || '/_') AND seq > 0 ORDER BY chain";
        let client = self.client().await?;
        let own = self.replica_id();
        let rows =
            self.bounded(client, async |client| client.query(SQL, &[&SHARED.as_slice(), &own]).await).await?;
        rows.iter().map(|row| Ok(head(row)?)).collect()
    }

    /// Walks the chains that are asked for, each to its first break.
    ///
    /// # Errors
    /// When the database is away or has no schema.
    pub async fn verify_audit(&self, question: &Question) -> Result<Walked, StoreError> {
        self.patient(PATIENCE, async |client| {
            client.batch_execute(BEGIN).await?;
            let walk = client.prepare(WALK).await?;
            let mut walked = Walked::default();
            for (name, head) in chains(client, question).await? {
                // A replica has more chains than it may ever need.
                let unused = head.as_ref().is_some_and(|head| head.seq == 0);
                let chain = Walk::new(client, &walk, question, name).run(head).await?;
                if !unused || chain.upto.is_some() || chain.fault.is_some() {
                    walked.chains.push(chain);
                }
            }
            (walked.unchained, walked.slipped_in) = unchained(client).await?;
            client.batch_execute("COMMIT").await?;
            Ok(walked)
        })
        .await
    }
}

/// Every chain that there is, or ought to be: noted with a head, found in rows, or anchored.
async fn chains(
    client: &ClientWrapper,
    question: &Question,
) -> Result<BTreeMap<String, Option<Head>>, Error> {
    // From name to name along the index, however many rows each has.
    const FOUND: &str = "WITH RECURSIVE names AS ( \
         SELECT min(chain) AS name FROM audit_events UNION ALL \
         SELECT (SELECT min(chain) FROM audit_events WHERE chain > n.name) FROM names n WHERE n.name IS NOT NULL) \
         SELECT name FROM names WHERE name IS NOT NULL UNION SELECT chain FROM audit_removed \
         UNION SELECT 'resolutions' FROM audit_resolutions";
    let mut chains = BTreeMap::new();
    for row in client.query("SELECT chain, seq, head FROM audit_chains", &[]).await? {
        let head = head(&row)?;
        chains.insert(head.chain.clone(), Some(head));
    }
    for row in client.query(FOUND, &[]).await? {
        chains.entry(row.try_get(0)?).or_insert(None);
    }
    for anchor in &question.anchors {
        chains.entry(anchor.chain.clone()).or_insert(None);
    }
    chains.retain(|name, _| question.asks_for(name));
    Ok(chains)
}

async fn unchained(client: &ClientWrapper) -> Result<(i64, i64), Error> {
    const SQL: &str = "SELECT count(a.event_id), \
         greatest(count(a.event_id) - u.events, (max(a.\"timestamp\") > u.latest)::int, 0) \
         FROM (SELECT coalesce(max(events), 0) AS events, coalesce(max(latest), '-infinity') AS latest FROM audit_unchained) u \
         LEFT JOIN audit_events a ON a.chain IS NULL OR a.chain_seq IS NULL GROUP BY u.events, u.latest";
    client.batch_execute("SET LOCAL enable_seqscan = on").await?;
    let row = client.query_one(SQL, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

fn head(row: &Row) -> Result<Head, Error> {
    Ok(Head { chain: row.try_get(0)?, seq: row.try_get(1)?, hash: hex(row.try_get(2)?) })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An entry as it is read.
struct Entry {
    seq: i64,
    at: SystemTime,
    event_id: Option<String>,
    prev_hash: Option<Vec<u8>>,
    hash: Option<Vec<u8>>,
    /// Its hash is that of what it says.
    sound: bool,
    /// Its event is resolved as the resolution says.
    faithful: bool,
    /// Retention took it.
    removed: bool,
    /// It was old enough for that.
    due: bool,
}

impl Entry {
    fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            seq: row.try_get(0)?,
            at: row.try_get(1)?,
            event_id: row.try_get(2)?,
            prev_hash: row.try_get(3)?,
            hash: row.try_get(4)?,
            sound: row.try_get(5)?,
            faithful: row.try_get(6)?,
            removed: row.try_get(7)?,
            due: row.try_get(8)?,
        })
    }
}

/// A walk along one chain.
struct Walk<'a> {
    client: &'a ClientWrapper,
    statement: &'a Statement,
    since: Option<Timestamp>,
    /// The chain's anchors, by number.
    anchors: Vec<&'a Head>,
    chain: Chain,
    /// The last entry passed: its number and its hash.
    last: Option<(i64, Vec<u8>)>,
}

impl<'a> Walk<'a> {
    fn new(
        client: &'a ClientWrapper,
        statement: &'a Statement,
        question: &'a Question,
        name: String,
    ) -> Self {
        let anchors = question.anchors.iter().filter(|anchor| anchor.chain == name).collect();
        let chain = Chain { name, ..Chain::default() };
        Self { client, statement, since: question.since, anchors, chain, last: None }
    }

    /// Walks to the first break, or to the end, which must be `head`.
    async fn run(mut self, head: Option<Head>) -> Result<Chain, Error> {
        let mut after = i64::MIN;
        if let Some(since) = self.since {
            const FIRST: &str = "SELECT chain_seq - 1 FROM audit_chain_entries \
                 WHERE chain = $1 AND at >= $2 ORDER BY chain_seq LIMIT 1";
            let row = self.client.query_opt(FIRST, &[&self.chain.name, &moment(since)]).await?;
            let beyond_all = head.as_ref().map_or(i64::MAX, |head| head.seq);
            after = row.map_or(Ok(beyond_all), |row| row.try_get(0))?;
        }
        let piece = i64::try_from(PIECE).unwrap_or(i64::MAX);
        loop {
            let rows = self.client.query(self.statement, &[&self.chain.name, &after, &piece]).await?;
            let mut entries = rows.iter().map(Entry::read).collect::<Result<Vec<_>, _>>()?;
            let more = entries.len() == PIECE;
            // Entries of one number are looked at together.
            let last = entries.last().map(|entry| entry.seq);
            if more && entries.first().map(|entry| entry.seq) != last {
                entries.retain(|entry| Some(entry.seq) != last);
            }
            for entry in &entries {
                if let Some(fault) = self.pass(entry) {
                    let event_id = entry.event_id.clone();
                    let seq = match fault {
                        Fault::Missing(_) => self.last.as_ref().map_or(entry.seq, |(seq, _)| seq + 1),
                        _ => entry.seq,
                    };
                    self.chain.fault = Some(Break { seq, event_id, fault });
                    return Ok(self.chain);
                }
            }
            match entries.last() {
                Some(entry) if more => after = entry.seq,
                _ => break,
            }
        }
        self.chain.fault = self.at_the_end(head.as_ref(), after);
        Ok(self.chain)
    }

    /// Goes on to the next entry, unless it is the break.
    fn pass(&mut self, entry: &Entry) -> Option<Fault> {
        match &self.last {
            None if self.since.is_none() && !entry.removed && entry.seq != 1 => {
                return Some(Fault::Beginning);
            }
            None if entry.seq < 1 => return Some(Fault::Beginning),
            None if entry.seq == 1 && entry.prev_hash.as_deref() != Some(&[0; 32]) => {
                return Some(Fault::Link);
            }
            None => {}
            Some((seq, _)) if *seq == entry.seq => {
                return if entry.removed { None } else { Some(Fault::Twice) };
            }
            Some((seq, _)) if entry.seq != seq + 1 => return Some(Fault::Missing(entry.seq)),
            Some((_, hash)) if entry.prev_hash.as_ref() != Some(hash) => return Some(Fault::Link),
            Some(_) => {}
        }
        if !entry.sound {
            return Some(Fault::Changed);
        }
        if !entry.due {
            return Some(Fault::TooYoung);
        }
        if !entry.faithful {
            return Some(Fault::Resolution);
        }
        let hash = entry.hash.clone().unwrap_or_default();
        if self.last.is_none() {
            self.chain.from = Timestamp::try_from(entry.at).ok().map(|at| (entry.seq, at));
            let passed = |anchor: &&&Head| anchor.seq < entry.seq;
            self.chain.anchors_passed = self.anchors.iter().filter(passed).count() as u64;
        }
        let text = hex(&hash);
        for anchor in self.anchors.iter().filter(|anchor| anchor.seq == entry.seq) {
            if anchor.hash != text {
                return Some(Fault::Anchor);
            }
            self.chain.anchors_met += 1;
        }
        self.chain.entries += u64::from(!entry.removed);
        self.chain.upto = Some(Head { chain: self.chain.name.clone(), seq: entry.seq, hash: text });
        self.last = Some((entry.seq, hash));
        None
    }

    /// The last entry is the chain's head, and no anchor lies beyond it.
    fn at_the_end(&self, head: Option<&Head>, after: i64) -> Option<Break> {
        let (seq, hash) = match &self.chain.upto {
            Some(upto) => (upto.seq, upto.hash.clone()),
            // Nothing from `since` on: the head stands for what is before it.
            None if after > 0 => (after, head.map(|head| head.hash.clone()).unwrap_or_default()),
            None => (0, hex(&[0; 32])),
        };
        let furthest = self.anchors.iter().map(|anchor| anchor.seq).chain(head.map(|head| head.seq)).max();
        let fault = match (furthest, head) {
            (Some(furthest), _) if furthest > seq => {
                Break { seq: seq + 1, event_id: None, fault: Fault::Truncated(furthest) }
            }
            (_, Some(head)) if head.seq == seq && head.hash == hash => return None,
            _ => Break { seq, event_id: None, fault: Fault::Head },
        };
        Some(fault)
    }
}
