//! One spelling for each id: a UUID has many, and a database's `uuid` takes them all for the same.

use std::borrow::Cow;

/// Hex digits of a UUID.
const DIGITS: usize = 32;

/// A UUID in its canonical spelling (RFC 9562, section 4: lower case, hyphenated); any other text as it is.
///
/// Read is what Postgres reads as a `uuid` (its manual, section 8.12): capitals, braces around it, hyphens after any
/// group of four digits or none at all; and the prefix `urn:uuid:`, which other readers take.
pub fn canonical(text: &str) -> Cow<'_, str> {
    match digits(text) {
        Some(digits) => {
            let spelled = hyphenated(&digits);
            if spelled == text { Cow::Borrowed(text) } else { Cow::Owned(spelled) }
        }
        None => Cow::Borrowed(text),
    }
}

/// The digits of a UUID in lower case, where the text is one.
fn digits(text: &str) -> Option<[u8; DIGITS]> {
    const URN: &str = "urn:uuid:";
    let text = match text.get(..URN.len()) {
        Some(prefix) if prefix.eq_ignore_ascii_case(URN) => &text[URN.len()..],
        _ => text,
    };
    let text = match text.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}')?,
        None => text,
    };
    let (mut digits, mut found) = ([0; DIGITS], 0);
    let mut hyphen_may_follow = false;
    for byte in text.bytes() {
        if byte == b'-' && hyphen_may_follow {
            hyphen_may_follow = false;
            continue;
        }
        if !byte.is_ascii_hexdigit() {
            return None;
        }
        *digits.get_mut(found)? = byte.to_ascii_lowercase();
        found += 1;
        hyphen_may_follow = found % 4 == 0 && found < DIGITS;
    }
    (found == DIGITS).then_some(digits)
}

fn hyphenated(digits: &[u8; DIGITS]) -> String {
    let mut text = String::with_capacity(DIGITS + 4);
    for (at, digit) in digits.iter().enumerate() {
        if matches!(at, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(char::from(*digit));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "7c42ca9b-9eab-4d04-80b3-40f10b0c54aa";

    #[test]
    fn every_spelling_of_a_uuid_is_one() {
        for spelling in [
            ID,
            "7C42CA9B-9EAB-4D04-80B3-40F10B0C54AA",
            "{7c42ca9b-9eab-4d04-80b3-40f10b0c54aa}",
            "{7C42CA9B9EAB4D0480B340F10B0C54AA}",
            "7c42ca9b9eab4d0480b340f10b0c54aa",
            "7c42-ca9b-9eab-4d04-80b3-40f1-0b0c-54aa",
            "7c42ca9b9eab-4d0480b340f10b0c-54aa",
            "urn:uuid:7c42ca9b-9eab-4d04-80b3-40f10b0c54aa",
            "URN:UUID:7c42ca9b9eab4d0480b340f10b0c54aa",
        ] {
            assert_eq!(canonical(spelling), ID, "{spelling}");
        }
        assert!(matches!(canonical(ID), Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_no_uuid_stays_as_it_is() {
        for other in [
            "",
            "tn_AB12cd",
            "Session-0001",
            "{}",
            "urn:uuid:",
            " 7C42CA9B-9EAB-4D04-80B3-40F10B0C54AA",
            "7C42CA9B-9EAB-4D04-80B3-40F10B0C54A",
            "7C42CA9B-9EAB-4D04-80B3-40F10B0C54AA0",
            "7C42CA9B-9EAB-4D04-80B3-40F10B0C54AA-",
            "-7C42CA9B-9EAB-4D04-80B3-40F10B0C54AA",
            "7C42CA9B--9EAB-4D04-80B3-40F10B0C54AA",
            "7C42C-A9B9EAB4D0480B340F10B0C54AA",
            "{7C42CA9B9EAB4D0480B340F10B0C54AA",
            "7C42CA9B9EAB4D0480B340F10B0C54AA}",
            "7C42CA9B9EAB4D0480B340F10B0C54AG",
            "7C42CA9B9EAB4D0480B340F10B0C54Aä",
            "äöüäöüäöü",
        ] {
            assert_eq!(canonical(other), other);
        }
    }
}
