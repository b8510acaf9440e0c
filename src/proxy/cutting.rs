//! Where a stream may be cut: between two events, and nowhere else.
//!
//! Nothing is held back for it. An event that passes the limit goes to the client whole; what would follow it does
//! not. So a stream that ends with that event is not cut at all. Where a service has no empty line between its events
//! (GLM and Kimi) it is cut between two lines, each a whole document, and the event that they are is ended.

use http_body::Body as _;
use hyper::body::Incoming;
use memchr::{memchr, memchr2};

use super::settlement::Settlement;
use crate::meter::StreamKind;

/// Watches a stream for the limit, event by event.
#[derive(Debug)]
pub(crate) struct Limiter {
    ends: Ends,
    /// What is shown to the settlement just now.
    piece: Option<Piece>,
    /// The last event passed the limit.
    over: bool,
}

/// How far a step came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// All of the frame has been shown.
    Done,
    /// There is more of it to show, after so many bytes.
    Behind(usize),
    /// The stream is cut here, after so many bytes.
    Cut(usize),
}

/// A line, or what is here of it.
#[derive(Debug)]
struct Piece {
    /// How many bytes of it have not been shown.
    left: usize,
    /// Its end is here.
    whole: bool,
}

impl Limiter {
    /// For an answer that may be cut: its settlement says so, and a declared length can't be ended early.
    pub(crate) fn of(settlement: &Settlement, body: &Incoming) -> Option<Self> {
        let kind = settlement.limited().filter(|_| body.size_hint().exact().is_none())?;
        Some(Self { ends: Ends::new(kind), piece: None, over: false })
    }

    /// Whether the place where the stream was cut is within an event, which is to be ended.
    pub(crate) fn within_event(&self) -> bool {
        self.ends.within
    }

    /// Shows the next bytes to the settlement, as far as is little work.
    pub(crate) fn step(&mut self, data: &[u8], settlement: &mut Settlement) -> Step {
        let mut at = 0;
        loop {
            let rest = &data[at..];
            let piece = match self.piece.take() {
                Some(piece) => piece,
                None => {
                    let Some(next) = rest.first() else { return Step::Done };
                    if self.over && !self.ends.still_ends(*next) {
                        return Step::Cut(at);
                    }
                    let end = self.ends.next(rest);
                    Piece { left: end.unwrap_or(rest.len()), whole: end.is_some() }
                }
            };
            if let Some(taken) = settlement.step(&rest[..piece.left]) {
                self.piece = Some(Piece { left: piece.left - taken, ..piece });
                return Step::Behind(at + taken);
            }
            at += piece.left;
            if piece.whole && (!self.ends.within || settlement.between_documents()) {
                self.over = self.over || settlement.spent();
            }
        }
    }
}

/// Finds the ends of lines, ended by LF, CR or both (WHATWG HTML, 9.2.6), and whether an event ends there: with an empty
/// line.
#[derive(Debug)]
struct Ends {
    kind: StreamKind,
    line_is_empty: bool,
    /// The last line that ended was not empty, in a stream of events: its event goes on.
    within: bool,
    /// The last byte was a CR: an LF belongs to it.
    after_cr: bool,
}

impl Ends {
    fn new(kind: StreamKind) -> Self {
        Self { kind, line_is_empty: true, within: false, after_cr: false }
    }

    /// Whether a line that has ended, and its event, only come to their ends with this next byte.
    fn still_ends(&self, next: u8) -> bool {
        (self.after_cr && next == b'\n') || (self.within && matches!(next, b'\n' | b'\r'))
    }

    /// The place just behind the next end of a line in `bytes`, and once more behind an LF that only comes after its CR.
    /// Without one, all of them are taken.
    fn next(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.kind == StreamKind::Lines {
            return memchr(b'\n', bytes).map(|at| at + 1);
        }
        if std::mem::take(&mut self.after_cr) && bytes.first() == Some(&b'\n') {
            return Some(1);
        }
        let Some(length) = memchr2(b'\n', b'\r', bytes) else {
            self.line_is_empty &= bytes.is_empty();
            return None;
        };
        self.within = !(self.line_is_empty && length == 0);
        self.line_is_empty = true;
        let end = length + 1;
        if bytes[end - 1] != b'\r' {
            return Some(end);
        }
        self.after_cr = end == bytes.len();
        Some(end + usize::from(bytes.get(end) == Some(&b'\n')))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The places behind every end, however the text comes.
    fn ends(kind: StreamKind, pieces: &[&[u8]]) -> Vec<usize> {
        let (mut ends, mut found, mut before) = (Ends::new(kind), Vec::new(), 0);
        for piece in pieces {
            let mut at = 0;
            while at < piece.len() {
                let late = ends.after_cr && piece[at] == b'\n';
                let Some(end) = ends.next(&piece[at..]) else { break };
                at += end;
                match found.last_mut().filter(|_| late) {
                    _ if ends.within => {}
                    Some(last) => *last = before + at,
                    None => found.push(before + at),
                }
            }
            before += piece.len();
        }
        found
    }

    #[test]
    fn an_event_ends_with_its_empty_line_whatever_ends_its_lines() {
        for (text, expected) in [
            ("data: 1\n\ndata: 2\n\n", vec![9, 18]),
            ("data: 1\r\n\r\ndata: 2\r\n\r\n", vec![11, 22]),
            ("data: 1\r\rdata: 2\r\r", vec![9, 18]),
            ("event: a\ndata: 1\ndata: 2\n\nda", vec![26]),
            ("data: 1\n", vec![]),
        ] {
            assert_eq!(ends(StreamKind::Events, &[text.as_bytes()]), expected, "{text:?}");
        }
        assert_eq!(ends(StreamKind::Lines, &[b"{}\n{}\n{"]), [3, 6]);
    }

    proptest! {
        #[test]
        fn any_split_finds_the_same_ends(
            lines in prop::collection::vec(prop::sample::select(vec!["", "data: a", ":c", "id: 1"]), 0..12),
            end in prop::sample::select(vec!["\n", "\r\n", "\r"]),
            cuts in prop::collection::vec(0usize..100, 0..12),
        ) {
            let text: String = lines.iter().flat_map(|line| [*line, end]).collect();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let whole = ends(StreamKind::Events, &[text.as_bytes()]);
            let split = ends(StreamKind::Events, &pieces);
            prop_assert_eq!(whole, split);
        }
    }
}
