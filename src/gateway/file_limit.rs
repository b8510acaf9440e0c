//! File descriptors: each client connection takes one, and another for its connection to the service.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::proxy::ServerConfig;

/// Descriptors that are not for clients: the admin listener's connections, Postgres, the journal, the log.
const KEPT: u64 = 1024;

/// Raises the soft limit, which is often 1024, to the hard one. Returns what holds now; `None` is no limit.
pub(super) fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
    getrlimit(Resource::Nofile).current
}

/// The config with no more connections than there are descriptors for: with none left, not even the probes would be
/// answered.
pub(super) fn within(server: ServerConfig, files: Option<u64>) -> ServerConfig {
    let Some(files) = files else { return server };
    let room = usize::try_from(files.saturating_sub(KEPT) / 2).unwrap_or(usize::MAX).max(1);
    if room >= server.max_connections {
        return server;
    }
    tracing::warn!(
        max_connections = server.max_connections,
        connections = room,
        files,
        "server.max_connections is more than the limit on open files allows (two for a connection, and {KEPT} for the \
         rest): raise the limit (ulimit -n, LimitNOFILE)"
    );
    ServerConfig { max_connections: room, ..server }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn there_are_no_more_connections_than_files() {
        let server = Settings::load(None, &std::collections::BTreeMap::new()).unwrap().server;
        let most = |files| within(server.clone(), files).max_connections;
        assert_eq!([most(None), most(Some(65_536)), most(Some(21_024))], [10_000; 3]);
        assert_eq!([most(Some(4096)), most(Some(1024)), most(Some(64))], [1536, 1, 1]);
    }
}
