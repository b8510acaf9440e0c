//! Passing over what nobody wants: brackets are counted (a number, not a stack, so depth costs nothing) and strings are
//! searched for their end.

use memchr::memchr2;

/// Where it stands within an object or array that nobody wants. By default, just after its opening bracket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passing {
    open: u64,
    within: Within,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    Brackets,
    String,
    /// Just after a backslash.
    Escape,
}

impl Default for Passing {
    fn default() -> Self {
        Self { open: 1, within: Within::Brackets }
    }
}

impl Passing {
    /// Looks at the bytes from `at` on; says up to where it took them, and whether the closing bracket was there.
    pub(super) fn feed(&mut self, bytes: &[u8], mut at: usize) -> (usize, bool) {
        if self.within == Within::Escape && at < bytes.len() {
            at += 1;
            self.within = Within::String;
        }
        if self.within == Within::String {
            at = self.string(bytes, at);
        }
        while self.within == Within::Brackets && at < bytes.len() {
            at += dull_run(&bytes[at..]);
            let Some(&byte) = bytes.get(at) else { break };
            at += 1;
            match byte {
                b'"' => {
                    self.within = Within::String;
                    at = self.string(bytes, at);
                }
                b'{' | b'[' => self.open += 1,
                b'}' | b']' => {
                    self.open -= 1;
                    if self.open == 0 {
                        return (at, true);
                    }
                }
                _ => {}
            }
        }
        (at, false)
    }

    fn string(&mut self, bytes: &[u8], mut at: usize) -> usize {
        loop {
            at += plain_run(&bytes[at..]);
            match bytes.get(at) {
                Some(b'"') => {
                    self.within = Within::Brackets;
                    return at + 1;
                }
                Some(_) if at + 1 < bytes.len() => at += 2,
                Some(_) => {
                    self.within = Within::Escape;
                    return at + 1;
                }
                None => return at,
            }
        }
    }
}

/// How many bytes at the start are certainly neither quotes nor brackets, a word at a time: an embedding is a
/// megabyte of numbers.
#[inline]
fn dull_run(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        // `[` and `]` differ from `{` and `}` in this bit alone.
        let lower = word | (ONES * 0x20);
        let ends = has_zero(word ^ (ONES * 0x22))
            | has_zero(lower ^ (ONES * 0x7b))
            | has_zero(lower ^ (ONES * 0x7d));
        if ends != 0 {
            return at + (ends.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// A high bit for each byte that is zero. The lowest one is exact: a borrow can only spoil bytes above a real match.
#[inline(always)]
fn has_zero(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & (ONES << 7)
}

/// The bytes before the next quote or backslash, or all. Most strings of an answer are short, so the first ones
/// are searched a word at a time, and only what is longer pays for the call.
#[inline(always)]
pub(super) fn plain_run(bytes: &[u8]) -> usize {
    let mut at = 0;
    while at < 32 {
        let Some(word) = bytes[at..].first_chunk::<8>() else {
            let rest = &bytes[at..];
            let end = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
            return at + end.unwrap_or(rest.len());
        };
        let word = u64::from_le_bytes(*word);
        let ends = has_zero(word ^ (ONES * 0x22)) | has_zero(word ^ (ONES * 0x5c));
        if ends != 0 {
            return at + (ends.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at + memchr2(b'"', b'\\', &bytes[at..]).unwrap_or(bytes.len() - at)
}
