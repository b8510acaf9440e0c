//! Whom the server runs as. PostgreSQL refuses to run as root, so as root it runs as somebody else.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A user of this machine that is not root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// `None` where we are not root: then the server runs as we do. As root: `postgres`, else `nobody`.
    pub(super) fn other_than_root() -> io::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd")?;
        ["postgres", "_postgres", "nobody"]
            .iter()
            .find_map(|name| find(&passwd, name))
            .map(Some)
            .ok_or_else(|| io::Error::other("there is neither a user postgres nor a user nobody"))
    }

    /// Makes `path` this account's own.
    pub(super) fn own(self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
    }

    /// The first directory above `path` that this account may not pass through.
    pub(super) fn barred_by(self, path: &Path) -> io::Result<Option<PathBuf>> {
        let path = path.canonicalize()?;
        for directory in path.ancestors().skip(1) {
            let meta = fs::metadata(directory)?;
            let mode = meta.permissions().mode();
            let may = match () {
                () if meta.uid() == self.uid => mode & 0o100,
                () if meta.gid() == self.gid => mode & 0o010,
                () => mode & 0o001,
            };
            if may == 0 {
                return Ok(Some(directory.to_owned()));
            }
        }
        Ok(None)
    }
}

fn find(passwd: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then_some(())?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        (uid != 0).then_some(Account { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres2:x:7:7::/:\npostgres:x:105:110:,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(find(passwd, "postgres"), Some(Account { uid: 105, gid: 110 }));
        assert_eq!(find(passwd, "nobody"), None);
        assert_eq!(find(passwd, "root"), None);
    }

    #[test]
    fn a_directory_that_bars_the_way_is_named() {
        let root = tempfile::tempdir().unwrap();
        let closed = root.path().join("closed");
        let inner = closed.join("inner");
        fs::create_dir_all(&inner).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let stranger = Account { uid: 4_000_000, gid: 4_000_000 };
        assert_eq!(stranger.barred_by(&inner).unwrap(), Some(closed.canonicalize().unwrap()));
    }
}
