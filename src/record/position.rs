//! How far the sink has acknowledged: a sequence number in a file of two slots.
//!
//! Written in turns, each with its checksum, so that a write cut short leaves the other slot: as good as a rename, for
//! one system call. A position that is lost costs a batch sent twice, which the sink recognises.

use std::io;
use std::sync::Arc;

use super::disk::{DiskFile, read_full, write_all};

/// Slots lie in different sectors, so that losing one leaves the other.
const SLOT_BYTES: u64 = 4096;

/// The acknowledged position of a journal.
#[derive(Debug)]
pub(super) struct Position {
    file: Arc<dyn DiskFile>,
    next_slot: u64,
}

impl Position {
    /// Reads the file (which may be new and empty): the position, and 0 when nothing was acknowledged yet.
    pub(super) fn load(file: Arc<dyn DiskFile>) -> io::Result<(Self, u64)> {
        let mut best = (0, 1);
        for slot in 0..2 {
            let mut bytes = [0; 12];
            read_full(&*file, slot * SLOT_BYTES, &mut bytes)?;
            if let Some(seq) = decode(&bytes).filter(|seq| *seq > best.0) {
                best = (seq, slot);
            }
        }
        Ok((Self { file, next_slot: 1 - best.1 }, best.0))
    }

    /// Notes that everything up to `seq` is acknowledged.
    pub(super) fn store(&mut self, seq: u64) -> io::Result<()> {
        write_all(&*self.file, self.next_slot * SLOT_BYTES, &encode(seq))?;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }
}

/// The position in a stored file, for whoever only looks.
pub(super) fn peek(file: &dyn DiskFile) -> io::Result<u64> {
    let mut best = 0;
    for slot in 0..2 {
        let mut bytes = [0; 12];
        read_full(file, slot * SLOT_BYTES, &mut bytes)?;
        best = decode(&bytes).map_or(best, |seq| seq.max(best));
    }
    Ok(best)
}

fn encode(seq: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&seq.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..8]);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; 12]) -> Option<u64> {
    let (seq, checksum) = bytes.split_first_chunk::<8>()?;
    (crc32c::crc32c(seq).to_le_bytes() == *checksum).then(|| u64::from_le_bytes(*seq))
}

#[cfg(test)]
mod tests {
    use super::super::disk::{Disk, RealDisk};
    use super::*;

    #[test]
    fn a_position_survives_and_a_damaged_slot_leaves_the_one_before() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("position");
        let load = || Position::load(RealDisk.open(&path).unwrap()).unwrap();
        let (mut position, seq) = load();
        assert_eq!(seq, 0);
        for seq in [5, 9, 12] {
            position.store(seq).unwrap();
        }
        assert_eq!(load().1, 12);
        let mut bytes = std::fs::read(&path).unwrap();
        let latest = usize::try_from(SLOT_BYTES).unwrap() * usize::from(position.next_slot == 0);
        bytes[latest] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (mut position, seq) = load();
        assert_eq!(seq, 9);
        position.store(20).unwrap();
        assert_eq!(load().1, 20);
        assert_eq!(peek(&*RealDisk.read(&path).unwrap()).unwrap(), 20);
    }
}
