//! Finds the wanted values of a JSON text that comes in pieces, without building it.
//!
//! 1. Any split of the bytes gives the same result: all state is in [`Skimmer`], none on the call stack.
//! 2. Memory does not depend on the text: the frames are as deep as the deepest pointer, keys and scalars have a
//!    bound, and a wanted string goes to the sink piece by piece.
//! 3. What nothing points at is only passed over: brackets are counted (a number, not a stack, so depth costs
//!    nothing) and strings are searched for their end.
//!
//! It reads JSON, it doesn't judge it: what is plainly none is given up ([`Skimmer::gave_up`]), but inside of what
//! nobody wants, anything goes. An answer isn't refused for it, so there is nobody to tell.

use smallvec::SmallVec;

use super::passing::{Passing, plain_run};
use super::pointer::{NodeId, Tree, UNWANTED};
use super::unescape::{Step, Unicode};
use super::wanted::{Sink, Wanted, want};

const MAX_KEY: usize = 256;
const MAX_SCALAR: usize = 64;
const MAX_STRING: usize = 512;

/// The bytes of numbers and literals.
const IN_SCALAR: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < u8::MAX {
        table[byte as usize] = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+');
        byte += 1;
    }
    table
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Into {
    Nothing,
    Key,
    Text,
    Short,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A value is due.
    Value,
    /// After the opening bracket of an object (or an array), of which somebody wants to know whether it is empty.
    Opened(bool),
    /// A value or the end of the array.
    FirstElement,
    /// A key is due.
    Key,
    /// A key or the end of the object.
    FirstKey,
    Colon,
    /// A comma or an end.
    After,
    String(Into),
    Escape(Into),
    Hex(Into),
    Scalar,
    PassScalar,
    /// Within what nobody wants.
    Pass,
    Done,
    GaveUp,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    node: NodeId,
    object: bool,
    index: u32,
    /// Which of the node's own keys were here, by their places, a bit each.
    seen: [u64; SEEN_WORDS],
}

const SEEN_WORDS: usize = 2;

impl Frame {
    fn new(node: NodeId, object: bool) -> Self {
        Self { node, object, index: 0, seen: [0; SEEN_WORDS] }
    }
}

/// The objects and arrays that are open, as far as they are wanted. The innermost stands apart: it is asked all the time.
#[derive(Debug)]
struct Frames {
    top: Frame,
    depth: usize,
    below: SmallVec<[Frame; 4]>,
}

impl Default for Frames {
    fn default() -> Self {
        Self { top: Frame::new(UNWANTED, false), depth: 0, below: SmallVec::new() }
    }
}

impl Frames {
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.depth == 0
    }

    #[inline(always)]
    fn last_mut(&mut self) -> Option<&mut Frame> {
        (self.depth > 0).then_some(&mut self.top)
    }

    #[inline]
    fn push(&mut self, frame: Frame) {
        if self.depth > 0 {
            self.below.push(self.top);
        }
        self.top = frame;
        self.depth += 1;
    }

    #[inline]
    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        if let Some(frame) = self.below.pop() {
            self.top = frame;
        }
    }

    fn clear(&mut self) {
        self.depth = 0;
        self.below.clear();
    }
}

/// Where it stands in a text.
#[derive(Debug)]
pub(super) struct Skimmer {
    state: State,
    frames: Frames,
    passing: Passing,
    /// The node of the value that is due or at hand.
    node: NodeId,
    /// A key, short string or scalar of which not all is here yet.
    partial: SmallVec<[u8; 32]>,
    too_long: bool,
    unicode: Unicode,
    /// The text is an object or an array.
    opened: bool,
}

impl Default for Skimmer {
    fn default() -> Self {
        Self {
            state: State::Value,
            frames: Frames::default(),
            passing: Passing::default(),
            node: Tree::<()>::ROOT,
            partial: SmallVec::new(),
            too_long: false,
            unicode: Unicode::default(),
            opened: false,
        }
    }
}

impl Skimmer {
    /// Ready for the next text.
    #[inline]
    pub(super) fn reset(&mut self) {
        self.state = State::Value;
        self.frames.clear();
        self.node = Tree::<()>::ROOT;
        self.unicode = Unicode::default();
        self.opened = false;
    }

    /// The text is a whole object or array: what follows it is another text.
    pub(super) fn closed(&self) -> bool {
        self.state == State::Done && self.opened
    }

    /// The text is whole.
    pub(super) fn done(&self) -> bool {
        self.state == State::Done
    }

    /// The text is no JSON, or [`Skimmer::give_up`] was called.
    #[inline]
    pub(super) fn gave_up(&self) -> bool {
        self.state == State::GaveUp
    }

    /// A wanted number or literal that nothing has ended yet.
    pub(super) fn unfinished(&self) -> Option<(NodeId, &[u8])> {
        (self.state == State::Scalar).then_some((self.node, &self.partial[..]))
    }

    /// Nothing but white space was seen.
    pub(super) fn untouched(&self) -> bool {
        self.state == State::Value && self.frames.is_empty()
    }

    /// Reads nothing more until it is reset.
    pub(super) fn give_up(&mut self) {
        self.state = State::GaveUp;
    }

    /// Looks at the next bytes, up to the end of the text; says how many it took. All of them, unless the text
    /// ended before.
    pub(super) fn feed<A: Clone, S: Sink>(
        &mut self,
        bytes: &[u8],
        wanted: &Wanted<A>,
        sink: &mut S,
    ) -> usize {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                State::Value | State::FirstElement => {
                    at = self.value(bytes, at, byte, wanted, sink);
                }
                State::Opened(object) => match byte {
                    b' ' | b'\t' | b'\n' | b'\r' => at += 1,
                    _ => {
                        let empty = byte == if object { b'}' } else { b']' };
                        sink.container(self.node, empty);
                        if empty {
                            at += 1;
                            self.ended();
                        } else {
                            self.enter(object, self.node, wanted);
                        }
                    }
                },
                State::Key | State::FirstKey => match byte {
                    b'"' => at = self.key(bytes, at + 1, wanted, sink),
                    b' ' | b'\t' | b'\n' | b'\r' => at += 1,
                    b'}' if self.state == State::FirstKey => {
                        self.close();
                        at += 1;
                    }
                    _ => self.state = State::GaveUp,
                },
                State::Colon => {
                    at += 1;
                    match byte {
                        b':' => self.state = State::Value,
                        b' ' | b'\t' | b'\n' | b'\r' => {}
                        _ => self.state = State::GaveUp,
                    }
                }
                State::After if byte == b',' && self.in_object() && bytes.get(at + 1) == Some(&b'"') => {
                    at = self.key(bytes, at + 2, wanted, sink);
                }
                State::After => {
                    at += 1;
                    self.after(byte, wanted);
                }
                State::String(into) => at = self.string(bytes, at, into, wanted, sink),
                State::Escape(into) => {
                    at += 1;
                    self.escape(byte, into, sink);
                }
                State::Hex(into) => {
                    at += 1;
                    self.hex(byte, into, sink);
                }
                State::Scalar | State::PassScalar => at = self.rest_of_scalar(bytes, at, sink),
                State::Pass => {
                    let (end, passed) = self.passing.feed(bytes, at);
                    at = end;
                    if passed {
                        self.ended();
                    }
                }
                State::Done => return at,
                State::GaveUp => return bytes.len(),
            }
        }
        at
    }

    /// The input ended: a number at the top has no other end.
    pub(super) fn end<S: Sink>(&mut self, sink: &mut S) {
        if self.frames.is_empty() && matches!(self.state, State::Scalar | State::PassScalar) {
            self.finish_scalar(sink);
        }
    }

    #[inline]
    fn value<A: Clone, S: Sink>(
        &mut self,
        bytes: &[u8],
        at: usize,
        byte: u8,
        wanted: &Wanted<A>,
        sink: &mut S,
    ) -> usize {
        let node = self.node;
        match byte {
            b'"' => {
                let wants = wanted.wants(node);
                if wants & (want::TEXT | want::SCALAR) == 0 {
                    let end = at + 1 + plain_run(&bytes[at + 1..]);
                    if bytes.get(end) == Some(&b'"') {
                        self.ended();
                        return end + 1;
                    }
                    self.state = State::String(Into::Nothing);
                    return end;
                }
                if wants & want::TEXT != 0 {
                    sink.begin_text(node);
                    if sink.wants_text() {
                        self.state = State::String(Into::Text);
                        return self.string(bytes, at + 1, Into::Text, wanted, sink);
                    }
                } else if wants & want::SCALAR != 0 {
                    self.begin_partial();
                    self.state = State::String(Into::Short);
                    return self.string(bytes, at + 1, Into::Short, wanted, sink);
                }
                self.state = State::String(Into::Nothing);
                self.string(bytes, at + 1, Into::Nothing, wanted, sink)
            }
            b'{' | b'[' => {
                self.opened = true;
                if wanted.wants(node) & want::CONTAINER != 0 {
                    self.state = State::Opened(byte == b'{');
                } else {
                    self.enter(byte == b'{', node, wanted);
                }
                at + 1
            }
            b' ' | b'\t' | b'\n' | b'\r' | 0x1e => at + 1,
            b']' if self.state == State::FirstElement => {
                self.close();
                at + 1
            }
            b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                self.state = if wanted.wants(node) & (want::SCALAR | want::TEXT) != 0 {
                    self.begin_partial();
                    State::Scalar
                } else {
                    State::PassScalar
                };
                self.rest_of_scalar(bytes, at, sink)
            }
            // A byte order mark, as some servers send it.
            0xef | 0xbb | 0xbf if self.untouched() => at + 1,
            _ => {
                self.state = State::GaveUp;
                at
            }
        }
    }

    #[inline]
    fn enter<A: Clone>(&mut self, object: bool, node: NodeId, wanted: &Wanted<A>) {
        if node != UNWANTED && wanted.tree.has_children(node) {
            self.frames.push(Frame::new(node, object));
            self.state = if object {
                State::FirstKey
            } else {
                self.node = wanted.tree.element(node, 0);
                State::FirstElement
            };
            return;
        }
        self.passing = Passing::default();
        self.state = State::Pass;
    }

    #[inline]
    fn close(&mut self) {
        self.frames.pop();
        self.ended();
    }

    #[inline]
    fn ended(&mut self) {
        self.state = if self.frames.is_empty() { State::Done } else { State::After };
    }

    #[inline]
    fn in_object(&self) -> bool {
        !self.frames.is_empty() && self.frames.top.object
    }

    #[inline]
    fn after<A: Clone>(&mut self, byte: u8, wanted: &Wanted<A>) {
        let Some(frame) = self.frames.last_mut() else {
            self.state = State::GaveUp;
            return;
        };
        match byte {
            b',' if frame.object => self.state = State::Key,
            b',' => {
                frame.index = frame.index.saturating_add(1);
                self.node = wanted.tree.element(frame.node, frame.index);
                self.state = State::Value;
            }
            b'}' if frame.object => self.close(),
            b']' if !frame.object => self.close(),
            b' ' | b'\t' | b'\n' | b'\r' => {}
            _ => self.state = State::GaveUp,
        }
    }

    /// A key from after its quote: at once when it is all here, which it mostly is.
    #[inline]
    fn key<A: Clone, S: Sink>(&mut self, bytes: &[u8], at: usize, wanted: &Wanted<A>, sink: &mut S) -> usize {
        let end = at + plain_run(&bytes[at..]);
        // One that is too long for anybody goes the long way, as it does in pieces.
        if bytes.get(end) == Some(&b'"') && end - at <= MAX_KEY {
            self.found_key(&bytes[at..end], wanted, sink);
            if bytes.get(end + 1) != Some(&b':') {
                return end + 1;
            }
            self.state = State::Value;
            return match bytes.get(end + 2) {
                Some(byte) => self.value(bytes, end + 2, *byte, wanted, sink),
                None => end + 2,
            };
        }
        self.begin_partial();
        self.state = State::String(Into::Key);
        self.string(bytes, at, Into::Key, wanted, sink)
    }

    #[inline(always)]
    fn found_key<A: Clone, S: Sink>(&mut self, key: &[u8], wanted: &Wanted<A>, sink: &mut S) {
        self.state = State::Colon;
        let Some(frame) = self.frames.last_mut() else { return };
        let (node, place) = wanted.tree.member(frame.node, key);
        self.node = node;
        let Some(place) = place else { return };
        if let Some(seen) = frame.seen.get_mut(place as usize / 64) {
            let bit = 1 << (place % 64);
            if *seen & bit != 0 {
                sink.replaced(node);
            }
            *seen |= bit;
            if wanted.wants(node) & want::TEXT_BELOW != 0 {
                sink.mark(node);
            }
        }
    }

    fn string<A: Clone, S: Sink>(
        &mut self,
        bytes: &[u8],
        at: usize,
        into: Into,
        wanted: &Wanted<A>,
        sink: &mut S,
    ) -> usize {
        let rest = &bytes[at.min(bytes.len())..];
        let run = plain_run(rest);
        let whole = rest.get(run) == Some(&b'"');
        let fresh = self.partial.is_empty() && !self.too_long && !self.unicode.pending();
        if into == Into::Short && whole && fresh && run <= MAX_STRING {
            sink.string(self.node, Some(&rest[..run]));
            self.ended();
            return at + run + 1;
        }
        if run > 0 {
            self.emit(into, &rest[..run], sink);
        }
        match rest.get(run) {
            Some(b'"') => {
                self.flush_surrogate(into, sink);
                match into {
                    Into::Key => {
                        let key = std::mem::take(&mut self.partial);
                        self.found_key(if self.too_long { b"" } else { &key }, wanted, sink);
                        if self.too_long {
                            self.node = UNWANTED;
                        }
                    }
                    Into::Short => {
                        sink.string(self.node, (!self.too_long).then_some(&self.partial[..]));
                        self.ended();
                    }
                    Into::Text | Into::Nothing => self.ended(),
                }
                at + run + 1
            }
            Some(_) => {
                self.state = State::Escape(into);
                at + run + 1
            }
            None => at + run,
        }
    }

    fn escape<S: Sink>(&mut self, byte: u8, into: Into, sink: &mut S) {
        self.state = State::String(into);
        let plain = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.unicode.begin();
                self.state = State::Hex(into);
                return;
            }
            _ => {
                self.state = State::GaveUp;
                return;
            }
        };
        self.emit(into, &[plain], sink);
    }

    fn hex<S: Sink>(&mut self, byte: u8, into: Into, sink: &mut S) {
        match self.unicode.digit(byte) {
            Step::More => {}
            Step::Bad => self.state = State::GaveUp,
            Step::Done { lone, char } => {
                self.state = State::String(into);
                for char in [lone, char].into_iter().flatten() {
                    self.put(into, char.encode_utf8(&mut [0; 4]).as_bytes(), sink);
                }
            }
        }
    }

    /// Half a pair that nothing followed is no character.
    #[inline]
    fn flush_surrogate<S: Sink>(&mut self, into: Into, sink: &mut S) {
        if let Some(char) = self.unicode.leave() {
            self.put(into, char.encode_utf8(&mut [0; 4]).as_bytes(), sink);
        }
    }

    #[inline]
    fn emit<S: Sink>(&mut self, into: Into, bytes: &[u8], sink: &mut S) {
        self.flush_surrogate(into, sink);
        self.put(into, bytes, sink);
    }

    #[inline]
    fn put<S: Sink>(&mut self, into: Into, bytes: &[u8], sink: &mut S) {
        match into {
            Into::Nothing => {}
            Into::Text => sink.text(self.node, bytes),
            Into::Key => self.keep(bytes, MAX_KEY),
            Into::Short => self.keep(bytes, MAX_STRING),
        }
    }

    fn begin_partial(&mut self) {
        self.partial.clear();
        self.too_long = false;
    }

    fn keep(&mut self, bytes: &[u8], limit: usize) {
        if self.too_long || self.partial.len() + bytes.len() > limit {
            self.too_long = true;
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    #[inline]
    fn rest_of_scalar<S: Sink>(&mut self, bytes: &[u8], at: usize, sink: &mut S) -> usize {
        let rest = &bytes[at..];
        let run = rest.iter().position(|byte| !IN_SCALAR[usize::from(*byte)]).unwrap_or(rest.len());
        let wanted = self.state == State::Scalar;
        let fresh = self.partial.is_empty() && !self.too_long;
        if wanted && fresh && run < rest.len() && run <= MAX_SCALAR {
            sink.scalar(self.node, Some(&rest[..run]));
            self.ended();
            return at + run;
        }
        if wanted {
            self.keep(&rest[..run], MAX_SCALAR);
        }
        if run < rest.len() {
            self.finish_scalar(sink);
        }
        at + run
    }

    fn finish_scalar<S: Sink>(&mut self, sink: &mut S) {
        if self.state == State::Scalar {
            sink.scalar(self.node, (!self.too_long).then_some(&self.partial[..]));
        }
        self.ended();
    }
}
