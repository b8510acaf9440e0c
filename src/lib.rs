//! Tollgate: a transparent metering gateway in front of a chat service.
//!
//! # The life of a request
//!
//! 1. The [`proxy`]'s listener accepts a connection and hands it to the worker with the fewest: a thread with a
//!    reactor and an upstream pool of its own, which serves it start to end.
//! 2. Its path and method decide whether it is metered. If not, it is streamed through as it came, and that is all.
//! 3. Its body is read within a bound, for what the [`meter`] looks for: a session, messages, a model.
//! 4. Its tenant is named by the configured sources; a session or a plan that must be looked up is the [`tenant`]
//!    directory's answer, cached, or waited for within a bound.
//! 5. [`quota`] takes what it is expected to need in every dimension at once, or refuses it: then the answer is 429
//!    and the service never hears of it.
//! 6. It goes to the service. The answer's frames pass to the client as they come; the meter looks at them in passing.
//!    A client may leave before the end, and a stream may use up its tenant's quota: its route says what then becomes
//!    of the rest.
//! 7. Its settlement replaces the reservation by what was used (reported, else counted by a thread of its own), prices
//!    it, and hands a usage event and audit events to [`record`].
//! 8. The end of the answer is let go once they are in the journal, on the local disk. From there they are shipped to
//!    Postgres by [`store`], in one transaction with the live counters, each event once.
//!
//! # The parts, from the ground up
//!
//! A module imports only from lower floors; a test reads the sources and holds them to it.
//!
//! | floor | module | |
//! | --- | --- | --- |
//! | 0 | [`model`] | pure values: tenant, window, quota, tokens, price, event; no clock, no I/O |
//! | 1 | [`meter`] | bytes in, token usage out |
//! | 1 | [`telemetry`] | what `/metrics` shows |
//! | 1 | `net` | how many connections there may be, how long each may be silent, how it is closed |
//! | 2 | [`quota`] | ledgers, reservations, plans |
//! | 2 | [`tenant`] | look-ups in the service's database, cached |
//! | 2 | [`record`] | recorder, journal, shipper |
//! | 2 | [`jobs`] | what alerts go by, and how they are delivered |
//! | 3 | [`store`] | the only SQL |
//! | 4 | [`proxy`] | the data path |
//! | 4 | [`admin`] | the operators' API |
//! | 5 | [`settings`] | the config: as typed, as checked |
//! | 6 | [`gateway`] | makes every part, joins them, stops them |
//! | 7 | [`cli`], [`demo`] | the commands, and everything at once on loopback |

pub mod admin;
pub mod cli;
pub mod demo;
pub mod gateway;
pub mod jobs;
pub mod meter;
pub mod model;
mod net;
pub mod proxy;
pub mod quota;
pub mod record;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod tenant;
