//! One answer, decoded: which form it has, and what its documents tell.

use std::io;
use std::sync::Arc;

use smallvec::SmallVec;

use super::capture::{Capture, Learnt, Ruled, Running};
use super::events::{Documents, EventStream, Lines, StreamKind};
use super::format::Format;
use super::frames::{Frames, Unwrapper, WRAPPED};
use super::glean::{Gleaner, Pointers};
use super::skim::Skimmer;

/// What went wrong in reading, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    Bomb,
    CorruptEncoding,
    UnknownEncoding,
    Malformed,
}

impl Trouble {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Trouble::Bomb => "bomb",
            Trouble::CorruptEncoding => "corrupt_encoding",
            Trouble::UnknownEncoding => "unknown_encoding",
            Trouble::Malformed => "malformed",
        }
    }
}

/// The form of an answer's body.
#[derive(Debug)]
enum Form {
    /// Not known yet: the first bytes will tell, whatever the type says.
    Unknown {
        head: SmallVec<[u8; 16]>,
        typed: Typed,
    },
    Json,
    Events(EventStream),
    Lines(Lines),
    Frames(Box<Frames>),
    Text,
    /// Nothing that we can read.
    Opaque,
}

/// What the type says of a body whose first bytes are not here yet, or show nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Typed {
    Json,
    Events,
    Text,
    Nothing,
}

/// An answer as it is read.
#[derive(Debug)]
pub(super) struct Answer {
    form: Form,
    /// Whether its type alone says that it is a stream.
    typed_stream: bool,
    reader: Reader,
    gleaner: Option<Box<Gleaner>>,
}

/// Reads documents by a format's rules.
#[derive(Debug)]
struct Reader {
    format: Arc<Format>,
    skimmer: Skimmer,
    capture: Capture,
    trouble: Option<Trouble>,
    line: LineKind,
    unwrapper: Unwrapper,
    /// How many bytes of [`DONE`] the document at hand is, as long as it is nothing else.
    done: Option<usize>,
    /// An event had more than one document.
    several: bool,
    /// The body is over: what is at hand may have been cut short, and is worth what there is of it.
    over: bool,
}

/// What ends OpenAI's streams, and those of everybody who took after it.
const DONE: &[u8] = b"[DONE]";

/// How many bytes of [`DONE`] a document is with these `bytes`, after `at` of them; white space may stand around it.
fn done(at: usize, bytes: &[u8]) -> Option<usize> {
    let bytes = if at == 0 { bytes.trim_ascii_start() } else { bytes };
    let (start, rest) = bytes.split_at(bytes.len().min(DONE.len() - at));
    (DONE[at..].starts_with(start) && rest.trim_ascii().is_empty()).then_some(at + start.len())
}

/// How many bytes of base64 are undone in one go: the plain bytes are a copy.
const UNWRAPPED_AT_ONCE: usize = 4096;

/// What a line of the AI SDK's data stream, or a binary message, holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineKind {
    Document,
    /// A string that is text.
    Text,
    /// A document within another, in base64.
    Wrapped,
    Error,
}

impl Answer {
    pub(super) fn new(
        format: &Arc<Format>,
        text_limit: usize,
        max_call_tokens: u64,
        status: u16,
        content_type: Option<&[u8]>,
    ) -> Self {
        let mut capture = Capture::new(text_limit, max_call_tokens);
        if status >= 400 {
            // Nobody is charged for an error's text.
            capture.without_text();
        }
        let reader = Reader {
            format: format.clone(),
            skimmer: Skimmer::default(),
            capture,
            trouble: None,
            line: LineKind::Document,
            unwrapper: Unwrapper::default(),
            done: Some(0),
            several: false,
            over: false,
        };
        let form = if format.plain { Form::Text } else { form(content_type) };
        let mut answer = Self { form, typed_stream: false, reader, gleaner: None };
        answer.typed_stream = answer.is_stream();
        answer
    }

    /// Whether its type says that it is a stream; its bytes may say otherwise.
    pub(super) fn is_typed_stream(&self) -> bool {
        self.typed_stream
    }

    pub(super) fn glean(&mut self, pointers: &Arc<Pointers>) {
        self.gleaner = Some(Box::new(Gleaner::new(pointers)));
    }

    pub(super) fn headers<'a>(&mut self, value: impl Fn(&str) -> Option<&'a [u8]>) {
        let format = self.reader.format.clone();
        self.reader.capture.headers(&format, value);
    }

    /// What the gleaner has; taken once, at the end.
    pub(super) fn gleaned(&mut self) -> Vec<Option<serde_json::Value>> {
        self.gleaner.take().map(|gleaner| gleaner.finish()).unwrap_or_default()
    }

    pub(super) fn is_stream(&self) -> bool {
        match self.form {
            Form::Events(_) | Form::Lines(_) | Form::Frames(_) => true,
            Form::Unknown { typed, .. } => typed == Typed::Events,
            Form::Json | Form::Text | Form::Opaque => false,
        }
    }

    pub(super) fn stream_kind(&self) -> Option<StreamKind> {
        match self.form {
            Form::Events(_) | Form::Unknown { typed: Typed::Events, .. } => Some(StreamKind::Events),
            Form::Lines(_) => Some(StreamKind::Lines),
            _ => None,
        }
    }

    pub(super) fn between_documents(&self) -> bool {
        self.reader.several && self.reader.skimmer.closed()
    }

    pub(super) fn running(&self) -> Option<Running> {
        self.reader.capture.running()
    }

    pub(super) fn reported(&self) -> bool {
        self.reader.capture.reported()
    }

    pub(super) fn ended(&self) -> bool {
        self.is_stream() && self.reader.capture.ended()
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        match &mut self.form {
            Form::Json => {
                self.reader.capture.see(bytes);
                if let Some(gleaner) = &mut self.gleaner {
                    gleaner.feed(bytes);
                }
                self.reader.document(bytes);
            }
            Form::Events(events) => events.feed(bytes, &mut self.reader),
            Form::Lines(lines) => lines.feed(bytes, &mut self.reader),
            Form::Frames(frames) => frames.feed(bytes, &mut self.reader),
            Form::Text => {
                self.reader.capture.see(bytes);
                self.reader.capture.plain_text(bytes);
            }
            Form::Opaque => self.reader.capture.see(bytes),
            Form::Unknown { head, typed } => {
                let before = head.len();
                head.extend_from_slice(&bytes[..bytes.len().min(HEAD - before)]);
                let Some(form) = recognise(head, *typed) else { return };
                let head = std::mem::take(head);
                self.form = form;
                self.feed(&head[..before]);
                self.feed(bytes);
            }
        }
    }

    /// The body ended, or broke off.
    pub(super) fn finish(mut self) -> (Learnt, Option<Trouble>, bool) {
        if let Form::Unknown { head, typed } = &mut self.form {
            let (head, typed) = (std::mem::take(head), *typed);
            self.form = typed.form();
            self.feed(&head);
        }
        let streamed = self.is_stream();
        let reader = &mut self.reader;
        reader.over = true;
        match &mut self.form {
            Form::Json => {
                if reader.skimmer.gave_up() {
                    reader.note(Trouble::Malformed);
                }
                reader.end(b"");
            }
            Form::Events(events) => events.end(reader),
            Form::Lines(lines) => lines.end(reader),
            Form::Frames(frames) => {
                if frames.broken() {
                    reader.note(Trouble::Malformed);
                }
                frames.end(reader);
            }
            Form::Unknown { .. } | Form::Text | Form::Opaque => {}
        }
        let learnt = self.reader.capture.finish();
        (learnt, self.reader.trouble, streamed)
    }
}

/// A decoder writes what it decodes here.
impl io::Write for Answer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.feed(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many first bytes are enough to tell.
const HEAD: usize = 16;

impl Typed {
    fn form(self) -> Form {
        match self {
            Typed::Json => Form::Json,
            Typed::Events => Form::Events(EventStream::default()),
            Typed::Text => Form::Text,
            Typed::Nothing => Form::Opaque,
        }
    }
}

fn form(content_type: Option<&[u8]>) -> Form {
    let unknown = |typed| Form::Unknown { head: SmallVec::new(), typed };
    let Some(content_type) = content_type else { return unknown(Typed::Nothing) };
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let is = |name: &str| essence.eq_ignore_ascii_case(name.as_bytes());
    if is("application/json") {
        return unknown(Typed::Json);
    } else if is("text/event-stream") {
        return unknown(Typed::Events);
    } else if is("text/plain") || is("text/markdown") {
        return unknown(Typed::Text);
    } else if is("application/vnd.amazon.eventstream") {
        return Form::Frames(Box::new(Frames::default()));
    } else if is("") || is("application/octet-stream") {
        return unknown(Typed::Nothing);
    }
    let essence = essence.to_ascii_lowercase();
    let has = |part: &str| memchr::memmem::find(&essence, part.as_bytes()).is_some();
    if ["ndjson", "jsonl", "stream+json", "json-stream", "json-seq"].into_iter().any(has) {
        Form::Lines(Lines::new(false))
    } else if has("json") {
        unknown(Typed::Json)
    } else {
        Form::Opaque
    }
}

/// The form that a body's first bytes show. `None` while more of them are needed.
fn recognise(head: &[u8], typed: Typed) -> Option<Form> {
    const BOM: &[u8] = b"\xef\xbb\xbf";
    if BOM.starts_with(head) {
        return None;
    }
    let start = head.strip_prefix(BOM).unwrap_or(head).trim_ascii_start();
    let fields = [&b"data:"[..], b"event:", b":", b"id:", b"retry:"];
    // A text may well begin with a colon, but hardly with the name of a field and one.
    for field in &fields[..if typed == Typed::Text { 2 } else { fields.len() }] {
        if start.starts_with(field) {
            return Some(Form::Events(EventStream::default()));
        }
        if field.starts_with(start) && head.len() < HEAD {
            return None;
        }
    }
    match start {
        // No line of an event stream begins like this.
        [b'{', b'"', ..] | [b'[', b'{' | b'"', ..] => Some(Form::Json),
        [b'{' | b'[', b' ' | b'\t' | b'\r' | b'\n', ..] if typed != Typed::Text => Some(Form::Json),
        [b'{', next, ..] if next.is_ascii_whitespace() => Some(Form::Json),
        // `0:"text"`: the AI SDK's data stream.
        [code, b':', b'"' | b'{' | b'[', ..] if code.is_ascii_alphanumeric() => {
            Some(Form::Lines(Lines::new(true)))
        }
        [] | [_] | [_, b':'] if head.len() < HEAD => None,
        _ => Some(typed.form()),
    }
}

impl Reader {
    fn note(&mut self, trouble: Trouble) {
        self.trouble = Some(self.trouble.map_or(trouble, |known| known.min(trouble)));
    }

    /// Bytes of the document at hand, and of those that follow it without anything between: an event may hold several
    /// (`data` lines that no empty line parts, as GLM and Kimi send them: rexxars/eventsource-parser#31), and so may
    /// a line or a body (agno-agi/agno#3868).
    #[inline]
    fn document(&mut self, mut bytes: &[u8]) {
        loop {
            let mut ruled = Ruled { format: &self.format, capture: &mut self.capture };
            let taken = self.skimmer.feed(bytes, &self.format.answer, &mut ruled);
            self.done = self.done.and_then(|at| done(at, &bytes[..taken]));
            if taken == bytes.len() {
                return;
            }
            bytes = bytes[taken..].trim_ascii_start();
            if bytes.is_empty() {
                return;
            }
            if !self.skimmer.closed() {
                // Words are text, and what they speak of is no document.
                self.skimmer.give_up();
                return;
            }
            self.several = true;
            self.end_document(b"");
        }
    }

    /// The document at hand is over; its event has this name.
    fn end_document(&mut self, name: &[u8]) {
        let mut ruled = Ruled { format: &self.format, capture: &mut self.capture };
        self.skimmer.end(&mut ruled);
        let whole = self.over || self.skimmer.done() || self.skimmer.untouched();
        if self.skimmer.gave_up() || !whole {
            self.capture.roll_back();
        }
        // Half an event is none that was seen.
        if !self.skimmer.done() {
            self.capture.cut(&self.format);
        }
        let empty = self.skimmer.untouched() && name.is_empty();
        if self.done.replace(0) == Some(DONE.len()) || name == b"end" || (empty && self.capture.ended()) {
            self.capture.ends(true);
        }
        self.capture.commit(&self.format);
        self.skimmer.reset();
    }
}

impl Documents for Reader {
    #[inline]
    fn data(&mut self, bytes: &[u8]) {
        self.capture.see(bytes);
        match self.line {
            LineKind::Document => self.document(bytes),
            LineKind::Text => {
                let mut ruled = Ruled { format: &self.format, capture: &mut self.capture };
                self.skimmer.feed(bytes, &self.format.string, &mut ruled);
            }
            LineKind::Wrapped => {
                for piece in bytes.chunks(UNWRAPPED_AT_ONCE) {
                    match self.unwrapper.feed(piece, &self.format.wrapped) {
                        Some(plain) => self.document(&plain),
                        None => self.skimmer.give_up(),
                    }
                }
            }
            LineKind::Error => {}
        }
    }

    #[inline]
    fn end(&mut self, name: &[u8]) {
        if name == b"error" || self.line == LineKind::Error {
            self.capture.fail();
        }
        self.end_document(name);
        if self.line == LineKind::Wrapped {
            self.unwrapper.reset();
        }
        self.line = LineKind::Document;
    }

    fn code(&mut self, code: &[u8]) {
        self.line = match code {
            b"0" | b"g" => LineKind::Text,
            b"3" => LineKind::Error,
            WRAPPED => LineKind::Wrapped,
            _ => LineKind::Document,
        };
    }
}
