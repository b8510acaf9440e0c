//! Text that repeats what was said before, counted once.
//!
//! Some services send in every event all the text so far (SGLang's `/generate`, DashScope without
//! `incremental_output`, RAGFlow, LangGraph's `messages/partial`). Whether a stream does is told by nothing but its
//! text: at one place, each document's text begins with all of the one before.
//!
//! 1. What a document repeats is not passed on: the text stays one copy, however often it is said.
//! 2. Short pieces that happen to repeat (`ha`, `ha ha`) prove nothing. What they left out is kept in mind, and put
//!    back where it belongs, until [`PROOF`] bytes were repeated.
//! 3. Memory: the first [`HEAD`] bytes of a place's text, for [`MAX_PLACES`] places; beyond, length decides. A text
//!    longer than what is kept of it is told by the same means.
//! 4. A text that was told in pieces may be told whole after them, at the same place or another ([`Retold`]).
//! 5. Pieces that plainly follow each other cost a look each, and after a few of them none: then the place is not
//!    watched any more.

use smallvec::SmallVec;

use super::pointer::{NodeId, UNWANTED};
use super::text::{Buffer, Mark};

/// How much of a text is compared.
const HEAD: usize = 256;
/// How many bytes must have been repeated, so that it is no accident.
const PROOF: u64 = 16;
/// A whole that is told once more ends what was told before it, where it has so many bytes; a shorter one is all of it.
const SAME: u64 = 32;
const MAX_PLACES: usize = 8;
/// What was left out without proof.
const MAX_LEFT_OUT: usize = 16;
/// How often a text may begin anew without proof that it grows, until the place isn't watched any more.
const MAX_BREAKS: u8 = 8;

/// A place of text, as its document is read. [`Place::default`] is one that isn't watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place(Option<u8>);

/// The places of text in an answer's documents.
#[derive(Debug, Default)]
pub(super) struct Growth {
    places: Vec<Watched>,
    /// Nothing is watched any more.
    stopped: bool,
}

#[derive(Debug)]
struct Watched {
    node: NodeId,
    /// The first bytes of what the last document that had text here said, and how many there were in all.
    head: Vec<u8>,
    before: u64,
    /// How many bytes the document at hand has said so far, and where in the buffer they begin, without those that
    /// repeat what was said before.
    now: u64,
    at: usize,
    /// The document at hand has this place.
    touched: bool,
    /// What it says does not begin with what was said before.
    differs: bool,
    /// Bytes repeated since the text last began anew.
    repeated: u64,
    /// What was left out without proof: where, and how many bytes of the text's beginning.
    left_out: SmallVec<[(usize, u16); 2]>,
    breaks: u8,
}

impl Growth {
    /// Text begins at `node`; of several texts there each is a place of its own.
    #[inline]
    pub(super) fn begin(&mut self, node: NodeId, text: &Buffer) -> Place {
        if self.stopped {
            return Place::default();
        }
        let found = self.places.iter().position(|place| place.node == node && !place.touched);
        let index = match found {
            Some(index) => index,
            None if self.places.len() < MAX_PLACES => {
                self.places.push(Watched::new(node));
                self.places.len() - 1
            }
            None => return Place::default(),
        };
        let place = &mut self.places[index];
        place.touched = true;
        // Of a text that begins where nothing is kept any more nothing is known but its length.
        if place.breaks == MAX_BREAKS || (place.before == 0 && text.is_full()) {
            return Place::default();
        }
        place.at = text.mark().kept;
        Place(Some(index as u8))
    }

    /// The next bytes of the text at `place`: what of them is new goes to `text`.
    #[inline]
    pub(super) fn push(&mut self, place: Place, bytes: &[u8], text: &mut Buffer) {
        match place.0.and_then(|index| self.places.get_mut(usize::from(index))) {
            Some(place) => place.push(bytes, text),
            None => text.push(bytes),
        }
    }

    /// The document at hand counts. Says how many bytes were put back before it.
    #[inline]
    pub(super) fn commit(&mut self, text: &mut Buffer) -> usize {
        let mut put_back = 0;
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            if std::mem::take(&mut place.touched) && place.now > 0 && place.compare(text) {
                put_back += self.put_back(index, text);
                self.places[index].begin_anew(text);
            }
            let place = &mut self.places[index];
            place.now = 0;
            place.differs = false;
        }
        put_back
    }

    /// The document at hand counts for nothing, or what stands at the nodes that `is_void` says.
    pub(super) fn forget(&mut self, is_void: impl Fn(NodeId) -> bool) {
        for place in self.places.iter_mut().filter(|place| is_void(place.node)) {
            place.now = 0;
            place.touched = false;
            place.differs = false;
        }
    }

    /// The documents take turns at several texts (the choices of OpenAI's streams), so that none repeats the one before:
    /// what was left out is put back. Says how many bytes of it before the document at hand.
    pub(super) fn stop(&mut self, text: &mut Buffer) -> usize {
        let before = (0..self.places.len()).map(|index| self.put_back(index, text)).sum();
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            let left_out = place.now.min(place.before).min(place.head.len() as u64);
            if place.touched && !place.differs && left_out > 0 {
                place.left_out.push((place.at, left_out as u16));
                self.put_back(index, text);
            }
        }
        self.places.clear();
        self.stopped = true;
        before
    }

    /// Bytes that were left out without proof, those of the document at hand among them.
    pub(super) fn left_out(&self) -> u64 {
        let unproven = self.places.iter().filter(|place| !place.proven());
        unproven
            .map(|place| {
                place.left_out.iter().map(|(_, bytes)| u64::from(*bytes)).sum::<u64>() + place.held()
            })
            .sum()
    }

    /// No text follows: what was left out without proof belongs to it.
    pub(super) fn finish(&mut self, text: &mut Buffer) {
        for index in 0..self.places.len() {
            self.put_back(index, text);
        }
        self.places.clear();
    }

    /// Puts back what was left out at a place, and says how many bytes that was.
    fn put_back(&mut self, index: usize, text: &mut Buffer) -> usize {
        let mut sum = 0;
        let left_out = std::mem::take(&mut self.places[index].left_out);
        for (at, bytes) in left_out.into_iter().rev() {
            let head = &self.places[index].head;
            let bytes = usize::from(bytes).min(head.len());
            sum += bytes;
            text.insert(at, &head[..bytes]);
            for place in &mut self.places {
                let marks = place.left_out.iter_mut().map(|(at, _)| at).chain([&mut place.at]);
                marks.filter(|mark| **mark >= at).for_each(|mark| *mark += bytes);
            }
        }
        sum
    }
}

impl Watched {
    fn new(node: NodeId) -> Self {
        Self {
            node,
            head: Vec::new(),
            before: 0,
            now: 0,
            at: 0,
            touched: false,
            differs: false,
            repeated: 0,
            left_out: SmallVec::new(),
            breaks: 0,
        }
    }

    fn push(&mut self, bytes: &[u8], text: &mut Buffer) {
        let at = self.now;
        self.now += bytes.len() as u64;
        if self.differs || at >= self.before {
            text.push(bytes);
            return;
        }
        let known = self.head.get(at as usize..).unwrap_or_default();
        let most = known.len().min(bytes.len());
        if known[..most] != bytes[..most] {
            let alike = known.iter().zip(bytes).take_while(|(a, b)| a == b).count();
            self.differs = true;
            text.push(&self.head[..at as usize + alike]);
            text.push(&bytes[alike..]);
        } else {
            let repeated = (self.before - at).min(bytes.len() as u64);
            text.push(&bytes[repeated as usize..]);
        }
    }

    /// Bytes of the document at hand that are as those before, so far.
    fn held(&self) -> u64 {
        if self.touched && !self.differs { self.now.min(self.before) } else { 0 }
    }

    fn proven(&self) -> bool {
        self.repeated >= PROOF
    }

    /// Compares a document's text with the one before. Whether it begins anew, so that what was left out without
    /// proof must be put back.
    fn compare(&mut self, text: &mut Buffer) -> bool {
        if self.differs {
            return true;
        }
        // What comes again unchanged may be a piece that is said twice, and only growth proves that it isn't. (What is
        // longer than the head could not be put back.)
        if self.now <= self.before && self.now <= self.head.len() as u64 {
            if self.proven() {
                return false;
            }
            // A piece like the one before, or like its beginning.
            if self.now < self.before || self.left_out.len() == MAX_LEFT_OUT {
                self.at = text.mark().kept;
                text.push(&self.head[..self.now as usize]);
                return true;
            }
            self.left_out.push((self.at, self.before as u16));
            return false;
        }
        self.repeated += self.before;
        if self.proven() {
            self.left_out.clear();
        } else if self.before > 0 {
            self.left_out.push((self.at, self.before as u16));
        }
        if self.now > self.before {
            if self.head.len() as u64 == self.before {
                self.keep(text);
            }
            self.before = self.now;
        }
        false
    }

    /// The document at hand begins a text of its own.
    fn begin_anew(&mut self, text: &Buffer) {
        if !self.proven() {
            self.breaks += 1;
        }
        self.repeated = 0;
        self.before = self.now;
        self.head.clear();
        self.keep(text);
        if (self.head.len() as u64) < self.before.min(HEAD as u64) {
            self.breaks = MAX_BREAKS;
        }
    }

    /// Keeps of what the document at hand said anew what the head has room for.
    fn keep(&mut self, text: &Buffer) {
        let new = text.so_far().0.get(self.at..).unwrap_or_default();
        // Another place's text may follow.
        let wanted = (self.now.min(HEAD as u64) as usize).saturating_sub(self.head.len());
        self.head.extend_from_slice(&new[..new.len().min(wanted)]);
    }
}

/// Tells a document that says once more, as a whole, what was told in pieces before it: chat-ui's `finalAnswer`, Coze's
/// `conversation.message.completed`, OpenAI's `response.output_text.done`, A2A's last artifact.
#[derive(Debug)]
pub(super) struct Retold {
    /// Where the last document with text had it, and how many bytes of it.
    node: NodeId,
    said: u64,
    /// The first bytes of the document at hand, where the buffer has no room for them.
    beyond: SmallVec<[u8; 64]>,
}

impl Default for Retold {
    fn default() -> Self {
        Self { node: UNWANTED, said: 0, beyond: SmallVec::new() }
    }
}

/// A text of fewer bytes may well come twice.
const TOLD: u64 = 8;
/// White space that the whole may lack at its ends, where it is told by its length.
const TRIMMED: u64 = 8;

impl Retold {
    /// Bytes of the document at hand, where the buffer is full.
    pub(super) fn beyond(&mut self, bytes: &[u8]) {
        let room = 64 - self.beyond.len();
        self.beyond.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Whether the document that begins at `begin` in `text`, and has its text at `node`, repeats what is before it.
    pub(super) fn is(&mut self, node: NodeId, text: &Buffer, begin: Mark) -> bool {
        let beyond = std::mem::take(&mut self.beyond);
        let (kept, seen) = text.so_far();
        let said = seen.saturating_sub(begin.seen_bytes);
        if said == 0 {
            return false;
        }
        // A piece that is as the one before it is a piece; what is longer spans several.
        let may = said >= TOLD && begin.seen_bytes > 0 && (said > self.said || node != self.node);
        if may && is_repeated(kept, seen, begin, &beyond) {
            return true;
        }
        self.node = node;
        self.said = said;
        false
    }
}

fn is_repeated(kept: &[u8], seen: u64, begin: Mark, beyond: &[u8]) -> bool {
    let (before, told) = kept.split_at(begin.kept.min(kept.len()));
    let said = seen - begin.seen_bytes;
    if seen == kept.len() as u64 {
        let (before, told) = (before.trim_ascii_end(), told.trim_ascii());
        return if said >= SAME { before.ends_with(told) } else { before.trim_ascii_start() == told };
    }
    // Not all of it is kept: its length and its beginning decide.
    let start = [&told[..told.len().min(64)], beyond].concat();
    let start = start.trim_ascii_start();
    let alike = before.trim_ascii_start().starts_with(&start[..start.len().min(64)]);
    said.abs_diff(begin.seen_bytes) <= TRIMMED && start.len() as u64 >= SAME && alike
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is kept of documents, each with a text at one place, in pieces of `length` bytes.
    fn kept(documents: &[&str], length: usize, limit: usize) -> (String, u64) {
        let mut growth = Growth::default();
        let mut text = Buffer::new(limit);
        for document in documents {
            let place = growth.begin(1, &text);
            for piece in document.as_bytes().chunks(length) {
                growth.push(place, piece, &mut text);
            }
            growth.commit(&mut text);
        }
        growth.finish(&mut text);
        let text = text.into_text();
        (text.kept, text.seen_bytes)
    }

    fn all(documents: &[&str]) -> String {
        let whole = kept(documents, usize::MAX, 10_000);
        assert_eq!(kept(documents, 1, 10_000), whole);
        assert_eq!(whole.0.len() as u64, whole.1);
        whole.0
    }

    #[test]
    fn a_text_that_grows_counts_once() {
        assert_eq!(
            all(&["There", "There are", "There are two", "There are two shoes."]),
            "There are two shoes."
        );
        // Said once more unchanged, or without the white space at its end.
        assert_eq!(
            all(&["There are two shoes. ", "There are two shoes. Yes. ", "There are two shoes. Yes."]),
            "There are two shoes. Yes. "
        );
    }

    #[test]
    fn pieces_that_happen_to_repeat_are_pieces() {
        for pieces in [
            &["ha", "ha ha", "ha ha", " x"][..],
            &["ha", "haha"],
            &["word ", "word ", "word ", "word "],
            &["a", "ab", "abc", "x", "x", "xy"],
            &["abc", "ab", "abc"],
            &["no", "", "no"],
        ] {
            assert_eq!(all(pieces), pieces.concat());
        }
        let many = vec!["word "; 200];
        assert_eq!(all(&many), many.concat());
    }

    #[test]
    fn a_text_that_begins_anew_counts_beside_the_one_before() {
        let texts = [
            "Let me look that up.",
            "Let me look that up. Found it",
            "There are",
            "There are two shoes",
            "There are two shoes in it",
        ];
        assert_eq!(all(&texts), "Let me look that up. Found itThere are two shoes in it");
    }

    #[test]
    fn a_text_longer_than_what_is_kept_of_it_counts_once() {
        let text = "0123456789 ".repeat(100);
        let documents: Vec<_> = (1..=100).map(|words| &text[..words * 11]).collect();
        for length in [1, 7, usize::MAX] {
            let (kept, seen) = kept(&documents, length, 50);
            assert_eq!((kept.as_str(), seen), (&text[..50], text.len() as u64));
        }
    }

    proptest! {
        #[test]
        fn any_growing_text_counts_once_however_it_comes(
            words in prop::collection::vec("[a-zé]{3,9} ", 5..60), length in 1..9usize, limit in 20..5_000usize,
        ) {
            let text = words.concat();
            let mut end = 0;
            let documents: Vec<_> = words.iter().map(|word| { end += word.len(); &text[..end] }).collect();
            let (kept, seen) = kept(&documents, length, limit);
            prop_assert_eq!(seen, text.len() as u64);
            let begins = text.starts_with(&kept);
            prop_assert!(begins, "{:?}", kept);
        }

        #[test]
        fn any_pieces_that_follow_each_other_all_count(
            pieces in prop::collection::vec(prop::sample::select(vec!["ha", "ha ha", " ", "\n", "no", "the", " the cat", "x"]), 0..60),
            length in 1..9usize,
        ) {
            let (kept, seen) = kept(&pieces, length, 10_000);
            prop_assert_eq!(&kept, &pieces.concat());
            prop_assert_eq!(seen, kept.len() as u64);
        }
    }
}
