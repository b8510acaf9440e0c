//! Text that is kept to be counted: bounded, and forgotten as soon as it has been.

/// Text kept for counting: what was kept, and how many bytes there were in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The kept part.
    pub kept: String,
    /// Bytes of text seen, kept or not.
    pub seen_bytes: u64,
    /// Where `kept` is cut into parts that the model reads, or writes, one by one: no token spans two of them.
    pub cuts: Box<[Cut]>,
    /// What a prompt holds beside these words; `None` where there is no more.
    pub prompt: Option<Box<Prompt>>,
}

/// A part ends and the next one begins; what joins them (a line end, or nothing) is of neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of `kept` before the end of the part.
    pub end: u32,
    /// Bytes of `kept` before the beginning of the next.
    pub next: u32,
}

/// More parts than this are counted as one.
const MAX_CUTS: usize = 4096;

/// What a prompt holds beside the words of its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Messages that have a role.
    pub messages: u64,
    /// Whether one of them is the system's.
    pub system: bool,
    /// Names, and the calls of tools in earlier answers.
    pub aside: Text,
    /// The tools, as the request has them: JSON; one definition, or a list of them, a line.
    pub tools: String,
    /// Tokens that are not text: images, texts that came as ids.
    pub tokens: u64,
    /// Whether some of [`Prompt::tokens`] are a guess, such as those of an image whose size nobody knows.
    pub estimated: bool,
}

impl Text {
    /// The whole of `text`, nothing left out.
    pub fn whole(text: impl Into<String>) -> Self {
        let kept = text.into();
        Self { seen_bytes: kept.len() as u64, kept, ..Self::default() }
    }

    /// The kept parts, in order. None of them is empty.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        let ends = self.cuts.iter().map(|cut| cut.end as usize).chain([self.kept.len()]);
        let begins = [0].into_iter().chain(self.cuts.iter().map(|cut| cut.next as usize));
        // A cut at the limit may fall within a character, and then stands beyond what was kept.
        begins
            .zip(ends)
            .filter_map(|(begin, end)| self.kept.get(begin..end.min(self.kept.len())))
            .filter(|part| !part.is_empty())
    }

    /// The bytes that are kept.
    pub fn bytes(&self) -> usize {
        let beside = self.prompt.as_ref().map_or(0, |prompt| prompt.tools.len() + prompt.aside.bytes());
        self.kept.len() + self.cuts.len() * size_of::<Cut>() + beside
    }

    /// Whether there was no text at all, nor a thing in its place (an image, token ids).
    pub fn is_empty(&self) -> bool {
        self.seen_bytes == 0 && self.prompt.as_ref().is_none_or(|prompt| prompt.tokens == 0)
    }
}

/// Where a buffer stood: what to go back to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    pub(super) kept: usize,
    pub(super) seen_bytes: u64,
    cuts: usize,
}

impl Mark {
    /// So many bytes were put in before it.
    pub(super) fn forward(&mut self, bytes: usize) {
        self.kept += bytes;
        self.seen_bytes += bytes as u64;
    }
}

/// A [`Text`] in the making. Bytes, because a character may come in two chunks.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    kept: Vec<u8>,
    seen_bytes: u64,
    cuts: Vec<Cut>,
    limit: usize,
}

impl Buffer {
    /// An empty buffer that keeps at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { kept: Vec::new(), seen_bytes: 0, cuts: Vec::new(), limit }
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

    /// A part ends here; `join` stands between it and the next.
    pub(super) fn cut(&mut self, join: &[u8]) {
        if self.is_empty() {
            return;
        }
        let end = self.kept.len();
        let whole = self.seen_bytes == end as u64;
        self.push(join);
        if let (true, Ok(end), Ok(next)) = (whole, u32::try_from(end), u32::try_from(self.kept.len()))
            && self.cuts.len() < MAX_CUTS
            && self.cuts.last().is_none_or(|last| last.next < next)
        {
            self.cuts.push(Cut { end, next });
        }
    }

    /// Puts `bytes` where the kept part has `at` bytes.
    pub(super) fn insert(&mut self, at: usize, bytes: &[u8]) {
        let at = at.min(self.kept.len());
        self.kept.splice(at..at, bytes.iter().copied());
        self.kept.truncate(self.limit);
        let marks = self.cuts.iter_mut().flat_map(|cut| [&mut cut.end, &mut cut.next]);
        // A part that begins there begins with these bytes.
        marks.filter(|mark| **mark as usize > at).for_each(|mark| *mark += bytes.len() as u32);
        self.seen_bytes += bytes.len() as u64;
    }

    /// A part ended at `mark`, though more came since.
    pub(super) fn cut_at(&mut self, mark: Mark) {
        let whole = mark.seen_bytes == mark.kept as u64 && mark.kept > 0 && mark.kept < self.kept.len();
        if let (true, Ok(end)) = (whole && self.cuts.len() < MAX_CUTS, u32::try_from(mark.kept)) {
            self.cuts.insert(mark.cuts.min(self.cuts.len()), Cut { end, next: end });
        }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { kept: self.kept.len(), seen_bytes: self.seen_bytes, cuts: self.cuts.len() }
    }

    /// Forgets what came after `mark`; nothing, where the buffer went back beyond it meanwhile.
    pub(super) fn go_back(&mut self, mark: Mark) {
        if mark.seen_bytes > self.seen_bytes {
            return;
        }
        self.kept.truncate(mark.kept);
        self.cuts.truncate(mark.cuts);
        self.seen_bytes = mark.seen_bytes;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seen_bytes == 0
    }

    /// Whether nothing more is kept.
    pub(super) fn is_full(&self) -> bool {
        self.seen_bytes > self.kept.len() as u64 || self.kept.len() >= self.limit
    }

    /// The bytes kept, and how many there were in all.
    pub(super) fn so_far(&self) -> (&[u8], u64) {
        (&self.kept, self.seen_bytes)
    }

    /// Forgets the text, and gives its memory back.
    pub(super) fn forget(&mut self) {
        *self = Self::new(self.limit);
    }

    /// The buffer so far; what is pushed from now on begins anew.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.limit))
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
        Text { kept, seen_bytes: self.seen_bytes, cuts: self.cuts.into(), prompt: None }
    }
}
