//! Logs: to stderr, text on a terminal, else JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// What is not meant when someone asks for more of everything: these print what goes over the wire, a statement's
/// parameters and all. Whoever names one of them gets it.
const QUIET: &str = "tokio_postgres=info,h2=info,hyper=info,rustls=info";

/// Sets the logs up, by `RUST_LOG` (default `info`). Once for a process; a second call changes nothing.
pub(super) fn init() {
    let typed = std::env::var("RUST_LOG").ok().filter(|typed| !typed.trim().is_empty());
    let wanted = typed.as_deref().unwrap_or("info");
    let (filter, refused) = match EnvFilter::try_new(wanted) {
        Ok(filter) if filter.max_level_hint().is_none_or(|most| most > LevelFilter::INFO) => {
            (EnvFilter::new(format!("{QUIET},{wanted}")), false)
        }
        Ok(filter) => (filter, false),
        Err(_) => (EnvFilter::new("info"), true),
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let done = if terminal {
        logs.with_ansi(colour).try_init()
    } else {
        logs.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
    if done.is_ok() && refused {
        tracing::warn!(RUST_LOG = wanted, "RUST_LOG is no filter: info is used");
    }
}
