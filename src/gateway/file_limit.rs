//! File descriptors: each client connection takes one, and another for its connection to the service.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::admin::MAX_CONNECTIONS;
use crate::proxy::ServerConfig;

/// Descriptors that are not for clients: the operators' connections, Postgres, the journal, the log. Half of them where
/// there are few.
const KEPT: u64 = 2048;

/// Raises the soft limit, which is often 1024, to the hard one. Returns what holds now; `None` is no limit.
pub(super) fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
    getrlimit(Resource::Nofile).current
}

/// How many connections there are descriptors for: with none left, not even the probes would be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    clients: usize,
    operators: usize,
}

pub(super) fn room(files: Option<u64>) -> Room {
    let files = files.unwrap_or(u64::MAX);
    let kept = KEPT.min(files / 2);
    let most = |files: u64| usize::try_from(files).unwrap_or(usize::MAX).max(1);
    Room { clients: most((files - kept) / 2), operators: most(kept / 4) }
}

impl Room {
    /// Connections of operators.
    pub(super) fn operators(self) -> usize {
        self.operators.min(MAX_CONNECTIONS)
    }

    /// The config with no more connections than there is room for.
    pub(super) fn within(self, server: ServerConfig) -> ServerConfig {
        if self.clients >= server.max_connections {
            return server;
        }
        tracing::warn!(
            max_connections = server.max_connections,
            connections = self.clients,
            "server.max_connections is more than the limit on open files allows, of which a connection takes two: raise \
             that limit (ulimit -n, LimitNOFILE)"
        );
        ServerConfig { max_connections: self.clients, ..server }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn there_are_no_more_connections_than_files() {
        let server = Settings::load(None, &std::collections::BTreeMap::new()).unwrap().server;
        let most = |files| {
            let room = room(files);
            (room.within(server.clone()).max_connections, room.operators())
        };
        assert_eq!([None, Some(65_536), Some(22_048)].map(most), [(10_000, 512); 3]);
        assert_eq!(
            [Some(4096), Some(1024), Some(120), Some(0)].map(most),
            [(1024, 512), (256, 128), (30, 15), (1, 1)]
        );
    }
}
