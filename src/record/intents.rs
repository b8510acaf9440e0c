//! Intents: which exchanges are in flight, so that those that a dead process leaves are charged all the same.
//!
//! An exchange hands its intent over when it is admitted, and its event when it ends. The event closes the intent: both
//! have the same id. An intent that is open where the journal ends becomes an event of its exchange when the journal is
//! opened, with the outcome `crashed`.
//!
//! 1. An intent lies before its event, because one queue takes both.
//! 2. A segment is deleted when the sink has its records, however many intents in it are open: they are carried forward.
//!    Each segment is marked ([`codec::Held::Mark`](super::codec::Held)) once every exchange in flight has its intent in
//!    it. Reading a mark, all that is open and not in its segment is over; so the segments before a mark are not needed
//!    for their intents, and those from the last mark on are kept. What is on disk for the sake of intents is that one
//!    segment and what follows it, however long an exchange lasts. A disk that these fill has no room for another mark:
//!    they are let go without one when the sink has all that is in them, no intent in them is open, and the events that
//!    closed any are in the sink as well.
//! 3. A mark is true when it is read, too: an event that was taken over before it, and so is not in flight, is on disk
//!    before it, or shipped, or lost and counted. The writer therefore marks only while nothing that it took over waits in
//!    memory. With a sync now and then, the segments before a mark are kept until the mark is synced.
//! 4. A mark says how many intents its segment has above it. Where there are fewer, some are damaged, and the mark is
//!    passed over: what is in older segments may still be in flight.
//! 5. So too much may be taken for open, never too little: an intent whose event is damaged, or lies in a segment that is
//!    gone while an older one could not be deleted. Its event has the id of the true one, and the sink takes each id once.
//! 6. Opening writes the events of what it found open before it marks its first segment. Dying in between, the next
//!    opening finds those that are written closed, and the others still open.
//! 7. Memory and disk are bounded: past [`Intents::most_bytes`] of open intents, new ones are left out, and counted.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::codec::HEADER_BYTES;

/// What is in flight: the writer's side.
#[derive(Debug)]
pub(super) struct Intents {
    open: HashMap<Uuid, Encoded>,
    bytes: usize,
    most_bytes: usize,
}

/// An open intent's payload, and the segment that has it last; 0 is none.
#[derive(Debug)]
struct Encoded {
    payload: Box<[u8]>,
    segment: u64,
}

impl Intents {
    /// At most so many bytes of payload are kept.
    pub(super) fn new(most_bytes: usize) -> Self {
        Self { open: HashMap::new(), bytes: 0, most_bytes }
    }

    /// Whether there is room for so many bytes more.
    pub(super) fn have_room(&self, more: usize) -> bool {
        self.bytes.saturating_add(more) <= self.most_bytes
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Bytes of all their frames, and of a mark's.
    pub(super) fn frame_bytes(&self) -> u64 {
        let frames = self.open.len() + 1;
        (self.bytes + frames * HEADER_BYTES + size_of::<u64>() + 1) as u64
    }

    /// An exchange was admitted.
    pub(super) fn open(&mut self, event_id: Uuid, payload: Box<[u8]>, segment: u64) {
        self.bytes += payload.len();
        if let Some(before) = self.open.insert(event_id, Encoded { payload, segment }) {
            self.bytes -= before.payload.len();
        }
    }

    /// Its event is taken over.
    pub(super) fn close(&mut self, event_id: Uuid) {
        if let Some(closed) = self.open.remove(&event_id) {
            self.bytes -= closed.payload.len();
        }
    }

    /// The payloads of those that `segment` does not have.
    pub(super) fn outside(&self, segment: u64) -> impl Iterator<Item = &[u8]> {
        self.open.values().filter(move |kept| kept.segment != segment).map(|kept| &*kept.payload)
    }

    /// Whether the exchange is open and its intent in a segment.
    pub(super) fn in_segment(&self, event_id: Uuid) -> bool {
        self.open.get(&event_id).is_some_and(|kept| kept.segment > 0)
    }

    /// Whether a segment before `number` has the intent of an open exchange.
    pub(super) fn in_segments_before(&self, number: u64) -> bool {
        self.open.values().any(|kept| kept.segment > 0 && kept.segment < number)
    }

    /// All of them are in `segment` now.
    pub(super) fn carried_to(&mut self, segment: u64) {
        self.open.values_mut().for_each(|kept| kept.segment = segment);
    }
}

/// What is open where a journal ends: the reader's side. Fed with all that lies in the segments, in order.
#[derive(Debug)]
pub(super) struct Unclosed<T> {
    open: HashMap<Uuid, T>,
    /// Those in the segment that is being read.
    here: HashSet<Uuid>,
    intents_here: u64,
}

impl<T> Default for Unclosed<T> {
    fn default() -> Self {
        Self { open: HashMap::new(), here: HashSet::new(), intents_here: 0 }
    }
}

impl<T> Unclosed<T> {
    /// A segment begins.
    pub(super) fn segment(&mut self) {
        self.here.clear();
        self.intents_here = 0;
    }

    /// An intent.
    pub(super) fn intent(&mut self, event_id: Uuid, intent: T) {
        self.intents_here += 1;
        self.here.insert(event_id);
        self.open.insert(event_id, intent);
    }

    /// The event of a metered request.
    pub(super) fn event(&mut self, event_id: Uuid) {
        self.open.remove(&event_id);
    }

    /// A mark that says how many intents lie above it.
    pub(super) fn mark(&mut self, intents: u64) {
        if intents == self.intents_here {
            let here = &self.here;
            self.open.retain(|event_id, _| here.contains(event_id));
        }
    }

    /// Whether nothing is open.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// What is open, in the order of its admission.
    pub(super) fn into_open(self) -> Vec<T> {
        let mut open: Vec<(Uuid, T)> = self.open.into_iter().collect();
        // An id of version 7 begins with its time.
        open.sort_unstable_by_key(|(event_id, _)| *event_id);
        open.into_iter().map(|(_, intent)| intent).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn what_a_mark_does_not_find_in_its_segment_is_over() {
        let mut unclosed = Unclosed::default();
        unclosed.segment();
        (1..=4).for_each(|n| unclosed.intent(id(n), n));
        unclosed.event(id(2));
        unclosed.segment();
        unclosed.intent(id(3), 3);
        unclosed.intent(id(5), 5);
        unclosed.mark(2);
        unclosed.intent(id(6), 6);
        unclosed.event(id(5));
        assert_eq!(unclosed.into_open(), [3, 6], "1 and 4 ended before, in a segment that is gone");
    }

    #[test]
    fn a_mark_with_fewer_intents_above_it_than_it_says_is_passed_over() {
        let mut unclosed = Unclosed::default();
        unclosed.segment();
        unclosed.intent(id(1), 1);
        unclosed.segment();
        unclosed.mark(1);
        assert_eq!(unclosed.into_open(), [1]);
    }

    #[test]
    fn memory_is_counted_and_given_back() {
        let mut intents = Intents::new(10);
        assert!(intents.have_room(10) && !intents.have_room(11));
        intents.open(id(1), Box::from([0; 6]), 1);
        intents.open(id(1), Box::from([0; 4]), 2);
        assert!(intents.have_room(6) && !intents.have_room(7));
        assert_eq!((intents.outside(1).count(), intents.outside(2).count()), (1, 0));
        intents.close(id(1));
        intents.close(id(1));
        assert_eq!((intents.bytes, intents.len()), (0, 0));
    }
}
