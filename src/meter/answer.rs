//! One answer, decoded: which form it has, and what its documents tell.

use std::io;
use std::sync::Arc;

use super::capture::{Capture, Learnt, Ruled, Running};
use super::events::{Documents, StreamKind};
use super::form::{Form, Typed, form};
use super::format::Format;
use super::frames::{Unwrapper, WRAPPED};
use super::glean::{Gleaner, Pointers};
use super::skim::Skimmer;
use super::unknown::Sample;

/// What went wrong in reading, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    Bomb,
    CorruptEncoding,
    UnknownEncoding,
    Malformed,
    UnreadableText,
    UnknownFormat,
}

impl Trouble {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Trouble::Bomb => "bomb",
            Trouble::CorruptEncoding => "corrupt_encoding",
            Trouble::UnknownEncoding => "unknown_encoding",
            Trouble::Malformed => "malformed",
            Trouble::UnreadableText => "unreadable_text",
            Trouble::UnknownFormat => "unknown_format",
        }
    }
}

/// An answer as it is read.
#[derive(Debug)]
pub(super) struct Answer {
    form: Form,
    /// Whether its type alone says that it is a stream.
    typed_stream: bool,
    reader: Reader,
    text_limit: usize,
    gleaner: Option<Box<Gleaner>>,
}

/// Reads documents by a format's rules.
#[derive(Debug)]
struct Reader {
    format: Arc<Format>,
    skimmer: Skimmer,
    /// Large, and an answer is moved about as it begins and ends.
    capture: Box<Capture>,
    trouble: Option<Trouble>,
    line: LineKind,
    unwrapper: Unwrapper,
    /// How many bytes of [`DONE`] the document at hand is, as long as it is nothing else.
    done: Option<usize>,
    /// An event had more than one document.
    several: bool,
    /// There were bytes that nobody can read.
    unread: bool,
    /// The first bytes, as long as nothing was found in them.
    sample: Option<Box<Sample>>,
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
        let mut capture = Box::new(Capture::new(text_limit, max_call_tokens));
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
            unread: false,
            sample: (status < 400 && format.has_tokens()).then(Box::default),
            over: false,
        };
        let form = if format.plain { Form::Text } else { form(content_type) };
        let mut answer = Self { form, typed_stream: false, reader, text_limit, gleaner: None };
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
            Form::Unknown(ref start) => matches!(start.typed(), Typed::Events | Typed::Lines | Typed::Frames),
            Form::Json | Form::Text | Form::Markup(_) | Form::Opaque | Form::Unreadable => false,
        }
    }

    pub(super) fn stream_kind(&self) -> Option<StreamKind> {
        match &self.form {
            Form::Events(_) => Some(StreamKind::Events),
            Form::Lines(_) => Some(StreamKind::Lines),
            Form::Unknown(start) => match start.typed() {
                Typed::Events => Some(StreamKind::Events),
                Typed::Lines => Some(StreamKind::Lines),
                _ => None,
            },
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
            Form::Markup(markup) => {
                self.reader.capture.see(bytes);
                markup.feed(bytes, &mut |text| self.reader.capture.plain_text(text));
            }
            Form::Opaque | Form::Unreadable => {
                self.reader.capture.see(bytes);
                self.reader.unread |= !bytes.is_empty();
            }
            Form::Unknown(start) => {
                if let (taken, Some(form)) = start.look(bytes) {
                    self.begin(form);
                    self.feed(&bytes[taken..]);
                }
            }
        }
    }

    /// The form is known: the first bytes are read by it.
    fn begin(&mut self, form: Form) {
        let Form::Unknown(start) = std::mem::replace(&mut self.form, form) else { return };
        let (blank, head) = start.into_bytes();
        if matches!(self.form, Form::Text) && !head.is_empty() {
            self.feed(&blank);
        }
        self.feed(&head);
    }

    /// The body ended, or broke off.
    pub(super) fn finish(mut self) -> (Learnt, Option<Trouble>, bool) {
        if let Form::Unknown(start) = &self.form {
            self.begin(start.form());
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
            Form::Unreadable if reader.unread => reader.note(Trouble::UnreadableText),
            Form::Unknown(_) | Form::Text | Form::Markup(_) | Form::Opaque | Form::Unreadable => {}
        }
        let mut trouble = reader.trouble;
        let mut learnt = self.reader.capture.finish();
        if !streamed && learnt.has_content() {
            // Of an answer that has something, an error beside it is no failure of the whole.
            learnt.failed = learnt.failed_for_sure;
        }
        if let Some(sample) = self.reader.sample {
            learnt.last_resort(&sample, self.reader.unread, self.text_limit);
            if learnt.unknown && learnt.resolved.doubt.is_none() {
                trouble = trouble.or(Some(Trouble::UnknownFormat));
            }
        }
        (learnt, trouble, streamed)
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
            let blank = bytes[taken..].len() - bytes[taken..].trim_ascii_start().len();
            let (read, rest) = bytes.split_at(taken + blank);
            self.keep(read);
            if rest.is_empty() {
                return;
            }
            if !self.skimmer.closed() {
                // Words are text, and what they speak of is no document.
                self.skimmer.give_up();
                self.keep(rest);
                return;
            }
            bytes = rest;
            self.several = true;
            self.end_document(b"");
        }
    }

    /// Keeps bytes in which nothing was found yet.
    #[inline]
    fn keep(&mut self, bytes: &[u8]) {
        if let Some(sample) = &mut self.sample
            && !self.capture.found()
        {
            sample.push(bytes);
        }
    }

    /// The document at hand is over; its event has this name.
    fn end_document(&mut self, name: &[u8]) {
        let mut ruled = Ruled { format: &self.format, capture: &mut self.capture };
        self.skimmer.end(&mut ruled);
        let whole = self.over || self.skimmer.done() || self.skimmer.untouched();
        let void = self.skimmer.gave_up() || !whole;
        let cut = self.skimmer.unfinished().filter(|_| void);
        let cut = cut.is_some_and(|(node, raw)| Capture::would_find(&self.format, node, raw));
        let found = cut || self.capture.found();
        let keeps = found && !void && self.capture.has_found();
        if void {
            self.capture.roll_back();
        }
        if keeps {
            self.sample = None;
        } else if let Some(sample) = &mut self.sample {
            sample.end(found);
        }
        // Half an event is none that was seen.
        if !self.skimmer.done() {
            self.capture.cut(&self.format);
        }
        let empty = self.skimmer.untouched() && name.is_empty();
        if self.done.replace(0) == Some(DONE.len())
            || matches!(name, b"end" | b"done")
            || (empty && self.capture.ended())
        {
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
                    let (plain, sound) = self.unwrapper.feed(piece, &self.format.wrapped);
                    self.document(&plain);
                    if !sound {
                        self.skimmer.give_up();
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
