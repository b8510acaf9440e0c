//! The segment being written: when another begins, what it begins with, and how much all may take.
//!
//! Each segment is marked with what is in flight, which is known here: see `intents`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::codec;
use super::disk::{DiskFile, write_all};
use super::intents::Intents;
use super::log::Segment;
use super::parts::{Parts, reap};
use super::segment;

/// The part of a segment that intents carried into it may take.
const INTENTS_PART: u64 = 4;

/// The journal can't take a group.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it has reached its {0} bytes and the sink takes nothing")]
    Full(u64),
    #[error("{0}")]
    Failed(#[from] io::Error),
}

#[derive(Debug)]
struct Active {
    file: Arc<dyn DiskFile>,
    number: u64,
    offset: u64,
    first_seq: u64,
    /// Intents in it.
    intents: u64,
    marked: bool,
}

/// What is written to, and what is in flight.
#[derive(Debug)]
pub(super) struct Appender {
    parts: Arc<Parts>,
    active: Option<Active>,
    next_number: u64,
    intents: Intents,
    /// What was taken over earlier waits in memory, so no mark would be true.
    pub(super) behind: bool,
    /// The last event that could not be written, of an exchange whose intent is in a segment: until the sink has it, the
    /// intent is all that a crash would leave of it.
    held_until: u64,
}

/// What an append says of exchanges, and how many bytes the intents among it have.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    opening: Vec<(Uuid, Box<[u8]>)>,
    opening_bytes: usize,
    closing: Vec<Uuid>,
}

impl Exchanges {
    /// Nothing of any.
    pub(super) fn is_empty(&self) -> bool {
        self.opening.is_empty() && self.closing.is_empty()
    }

    /// There is an event.
    pub(super) fn close(&mut self, event_id: Uuid) {
        self.closing.push(event_id);
    }
}

impl Appender {
    pub(super) fn new(parts: Arc<Parts>, next_number: u64) -> Self {
        let most_bytes = usize::try_from(parts.config.segment_bytes / INTENTS_PART).unwrap_or(usize::MAX);
        Self {
            parts,
            active: None,
            next_number,
            intents: Intents::new(most_bytes),
            behind: false,
            held_until: 0,
        }
    }

    /// Exchanges in flight.
    pub(super) fn in_flight(&self) -> u64 {
        self.intents.len() as u64
    }

    /// The number of the segment being written.
    pub(super) fn number(&self) -> Option<u64> {
        self.active.as_ref().map(|active| active.number)
    }

    /// There is an intent, with this payload; `false` when there is no room for it.
    pub(super) fn open(&self, exchanges: &mut Exchanges, event_id: Uuid, payload: &[u8]) -> bool {
        let room = self.intents.have_room(exchanges.opening_bytes + payload.len());
        if room {
            exchanges.opening_bytes += payload.len();
            exchanges.opening.push((event_id, payload.into()));
        }
        room
    }

    /// The events up to `seq` are of exchanges whose intents a former run left.
    pub(super) fn hold_until(&mut self, seq: u64) {
        self.held_until = seq;
    }

    /// Takes up what was appended, or could not be: records up to `last_seq`.
    pub(super) fn follow(&mut self, exchanges: &mut Exchanges, written: bool, last_seq: u64) {
        if !written && exchanges.closing.iter().any(|event_id| self.intents.in_segment(*event_id)) {
            self.held_until = last_seq;
        }
        let active = self.active.as_mut().filter(|_| written);
        let segment = active.as_ref().map_or(0, |active| active.number);
        if let Some(active) = active {
            active.intents += exchanges.opening.len() as u64;
        }
        for (event_id, payload) in exchanges.opening.drain(..) {
            self.intents.open(event_id, payload, segment);
        }
        exchanges.opening_bytes = 0;
        for event_id in exchanges.closing.drain(..) {
            self.intents.close(event_id);
        }
    }

    /// Appends encoded frames to the active segment, starting another when it is full. `seqs` are the first and the last
    /// number of their records; `next_seq` is the first, or where there is none that of the next record.
    pub(super) fn append(
        &mut self,
        bytes: &[u8],
        seqs: Option<(u64, u64)>,
        next_seq: u64,
    ) -> Result<(), Refusal> {
        let needed = bytes.len() as u64;
        let carried = match self.is_full(needed) {
            true => self.intents.frame_bytes() + 2 * segment::HEADER_BYTES as u64,
            false => 0,
        };
        if self.parts.log.with(|state| state.bytes()) + needed + carried > self.parts.config.max_bytes {
            self.make_room(needed + carried, next_seq)?;
        }
        if self.is_full(needed) {
            self.rotate()?;
        }
        if !self.behind && self.active.as_ref().is_some_and(|active| !active.marked) {
            self.mark(next_seq)?;
        }
        self.write(bytes, seqs)
    }

    /// Whether there is no segment that has room for so many bytes more. One that is empty takes any number.
    fn is_full(&self, needed: u64) -> bool {
        self.active.as_ref().is_none_or(|active| {
            active.offset > segment::HEADER_BYTES as u64
                && active.offset + needed > self.parts.config.segment_bytes
        })
    }

    /// Writes frames at the end of the active segment.
    fn write(&mut self, bytes: &[u8], seqs: Option<(u64, u64)>) -> Result<(), Refusal> {
        let each_commit = self.parts.config.fsync_interval.is_zero();
        let Some(active) = &mut self.active else { return Err(io::Error::other("no segment").into()) };
        let written = write_all(&*active.file, active.offset, bytes)
            .and_then(|()| if each_commit { active.file.sync() } else { Ok(()) });
        if let Err(e) = written {
            // Cut off what may be half a frame. Where that fails, too, readers will find it torn.
            let _ = active.file.truncate(active.offset);
            let empty = (active.offset == segment::HEADER_BYTES as u64).then_some(active.number);
            self.abandon();
            if let Some(number) = empty {
                self.discard(number);
            }
            return Err(e.into());
        }
        active.offset += bytes.len() as u64;
        if let Some((first, _)) = seqs.filter(|_| active.first_seq == 0) {
            active.first_seq = first;
        }
        let (number, offset, trouble) = (active.number, active.offset, self.behind);
        self.parts.log.with(|state| {
            if let Some(segment) = state.segments.back_mut().filter(|segment| segment.number == number) {
                segment.bytes = offset;
                segment.last_seq = seqs.map_or(segment.last_seq, |(_, last)| last);
            }
            if !trouble {
                state.fault = None;
            }
        });
        if !each_commit {
            self.parts.syncer.written();
        }
        Ok(())
    }

    /// Carries what is in flight into the active segment, unless it is there, and marks it. The segments before are then
    /// not needed for that any more: at once when nothing is in flight, else when it is synced.
    pub(super) fn mark(&mut self, next_seq: u64) -> Result<(), Refusal> {
        let Some(active) = &self.active else { return Ok(()) };
        let (number, mut intents) = (active.number, active.intents);
        let mut frames = Vec::new();
        for payload in self.intents.outside(number) {
            // It was framed once before, so this can't fail.
            intents += u64::from(codec::encode_intent_again(payload, next_seq, &mut frames).is_ok());
        }
        if active.marked && frames.is_empty() {
            return Ok(());
        }
        let marked = codec::encode_mark(intents, next_seq, &mut frames);
        marked.map_err(|why| io::Error::other(why.to_string()))?;
        self.write(&frames, None)?;
        self.intents.carried_to(number);
        if let Some(active) = &mut self.active {
            (active.intents, active.marked) = (intents, true);
        }
        let at_once = self.intents.len() == 0 || self.parts.config.fsync_interval.is_zero();
        self.parts.log.with(|state| {
            state.marked = number;
            if at_once {
                state.keep_from(number);
            }
        });
        reap(&self.parts);
        Ok(())
    }

    /// The journal is at its bound: lets go the active segment, if the sink has all of it.
    fn make_room(&mut self, needed: u64, next_seq: u64) -> Result<(), Refusal> {
        let log = &self.parts.log;
        if !self.behind
            && log.with(|state| {
                state.segments.back().is_some_and(|s| s.last_seq > 0 && s.last_seq <= state.acked)
            })
        {
            self.rotate()?;
            self.mark(next_seq)?;
        }
        reap(&self.parts);
        let max_bytes = self.parts.config.max_bytes;
        if self.parts.log.with(|state| state.bytes()) + needed > max_bytes {
            return Err(Refusal::Full(max_bytes));
        }
        Ok(())
    }

    /// Lets go the sealed segments as far as that can be done without a mark in another: a disk that they fill has no
    /// room for one. The sink has all of their records, and no exchange's only trace is an intent in them. While nothing
    /// can be written no new intent gets there, so that this comes to be so, however many calls there are.
    pub(super) fn let_go(&mut self) {
        let from = self.number().unwrap_or(self.next_number);
        if self.intents.in_segments_before(from) {
            return;
        }
        let held_until = self.held_until;
        self.parts.log.with(|state| {
            let stays =
                |segment: &Segment| segment.sealed && (segment.keep || segment.last_seq > state.acked);
            if held_until <= state.acked && !state.segments.iter().any(stays) {
                state.keep_from(from);
            }
        });
        reap(&self.parts);
        self.parts.syncer.close_deleted();
    }

    /// Seals the active segment.
    pub(super) fn abandon(&mut self) {
        self.active = None;
        self.parts.syncer.turn_to(None);
        self.parts.log.with(|state| state.segments.iter_mut().for_each(|segment| segment.sealed = true));
    }

    /// Deletes a segment that has nothing in it: one for each try would take what room there is.
    fn discard(&self, number: u64) {
        let path = self.parts.config.dir.join(segment::name(number));
        if self.parts.disk.remove(&path).is_ok() {
            self.parts.log.with(|state| state.forget(number));
        }
    }

    /// Starts a new segment.
    pub(super) fn rotate(&mut self) -> io::Result<()> {
        self.abandon();
        let number = self.next_number;
        self.next_number += 1;
        let path = self.parts.config.dir.join(segment::name(number));
        let begun = start_segment(&self.parts, &path, number);
        let file = match begun {
            Ok(file) => file,
            Err(e) => {
                let _ = self.parts.disk.remove(&path);
                return Err(e);
            }
        };
        self.parts.syncer.turn_to(Some((number, Arc::clone(&file))));
        let bytes = segment::HEADER_BYTES as u64;
        self.active = Some(Active { file, number, offset: bytes, first_seq: 0, intents: 0, marked: false });
        self.parts.log.with(|state| {
            state.segments.push_back(Segment {
                number,
                path,
                bytes,
                last_seq: 0,
                sealed: false,
                keep: false,
            });
        });
        Ok(())
    }

    /// Somebody deleted the segment being written: what is in it, and still in memory, is to be written again.
    pub(super) fn unlinked(&mut self) {
        if let Some(active) = self.active.take() {
            self.parts.log.with(|state| {
                state.forget(active.number);
                if active.first_seq > 0 {
                    state.unwrite(active.first_seq);
                }
            });
        }
        self.abandon();
    }

    /// Syncs what was written, and seals it. Where nothing is in flight and all is shipped, no segment is kept to say so.
    pub(super) fn finish(&mut self) {
        let synced = self.active.as_ref().map_or(Ok(()), |active| active.file.sync());
        match synced.and_then(|()| self.parts.disk.sync_dir(&self.parts.config.dir)) {
            Ok(()) => {
                let over = self.in_flight() == 0 && !self.behind;
                self.parts.log.with(|state| {
                    // What stays may hold intents whose events are gone or damaged: the last mark says that they are over.
                    let stays = |segment: &Segment| segment.keep || segment.last_seq > state.acked;
                    let over = over && !state.segments.iter().any(stays);
                    state.keep_from(if over { u64::MAX } else { state.marked });
                });
            }
            Err(e) => tracing::error!(error = %e, "the journal's last sync failed"),
        }
        self.abandon();
    }
}

fn start_segment(parts: &Parts, path: &Path, number: u64) -> io::Result<Arc<dyn DiskFile>> {
    let file = parts.disk.open(path)?;
    // A leftover of the same name would be of a run that never got to use it.
    file.truncate(0)?;
    write_all(&*file, 0, &segment::header(number))?;
    if parts.config.fsync_interval.is_zero() {
        file.sync()?;
        parts.disk.sync_dir(&parts.config.dir)?;
    }
    Ok(file)
}
