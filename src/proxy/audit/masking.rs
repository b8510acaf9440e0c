//! Masking: what would tell a person or open a door is cut down to what is enough to recognise it. Pure.
//!
//! | in a text | becomes |
//! | --- | --- |
//! | an email address | `a***@example.com` |
//! | a phone or account number | `+49…67`, `…67` |
//! | a JWT, an API key, a long string of random characters | `sk-…abcd` |
//! | anything under a name such as `password` | `***` |
//! | anything under a name such as `apiKey` or `setupToken` | `sk-…abcd`, or `***` where it is short |
//!
//! What is masked stays as it is when it is masked again. Dates, UUIDs, IP addresses and words joined by hyphens are
//! left alone. It would rather mask too much than too little.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::Value;

/// Characters of random text from which on it is taken for a secret.
const RANDOM: usize = 20;
/// Characters of one word, letters and digits mixed, from which on it is taken for a secret.
const MIXED: usize = 16;
/// What begins a key, whatever follows it.
const KEY_PREFIXES: [&str; 18] = [
    "sk-",
    "sk_",
    "pk-",
    "pk_",
    "rk_",
    "whsec_",
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xapp-",
    "AKIA",
    "ASIA",
    "AIza",
    "SG.",
];

/// A value that stands under `name`, masked.
pub(crate) fn masked(name: &str, value: Value) -> Value {
    match (secrecy(name), value) {
        (_, Value::Null) => Value::Null,
        (_, Value::Bool(value)) => Value::Bool(value),
        (Secrecy::Whole, _) => Value::String(NOTHING.into()),
        (Secrecy::Key, Value::String(text)) => Value::String(key(&text)),
        (Secrecy::Key, _) => Value::String(NOTHING.into()),
        (Secrecy::None, Value::String(text)) => match mask(&text) {
            Cow::Borrowed(_) => Value::String(text),
            Cow::Owned(masked) => Value::String(masked),
        },
        (Secrecy::None, value) => value,
    }
}

/// A text with every address, number and key in it masked.
pub(crate) fn mask(text: &str) -> Cow<'_, str> {
    let mut masked = Cow::Borrowed(text);
    for pass in [emails, keys, numbers] {
        if let Some(more) = pass(&masked) {
            masked = Cow::Owned(more);
        }
    }
    masked
}

const NOTHING: &str = "***";
const ELLIPSIS: char = '…';

/// How much of what stands under a name may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secrecy {
    None,
    Key,
    Whole,
}

fn secrecy(name: &str) -> Secrecy {
    let plain: String = name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    let has = |part: &&str| plain.contains(*part);
    // A count of tokens is none.
    let token = plain.contains("token") && !plain.contains("tokens");
    if ["password", "passwd", "passphrase", "secret", "credential"].iter().any(has) {
        Secrecy::Whole
    } else if token
        || ["apikey", "accesskey", "privatekey", "authorization", "cookie", "jwt", "bearer"].iter().any(has)
    {
        Secrecy::Key
    } else {
        Secrecy::None
    }
}

/// A key: its prefix and its last four characters, or nothing of one that is short.
fn key(text: &str) -> String {
    let length = text.chars().count();
    if text == NOTHING || text.contains(ELLIPSIS) {
        return text.to_owned();
    }
    if length < MIXED {
        return NOTHING.to_owned();
    }
    let prefix =
        text.char_indices().take(7).find(|(_, c)| matches!(c, '-' | '_')).map(|(at, c)| at + c.len_utf8());
    let prefix = prefix.unwrap_or_else(|| text.char_indices().nth(3).map_or(0, |(at, _)| at));
    let last = text.char_indices().rev().nth(3).map_or(0, |(at, _)| at);
    format!("{}{ELLIPSIS}{}", &text[..prefix], &text[last..])
}

/// `text` with `found` replaced; `None` where nothing was found.
fn replace(text: &str, found: Vec<(Range<usize>, String)>) -> Option<String> {
    if found.is_empty() {
        return None;
    }
    let mut masked = String::with_capacity(text.len());
    let mut from = 0;
    for (range, instead) in found {
        masked.push_str(&text[from..range.start]);
        masked.push_str(&instead);
        from = range.end;
    }
    masked.push_str(&text[from..]);
    Some(masked)
}

fn emails(text: &str) -> Option<String> {
    let local = |c: char| c.is_alphanumeric() || "._%+-'".contains(c);
    let domain = |c: char| c.is_alphanumeric() || ".-[]:".contains(c);
    let mut found = Vec::new();
    let mut from = 0;
    let signs = text.match_indices('@').map(|(at, _)| (at, 1));
    let mut signs: Vec<_> = signs.chain(text.match_indices("%40").map(|(at, _)| (at, 3))).collect();
    signs.sort_unstable();
    for (at, length) in signs {
        let before = &text[from.min(at)..at];
        let start = before.trim_end_matches(local).len() + from.min(at);
        let named = &text[start..at];
        if named.is_empty() || !text[at + length..].starts_with(domain) {
            continue;
        }
        let mut letters = named.chars();
        let first = letters.next().filter(|_| letters.next().is_some()).map_or(String::new(), String::from);
        found.push((start..at, format!("{first}{NOTHING}")));
        from = at + length;
    }
    replace(text, found)
}

fn keys(text: &str) -> Option<String> {
    let part = |c: char| c.is_ascii_alphanumeric() || "_-+/=.~".contains(c);
    let mut found = Vec::new();
    for range in runs(text, part) {
        let run = &text[range.clone()];
        let bearer = text[..range.start].trim_end().get(..).is_some_and(|before| {
            before.len() >= 6
                && before.is_char_boundary(before.len() - 6)
                && before[before.len() - 6..].eq_ignore_ascii_case("bearer")
        });
        if is_jwt(run) || (bearer && run.len() >= 8) || is_base64(run) {
            found.push((range, whole(run)));
            continue;
        }
        let pieces = runs(run, |c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let secret = |piece: &Range<usize>| is_key(&run[piece.clone()]);
        found.extend(
            pieces
                .filter(secret)
                .map(|piece| (range.start + piece.start..range.start + piece.end, whole(&run[piece]))),
        );
    }
    replace(text, found)
}

/// A key that need not be long.
fn whole(run: &str) -> String {
    if run.chars().count() < MIXED { NOTHING.to_owned() } else { key(run) }
}

/// The ranges of characters that are all `of` a kind, as long as they get.
fn runs(text: &str, of: impl Fn(char) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(&of)?;
        at = text[start..].find(|c| !of(c)).map_or(text.len(), |length| start + length);
        Some(start..at)
    })
}

/// RFC 7519: three parts in base64url, the first of which is a JSON object.
fn is_jwt(run: &str) -> bool {
    run.starts_with("eyJ") && run.len() >= RANDOM && run.matches('.').count() >= 1
}

/// Base64 with its own two characters, which otherwise part words.
fn is_base64(run: &str) -> bool {
    let trimmed = run.trim_end_matches('=');
    let base64 = trimmed.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    base64 && trimmed.len() >= RANDOM && is_random(trimmed)
}

fn is_key(word: &str) -> bool {
    if is_uuid(word) {
        return false;
    }
    let prefixed = word.len() >= 12 && KEY_PREFIXES.iter().any(|prefix| word.starts_with(prefix));
    let mixed = |part: &str| {
        let (letters, digits) =
            (part.bytes().any(|b| b.is_ascii_alphabetic()), part.bytes().any(|b| b.is_ascii_digit()));
        let cased =
            part.bytes().any(|b| b.is_ascii_uppercase()) && part.bytes().any(|b| b.is_ascii_lowercase());
        (part.len() >= MIXED && letters && digits) || (part.len() >= 2 * MIXED && cased)
    };
    prefixed || word.split(['-', '_']).any(mixed) || (word.len() >= RANDOM && is_random(word))
}

/// Words keep to one kind of character; what a generator made changes its kind all the time.
fn is_random(text: &str) -> bool {
    let kind = |b: u8| match b {
        b'a'..=b'z' => 1,
        b'A'..=b'Z' => 2,
        b'0'..=b'9' => 3,
        _ => 0,
    };
    let changes = text.as_bytes().windows(2).filter(|pair| {
        let (one, two) = (kind(pair[0]), kind(pair[1]));
        one != 0 && two != 0 && one != two
    });
    changes.count() * 5 >= text.len()
}

/// RFC 9562: an id, which names something and opens nothing.
fn is_uuid(word: &str) -> bool {
    let groups = [8, 4, 4, 4, 12];
    let parts = word.split('-');
    word.len() == 36
        && parts.clone().count() == groups.len()
        && parts
            .zip(groups)
            .all(|(part, length)| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn numbers(text: &str) -> Option<String> {
    let part = |c: char| c.is_ascii_digit() || " \u{a0}()-./+".contains(c);
    let mut found = Vec::new();
    for range in runs(text, part) {
        let joined = text[..range.start]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ELLIPSIS);
        let run = &text[range.clone()];
        let start =
            if joined { run.find(|c: char| !c.is_ascii_digit() && c != '+').unwrap_or(run.len()) } else { 0 };
        numbers_within(run, start, range.start, &mut found);
    }
    replace(text, found)
}

/// Numbers in a run of digits and what parts them; where the whole is none, one of its words may be.
fn numbers_within(run: &str, from: usize, offset: usize, found: &mut Vec<(Range<usize>, String)>) {
    let run = &run[from..];
    let offset = offset + from;
    let Some(first) = run.find(|c: char| c.is_ascii_digit() || c == '+' || c == '(') else { return };
    let end = run.rfind(|c: char| c.is_ascii_digit()).map_or(0, |at| at + 1);
    if end <= first {
        return;
    }
    let number = &run[first..end];
    if is_number(number) {
        found.push((offset + first..offset + end, masked_number(number)));
        return;
    }
    if let Some((at, space)) = number.char_indices().find(|(_, c)| matches!(c, ' ' | '\u{a0}')) {
        let rest = first + at + space.len_utf8();
        numbers_within(&run[..first + at], 0, offset, found);
        numbers_within(&run[..end], rest, offset, found);
    }
}

/// E.164 has 7 to 15 digits; cards and accounts have up to 19.
fn is_number(text: &str) -> bool {
    let groups: Vec<usize> =
        text.split(|c: char| !c.is_ascii_digit()).filter(|group| !group.is_empty()).map(str::len).collect();
    let digits: usize = groups.iter().sum();
    if !(7..=19).contains(&digits) {
        return false;
    }
    if text.starts_with('+') || text.starts_with("(+") || text.starts_with("00") {
        return true;
    }
    let dated = matches!(groups[..], [1..=2, 1..=2, 4] | [4, 1..=2, 1..=2] | [4, 2, 2, ..] | [2, 2, 4, ..]);
    let national = (text.starts_with('0') && groups[0] >= 2) || text.starts_with('(');
    (national && !dated)
        || matches!(groups[..], [9..=19] | [3, 3, 4] | [1, 3, 3, 4] | [3, 7] | [4, 4, 4, 4] | [4, 6, 5])
}

fn masked_number(text: &str) -> String {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_digit).collect();
    let last: String = digits[digits.len().saturating_sub(2)..].iter().collect();
    if text.trim_start_matches('(').starts_with('+') {
        let country: String = digits.iter().take(2).collect();
        format!("+{country}{ELLIPSIS}{last}")
    } else {
        format!("{ELLIPSIS}{last}")
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn enough_is_kept_to_recognise_it() {
        for (plain, expected) in [
            ("alice@example.com", "a***@example.com"),
            ("a@example.com", "***@example.com"),
            ("write to bob.smith+x@mail.example.org, or call", "write to b***@mail.example.org, or call"),
            ("?to=alice%40example.com", "?to=a***%40example.com"),
            ("+49 171 2345667", "+49…67"),
            ("call 030 1234567 now", "call …67 now"),
            ("(555) 123-4567", "…67"),
            ("555-123-4567", "…67"),
            ("4111 1111 1111 1111", "…11"),
            ("0301234567 0301234568", "…67 …68"),
            ("sk-proj-abcdefghijklmnopabcd", "sk-…abcd"),
            ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_…8B4a"),
            ("key=AKIAIOSFODNN7EXAMPLE;", "key=AKI…MPLE;"),
            ("d41d8cd98f00b204e9800998ecf8427e", "d41…427e"),
            ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJa…EKEY"),
            ("Bearer abcdefghij", "Bearer ***"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJ0ZW5hbnRJZCI6InRuX2EifQ.c2lnbmF0dXJl", "eyJ…dXJl"),
        ] {
            assert_eq!(mask(plain), expected);
        }
    }

    #[test]
    fn what_is_no_secret_is_left_as_it_is() {
        for plain in [
            "",
            "Opening hours 2026",
            "2026-12-31T00:00:00Z",
            "2026-12-31 10:20:30.123456+00",
            "31.12.2026",
            "01.02.2026",
            "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f",
            "192.168.100.200",
            "#1A2B3C",
            "gpt-4o-mini-2024-07-18",
            "/api/trial/kb/upload",
            "https://www.example.com/a/long/path/to/some-page-with-a-long-name.html",
            "Quarterly-Report-2024-final-version2.pdf",
            "12345",
            "0.12345678",
            "tn_ab12cd",
            "Größe: 42 €",
        ] {
            assert_eq!(mask(plain), plain);
            assert!(matches!(mask(plain), Cow::Borrowed(_)), "{plain} is not copied");
        }
    }

    #[test]
    fn what_stands_under_a_secrets_name_is_masked_whatever_it_is() {
        for (name, value, expected) in [
            ("password", json!("correct horse battery staple"), json!("***")),
            ("client_secret", json!("short"), json!("***")),
            ("setupToken", json!("st-ordinary-words-end"), json!("st-…-end")),
            ("apiKey", json!("k1"), json!("***")),
            ("api_key", json!(123), json!("***")),
            ("token", json!(null), json!(null)),
            ("total_tokens", json!("many"), json!("many")),
            ("businessName", json!("Bakery"), json!("Bakery")),
            ("email", json!("alice@example.com"), json!("a***@example.com")),
            ("days", json!(14), json!(14)),
        ] {
            assert_eq!(masked(name, value), expected, "{name}");
        }
    }

    /// Keys as generators make them: random bytes, written out. Of those in base64, one in some 30,000 changes its kind
    /// of character so seldom that it passes for words.
    fn secret() -> impl Strategy<Value = String> {
        let bytes = || prop::collection::vec(any::<u8>(), 24..48);
        let base64 = prop_oneof![
            bytes().prop_map(|bytes| URL_SAFE_NO_PAD.encode(bytes)),
            bytes().prop_map(|bytes| STANDARD.encode(bytes)),
        ];
        prop_oneof![
            2 => base64.prop_filter("it looks like words", |key| is_random(key.trim_end_matches('='))),
            1 => bytes().prop_map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            1 => "sk-[A-Za-z0-9]{16,48}",
        ]
    }

    proptest! {
        #[test]
        fn masking_again_changes_nothing(text in ".{0,80}", secret in secret(), number in "\\+[0-9]{7,15}") {
            for text in [text.clone(), format!("{text} {secret} {text}"), format!("{number} {text}a.b@c.de{text}")] {
                let once = mask(&text).into_owned();
                prop_assert_eq!(mask(&once), once.as_str());
            }
        }

        #[test]
        fn an_address_does_not_survive(before in "[a-z ,;:<(]{0,10}", local in "[a-z][a-z0-9._+-]{2,20}[a-z0-9]", after in "[ ,;>)]{0,4}") {
            let text = format!("{before} {local}@example.com{after}");
            let masked = mask(&text).into_owned();
            prop_assert!(!masked.contains(&format!("{local}@")), "{}", masked);
            prop_assert!(masked.contains("***@example.com"), "{}", masked);
        }

        #[test]
        fn a_key_does_not_survive(before in "[a-z ,:(]{0,10}", secret in secret(), after in "[ ,;)]{0,4}") {
            let masked = mask(&format!("{before} {secret}{after}")).into_owned();
            prop_assert!(!masked.contains(&secret), "{}", masked);
        }

        #[test]
        fn a_phone_number_does_not_survive(
            before in "[a-z ,:(]{0,10}", country in 1..999u16, rest in "[1-9][0-9]{6,9}", gap in "[ -]?", after in "[ ,;)]{0,4}",
        ) {
            let masked = mask(&format!("{before} +{country}{gap}{rest}{after}")).into_owned();
            prop_assert!(!masked.contains(&rest), "{}", masked);
        }

        #[test]
        fn plain_words_are_left_alone(text in "([a-z]{1,12}[ .,!?-]{1,2}){0,12}") {
            prop_assume!(!KEY_PREFIXES.iter().any(|prefix| text.contains(prefix)));
            prop_assert_eq!(mask(&text), text.as_str());
        }

        #[test]
        fn any_text_at_all_can_be_masked(name in ".{0,20}", text in ".{0,200}") {
            let _ = masked(&name, Value::String(text));
        }
    }
}
