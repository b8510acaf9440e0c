//! Which form an answer's body has. Its first bytes decide, whatever its type says: services label JSON and event
//! streams as `text/html`, `application/octet-stream`, or not at all. The type decides where they show nothing.

use memchr::memchr;
use smallvec::SmallVec;

use super::events::{EventStream, Lines};
use super::frames::Frames;
use super::markup::Markup;

/// The form of an answer's body.
#[derive(Debug)]
pub(super) enum Form {
    /// Not known yet: more of its first bytes are needed.
    Unknown(Start),
    Json,
    Events(EventStream),
    Lines(Lines),
    Frames(Box<Frames>),
    Text,
    /// HTML or XML, whose text stands between tags.
    Markup(Box<Markup>),
    /// An image, audio, or other bytes that hold no text.
    Opaque,
    /// Text in UTF-16 or UTF-32, which is not read.
    Unreadable,
}

/// What the type says of a body whose first bytes are not here yet, or show nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    Json,
    Events,
    Lines,
    /// AWS's binary event stream.
    Frames,
    Text,
    Markup,
    /// Images, audio, video.
    Media,
    Nothing,
}

/// The first bytes of a body whose form they don't show yet.
#[derive(Debug)]
pub(super) struct Start {
    typed: Typed,
    /// White space before everything else, which some services send to keep a connection open; no more of it than
    /// [`MAX_BLANK`], for the rest is of no use.
    blank: SmallVec<[u8; 16]>,
    /// Bytes of a byte order mark seen, as long as it can still become one.
    bom: Option<u8>,
    head: SmallVec<[u8; 16]>,
}

/// UTF-8's byte order mark.
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];
const MAX_BLANK: usize = 256;
/// How many bytes show whether a body is text.
const ENOUGH: usize = 16;
/// How many bytes of comments may stand before the first field of an event stream that is called a text.
const MAX_HEAD: usize = 512;

impl Start {
    pub(super) fn new(typed: Typed) -> Self {
        Self { typed, blank: SmallVec::new(), bom: Some(0), head: SmallVec::new() }
    }

    /// What the type says.
    pub(super) fn typed(&self) -> Typed {
        self.typed
    }

    /// Looks at the next bytes, and says how many it took, and what form they show if they do.
    pub(super) fn look(&mut self, bytes: &[u8]) -> (usize, Option<Form>) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at).filter(|_| self.head.is_empty()) {
            if !self.is_blank(byte) {
                break;
            }
            at += 1;
        }
        let take = (bytes.len() - at).min(MAX_HEAD - self.head.len());
        self.head.extend_from_slice(&bytes[at..at + take]);
        (at + take, recognise(&self.head, self.typed))
    }

    fn is_blank(&mut self, byte: u8) -> bool {
        match self.bom.take() {
            Some(seen) if byte == BOM[usize::from(seen)] => {
                self.bom = (seen < 2).then_some(seen + 1);
                return true;
            }
            // It was none: its bytes belong to the text.
            Some(seen) => self.head.extend_from_slice(&BOM[..usize::from(seen)]),
            None => {}
        }
        let blank = self.head.is_empty() && byte.is_ascii_whitespace();
        if blank && self.blank.len() < MAX_BLANK {
            self.blank.push(byte);
        }
        blank
    }

    /// The form that the type alone tells: the body ended before its bytes did.
    pub(super) fn form(&self) -> Form {
        by_type(&self.head, self.typed)
    }

    /// The white space before the first bytes, and these.
    pub(super) fn into_bytes(self) -> (SmallVec<[u8; 16]>, SmallVec<[u8; 16]>) {
        (self.blank, self.head)
    }
}

/// The form that the type of a body tells.
pub(super) fn form(content_type: Option<&[u8]>) -> Form {
    let essence = content_type.and_then(|value| value.split(|byte| *byte == b';').next()).unwrap_or_default();
    let essence = essence.trim_ascii().to_ascii_lowercase();
    let has = |part: &str| memchr::memmem::find(&essence, part.as_bytes()).is_some();
    let begins = |part: &str| essence.starts_with(part.as_bytes());
    let typed = match &essence[..] {
        b"application/json" => Typed::Json,
        b"text/event-stream" => Typed::Events,
        b"application/vnd.amazon.eventstream" => Typed::Frames,
        _ if ["ndjson", "jsonl", "stream+json", "json-stream", "json-seq"].into_iter().any(has) => {
            Typed::Lines
        }
        _ if has("json") => Typed::Json,
        _ if ["image/", "audio/", "video/", "font/"].into_iter().any(begins) => Typed::Media,
        _ if has("html") || has("xml") => Typed::Markup,
        _ if begins("text/") => Typed::Text,
        _ => Typed::Nothing,
    };
    Form::Unknown(Start::new(typed))
}

/// The form that a body's first bytes show. `None` while more of them are needed.
fn recognise(head: &[u8], typed: Typed) -> Option<Form> {
    // The length of a message, of which the highest byte is never that of a letter.
    if typed == Typed::Frames && *head.first()? < b' ' {
        return Some(by_type(head, typed));
    }
    if is_utf16(head)? {
        return Some(Form::Unreadable);
    }
    if begins_events(head, typed).or((head.len() >= MAX_HEAD).then_some(false))? {
        return Some(Form::Events(EventStream::default()));
    }
    let is_text = matches!(typed, Typed::Text | Typed::Markup);
    match head {
        _ if typed == Typed::Lines => Some(by_type(head, typed)),
        [] | [_] | [_, b':'] => None,
        // No line of an event stream begins like this.
        [b'{', b'"', ..] | [b'[', b'{' | b'"', ..] => Some(Form::Json),
        [b'{', next, ..] if next.is_ascii_whitespace() => Some(Form::Json),
        [b'{' | b'[', ..] if !is_text && typed != Typed::Media => Some(Form::Json),
        // `0:"text"`: the AI SDK's data stream.
        [code, b':', b'"' | b'{' | b'[', ..] if code.is_ascii_alphanumeric() => {
            Some(Form::Lines(Lines::new(true)))
        }
        _ if head.len() < ENOUGH && matches!(typed, Typed::Json | Typed::Nothing | Typed::Events) => None,
        _ => Some(by_type(head, typed)),
    }
}

/// The form of a body whose first bytes show neither JSON nor a stream.
fn by_type(head: &[u8], typed: Typed) -> Form {
    match typed {
        Typed::Json if is_text(head) && !begins_json(head) => Form::Text,
        Typed::Json => Form::Json,
        Typed::Lines => Form::Lines(Lines::new(false)),
        Typed::Frames => Form::Frames(Box::default()),
        Typed::Text => Form::Text,
        Typed::Markup => Form::Markup(Box::default()),
        Typed::Media => Form::Opaque,
        // Text that calls itself an event stream, and has no field of one.
        Typed::Events if begins_events(head, typed) == Some(false) && is_text(head) => Form::Text,
        Typed::Events => Form::Events(EventStream::default()),
        Typed::Nothing if is_text(head) => Form::Text,
        Typed::Nothing => Form::Opaque,
    }
}

/// Whether a JSON text may begin so: a string or a number, or a literal and nothing like a word.
fn begins_json(head: &[u8]) -> bool {
    let literal =
        |name: &[u8]| head.starts_with(name) && !head.get(name.len()).is_some_and(u8::is_ascii_graphic);
    let literals: [&[u8]; 3] = [b"true", b"false", b"null"];
    matches!(head, [] | [b'{' | b'[' | b'"' | b'-' | b'0'..=b'9', ..]) || literals.into_iter().any(literal)
}

/// A byte order mark of UTF-16 (or 32), or every other byte zero as in its ASCII. `None` while that can't be told.
fn is_utf16(head: &[u8]) -> Option<bool> {
    match head {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(true),
        [a, 0, b, 0, ..] | [0, a, 0, b, ..] => Some(a.is_ascii_graphic() && (*b == 0 || is_printed(*b))),
        [] | [_] => None,
        [a, b, ..] if *a != 0 && *b != 0 => Some(false),
        _ => (head.len() >= 4).then_some(false),
    }
}

fn is_printed(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte.is_ascii_whitespace()
}

/// UTF-8 without control characters.
fn is_text(head: &[u8]) -> bool {
    let head = &head[..head.len().min(ENOUGH)];
    let utf8 = std::str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true);
    utf8 && head.iter().all(|byte| !byte.is_ascii() || is_printed(*byte))
}

/// Whether a body begins as an event stream does. A text may begin with a colon, or be a list that begins with `id:`:
/// of what is called a text the first line that is no such thing decides. `None` while more must be seen.
fn begins_events(head: &[u8], typed: Typed) -> Option<bool> {
    let is_text = typed == Typed::Text;
    let mut rest = head;
    loop {
        let start = rest.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
        rest = &rest[start..];
        let field = [&b"data:"[..], b"event:", b"id:", b"retry:", b":"];
        match field.iter().find(|field| rest.starts_with(field)) {
            Some([b'd' | b'e', ..]) => return Some(true),
            Some(_) if !is_text => return Some(true),
            Some(_) => rest = &rest[memchr(b'\n', rest)?..],
            None if field.iter().any(|field| field.starts_with(rest)) => return None,
            None => return Some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of a body that comes in pieces of `length` bytes, in a word.
    fn name(content_type: Option<&str>, body: &[u8], length: usize) -> &'static str {
        let mut form = form(content_type.map(str::as_bytes));
        for piece in body.chunks(length) {
            if let Form::Unknown(start) = &mut form
                && let (_, Some(known)) = start.look(piece)
            {
                form = known;
            }
        }
        if let Form::Unknown(start) = &form {
            form = start.form();
        }
        match form {
            Form::Unknown(_) => "unknown",
            Form::Json => "json",
            Form::Events(_) => "events",
            Form::Lines(_) => "lines",
            Form::Frames(_) => "frames",
            Form::Text => "text",
            Form::Markup(_) => "markup",
            Form::Opaque => "opaque",
            Form::Unreadable => "unreadable",
        }
    }

    fn all_lengths(content_type: Option<&str>, body: &[u8]) -> &'static str {
        let whole = name(content_type, body, usize::MAX);
        for length in 1..=20 {
            assert_eq!(name(content_type, body, length), whole, "{content_type:?} {body:?} by {length}");
        }
        whole
    }

    const TYPES: [Option<&str>; 10] = [
        None,
        Some("application/vnd.amazon.eventstream"),
        Some(""),
        Some("text/html; charset=utf-8"),
        Some("text/plain"),
        Some("application/octet-stream"),
        Some("image/png"),
        Some("application/json"),
        Some("text/event-stream"),
        Some("application/x-whatever"),
    ];

    #[test]
    fn the_first_bytes_decide_whatever_the_type_says() {
        for content_type in TYPES {
            for blank in ["", "\n", "\u{feff}", &"\n".repeat(400), &" \r\n".repeat(9)] {
                for (start, form) in [
                    ("{\"a\": 1}", "json"),
                    ("[{\"a\": 1}]", "json"),
                    ("{\n  \"a\": 1}", "json"),
                    ("data: x\n\n", "events"),
                    ("event: a\ndata: x\n\n", "events"),
                    (": ping\n\n: ping\n\ndata: x\n\n", "events"),
                    ("id:1\nevent:result\ndata:{}\n\n", "events"),
                    ("0:\"Hello\"\n", "lines"),
                ] {
                    let body = format!("{blank}{start}");
                    assert_eq!(all_lengths(content_type, body.as_bytes()), form, "{content_type:?} {body:?}");
                }
            }
        }
    }

    #[test]
    fn words_are_text_where_no_type_says_that_they_are_something_else() {
        for (content_type, form) in [
            (None, "text"),
            (Some("application/octet-stream"), "text"),
            (Some("text/markdown"), "text"),
            (Some("text/event-stream"), "text"),
            (Some("text/html"), "markup"),
            (Some("application/json"), "text"),
            (Some("image/png"), "opaque"),
        ] {
            for text in ["Hello, what is in the box?", "Hi", "（全角の括弧）から"] {
                assert_eq!(all_lengths(content_type, text.as_bytes()), form, "{content_type:?} {text}");
            }
        }
        assert_eq!(all_lengths(Some("text/markdown"), b"\n\n{curly} words are text"), "text");
        assert_eq!(all_lengths(Some("application/x-ndjson"), b"{\"a\": 1}\n{\"a\": 2}\n"), "lines");
        assert_eq!(all_lengths(Some("application/x-ndjson"), b"\n\ndata: {\"a\": 1}\n\n"), "events");
        let message = b"\0\x21\0\x22\0\0\0\x10";
        assert_eq!(all_lengths(Some("application/vnd.amazon.eventstream"), message), "frames");
        // A list of a text is no event stream.
        assert_eq!(all_lengths(Some("text/plain"), b"id: 5\nname: box\n"), "text");
        assert_eq!(all_lengths(Some("text/plain"), b":) hello\n"), "text");
    }

    #[test]
    fn what_may_be_utf_16_is_told_by_more_than_one_byte() {
        for content_type in TYPES {
            for body in [&b":\0\0\0x"[..], b"z\0\0\0\0", b"{\0\"\0", b":\0x", b":", b"\0:\0x"] {
                all_lengths(content_type, body);
            }
        }
    }

    #[test]
    fn images_and_audio_are_opaque_and_utf_16_is_unreadable() {
        for (content_type, body) in [
            (Some("image/png"), &b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..]),
            (None, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
            (Some("application/octet-stream"), b"ID3\x04\0\0\0\0\0\x21TSSE\0\0"),
            (Some("application/pdf"), b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj"),
        ] {
            assert_eq!(all_lengths(content_type, body), "opaque", "{content_type:?}");
        }
        let wide = |text: &str| text.encode_utf16().collect::<Vec<_>>();
        let body = "{\"reply\": \"Hello\"}";
        let little: Vec<u8> = wide(body).into_iter().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = wide(body).into_iter().flat_map(u16::to_be_bytes).collect();
        let marked: Vec<u8> = [&[0xff, 0xfe][..], &little].concat();
        for content_type in [None, Some("application/json"), Some("text/plain"), Some("text/event-stream")] {
            for body in [&little, &big, &marked] {
                assert_eq!(all_lengths(content_type, body), "unreadable", "{content_type:?} {body:?}");
            }
        }
    }
}
