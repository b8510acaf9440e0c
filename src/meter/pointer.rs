//! JSON pointers, many at once: a tree that is walked along with a document.
//!
//! A pointer is RFC 6901's, and a token `*` in it stands for every element of an array and every member of an
//! object. The tree is deterministic: where a literal and a `*` both fit, its branch holds what either wants. Nodes
//! are numbered in depth-first order, so that a subtree is a range.

/// A node of the tree.
pub(super) type NodeId = u16;

/// What is not wanted, and nothing below it is.
pub(super) const UNWANTED: NodeId = NodeId::MAX;

/// A pointer that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// It doesn't begin with a slash.
    #[error("`{0}` must begin with `/` (RFC 6901), such as `/usage/total_tokens`")]
    NoSlash(String),
    /// A tilde that is neither `~0` nor `~1`.
    #[error("`{0}` has a `~` that is neither `~0` (a tilde) nor `~1` (a slash)")]
    BadEscape(String),
    /// More levels than any answer has.
    #[error("`{0}` has more than {MAX_TOKENS} levels")]
    TooDeep(String),
    /// More pointers than the tree has numbers for.
    #[error("there are too many pointers")]
    TooMany,
}

const MAX_TOKENS: usize = 32;

/// The unescaped tokens of a pointer.
pub(super) fn parse(pointer: &str) -> Result<Vec<String>, PointerError> {
    let rest = pointer.strip_prefix('/').ok_or_else(|| PointerError::NoSlash(pointer.to_owned()))?;
    let tokens: Vec<_> = rest.split('/').map(|token| unescape(token, pointer)).collect::<Result<_, _>>()?;
    if tokens.len() > MAX_TOKENS { Err(PointerError::TooDeep(pointer.to_owned())) } else { Ok(tokens) }
}

fn unescape(token: &str, pointer: &str) -> Result<String, PointerError> {
    let mut plain = String::with_capacity(token.len());
    let mut chars = token.chars();
    while let Some(char) = chars.next() {
        plain.push(match char {
            '~' => match chars.next() {
                Some('0') => '~',
                Some('1') => '/',
                _ => return Err(PointerError::BadEscape(pointer.to_owned())),
            },
            char => char,
        });
    }
    Ok(plain)
}

/// Whether two keys are one to a reader that does not tell capitals from small letters, as .NET's and Go's are (Go's
/// takes `\u{17f}` for an s and `\u{212a}` for a k as well).
pub(super) fn eq_in_any_case(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() {
        return a.eq_ignore_ascii_case(b);
    }
    let folded = |text: &str| {
        text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect::<String>()
    };
    folded(a) == folded(b)
}

/// All the pointers of a format, each with what to do where it points.
#[derive(Debug)]
pub(super) struct Tree<A> {
    nodes: Vec<Node<A>>,
}

#[derive(Debug)]
struct Node<A> {
    keys: Vec<(Box<[u8]>, NodeId)>,
    /// The ends of each key, in the same places.
    ends: Vec<Ends>,
    /// A hash table of places in `keys`, plus one; a quarter full, so that most of a document's members, which
    /// nobody wants, cost one look.
    table: Box<[u16]>,
    any: NodeId,
    end: NodeId,
    actions: Vec<A>,
}

/// A key's length, and its first and last bytes: two keys of up to 16 bytes are the same if these are, so that mostly
/// no memory is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    first: u64,
    last: u64,
    length: usize,
}

impl Ends {
    #[inline(always)]
    fn of(key: &[u8]) -> Self {
        let length = key.len();
        let (first, last) = if let (Some(first), Some(last)) = (key.first_chunk(), key.last_chunk()) {
            (u64::from_le_bytes(*first), u64::from_le_bytes(*last))
        } else if let (Some(first), Some(last)) = (key.first_chunk(), key.last_chunk()) {
            (u64::from(u32::from_le_bytes(*first)), u64::from(u32::from_le_bytes(*last)))
        } else {
            match *key {
                [only] => (u64::from(only), 0),
                [first, last] => (u64::from(first), u64::from(last)),
                [first, middle, last] => (u64::from(first) | u64::from(middle) << 8, u64::from(last)),
                _ => (0, 0),
            }
        };
        Self { first, last, length }
    }

    /// Where to look for the key first.
    #[inline(always)]
    fn slot(self, mask: usize) -> usize {
        // Odd numbers without a pattern: those of SplitMix64.
        let mixed =
            self.first.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ self.last.wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 40) as usize & mask
    }
}

impl<A> Node<A> {
    fn index_keys(&mut self) {
        self.ends = self.keys.iter().map(|(key, _)| Ends::of(key)).collect();
        let size = (self.keys.len() * 4).next_power_of_two();
        let mut table = vec![0; size].into_boxed_slice();
        for (place, ends) in self.ends.iter().enumerate() {
            let mut at = ends.slot(size - 1);
            while table[at] != 0 {
                at = (at + 1) & (size - 1);
            }
            table[at] = place as u16 + 1;
        }
        self.table = table;
    }

    #[inline(always)]
    fn place(&self, key: &[u8]) -> Option<usize> {
        let mask = self.table.len().checked_sub(1)?;
        let ends = Ends::of(key);
        let mut at = ends.slot(mask);
        loop {
            let place = usize::from(*self.table.get(at)?).checked_sub(1)?;
            if self.ends.get(place) == Some(&ends) && (key.len() <= 16 || *self.keys[place].0 == *key) {
                return Some(place);
            }
            at = (at + 1) & mask;
        }
    }
}

impl<A: Clone> Tree<A> {
    /// The tree of `pointers` (already in tokens), with their actions.
    pub(super) fn new(pointers: &[(Vec<String>, A)]) -> Result<Self, PointerError> {
        let mut tree = Self { nodes: Vec::new() };
        let all: Vec<_> = (0..pointers.len()).collect();
        tree.grow(pointers, &all, 0)?;
        Ok(tree)
    }

    fn grow(
        &mut self,
        pointers: &[(Vec<String>, A)],
        here: &[usize],
        depth: usize,
    ) -> Result<NodeId, PointerError> {
        if self.nodes.len() >= usize::from(UNWANTED) {
            return Err(PointerError::TooMany);
        }
        let id = self.nodes.len() as NodeId;
        let token = |index: &usize| pointers[*index].0.get(depth).map(String::as_str);
        let actions = here.iter().filter(|i| token(i).is_none()).map(|&i| pointers[i].1.clone()).collect();
        self.nodes.push(Node {
            keys: Vec::new(),
            ends: Vec::new(),
            table: Box::default(),
            any: UNWANTED,
            end: 0,
            actions,
        });

        let mut literals: Vec<&str> = here.iter().filter_map(token).filter(|token| *token != "*").collect();
        literals.sort_unstable();
        literals.dedup();
        for literal in literals {
            let below: Vec<_> =
                here.iter().copied().filter(|i| token(i).is_some_and(|t| t == literal || t == "*")).collect();
            let child = self.grow(pointers, &below, depth + 1)?;
            self.nodes[usize::from(id)].keys.push((literal.as_bytes().into(), child));
        }
        let below: Vec<_> = here.iter().copied().filter(|i| token(i) == Some("*")).collect();
        if !below.is_empty() {
            self.nodes[usize::from(id)].any = self.grow(pointers, &below, depth + 1)?;
        }
        let end = self.nodes.len() as NodeId;
        let node = &mut self.nodes[usize::from(id)];
        node.end = end;
        node.index_keys();
        Ok(id)
    }
}

impl<A> Tree<A> {
    /// The document itself.
    pub(super) const ROOT: NodeId = 0;

    /// The member `key` of `node`, and its place among the node's own keys.
    #[inline(always)]
    pub(super) fn member(&self, node: NodeId, key: &[u8]) -> (NodeId, Option<u32>) {
        let node = &self.nodes[usize::from(node)];
        match node.place(key) {
            Some(place) => (node.keys[place].1, Some(place as u32)),
            None => (node.any, None),
        }
    }

    /// The member of `node` whose key is `key` but for the case of its letters.
    pub(super) fn member_in_any_case(&self, node: NodeId, key: &str) -> (NodeId, Option<u32>) {
        let node = &self.nodes[usize::from(node)];
        let folds = !key.is_ascii();
        let is_key = |known: &[u8]| match folds {
            false => known.len() == key.len() && known.eq_ignore_ascii_case(key.as_bytes()),
            true => std::str::from_utf8(known).is_ok_and(|known| eq_in_any_case(known, key)),
        };
        match node.keys.iter().position(|(known, _)| is_key(known)) {
            Some(place) => (node.keys[place].1, Some(place as u32)),
            None => (node.any, None),
        }
    }

    /// The element `index` of `node`.
    #[inline]
    pub(super) fn element(&self, node: NodeId, index: u32) -> NodeId {
        let this = &self.nodes[usize::from(node)];
        if this.keys.is_empty() {
            return this.any;
        }
        let mut digits = [0u8; 10];
        let mut at = digits.len();
        let mut rest = index;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.member(node, &digits[at..]).0
    }

    /// Whether anything below `node` is wanted.
    #[inline]
    pub(super) fn has_children(&self, node: NodeId) -> bool {
        self.nodes[usize::from(node)].end > node + 1
    }

    /// The nodes at and below `node`.
    pub(super) fn subtree(&self, node: NodeId) -> std::ops::Range<NodeId> {
        node..self.nodes[usize::from(node)].end
    }

    /// What to do with a value at `node`.
    #[inline]
    pub(super) fn actions(&self, node: NodeId) -> &[A] {
        &self.nodes[usize::from(node)].actions
    }

    /// Every node, for tables beside the tree.
    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + use<A> {
        0..self.nodes.len() as NodeId
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(pointers: &[&str]) -> Tree<usize> {
        let parsed: Vec<_> = pointers.iter().enumerate().map(|(i, p)| (parse(p).unwrap(), i)).collect();
        Tree::new(&parsed).unwrap()
    }

    #[test]
    fn a_literal_branch_also_holds_what_a_star_wants() {
        let tree = tree(&["/a/*/x", "/a/0/y"]);
        let (a, _) = tree.member(0, b"a");
        let first = tree.element(a, 0);
        assert_eq!(tree.actions(tree.member(first, b"x").0), [0]);
        assert_eq!(tree.actions(tree.member(first, b"y").0), [1]);
        let other = tree.element(a, 12);
        assert_eq!(tree.actions(tree.member(other, b"x").0), [0]);
        assert_eq!(tree.member(other, b"y"), (UNWANTED, None));
    }

    #[test]
    fn escaped_tokens_are_compared_plain() {
        let tree = tree(&["/a~1b/m~0n"]);
        let (a, _) = tree.member(0, b"a/b");
        assert_eq!(tree.actions(tree.member(a, b"m~n").0), [0]);
    }

    #[test]
    fn bad_pointers_say_what_is_wrong() {
        assert_eq!(parse("usage"), Err(PointerError::NoSlash("usage".into())));
        assert_eq!(parse("/a~2"), Err(PointerError::BadEscape("/a~2".into())));
        assert_eq!(parse(&"/a".repeat(40)), Err(PointerError::TooDeep("/a".repeat(40))));
    }
}
