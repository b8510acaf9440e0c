//! What a skimmer looks for, and to whom it gives what it finds.

use super::pointer::{NodeId, Tree, UNWANTED};

/// What a node wants of its value, as bits.
pub(super) mod want {
    /// A string, piece by piece.
    pub(in crate::meter) const TEXT: u8 = 1;
    /// A short string, a number or a literal, whole.
    pub(in crate::meter) const SCALAR: u8 = 2;
    /// To be told that an object or array begins.
    pub(in crate::meter) const CONTAINER: u8 = 4;
    /// Text somewhere at or below: a repeated key must undo it.
    pub(in crate::meter) const TEXT_BELOW: u8 = 8;
}

/// The pointers to look for, and for each node what it wants.
#[derive(Debug)]
pub(super) struct Wanted<A> {
    pub(super) tree: Tree<A>,
    wants: Vec<u8>,
}

impl<A: Clone> Wanted<A> {
    pub(super) fn new(tree: Tree<A>, wants: impl Fn(&A) -> u8) -> Self {
        let own = |node| tree.actions(node).iter().fold(0, |bits, action| bits | wants(action));
        let with_below = |node| {
            let below = tree.subtree(node).any(|node| own(node) & want::TEXT != 0);
            own(node) | if below { want::TEXT_BELOW } else { 0 }
        };
        let wants = tree.ids().map(with_below).collect();
        Self { tree, wants }
    }

    #[inline]
    pub(super) fn wants(&self, node: NodeId) -> u8 {
        if node == UNWANTED { 0 } else { self.wants[usize::from(node)] }
    }
}

/// Takes what the skimmer finds.
pub(super) trait Sink {
    /// Whether text is still of use.
    fn wants_text(&self) -> bool;
    /// A wanted string begins.
    fn begin_text(&mut self, node: NodeId);
    /// The next bytes of the string, unescaped.
    fn text(&mut self, node: NodeId, bytes: &[u8]);
    /// A short string; `None` when it is too long to be one.
    fn string(&mut self, node: NodeId, value: Option<&[u8]>);
    /// A number or literal, as written; `None` when it is too long to be one.
    fn scalar(&mut self, node: NodeId, raw: Option<&[u8]>);
    /// An object or array begins, and whether it has nothing in it.
    fn container(&mut self, node: NodeId, empty: bool);
    /// Text may follow below a key: remember where it stood.
    fn mark(&mut self, node: NodeId);
    /// The key stood in this object before; the last one counts.
    fn replaced(&mut self, node: NodeId);
}
