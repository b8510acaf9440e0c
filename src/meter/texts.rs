//! Which keys commonly hold an answer's text, and which strings look like one.

/// Names whose strings are text. A key of several words (`bot_message`, `answerText`) is judged by its last one.
const TEXT: [&str; 27] = [
    "text",
    "content",
    "message",
    "msg",
    "answer",
    "response",
    "reply",
    "output",
    "outputs",
    "result",
    "completion",
    "generation",
    "delta",
    "token",
    "chunk",
    "body",
    "speech",
    "transcript",
    "markdown",
    "html",
    "say",
    "final",
    "data",
    "value",
    "parts",
    "translation",
    "summary",
];

/// Words that make of such a name another thing.
const NOT_OF: [&str; 14] = [
    "user", "human", "input", "error", "system", "debug", "log", "status", "prompt", "request", "question",
    "finish", "stop", "access",
];

/// Names below which stands what an answer was made from, or what was asked.
const BESIDE: [&str; 23] = [
    "sources",
    "source",
    "documents",
    "docs",
    "context",
    "contexts",
    "citations",
    "references",
    "metadata",
    "history",
    "question",
    "query",
    "prompt",
    "input",
    "inputs",
    "request",
    "retrieved",
    "tools",
    "chunks",
    "error",
    "errors",
    "logs",
    "trace",
];

/// Whether strings under `key` are commonly text; a number that stands for the name.
pub(super) fn is_text_key(key: &[u8]) -> Option<u16> {
    let words = words(key);
    let last = words.last()?;
    let place = TEXT.iter().position(|name| name == last)?;
    let is_other = words.iter().any(|word| NOT_OF.contains(&word.as_str()));
    // Names of several words are places of their own.
    (!is_other).then_some((place * 8 + words.len().min(7)) as u16)
}

/// Whether what stands under `key` is no part of the answer.
pub(super) fn is_beside_key(key: &[u8]) -> bool {
    let words = words(key);
    words.first().is_some_and(|first| BESIDE.contains(&first.as_str()) && words.len() <= 2)
        || words.last().is_some_and(|last| BESIDE.contains(&last.as_str()) && words.len() == 2)
}

/// The words of a key in `snake_case`, `kebab-case` or `camelCase`, in lower case.
fn words(key: &[u8]) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut lower = false;
    for char in String::from_utf8_lossy(&key[..key.len().min(64)]).chars() {
        let begins = !char.is_alphanumeric() || (char.is_uppercase() && lower);
        if begins && words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| char.is_alphanumeric()) {
            word.extend(char.to_lowercase());
        }
        lower = char.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Not a link, an id, or bytes in base64.
pub(super) fn looks_like_text(string: &str) -> bool {
    const LONG: usize = 40;
    let one_word = !string.contains(char::is_whitespace);
    let link = ["http://", "https://", "data:"].iter().any(|scheme| string.starts_with(scheme));
    let is_coded =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=' | b'-' | b'_' | b'.');
    !string.trim().is_empty()
        && !(one_word && (link || (string.len() >= LONG && string.bytes().all(is_coded))))
}

/// Several words, or a sentence in a script that has no spaces.
pub(super) fn reads_like_text(string: &str) -> bool {
    let spaces = string.split_whitespace().count().saturating_sub(1);
    let other = string.chars().filter(|char| !char.is_ascii() && char.is_alphabetic()).count();
    looks_like_text(string) && (spaces >= 3 || other >= 8)
}
