//! The last resort: an answer in which the format's rules found neither usage nor text.
//!
//! 1. As long as nothing was found the documents' first bytes are kept ([`Sample`], at most [`LIMIT`]); the first usage
//!    or text drops them, so that known formats pay nothing.
//! 2. At the end they are looked through: strings under keys that commonly hold text ([`is_text_key`]), at any depth,
//!    are the answer's text. It is said of the row that they were guessed.
//! 3. Where other strings look like more text than these, or there are none, nothing is believed: the answer's shape
//!    (names of keys and kinds of values, never a value) is what a rule can be written from.
//! 4. The sample may be cut short anywhere, and need be no JSON: words in an event stream are text.

use std::fmt::Write as _;

use super::growth::{Growth, Retold};
use super::pointer::Tree;
use super::text::{Buffer, Text};
use super::texts::{is_beside_key, is_text_key, looks_like_text, reads_like_text};

/// How much of an answer is kept.
const LIMIT: usize = 64 << 10;
/// Ends a document of the sample. No JSON has it unescaped (RFC 8259, section 7).
const END: u8 = 0x1e;

/// The first bytes of an answer's documents.
#[derive(Debug, Default)]
pub(super) struct Sample {
    kept: Vec<u8>,
    seen: u64,
    /// What was kept and seen when the document at hand began.
    begin: (usize, u64),
    /// There were documents of which it has nothing.
    lost: bool,
}

impl Sample {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.seen += bytes.len() as u64;
        let room = LIMIT - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// The document at hand ends, or is `void`: what was found in it was lost again, so that its bytes are not all here.
    pub(super) fn end(&mut self, void: bool) {
        if void {
            self.kept.truncate(self.begin.0);
            self.seen = self.begin.1;
            self.lost = true;
        } else if self.kept.len() > self.begin.0 && self.kept.len() < LIMIT {
            self.kept.push(END);
            self.seen += 1;
        }
        self.begin = (self.kept.len(), self.seen);
    }

    /// Looks it through; at most `limit` bytes of text are kept.
    pub(super) fn read(&self, limit: usize) -> Found {
        let lines =
            || self.kept.split(|byte| *byte == END).map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let documents = || lines().filter(|document| !document.trim_ascii().is_empty());
        let is_json = |document: &&[u8]| {
            matches!(document.trim_ascii_start().first(), Some(b'{' | b'[')) && !is_marker(document)
        };
        let words: Vec<_> = documents().filter(|document| !is_json(document)).map(unquoted).collect();
        let apart = words_are_apart(&words);

        let mut found = Found::default();
        let mut said = Said { text: Buffer::new(limit), growth: Growth::default(), prose: 0 };
        let mut shapes: Vec<String> = Vec::new();
        let mut retold = Retold::default();
        for document in documents() {
            let mut begin = said.text.mark();
            if is_json(&document) {
                let mut walk = Walk { bytes: document, at: 0, said: &mut said, vectors: false };
                let shape = walk.value(Key::default(), 0);
                found.vectors |= walk.vectors;
                found.failed |= shape.is_failure();
                let shape = shape.to_string();
                if shapes.len() < MAX_SHAPES && !shapes.contains(&shape) {
                    shapes.push(shape);
                }
            } else if !is_marker(document) {
                if apart && !said.text.is_empty() {
                    said.text.push(b" ");
                }
                said.text.push(unquoted(document).as_bytes());
            }
            begin.forward(said.growth.commit(&mut said.text));
            if retold.is(Tree::<()>::ROOT, &said.text, begin) {
                said.text.go_back(begin);
            }
        }
        said.growth.finish(&mut said.text);
        found.empty = !self.lost && documents().all(is_marker);
        found.prose = said.prose > said.text.mark().seen_bytes;
        found.text = said.text.into_text();
        if self.seen > self.kept.len() as u64 && !self.kept.is_empty() {
            // What was not kept is as what was.
            let whole = u128::from(found.text.seen_bytes) * u128::from(self.seen) / self.kept.len() as u128;
            found.text.seen_bytes = u64::try_from(whole).unwrap_or(u64::MAX);
        }
        found.shape = shapes.join("; ");
        found
    }
}

/// What was found in a sample.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) text: Text,
    /// There is more that reads like text under names that are not known to hold it.
    pub(super) prose: bool,
    /// Lists of numbers: embeddings have no text.
    pub(super) vectors: bool,
    /// A code and a message, and nothing else: how some services report a failure.
    pub(super) failed: bool,
    /// No document says anything.
    pub(super) empty: bool,
    pub(super) shape: String,
}

/// How many documents' shapes are told, as far as they differ.
const MAX_SHAPES: usize = 3;

/// `[DONE]`, `[START]` and the like.
fn is_marker(document: &[u8]) -> bool {
    let word = document.trim_ascii();
    let word = word.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(word);
    let inner = word.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    inner.is_some_and(|inner| {
        !inner.is_empty() && inner.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'_')
    })
}

/// Whether events of plain words have lost the white space between them: none has any at its ends, and they are longer
/// than the letters of a text that comes letter by letter.
fn words_are_apart(words: &[String]) -> bool {
    let blank = |word: &String| word.starts_with(char::is_whitespace) || word.ends_with(char::is_whitespace);
    let bytes: usize = words.iter().map(|word| word.len()).sum();
    let ascii = words.iter().all(|word| word.is_ascii());
    ascii && bytes >= 2 * words.len() && !words.iter().any(blank)
}

/// A JSON string without its quotes and escapes, or the bytes as they are.
fn unquoted(document: &[u8]) -> String {
    serde_json::from_slice(document).unwrap_or_else(|_| String::from_utf8_lossy(document).into_owned())
}

/// What the walk takes for text.
struct Said {
    text: Buffer,
    growth: Growth,
    /// Bytes that read like text under other names.
    prose: u64,
}

/// The key that a value stands under, the nearest of an object above it.
#[derive(Clone, Copy, Default)]
struct Key<'a> {
    name: &'a [u8],
    /// It, or one above it, holds what stands beside an answer: its sources, or the question.
    beside: bool,
}

/// The kind of a value; of an object, its members' too.
#[derive(Debug)]
enum Kind<'a> {
    String(&'a [u8]),
    Number(&'a [u8]),
    Bool,
    Null,
    List(Option<Box<Kind<'a>>>),
    Object(Vec<(String, Kind<'a>)>),
    /// Below what is looked at, or cut off.
    More,
}

/// Walks over JSON that may be cut short or broken, without building it.
struct Walk<'a, 's> {
    bytes: &'a [u8],
    at: usize,
    said: &'s mut Said,
    vectors: bool,
}

/// How deep it goes, and how many members of an object or elements of a list are told of in a shape.
const MAX_DEPTH: usize = 32;
const MAX_MEMBERS: usize = 24;
/// A list of so many numbers is a vector.
const VECTOR: usize = 16;

impl<'a> Walk<'a, '_> {
    fn peek(&mut self) -> Option<u8> {
        let blank = self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.at += blank;
        self.bytes.get(self.at).copied()
    }

    fn value(&mut self, key: Key<'a>, depth: usize) -> Kind<'a> {
        match self.peek() {
            Some(b'{' | b'[') if depth == MAX_DEPTH => {
                self.pass_over();
                Kind::More
            }
            Some(b'{') => self.object(key, depth),
            Some(b'[') => self.list(key, depth),
            Some(b'"') => {
                let string = self.string();
                self.take(key, string);
                Kind::String(string)
            }
            Some(_) => self.scalar(),
            None => Kind::More,
        }
    }

    fn object(&mut self, above: Key<'a>, depth: usize) -> Kind<'a> {
        self.at += 1;
        let mut members = Vec::new();
        let mark = (self.said.text.mark(), self.said.prose);
        let mut asked = false;
        loop {
            match self.peek() {
                Some(b'}') => {
                    self.at += 1;
                    break;
                }
                Some(b'"') => {
                    let name = self.string();
                    if self.peek() != Some(b':') {
                        break;
                    }
                    self.at += 1;
                    let beside = above.beside || is_beside_key(name);
                    let kind = self.value(Key { name, beside }, depth + 1);
                    asked |= is_role_key(name) && matches!(kind, Kind::String(role) if is_askers_role(role));
                    if members.len() < MAX_MEMBERS {
                        members.push((shown(name), kind));
                    }
                }
                Some(_) => self.at += 1,
                None => break,
            }
        }
        if asked {
            // What the client said is no part of the answer.
            self.said.text.go_back(mark.0);
            self.said.growth.forget(|_| true);
            self.said.prose = mark.1;
        }
        Kind::Object(members)
    }

    fn list(&mut self, key: Key<'a>, depth: usize) -> Kind<'a> {
        self.at += 1;
        let mut first = None;
        let mut numbers = 0;
        loop {
            match self.peek() {
                Some(b']') => {
                    self.at += 1;
                    break;
                }
                Some(b',') => self.at += 1,
                Some(b'}') | None => break,
                Some(_) => {
                    let kind = self.value(key, depth + 1);
                    numbers += usize::from(matches!(kind, Kind::Number(_)));
                    self.vectors |= numbers == VECTOR;
                    first = first.or_else(|| Some(Box::new(kind)));
                }
            }
        }
        Kind::List(first)
    }

    /// The string at hand, as it is written.
    fn string(&mut self) -> &'a [u8] {
        let begin = self.at + 1;
        let mut at = begin;
        while let Some(byte) = self.bytes.get(at) {
            match byte {
                b'"' => break,
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        let end = at.min(self.bytes.len());
        self.at = (end + 1).min(self.bytes.len());
        self.bytes.get(begin..end).unwrap_or_default()
    }

    fn scalar(&mut self) -> Kind<'a> {
        let rest = &self.bytes[self.at..];
        let ends = |byte: &u8| {
            matches!(byte, b',' | b'}' | b']' | b'{' | b'[' | b'"' | b':') || byte.is_ascii_whitespace()
        };
        // A byte that can begin nothing is passed over.
        let length = rest.iter().position(ends).unwrap_or(rest.len()).max(1);
        self.at += length;
        match &rest[..length] {
            b"true" | b"false" => Kind::Bool,
            b"null" => Kind::Null,
            number => Kind::Number(number),
        }
    }

    /// Passes over an object or list and all that is in it.
    fn pass_over(&mut self) {
        let mut open = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => _ = self.string(),
                b'{' | b'[' => {
                    open += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    open -= 1;
                    self.at += 1;
                    if open == 0 {
                        return;
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    fn take(&mut self, key: Key<'_>, string: &[u8]) {
        if key.beside || string.is_empty() {
            return;
        }
        let quoted = [b"\"", string, b"\""].concat();
        let string = serde_json::from_slice::<String>(&quoted)
            .unwrap_or_else(|_| String::from_utf8_lossy(string).into_owned());
        match is_text_key(key.name) {
            Some(place) if looks_like_text(&string) => {
                let place = self.said.growth.begin(place, &self.said.text);
                self.said.growth.push(place, string.as_bytes(), &mut self.said.text);
            }
            None if reads_like_text(&string) => self.said.prose += string.len() as u64,
            _ => {}
        }
        self.vectors |= key.name.eq_ignore_ascii_case(b"embedding");
    }
}

/// Keys that say whose words an object holds, and the values that say that they are the client's.
fn is_role_key(name: &[u8]) -> bool {
    [&b"role"[..], b"type", b"sender", b"author", b"from"].contains(&name)
}

fn is_askers_role(value: &[u8]) -> bool {
    [&b"user"[..], b"human", b"system", b"developer", b"tool"]
        .iter()
        .any(|role| value.eq_ignore_ascii_case(role))
}

/// A key as it is shown: one that is no name may be a value.
fn shown(name: &[u8]) -> String {
    let is_name = !name.is_empty()
        && name.len() <= 40
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'$' | b'@'))
        && name.iter().filter(|byte| byte.is_ascii_digit()).count() <= 4;
    if is_name { String::from_utf8_lossy(name).into_owned() } else { "…".to_owned() }
}

impl Kind<'_> {
    /// `{code: "DataInspectionFailed", message: …, request_id: …}`: a code that says that something went wrong, a message
    /// about it, and nothing that could be an answer.
    fn is_failure(&self) -> bool {
        let Kind::Object(members) = self else { return false };
        let of = |names: &[&str]| {
            members.iter().find(|(name, _)| names.contains(&name.as_str())).map(|(_, kind)| kind)
        };
        let code = match of(&["code", "error_code", "errorCode", "errcode"]) {
            Some(Kind::Number(number)) => !matches!(number, [b'0'] | [b'2', _, _]),
            Some(Kind::String(code)) => !is_well(code) && !code.iter().any(u8::is_ascii_whitespace),
            _ => false,
        };
        let message = match of(&["message", "msg", "error_msg", "errmsg", "detail"]) {
            Some(Kind::String(message)) => !is_well(message),
            _ => false,
        };
        let nothing = |kind: &Kind<'_>| !matches!(kind, Kind::List(Some(_)) | Kind::Object(_) | Kind::More);
        code && message && members.iter().all(|(_, kind)| nothing(kind))
    }
}

/// A word that says that nothing went wrong.
fn is_well(word: &[u8]) -> bool {
    [&b""[..], b"0", b"200", b"ok", b"success"].iter().any(|well| word.eq_ignore_ascii_case(well))
}

/// How long a shape may be.
const MAX_SHAPE: usize = 400;

impl std::fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shape = String::new();
        self.write(&mut shape);
        if shape.len() > MAX_SHAPE {
            let end = (0..=MAX_SHAPE).rev().find(|end| shape.is_char_boundary(*end)).unwrap_or(0);
            shape.truncate(end);
            shape.push('…');
        }
        f.write_str(&shape)
    }
}

impl Kind<'_> {
    fn write(&self, to: &mut String) {
        if to.len() > MAX_SHAPE {
            return;
        }
        match self {
            Kind::String(_) => to.push_str("string"),
            Kind::Number(_) => to.push_str("number"),
            Kind::Bool => to.push_str("bool"),
            Kind::Null => to.push_str("null"),
            Kind::More => to.push('…'),
            Kind::List(None) => to.push_str("[]"),
            Kind::List(Some(first)) => {
                to.push('[');
                first.write(to);
                to.push(']');
            }
            Kind::Object(members) => {
                to.push('{');
                for (place, (name, kind)) in members.iter().enumerate() {
                    let comma = if place > 0 { ", " } else { "" };
                    let _ = write!(to, "{comma}{name}: ");
                    kind.write(to);
                }
                to.push('}');
            }
        }
    }
}
