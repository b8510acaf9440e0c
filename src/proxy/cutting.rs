//! Where a stream may be cut: between two events, and nowhere else.
//!
//! Nothing is held back for it. An event that passes the limit goes to the client whole; what would follow it does
//! not. So a stream that ends with that event is not cut at all.

use http_body::Body as _;
use hyper::body::Incoming;
use memchr::{memchr, memchr2};

use super::settlement::Settlement;
use crate::meter::StreamKind;

/// Watches a stream for the limit, event by event.
#[derive(Debug)]
pub(crate) struct Limiter {
    ends: Ends,
    /// The last event passed the limit.
    over: bool,
}

impl Limiter {
    /// For an answer that may be cut: its settlement says so, and a declared length can't be ended early.
    pub(crate) fn of(settlement: &Settlement, body: &Incoming) -> Option<Self> {
        let kind = settlement.limited().filter(|_| body.size_hint().exact().is_none())?;
        Some(Self { ends: Ends::new(kind), over: false })
    }

    fn observe(&mut self, data: &[u8], settlement: &mut Settlement) -> Option<usize> {
        let mut at = 0;
        while at < data.len() {
            if self.over {
                return Some(at);
            }
            let rest = &data[at..];
            match self.ends.next(rest) {
                Some(end) => {
                    settlement.observe(&rest[..end]);
                    self.over = settlement.spent();
                    at += end;
                }
                None => {
                    settlement.observe(rest);
                    return None;
                }
            }
        }
        None
    }
}

/// Shows the next bytes to the settlement. Where the stream is to be cut, how many of them still go on.
pub(crate) fn observe(
    limiter: &mut Option<Limiter>,
    data: &[u8],
    settlement: &mut Settlement,
) -> Option<usize> {
    match limiter {
        Some(limiter) => limiter.observe(data, settlement),
        None => {
            settlement.observe(data);
            None
        }
    }
}

/// Finds the ends of events: an empty line, ended by LF, CR or both (WHATWG HTML, 9.2.6); or the ends of lines.
#[derive(Debug)]
struct Ends {
    kind: StreamKind,
    line_is_empty: bool,
    /// The last byte was a CR: an LF belongs to it.
    after_cr: bool,
}

impl Ends {
    fn new(kind: StreamKind) -> Self {
        Self { kind, line_is_empty: true, after_cr: false }
    }

    /// The place just behind the next end in `bytes`. Without one, all of them are taken.
    fn next(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.kind == StreamKind::Lines {
            return memchr(b'\n', bytes).map(|at| at + 1);
        }
        let mut at = 0;
        if std::mem::take(&mut self.after_cr) && bytes.first() == Some(&b'\n') {
            at = 1;
        }
        while let Some(length) = memchr2(b'\n', b'\r', &bytes[at..]) {
            let was_empty = self.line_is_empty && length == 0;
            self.line_is_empty = true;
            at += length + 1;
            if bytes[at - 1] == b'\r' {
                match bytes.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if was_empty {
                return Some(at);
            }
        }
        self.line_is_empty &= at == bytes.len();
        None
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
                match ends.next(&piece[at..]) {
                    Some(end) => {
                        at += end;
                        found.push(before + at);
                    }
                    None => at = piece.len(),
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
        /// A CRLF that is split may end the event at its CR: the LF is then before the next event, and harmless.
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
            prop_assert_eq!(whole.len(), split.len());
            for (one, other) in whole.iter().zip(&split) {
                prop_assert!(one == other || (one - 1 == *other && text.as_bytes()[*other] == b'\n'));
            }
        }
    }
}
