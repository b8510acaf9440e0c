//! The data path: from a client's connection to the upstream and back.
//!
//! Constraints:
//! 1. What is not metered reaches the other side as it came; a body is never collected, but for the bounded
//!    inspection of a metered request.
//! 2. Nothing here waits for Postgres, save a tenant look-up within the directory's bound.
//! 3. Every metered request ends in exactly one `settlement`, whatever happens to its connection.
//! 4. The proxy never sees the store: who calls is `tenant`'s answer, what is left is `quota`'s, and what happened
//!    goes to `record`.
//!
//! The way in: `listener` accepts, `connection` speaks HTTP, `server` checks, `route` decides, `exchange` runs a metered request
//! (`inspect` → `identify` → reserve → `upstream` → `tap` → `settlement`). `departure` knows whether a request has left for
//! the service, and `model_name` which model it is priced as; `draining` reads on what a client left behind.
//! `strangers` bounds callers whose sessions can't be looked up, and `refusals` what refusals leave in the tables.
//! `failure` and `reply` make every answer that is
//! the gateway's own.

mod accept_encoding;
mod audit;
mod body;
mod budget;
mod charging;
mod charset;
mod collect;
mod config;
mod connection;
mod core;
mod cut;
mod cutting;
mod departure;
mod drain;
mod draining;
mod exchange;
mod failure;
mod forwarding;
mod headers;
mod identify;
mod inspect;
mod listener;
mod model_name;
mod notice;
mod origins;
mod pace;
mod parameters;
mod passing;
mod pattern;
mod pause;
mod refusal;
mod refusals;
mod reply;
mod route;
mod server;
mod settlement;
mod spelling;
mod strangers;
mod tap;
mod token;
mod tunnel;
mod uninspected;
mod upgrade;
mod upstream;
mod watching;

pub use self::audit::config::{AuditEntity, AuditRule, AuditSource, AuditValue, AuditWhen, Known};
pub use self::budget::Budget;
pub use self::config::{
    BodyConfig, CutConfig, DrainConfig, Enforce, IdentifyConfig, JwtKey, ModelConfig, PathMatch, RouteConfig,
    ServerConfig, SourceConfig, UpstreamConfig,
};
pub use self::core::{Core, Policy, PolicyError, PolicyParts};
pub use self::cut::CutEvent;
pub use self::drain::Drains;
pub use self::listener::{Listener, Proxy};
pub use self::pattern::segment_names;
pub use self::refusal::RefusalText;
pub use self::refusals::Refusals;
pub use self::strangers::Strangers;
