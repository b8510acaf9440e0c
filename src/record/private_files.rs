//! Files and folders that nobody but us may read: what is recorded names tenants, sessions and addresses.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What others than the owner may do.
const OTHERS: u32 = 0o077;

/// Creates a folder for us alone (0700), and those above it that are missing as usual; says whether it is new. One that is
/// there stays as it is.
///
/// # Errors
/// Those of the file system.
pub fn create_private_dir(dir: &Path) -> io::Result<bool> {
    let create = || DirBuilder::new().mode(0o700).create(dir);
    let created = match (create(), dir.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(parent)?;
            create()
        }
        (created, _) => created,
    };
    match created {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

/// How to open a file: one that is created is for us alone (0600).
pub fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Writes a file for us alone (0600), in place of one that may be there.
///
/// # Errors
/// Those of the file system.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = private_file().write(true).create(true).truncate(true).open(path)?;
    make_private(&file, path);
    file.write_all(bytes)
}

/// Takes from others what an earlier release, or a wider umask, let them do with a file or folder of ours, and logs that.
/// One of another owner stays as it is: somebody meant it so.
pub fn make_private(file: &File, path: &Path) {
    let Ok(meta) = file.metadata() else { return };
    let mode = meta.permissions().mode() & 0o7777;
    if mode & OTHERS == 0 || meta.uid() != rustix::process::geteuid().as_raw() {
        return;
    }
    let path = path.display();
    match file.set_permissions(Permissions::from_mode(mode & !OTHERS)) {
        Ok(()) => tracing::info!(%path, "others could read this: its permissions are ours alone now"),
        Err(error) => {
            tracing::warn!(%path, %error, "others can read this, and its permissions can't be changed")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_ours_alone_and_what_was_open_is_closed() {
        let root = tempfile::tempdir().unwrap();
        let (dir, file) = (root.path().join("a/b"), root.path().join("a/b/c"));
        assert!(create_private_dir(&dir).unwrap());
        write_private(&file, b"1").unwrap();
        assert_eq!((mode(&dir), mode(&file)), (0o700, 0o600));
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        std::fs::set_permissions(&dir, Permissions::from_mode(0o750)).unwrap();
        write_private(&file, b"2").unwrap();
        assert!(!create_private_dir(&dir).unwrap());
        assert_eq!((mode(&dir), mode(&file)), (0o750, 0o600));
        make_private(&File::open(&dir).unwrap(), &dir);
        assert_eq!((mode(&dir), std::fs::read(&file).unwrap()), (0o700, b"2".to_vec()));
    }
}
