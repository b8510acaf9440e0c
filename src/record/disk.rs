//! The few file operations that the journal is made of.
//!
//! A seam, so that tests can make any one of them fail, fall short, or be the last before a crash.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::private_files::{create_private_dir, make_private, private_file};

/// A file system.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Makes a directory and its parents; nothing when it exists.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names of a directory's files.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens a file to read and write, making it when it does not exist.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file to read.
    fn read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Deletes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the directory's entries survive power loss.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Every position is the caller's own: a write that failed half-way is overwritten, not followed.
pub trait DiskFile: Debug + Send + Sync {
    /// Writes at a position; may write less than all.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// Reads at a position; zero is the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Cuts it to a length.
    fn truncate(&self, size: u64) -> io::Result<()>;
    /// Makes its content survive power loss (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
    /// Takes the exclusive lock (`flock`), which ends with the process; `false` when somebody else holds it.
    fn lock(&self) -> io::Result<bool>;
    /// Gives the lock back. Closing the file is not enough: a child that was forked and has not yet begun its program
    /// still holds a copy.
    fn unlock(&self);
    /// Whether the file still has a name: one that was deleted takes writes that nobody will ever read.
    fn linked(&self) -> io::Result<bool>;
}

/// Writes all of `bytes`, in as many calls as it takes.
pub(super) fn write_all(file: &dyn DiskFile, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                bytes = bytes.get(n..).unwrap_or_default();
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads from `offset` until `buffer` is full or the file ends; returns how much there was.
pub(super) fn read_full(file: &dyn DiskFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(offset + done as u64, rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// The machine's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        create_private_dir(dir)?;
        make_private(&File::open(dir)?, dir);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = private_file().read(true).write(true).create(true).truncate(false).open(path)?;
        make_private(&file, path);
        Ok(Arc::new(RealFile(file)))
    }

    fn read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::open(path)?)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn lock(&self) -> io::Result<bool> {
        // std's own lock is newer than the oldest compiler that we support.
        match rustix::fs::flock(&self.0, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn unlock(&self) {
        let _ = rustix::fs::flock(&self.0, rustix::fs::FlockOperation::Unlock);
    }

    fn linked(&self) -> io::Result<bool> {
        Ok(self.0.metadata()?.nlink() > 0)
    }
}
