//! `\\u` escapes of JSON strings (RFC 8259, section 7), a digit at a time.

/// An escape in the making, and the first half of a pair.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unicode {
    digits: u8,
    unit: u16,
    high: u16,
}

/// What a digit makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More digits are due.
    More,
    /// It is no digit.
    Bad,
    /// The escape is whole: a half that was pending and found no other half, and what the escape stands for (nothing
    /// yet, when it is a first half itself).
    Done { lone: Option<char>, char: Option<char> },
}

impl Unicode {
    /// An escape begins.
    pub(super) fn begin(&mut self) {
        self.digits = 0;
        self.unit = 0;
    }

    /// Its next digit.
    pub(super) fn digit(&mut self, byte: u8) -> Step {
        let Some(digit) = char::from(byte).to_digit(16) else { return Step::Bad };
        self.unit = self.unit << 4 | digit as u16;
        self.digits += 1;
        if self.digits < 4 {
            return Step::More;
        }
        let unit = u32::from(self.unit);
        if self.pending() && (0xdc00..0xe000).contains(&unit) {
            let high = u32::from(std::mem::take(&mut self.high)) - 0xd800;
            return Step::Done { lone: None, char: char::from_u32(0x10000 + (high << 10) + (unit - 0xdc00)) };
        }
        let lone = self.leave();
        if (0xd800..0xdc00).contains(&unit) {
            self.high = self.unit;
            return Step::Done { lone, char: None };
        }
        Step::Done { lone, char: Some(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)) }
    }

    /// Whether a first half waits for its second.
    #[inline]
    pub(super) fn pending(&self) -> bool {
        self.high != 0
    }

    /// Something else follows: a first half that waits is no character.
    #[inline]
    pub(super) fn leave(&mut self) -> Option<char> {
        (std::mem::take(&mut self.high) != 0).then_some(char::REPLACEMENT_CHARACTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(escapes: &[&str]) -> String {
        let mut unicode = Unicode::default();
        let mut text = String::new();
        for escape in escapes {
            unicode.begin();
            for byte in escape.bytes() {
                if let Step::Done { lone, char } = unicode.digit(byte) {
                    text.extend([lone, char].into_iter().flatten());
                }
            }
        }
        text.extend(unicode.leave());
        text
    }

    #[test]
    fn pairs_make_one_character_and_halves_none() {
        assert_eq!(read(&["d83d", "DE42"]), "🙂");
        assert_eq!(read(&["00fc", "d83d"]), "ü\u{fffd}");
        assert_eq!(read(&["d83d", "d83d", "de42"]), "\u{fffd}🙂");
        assert_eq!(read(&["de42"]), "\u{fffd}");
        assert_eq!(Unicode::default().digit(b'x'), Step::Bad);
    }
}
