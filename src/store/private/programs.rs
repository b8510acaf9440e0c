//! Where the machine's own PostgreSQL programs are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory that has `postgres` and `initdb`, and their version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Programs {
    pub(super) major: u32,
    pub(super) directory: PathBuf,
}

/// Directories that hold one directory for each installed version: Debian and Ubuntu, Fedora and RHEL, Homebrew on
/// both kinds of Mac and on Linux, Postgres.app. `*` stands for any part of one name.
const BY_VERSION: [&str; 7] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// The oldest version that the migrations are written for.
pub(super) const OLDEST: u32 = 13;

/// All usable installations, newest first.
pub(super) fn installed() -> Vec<Programs> {
    let mut directories: Vec<PathBuf> = BY_VERSION.iter().flat_map(|pattern| expand(pattern)).collect();
    directories.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let mut found: Vec<_> = directories.iter().filter_map(|directory| probe(directory)).collect();
    // Stable: of one version, the packaged one before that of PATH.
    found.sort_by_key(|programs| std::cmp::Reverse(programs.major));
    found.retain(|programs| programs.major >= OLDEST);
    found
}

fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(after.trim_start_matches('/')))
        .collect()
}

fn probe(directory: &Path) -> Option<Programs> {
    let postgres = directory.join("postgres");
    if !postgres.is_file() || !directory.join("initdb").is_file() {
        return None;
    }
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let major = version(&String::from_utf8_lossy(&output.stdout))?;
    Some(Programs { major, directory: directory.to_owned() })
}

/// The major version in `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` or `… 18beta1`.
fn version(line: &str) -> Option<u32> {
    let digits = line.split_once("(PostgreSQL)")?.1.trim_start();
    digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_packagers_write_them() {
        assert_eq!(version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(version("postgres: command not found"), None);
    }

    #[test]
    fn a_pattern_finds_every_version() {
        let root = tempfile::tempdir().unwrap();
        for version in ["pg-14", "pg-16", "other"] {
            std::fs::create_dir_all(root.path().join(version)).unwrap();
        }
        let mut found = expand(&format!("{}/pg-*/bin", root.path().display()));
        found.sort();
        assert_eq!(found, [root.path().join("pg-14/bin"), root.path().join("pg-16/bin")]);
    }
}
