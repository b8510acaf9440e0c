//! Text that is kept to be counted: bounded, and forgotten as soon as it has been.

/// Text kept for counting: what was kept, and how many bytes there were in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The kept part.
    pub kept: String,
    /// Bytes of text seen, kept or not.
    pub seen_bytes: u64,
}

impl Text {
    /// The whole of `text`, nothing left out.
    pub fn whole(text: impl Into<String>) -> Self {
        let kept = text.into();
        Self { seen_bytes: kept.len() as u64, kept }
    }

    /// Whether there was no text at all.
    pub fn is_empty(&self) -> bool {
        self.seen_bytes == 0
    }
}

/// Where a buffer stood: what to go back to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    kept: usize,
    seen_bytes: u64,
}

/// A [`Text`] in the making. Bytes, because a character may come in two chunks.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    kept: Vec<u8>,
    seen_bytes: u64,
    limit: usize,
}

impl Buffer {
    /// An empty buffer that keeps at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), seen_bytes: 0, limit }
    }

    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) {
        // Once something was left out nothing is kept any more: what is kept is a beginning, not a sieve.
        if self.seen_bytes == self.kept.len() as u64 {
            let room = self.limit - self.kept.len();
            self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        self.seen_bytes += bytes.len() as u64;
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { kept: self.kept.len(), seen_bytes: self.seen_bytes }
    }

    pub(super) fn go_back(&mut self, mark: Mark) {
        self.kept.truncate(mark.kept);
        self.seen_bytes = mark.seen_bytes;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seen_bytes == 0
    }

    /// The bytes kept, and how many there were in all.
    pub(super) fn so_far(&self) -> (&[u8], u64) {
        (&self.kept, self.seen_bytes)
    }

    /// Forgets the text, and gives its memory back.
    pub(super) fn forget(&mut self) {
        *self = Self::new(self.limit);
    }

    pub(super) fn into_text(self) -> Text {
        let kept = String::from_utf8(self.kept).unwrap_or_else(|error| {
            // A cut at the limit, or at the end of a broken answer, may fall within a character.
            let valid = error.utf8_error().valid_up_to();
            let cut_only = error.utf8_error().error_len().is_none();
            let mut bytes = error.into_bytes();
            if cut_only {
                bytes.truncate(valid);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Text { kept, seen_bytes: self.seen_bytes }
    }
}
