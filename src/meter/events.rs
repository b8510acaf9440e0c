//! Cuts a stream into documents: an event stream (WHATWG HTML, "Server-sent events", 9.2.6) or lines.
//!
//! Any split of the bytes gives the same documents. Only the name of a field and of an event is buffered: the data
//! goes on to the reader as it comes, so that an event or a line may have any size.

use memchr::{memchr, memchr2};
use smallvec::SmallVec;

/// Takes the documents, piece by piece.
pub(super) trait Documents {
    /// The next bytes of the document at hand.
    fn data(&mut self, bytes: &[u8]);
    /// The document is whole. Its event's name, if it has one.
    fn end(&mut self, name: &[u8]);
    /// What stands before the next document and says of what kind it is.
    fn code(&mut self, code: &[u8]);
}

/// How a stream of documents is cut into them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Events of an event stream: an empty line ends each.
    Events,
    /// Lines.
    Lines,
}

const MAX_NAME: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Nothing of the line yet.
    Start,
    /// Its field's name.
    Field,
    /// Just after a colon: one space is no part of the value.
    BeforeData,
    Data,
    BeforeName,
    Name,
    /// A comment, or a field of no interest.
    Other,
}

/// Where an event stream stands.
#[derive(Debug)]
pub(super) struct EventStream {
    line: Line,
    after_cr: bool,
    /// Bytes of a byte order mark seen, as long as it can still become one.
    bom: Option<u8>,
    field: SmallVec<[u8; 8]>,
    name: SmallVec<[u8; 16]>,
    has_data: bool,
}

impl Default for EventStream {
    fn default() -> Self {
        Self {
            line: Line::Start,
            after_cr: false,
            bom: Some(0),
            field: SmallVec::new(),
            name: SmallVec::new(),
            has_data: false,
        }
    }
}

impl EventStream {
    pub(super) fn feed(&mut self, bytes: &[u8], to: &mut impl Documents) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.after_cr {
                self.after_cr = false;
                if byte == b'\n' {
                    at += 1;
                    continue;
                }
            }
            match self.line {
                Line::Start => at += self.start(&bytes[at..], byte, to),
                Line::Field => {
                    at += 1;
                    match byte {
                        b'\n' | b'\r' => self.end_line(byte),
                        b':' => {
                            self.line = match &self.field[..] {
                                b"data" => Line::BeforeData,
                                b"event" => Line::BeforeName,
                                _ => Line::Other,
                            }
                        }
                        _ if self.field.len() < 8 => self.field.push(byte),
                        _ => self.line = Line::Other,
                    }
                }
                Line::BeforeData => {
                    if byte == b' ' {
                        at += 1;
                    }
                    self.line = Line::Data;
                    if self.has_data {
                        to.data(b"\n");
                    }
                    self.has_data = true;
                }
                Line::BeforeName => {
                    if byte == b' ' {
                        at += 1;
                    }
                    self.line = Line::Name;
                    self.name.clear();
                }
                Line::Data | Line::Name | Line::Other => {
                    let rest = &bytes[at..];
                    let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                    match self.line {
                        Line::Data => to.data(&rest[..end]),
                        Line::Name => {
                            let room = MAX_NAME - self.name.len();
                            self.name.extend_from_slice(&rest[..end.min(room)]);
                        }
                        _ => {}
                    }
                    at += end;
                    if let Some(&byte) = rest.get(end) {
                        at += 1;
                        self.end_line(byte);
                    }
                }
            }
        }
    }

    /// The stream ended, or broke off: a last event may lack its empty line.
    pub(super) fn end(&mut self, to: &mut impl Documents) {
        self.end_event(to);
    }

    #[inline]
    fn start(&mut self, rest: &[u8], byte: u8, to: &mut impl Documents) -> usize {
        if let Some(seen) = self.bom {
            if byte == [0xef, 0xbb, 0xbf][usize::from(seen)] {
                self.bom = (seen < 2).then_some(seen + 1);
                return 1;
            }
            self.bom = None;
        }
        if matches!(byte, b'\n' | b'\r') {
            self.after_cr = byte == b'\r';
            self.end_event(to);
            return 1;
        }
        if rest.starts_with(b"data:") {
            self.line = Line::BeforeData;
            return 5;
        }
        self.field.clear();
        self.line = Line::Field;
        0
    }

    fn end_line(&mut self, byte: u8) {
        self.after_cr = byte == b'\r';
        self.line = Line::Start;
    }

    fn end_event(&mut self, to: &mut impl Documents) {
        // A name without data dispatches no event, says the standard; an error's name says enough all the same.
        if self.has_data || !self.name.is_empty() {
            to.end(&self.name);
        }
        self.name.clear();
        self.has_data = false;
    }
}

/// Where a stream of lines stands, each a document: NDJSON, or the AI SDK's data stream, where a code and a colon
/// stand before each document.
#[derive(Debug)]
pub(super) struct Lines {
    coded: bool,
    in_code: bool,
    code: SmallVec<[u8; 8]>,
}

impl Lines {
    /// A stream of lines, `coded` where each begins with a code.
    pub(super) fn new(coded: bool) -> Self {
        Self { coded, in_code: coded, code: SmallVec::new() }
    }

    pub(super) fn feed(&mut self, bytes: &[u8], to: &mut impl Documents) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if self.in_code {
                at += 1;
                match rest[0] {
                    b':' => {
                        self.in_code = false;
                        to.code(&self.code);
                    }
                    b'\n' => self.code.clear(),
                    byte if self.code.len() < 8 => self.code.push(byte),
                    _ => {}
                }
                continue;
            }
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            to.data(&rest[..end]);
            at += end;
            if end < rest.len() {
                at += 1;
                self.end_line(to);
            }
        }
    }

    /// The stream ended, or broke off: the last line may lack its end.
    pub(super) fn end(&mut self, to: &mut impl Documents) {
        self.end_line(to);
    }

    fn end_line(&mut self, to: &mut impl Documents) {
        to.end(b"");
        self.code.clear();
        self.in_code = self.coded;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Heard {
        data: String,
        all: Vec<(String, String)>,
    }

    impl Documents for Heard {
        fn data(&mut self, bytes: &[u8]) {
            self.data.push_str(&String::from_utf8_lossy(bytes));
        }
        fn end(&mut self, name: &[u8]) {
            self.all.push((String::from_utf8_lossy(name).into_owned(), std::mem::take(&mut self.data)));
        }
        fn code(&mut self, _code: &[u8]) {}
    }

    fn heard(pieces: &[&[u8]]) -> Heard {
        let mut stream = EventStream::default();
        let mut heard = Heard::default();
        for piece in pieces {
            stream.feed(piece, &mut heard);
        }
        stream.end(&mut heard);
        heard
    }

    fn events(text: &str) -> Vec<(String, String)> {
        heard(&[text.as_bytes()]).all
    }

    fn event(name: &str, data: &str) -> (String, String) {
        (name.into(), data.into())
    }

    #[test]
    fn every_line_end_of_the_standard_ends_a_line() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["event: a", "data: 1", "", "data:2", "data: 3", ""].join(end) + end;
            assert_eq!(events(&text), [event("a", "1"), event("", "2\n3")], "{end:?}");
        }
    }

    #[test]
    fn a_mark_comments_and_other_fields_are_passed_over() {
        assert_eq!(events("\u{feff}: hi\nid: 7\nretry: 1\nevents: x\ndata: 1\n\n"), [event("", "1")]);
    }

    #[test]
    fn a_last_event_needs_no_empty_line() {
        assert_eq!(events("data: 1\n\ndata: 2"), [event("", "1"), event("", "2")]);
    }

    #[test]
    fn only_one_space_belongs_to_the_colon() {
        assert_eq!(events("data:  x \n\n"), [event("", " x ")]);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            lines in prop::collection::vec(
                prop::sample::select(vec!["", "data: a", "data:", "data", ":c", "event: error", "id: 1", "datax: 1", "\u{feff}data: b"]),
                0..12,
            ),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "\r"]), 12),
            cuts in prop::collection::vec(0usize..200, 0..12),
        ) {
            let text: String = lines.iter().zip(&ends).flat_map(|(line, end)| [*line, *end]).collect();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(heard(&pieces), heard(&[text.as_bytes()]));
        }
    }
}
