//! Recording: recorder → journal → shipper → sink.
//!
//! The promise: once a [`Receipt`] says [`Durability::Journaled`], the records survive the death of the process (and
//! of the machine, with `fsync_interval` zero; otherwise at most that interval is lost to a power cut), and reach the
//! sink at least once. Each event has an id made once, by which the sink makes it exactly once.
//!
//! Constraints:
//! 1. A recorder never blocks and never fails; what is lost is counted in `events_lost`.
//! 2. Every receipt resolves: `Held` when the records are in memory only, `Lost` when they are nowhere.
//! 3. Memory is bounded: a queue before the writer, a tail behind it, a few batches in flight. With the sink away
//!    nothing grows but the disk, and that is bounded by `max_bytes`.
//! 4. One process has the journal at a time, by a lock that dies with it.
//! 5. Nothing that lies on the disk is trusted: frames carry a checksum; what does not match is skipped and kept aside.
//! 6. A file is never changed behind what was acknowledged to somebody: segments are appended to, sealed and deleted whole.
//! 7. An exchange that was admitted has its event, even if the process dies first: see `intents`. Its intent is handed over
//!    before the upstream is called, and not waited for.
//!
//! The write path: [`Recorder::record`], [`Recorder::intend`] (or a reactor's [`Hub`]) → queue → writer thread: encode, one write per group → tail → receipts.
//!
//! The read path: [`Journal::ship`] → tail, or segments when it is behind → batches → [`EventSink::write`] →
//! acknowledged position → whole segments deleted.
//!
//! On the disk, in `dir`: `lock`, `position`, `NNNNNNNNNNNNNNNN.seg`, `damaged.jsonl`, `dead-letter.jsonl`.

mod alarm;
mod appender;
mod aside;
pub mod codec;
mod compact;
mod config;
pub mod disk;
mod hub;
mod inspect;
mod intents;
mod journal;
mod log;
mod outlet;
mod pacing;
mod parts;
mod position;
mod private_files;
mod recorder;
mod segment;
mod shipper;
mod sink;
mod syncer;
mod writer;

pub use config::{Config, OpenError};
pub use hub::Hub;
pub use inspect::{Content, Files, Inspected, Summary, inspect, summary};
pub use journal::{Journal, JournalState, Opened};
pub use private_files::{create_private_dir, make_private, private_file, write_private};
pub use recorder::{Durability, Receipt, Recorder, Records};
pub use sink::{EventSink, SinkError};
