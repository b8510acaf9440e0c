//! The last resort: text in a JSON body of which no rule says where its text stands.
//!
//! 1. A string counts where its key commonly holds text, at any depth, and where it doesn't look like an id, a URL or
//!    base64. Below a key that holds values of the application's own (`arguments`, `variables`) what reads like prose
//!    counts, whatever its key.
//! 2. Where there is prose and none of it counts, the body's shape is told: its keys, never its values.
//! 3. The body is walked once, and nothing is held but the text and the shape, both bounded.
//!
//! Where the keys come from: the requests of deep-chat, n8n, LangGraph, Flowise, Dify, Chatwoot, Botpress, Rasa, RAGFlow,
//! Coze, Gradio, A2A, MCP, Copilot Studio, Amazon Lex and Dialogflow (`builtin/widgets.rs` names their pages), and what
//! services of one's own call the same things.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::key::Key;
use super::text::{Buffer, Text};

/// What a body holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The strings under keys that commonly hold text.
    pub(super) text: Text,
    /// The names of the body's keys, where there is prose in it, but none that counts.
    pub(super) shape: Option<String>,
}

/// Walks `body`, which is valid JSON.
pub(super) fn read(body: &str, text_limit: usize) -> Found {
    let mut walk = Walk { text: Buffer::new(text_limit), unread: false, shape: Shape::default() };
    let seed = Place { walk: &mut walk, under: Under::Root, depth: 0, shown: true };
    // It was read before; what is not valid after all ends the walk, and what was found stands.
    let _ = seed.deserialize(&mut serde_json::Deserializer::from_str(body));
    let shape = (walk.unread && walk.text.is_empty()).then_some(walk.shape.text);
    Found { text: walk.text.into_text(), shape }
}

/// What a key says of the value below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Under {
    /// It commonly holds text.
    Text,
    /// It holds values of the application's own: some are text.
    Values,
    /// It holds no text: an id, a name, a place, a kind.
    NoText,
    /// Nobody knows.
    Unknown,
    /// There is no key: the whole body, or a list that is.
    Root,
}

/// Last words of keys that commonly hold text (`userMessage`, `input_text`).
const TEXT: &[&str] = &[
    "answer",
    "ask",
    "body",
    "comment",
    "completion",
    "content",
    "contents",
    "context",
    "dialog",
    "dialogue",
    "document",
    "documents",
    "history",
    "input",
    "instruction",
    "instructions",
    "message",
    "messages",
    "msg",
    "paragraph",
    "part",
    "parts",
    "passage",
    "passages",
    "phrase",
    "preamble",
    "prompt",
    "prompts",
    "q",
    "queries",
    "query",
    "question",
    "questions",
    "reply",
    "response",
    "sentence",
    "sentences",
    "speech",
    "system",
    "text",
    "texts",
    "transcript",
    "transcription",
    "turn",
    "turns",
    "utterance",
    "utterances",
];

/// Ends of keys that are written as one word (`chatinput`).
const TEXT_ENDS: &[&str] =
    &["input", "message", "prompt", "query", "question", "text", "transcript", "utterance"];

/// Last words of keys that hold values of the application's own.
const VALUES: &[&str] = &[
    "args",
    "arguments",
    "data",
    "fields",
    "form",
    "inputs",
    "kwargs",
    "parameters",
    "slots",
    "values",
    "variables",
];

/// Last words of keys that hold no text.
const NO_TEXT: &[&str] = &[
    "address",
    "agent",
    "audio",
    "author",
    "avatar",
    "browser",
    "city",
    "company",
    "country",
    "date",
    "device",
    "email",
    "encoding",
    "fingerprint",
    "format",
    "hash",
    "href",
    "id",
    "ids",
    "image",
    "images",
    "ip",
    "key",
    "kind",
    "lang",
    "language",
    "locale",
    "mail",
    "method",
    "mode",
    "model",
    "name",
    "os",
    "page",
    "path",
    "phone",
    "platform",
    "provider",
    "referer",
    "referrer",
    "region",
    "role",
    "secret",
    "signature",
    "src",
    "status",
    "time",
    "timestamp",
    "timezone",
    "title",
    "token",
    "type",
    "tz",
    "ua",
    "uri",
    "url",
    "username",
    "uuid",
    "version",
    "video",
];

/// What `key` says, by its last word: `chatInput`, `input_text` and `INPUT` hold text, `messageId` does not.
pub(super) fn key_holds(key: &str) -> Under {
    let lower = key.to_ascii_lowercase();
    let last = last_word(key).to_ascii_lowercase();
    let among = |words: &[&str]| words.binary_search(&last.as_str()).is_ok();
    if among(NO_TEXT) {
        Under::NoText
    } else if among(VALUES) {
        Under::Values
    } else if among(TEXT) || TEXT_ENDS.iter().any(|end| lower.ends_with(end)) {
        Under::Text
    } else {
        Under::Unknown
    }
}

/// The last word of a name in camel case, snake case or the like.
fn last_word(key: &str) -> &str {
    let bytes = key.as_bytes();
    let starts = |at: usize| {
        let (before, here) = (bytes[at - 1], bytes[at]);
        !before.is_ascii_alphanumeric() || (before.is_ascii_lowercase() && here.is_ascii_uppercase())
    };
    let start = (1..key.len()).rev().find(|at| key.is_char_boundary(*at) && starts(*at));
    &key[start.unwrap_or(0)..]
}

/// Whether a string holds no words, wherever it stands: a `data:` URL, an image or a sound in base64, or a GraphQL
/// document, whose words are its variables.
pub(super) fn is_no_words(value: &str) -> bool {
    is_data_url(value) || is_media(value) || is_graphql(value)
}

/// How base64 of a file begins: PNG, JPEG, GIF, RIFF (WebP, WAV), PDF, MP3, Ogg, FLAC, ZIP.
const MEDIA: &[&str] =
    &["iVBORw0K", "/9j/", "R0lGOD", "UklGR", "JVBERi0", "SUQz", "//uQ", "//vQ", "T2dnU", "ZkxhQ", "UEsDB"];

fn is_media(value: &str) -> bool {
    MEDIA.iter().any(|start| value.starts_with(start)) && is_base64(value)
}

fn is_data_url(value: &str) -> bool {
    value.starts_with("data:")
        && value.as_bytes()[..value.len().min(256)].contains(&b',')
        && !value[5..].starts_with(' ')
}

/// Shorter than this it may be a word.
const BASE64_AT_LEAST: usize = 80;

/// Base64 of either alphabet, perhaps in lines (RFC 4648, RFC 2045). Looked at only as far as it takes to see a space,
/// or that there is none for long.
fn is_base64(value: &str) -> bool {
    const LOOK_AT: usize = 4096;
    if value.len() < BASE64_AT_LEAST {
        return false;
    }
    let start = &value.as_bytes()[..value.len().min(LOOK_AT)];
    let first_line = start.iter().position(|byte| *byte == b'\n').unwrap_or(start.len());
    let (mut digits, mut upper, mut lower) = (false, false, false);
    let plain = start.iter().all(|byte| {
        digits |= byte.is_ascii_digit();
        upper |= byte.is_ascii_uppercase();
        lower |= byte.is_ascii_lowercase();
        byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=' | b'\r' | b'\n')
    });
    plain && digits && upper && lower && first_line >= 60
}

/// `query`, `mutation` or `subscription`, perhaps a name, and a brace or a parenthesis (GraphQL specification, 2.3).
fn is_graphql(value: &str) -> bool {
    let value = value.trim_ascii();
    let operations = ["query", "mutation", "subscription"];
    let Some(rest) = operations.iter().find_map(|word| value.strip_prefix(word)) else { return false };
    let rest = rest.trim_start().trim_start_matches(|char: char| char.is_ascii_alphanumeric() || char == '_');
    rest.trim_start().starts_with(['{', '(']) && value.ends_with('}')
}

/// Whether a string under a key that commonly holds text is text: no id, no URL, no base64.
fn is_text(value: &str) -> bool {
    !value.is_empty() && !is_no_words(value) && !is_base64(value) && !is_url(value) && !is_id(value)
}

fn is_url(value: &str) -> bool {
    let scheme = value.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        && !value.contains(char::is_whitespace)
}

/// A UUID, a hash, a number, a timestamp: no letter beyond `f`, or digits and letters in one long word.
fn is_id(value: &str) -> bool {
    let word =
        value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':' | b'.'));
    let digits = value.bytes().filter(u8::is_ascii_digit).count();
    word && value.len() >= 12 && digits * 5 >= value.len()
}

/// Whether it reads like prose, whatever its key.
fn is_prose(value: &str) -> bool {
    const AT_LEAST: usize = 16;
    let words = value.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic)).take(3).count();
    let foreign = value.chars().filter(|char| !char.is_ascii() && char.is_alphabetic()).take(6).count();
    value.len() >= AT_LEAST
        && (words >= 3 || foreign >= 6)
        && is_text(value)
        && !value.starts_with("Mozilla/")
}

struct Walk {
    text: Buffer,
    /// There is prose that didn't count.
    unread: bool,
    shape: Shape,
}

impl Walk {
    fn string(&mut self, value: &str, under: Under) {
        let counts = match under {
            Under::Text => is_text(value),
            Under::Values | Under::Root => is_prose(value),
            Under::NoText | Under::Unknown => false,
        };
        if counts {
            self.text.cut(b"\n");
            self.text.push(value.as_bytes());
        } else if under == Under::Unknown && !self.unread {
            self.unread = is_prose(value);
        }
    }
}

/// A body's keys, as they are told to the operator: `{sessionId: string, items: [{words: string}]}`.
#[derive(Debug, Default)]
struct Shape {
    text: String,
}

impl Shape {
    const MAX_BYTES: usize = 512;
    const MAX_DEPTH: usize = 5;
    const MAX_KEYS: usize = 24;

    fn is_full(&self) -> bool {
        self.text.len() >= Self::MAX_BYTES
    }

    fn push(&mut self, part: &str) {
        self.text.push_str(part);
    }
}

/// A key that could be a value (a user's id, an address) is not told.
fn told(key: &str) -> &str {
    let plain = key.len() <= 40
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'$'))
        && key.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
        && key.bytes().filter(u8::is_ascii_digit).count() < 5;
    if plain { key } else { "…" }
}

struct Place<'w> {
    walk: &'w mut Walk,
    under: Under,
    depth: usize,
    /// Whether this place belongs to the shape.
    shown: bool,
}

impl Place<'_> {
    fn show(&mut self, part: &str) {
        if self.shown {
            self.walk.shape.push(part);
        }
    }

    /// Whether what is below belongs to the shape, too.
    fn shows_more(&self) -> bool {
        self.shown && self.depth < Shape::MAX_DEPTH && !self.walk.shape.is_full()
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<(), E> {
        self.show("string");
        self.walk.string(value, self.under);
        Ok(())
    }

    fn visit_u64<E: Error>(mut self, _: u64) -> Result<(), E> {
        self.show("number");
        Ok(())
    }

    fn visit_i64<E: Error>(mut self, _: i64) -> Result<(), E> {
        self.show("number");
        Ok(())
    }

    fn visit_f64<E: Error>(mut self, _: f64) -> Result<(), E> {
        self.show("number");
        Ok(())
    }

    fn visit_bool<E: Error>(mut self, _: bool) -> Result<(), E> {
        self.show("bool");
        Ok(())
    }

    fn visit_unit<E: Error>(mut self) -> Result<(), E> {
        self.show("null");
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        let mut shown = self.shows_more();
        self.show(if shown { "[" } else { "[…" });
        while let Some(()) = seq.next_element_seed(Place {
            walk: &mut *self.walk,
            under: self.under,
            depth: self.depth + 1,
            shown,
        })? {
            // The first stands for all.
            shown = false;
        }
        self.show("]");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let opened = self.shows_more();
        self.show(if opened { "{" } else { "{…" });
        let mut keys = 0;
        while let Some(key) = map.next_key_seed(Key)? {
            let under = match (key_holds(&key), self.under) {
                // Within what holds text, or values, a name that nobody knows is one of theirs.
                (Under::Unknown, Under::Text | Under::Values) => Under::Values,
                (own, _) => own,
            };
            let shown = opened && keys < Shape::MAX_KEYS && !self.walk.shape.is_full();
            if shown {
                self.walk.shape.push(if keys == 0 { "" } else { ", " });
                self.walk.shape.push(told(&key));
                self.walk.shape.push(": ");
            } else if opened && keys == Shape::MAX_KEYS {
                self.walk.shape.push(", …");
            }
            keys += 1;
            if under == Under::NoText && !shown {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            map.next_value_seed(Place { walk: &mut *self.walk, under, depth: self.depth + 1, shown })?;
        }
        self.show("}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_in_order_as_their_search_needs() {
        for list in [TEXT, VALUES, NO_TEXT] {
            assert!(list.is_sorted(), "{list:?}");
        }
    }

    #[test]
    fn a_key_is_known_by_its_last_word() {
        for (key, holds) in [
            ("text", Under::Text),
            ("chatInput", Under::Text),
            ("chatinput", Under::Text),
            ("user_message", Under::Text),
            ("INPUT", Under::Text),
            ("system-prompt", Under::Text),
            ("messageId", Under::NoText),
            ("text_type", Under::NoText),
            ("id", Under::NoText),
            ("variables", Under::Values),
            ("toolArgs", Under::Values),
            ("utterance_of_visitor", Under::Unknown),
            ("größe", Under::Unknown),
            ("", Under::Unknown),
        ] {
            assert_eq!(key_holds(key), holds, "{key}");
        }
    }

    #[test]
    fn what_holds_no_words_is_known_by_its_look() {
        for words in
            ["Hello", "query the database {please}", "data: 1, 2, 3", "a".repeat(200).as_str(), "{\"a\": 1}"]
        {
            assert!(!is_no_words(words), "{words}");
        }
        for none in [
            "data:image/png;base64,iVBORw0KGgo=",
            "query Q($a: Int) { b(a: $a) }",
            "query {\n viewer { login }\n}",
            "JVBERi0xLjcKJcOkw7zDtsOfCjIgMCBvYmoKPDwvTGVuZ3RoIDMgMCBSL0ZpbHRlci9GbGF0ZURlY29k\r\nZT4+CnN0cmVhbQp4nD2OywoCMQxF9/MVWbtwJmlnOi2UgoI",
        ] {
            assert!(is_no_words(none), "{none}");
        }
    }
}
