//! A file system that fails on demand: the journal's seam for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use tokio::sync::watch;
use tollgate::record::disk::{Disk, DiskFile, RealDisk};

/// What a file operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    CreateDir,
    List,
    Open,
    Read,
    Remove,
    SyncDir,
    Write,
    ReadAt,
    Size,
    Truncate,
    Sync,
    Lock,
}

type Verdict = Box<dyn FnMut(Op, &Path) -> Option<io::Error> + Send>;

#[derive(Default)]
struct Rules {
    operations: u64,
    dead_at: Option<u64>,
    dead: bool,
    verdict: Option<Verdict>,
    /// Bytes that may still be written.
    space: Option<u64>,
    hanging: bool,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Rules>,
    changed: Condvar,
    written: watch::Sender<Written>,
}

/// What was written to segments so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    /// Headers: segments begun.
    pub(super) headers: u64,
    /// Groups of records.
    pub(super) groups: u64,
}

/// The real one, unless told otherwise.
#[derive(Clone, Default)]
pub(super) struct FaultyDisk {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultyDisk")
    }
}

impl FaultyDisk {
    /// The process dies at the `nth` operation: it is done by half if it writes, and none after it at all.
    pub(super) fn dies_at(nth: u64) -> Self {
        let disk = Self::default();
        disk.change(|rules| rules.dead_at = Some(nth));
        disk
    }

    /// The process dies now.
    pub(super) fn die(&self) {
        self.change(|rules| rules.dead = true);
    }

    pub(super) fn died(&self) -> bool {
        self.shared.rules.lock().unwrap().dead
    }

    /// Each operation is first put to `verdict`.
    pub(super) fn fail(&self, verdict: impl FnMut(Op, &Path) -> Option<io::Error> + Send + 'static) {
        self.change(|rules| rules.verdict = Some(Box::new(verdict)));
    }

    pub(super) fn heal(&self) {
        self.change(|rules| {
            rules.verdict = None;
            rules.space = None;
            rules.hanging = false;
        });
    }

    /// Only so many bytes can be written from now on; the write that meets the bound is cut short.
    pub(super) fn leave_space(&self, bytes: u64) {
        self.change(|rules| rules.space = Some(bytes));
    }

    /// Writes do not return until `heal`.
    pub(super) fn hang(&self) {
        self.change(|rules| rules.hanging = true);
    }

    pub(super) fn written(&self) -> Written {
        *self.shared.written.borrow()
    }

    /// Waits for segments to have been written so far.
    pub(super) async fn until(&self, so_far: impl Fn(&Written) -> bool) {
        self.shared.written.subscribe().wait_for(|written| so_far(written)).await.unwrap();
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.rules.lock().unwrap());
        self.shared.changed.notify_all();
    }

    /// How many of the bytes (of a write) may pass.
    fn pass(&self, op: Op, path: &Path, bytes: usize) -> io::Result<usize> {
        let mut rules = self.shared.rules.lock().unwrap();
        while rules.hanging && op == Op::Write {
            rules = self.shared.changed.wait(rules).unwrap();
        }
        rules.operations += 1;
        if rules.dead {
            return Err(io::Error::other("the process is dead"));
        }
        if rules.dead_at.is_some_and(|nth| rules.operations >= nth) {
            rules.dead = true;
            if op == Op::Write && bytes > 1 {
                return Ok(bytes / 2);
            }
            return Err(io::Error::other("the process dies here"));
        }
        if let Some(error) = rules.verdict.as_mut().and_then(|verdict| verdict(op, path)) {
            return Err(error);
        }
        match &mut rules.space {
            Some(space) if op == Op::Write => {
                let fits = bytes.min(usize::try_from(*space).unwrap());
                *space -= fits as u64;
                if fits == 0 && bytes > 0 { Err(errno(rustix::io::Errno::NOSPC)) } else { Ok(fits) }
            }
            _ => Ok(bytes),
        }
    }
}

pub(super) fn errno(errno: rustix::io::Errno) -> io::Error {
    errno.into()
}

impl Disk for FaultyDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.pass(Op::CreateDir, dir, 0)?;
        RealDisk.create_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.pass(Op::List, dir, 0)?;
        RealDisk.list(dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.pass(Op::Open, path, 0)?;
        let file = RealDisk.open(path)?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), path: path.to_owned(), file }))
    }

    fn read(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.pass(Op::Read, path, 0)?;
        let file = RealDisk.read(path)?;
        Ok(Arc::new(FaultyFile { disk: self.clone(), path: path.to_owned(), file }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass(Op::Remove, path, 0)?;
        RealDisk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.pass(Op::SyncDir, dir, 0)?;
        RealDisk.sync_dir(dir)
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl DiskFile for FaultyFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let fits = self.disk.pass(Op::Write, &self.path, bytes.len())?;
        let done = self.file.write_at(offset, &bytes[..fits])?;
        if self.path.extension().is_some_and(|extension| extension == "seg") {
            self.disk.shared.written.send_modify(|written| match offset {
                0 => written.headers += 1,
                _ => written.groups += 1,
            });
        }
        Ok(done)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.disk.pass(Op::ReadAt, &self.path, 0)?;
        self.file.read_at(offset, buffer)
    }

    fn size(&self) -> io::Result<u64> {
        self.disk.pass(Op::Size, &self.path, 0)?;
        self.file.size()
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.disk.pass(Op::Truncate, &self.path, 0)?;
        self.file.truncate(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.pass(Op::Sync, &self.path, 0)?;
        self.file.sync()
    }

    fn lock(&self) -> io::Result<bool> {
        self.disk.pass(Op::Lock, &self.path, 0)?;
        self.file.lock()
    }

    fn unlock(&self) {
        self.file.unlock();
    }

    fn linked(&self) -> io::Result<bool> {
        self.file.linked()
    }
}
