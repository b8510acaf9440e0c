//! Logs: to stderr, text on a terminal, else JSON.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Below what `RUST_LOG` says, whatever it says for all: these print what goes over the wire, parameters and all.
const QUIET: &str = "tokio_postgres=info,h2=info,hyper=info,rustls=info";

/// Sets the logs up, by `RUST_LOG` (default `info`). Once for a process; a second call changes nothing.
pub(super) fn init() {
    let typed = std::env::var("RUST_LOG").ok().filter(|typed| !typed.trim().is_empty());
    let wanted = typed.as_deref().unwrap_or("info");
    // What names one of the quiet targets itself comes later in the list, and so holds.
    let filter = EnvFilter::try_new(format!("{QUIET},{wanted}"));
    let refused = filter.is_err();
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(format!("{QUIET},info")));
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
