//! The counts of one document, until it is committed.
//!
//! Memory: a bounded number of objects that are one call each ([`MAX_OBJECTS`]); what stands in more of them in one
//! document is added up in the last.

use std::ops::Range;

use smallvec::SmallVec;

use super::calls::{CallId, Calls, Found, Name};
use super::format::{Action, Count, Format, MAX_DEPTH};
use super::pointer::{NodeId, UNWANTED};
use super::usage::{Amount, Class, Merge};
use crate::model::billing::Tier;

/// How many objects that are one call each, and have counts, are told apart in one document.
const MAX_OBJECTS: usize = 256;

/// How many ids of a document are looked at: it has one or two.
const MAX_IDS: usize = 8;

/// What stood at one node, within one object.
#[derive(Clone, Copy, Debug)]
struct Hit {
    node: NodeId,
    object: Option<u16>,
    last: Amount,
    sum: Amount,
    max: Amount,
}

/// An object that is one call.
#[derive(Clone, Copy, Debug, Default)]
struct Object {
    depth: u8,
    call: Option<CallId>,
    whole: bool,
    /// It has counts.
    used: bool,
    /// It stands for all that are too many.
    rest: bool,
}

/// So many of something that is counted by its name.
#[derive(Clone, Copy, Debug)]
struct More {
    node: NodeId,
    shape: u8,
    class: Class,
    count: u64,
}

/// An object that holds a name and a count: itself, the node of the member that it stands for, and the count.
#[derive(Clone, Copy, Debug, Default)]
struct Named {
    object: Option<NodeId>,
    member: Option<NodeId>,
    amount: Option<Amount>,
}

/// The counts of the document at hand, and what decides to which call they belong.
#[derive(Debug, Default)]
pub(super) struct Counted {
    hits: SmallVec<[Hit; 6]>,
    objects: SmallVec<[Object; 2]>,
    /// The object that is open at each depth.
    open: [Option<u16>; MAX_DEPTH + 1],
    /// The ids of the document as a whole.
    ids: SmallVec<[(NodeId, CallId); 2]>,
    /// The only id of the document before: as long as it stays the same there is nothing to tell apart.
    last_id: Option<(NodeId, CallId)>,
    ends: SmallVec<[u8; 4]>,
    more: SmallVec<[More; 2]>,
    named: Named,
    /// The counts are those of the whole call.
    whole: bool,
    /// A usage is told in parts that are more than it.
    pub(super) parts: bool,
    /// The cost is not the whole cost.
    pub(super) no_cost: bool,
    /// The tier that it names; of several names the one that has a price.
    pub(super) tier: Option<Option<Tier>>,
}

impl Counted {
    pub(super) fn clear(&mut self) {
        self.hits.clear();
        self.objects.clear();
        self.open = [None; MAX_DEPTH + 1];
        self.ids.clear();
        self.ends.clear();
        self.more.clear();
        self.named = Named::default();
        self.whole = false;
        self.parts = false;
        self.no_cost = false;
        self.tier = None;
    }

    /// Whether the document says nothing of counts, nor of a call that is not the one before.
    pub(super) fn is_empty(&self) -> bool {
        let same_id = match &self.ids[..] {
            [] => true,
            [id] => self.last_id == Some(*id),
            _ => false,
        };
        same_id && self.hits.is_empty() && self.ends.is_empty() && self.more.is_empty()
    }

    /// Whether a count of it is more than nothing.
    pub(super) fn counts(&self) -> bool {
        self.hits.iter().any(|hit| hit.max != Amount::Known(0))
    }

    /// An object that is one call begins.
    pub(super) fn open(&mut self, depth: u8) {
        let fresh = Object { depth, ..Object::default() };
        let at = usize::from(depth);
        if let Some(object) = self.open[at] {
            self.fold_nameless(object);
        }
        let reusable = self.open[at].map(usize::from).filter(|object| !self.objects[*object].used);
        if let Some(object) = reusable {
            self.objects[object] = fresh;
        } else if self.objects.len() < MAX_OBJECTS {
            self.open[at] = Some(self.objects.len() as u16);
            self.objects.push(fresh);
        } else if let Some(last) = self.objects.last_mut() {
            *last = Object { rest: true, used: true, call: Some(CallId::Rest), ..*last };
            self.open[at] = Some(MAX_OBJECTS as u16 - 1);
        }
    }

    /// What stood in an object that has no id belongs to the document as a whole.
    fn fold_nameless(&mut self, object: u16) {
        let this = &mut self.objects[usize::from(object)];
        if this.call.is_some() || !this.used {
            return;
        }
        this.used = false;
        let mut at = 0;
        while at < self.hits.len() {
            let hit = self.hits[at];
            let whole = |other: &Hit| other.node == hit.node && other.object.is_none();
            match self.hits.iter().position(whole) {
                _ if hit.object != Some(object) => at += 1,
                Some(other) => {
                    self.hits[other].last = hit.last;
                    self.hits[other].sum = self.hits[other].sum.plus(hit.sum);
                    self.hits[other].max = self.hits[other].max.merge(hit.max, Merge::Max);
                    self.hits.remove(at);
                }
                None => {
                    self.hits[at].object = None;
                    at += 1;
                }
            }
        }
    }

    fn object(&mut self, depth: u8) -> Option<&mut Object> {
        let object = usize::from(self.open[usize::from(depth)]?);
        self.objects.get_mut(object)
    }

    /// A number at a node, in the object that is open at `depth`; 0 is none.
    pub(super) fn number(&mut self, node: NodeId, depth: u8, amount: Amount) {
        let object = if depth == 0 { None } else { self.open[usize::from(depth)] };
        if let Some(object) = object {
            self.objects[usize::from(object)].used = true;
        }
        match self.hits.iter_mut().find(|hit| hit.node == node && hit.object == object) {
            Some(hit) => {
                hit.last = amount;
                hit.sum = hit.sum.plus(amount);
                hit.max = hit.max.merge(amount, Merge::Max);
            }
            None => self.hits.push(Hit { node, object, last: amount, sum: amount, max: amount }),
        }
    }

    /// One more of something that is counted by its name.
    pub(super) fn one_more(&mut self, node: NodeId, shape: u8, class: Class) {
        let same = |more: &&mut More| (more.node, more.shape, more.class) == (node, shape, class);
        match self.more.iter_mut().find(same) {
            Some(more) => more.count += 1,
            None => self.more.push(More { node, shape, class, count: 1 }),
        }
    }

    /// An object with a name and a count begins.
    pub(super) fn named(&mut self, object: NodeId) {
        self.named = Named { object: Some(object), ..Named::default() };
    }

    /// That object's name.
    pub(super) fn name(&mut self, format: &Format, name: &[u8]) {
        let member = self.named.object.map(|object| format.answer.tree.member(object, name).0);
        self.named.member = member.filter(|member| *member != UNWANTED);
        self.count_named(format);
    }

    /// That object's count.
    pub(super) fn named_count(&mut self, format: &Format, amount: Option<Amount>) {
        self.named.amount = amount;
        self.count_named(format);
    }

    fn count_named(&mut self, format: &Format) {
        let Named { member: Some(member), amount: Some(amount), .. } = self.named else { return };
        self.named = Named::default();
        let depths = format.answer.tree.actions(member).iter().filter_map(|action| match action {
            Action::Count(count) => Some(count.depth),
            _ => None,
        });
        if let Some(depth) = depths.max() {
            self.number(member, depth, amount);
        }
    }

    pub(super) fn tier(&mut self, name: Option<&[u8]>) {
        let tier = name.and_then(Tier::parse);
        self.tier = Some(self.tier.flatten().or(tier));
    }

    /// The call that the document, or the object at that depth, is about.
    #[inline]
    pub(super) fn id(&mut self, node: NodeId, depth: u8, id: &[u8]) {
        if depth > 0 {
            if let Some(object) = self.object(depth).filter(|object| !object.rest) {
                object.call = Some(CallId::new(id));
            }
        } else if self.ids.last().is_none_or(|(last, _)| *last != node) {
            self.another_id(node, id);
        }
    }

    fn another_id(&mut self, node: NodeId, id: &[u8]) {
        if self.ids.len() < MAX_IDS {
            self.ids.push((node, CallId::new(id)));
        }
    }

    /// Whose call it is: of a shape with several ids the one that tells more.
    fn names(&self, format: &Format) -> SmallVec<[Name; 8]> {
        let mut names: SmallVec<[Name; 8]> = SmallVec::new();
        for (node, call) in &self.ids {
            for action in format.answer.tree.actions(*node) {
                let Action::CallId { shape, depth: 0, strong } = *action else { continue };
                let name = Name { shape, call: *call, strong };
                match names.iter_mut().find(|known| known.shape == shape) {
                    Some(known) if known.strong && !strong => {}
                    Some(known) => *known = name,
                    None => names.push(name),
                }
            }
        }
        names
    }

    pub(super) fn end(&mut self, shape: u8) {
        if !self.ends.contains(&shape) {
            self.ends.push(shape);
        }
    }

    /// Whether the counts are those of the whole call.
    pub(super) fn whole(&mut self, depth: u8, whole: bool) {
        match self.object(depth) {
            _ if depth == 0 => self.whole = whole,
            Some(object) => object.whole = whole,
            None => {}
        }
    }

    /// A turn begins: the objects before belong to an earlier answer, unless they were counted when they came.
    pub(super) fn turn(&mut self, depth: u8) {
        let Some(this) = self.object(depth).copied() else { return };
        self.forget_objects(|object| object.depth == depth);
        self.open[usize::from(depth)] = Some(self.objects.len() as u16);
        self.objects.push(Object { used: false, rest: false, call: this.call, ..this });
    }

    /// The document broke off: where a turn may follow, it would say that the objects before are an earlier answer's.
    pub(super) fn cut(&mut self, format: &Format) {
        self.forget_objects(|object| format.turns[usize::from(object.depth)]);
    }

    fn forget_objects(&mut self, forget: impl Fn(&Object) -> bool) {
        let objects = &self.objects;
        self.hits.retain(|hit| hit.object.is_none_or(|object| !forget(&objects[usize::from(object)])));
        while self.objects.last().is_some_and(&forget) {
            self.objects.pop();
        }
        let left = self.objects.len();
        for open in &mut self.open {
            *open = open.filter(|object| usize::from(*object) < left);
        }
    }

    /// What stood at these nodes is undone.
    pub(super) fn forget(&mut self, nodes: &Range<NodeId>) {
        self.hits.retain(|hit| !nodes.contains(&hit.node));
        self.more.retain(|more| !nodes.contains(&more.node));
    }

    /// The document counts. Says whether it had counts.
    pub(super) fn commit(
        &mut self,
        format: &Format,
        calls: &mut Calls,
        has_text: bool,
        max_call_tokens: u64,
    ) -> bool {
        let found = self.found(format, max_call_tokens);
        for name in self.names(format) {
            calls.name(name, &found, has_text);
        }
        if let [.., id] = self.ids[..] {
            self.last_id = (self.ids.len() == 1).then_some(id);
        }
        for found in &found {
            calls.add(found);
        }
        for shape in &self.ends {
            calls.end(*shape);
        }
        !found.is_empty()
    }

    /// Of several places for one class the first in its list, and then that of the next event.
    fn found(&self, format: &Format, max_call_tokens: u64) -> SmallVec<[Found; 16]> {
        let mut found: SmallVec<[Found; 16]> = SmallVec::new();
        let mut orders: SmallVec<[u8; 16]> = SmallVec::new();
        // The classes of each shape that have a count, a bit each: mostly there is one place for each.
        let mut known = [0u32; u8::MAX as usize + 1];
        for hit in &self.hits {
            let actions = format.answer.tree.actions(hit.node);
            for (place, action) in actions.iter().enumerate() {
                let Action::Count(count) = action else { continue };
                // Two places of one list may meet at a node: it is one count, at the first of them.
                let same = |other: &Action| matches!(other, Action::Count(other) if (other.shape, other.class) == (count.shape, count.class));
                let ours = count.part == self.parts || !count.part;
                let dropped = count.class == Class::Cost && self.no_cost;
                let bit = 1 << count.class as u32;
                let first = known[usize::from(count.shape)] & bit == 0;
                if !ours || dropped || (!first && actions[..place].iter().any(same)) {
                    continue;
                }
                let next = self.one(format, hit, count, max_call_tokens);
                let same = |known: &Found| {
                    (known.shape, known.class, known.call) == (next.shape, next.class, next.call)
                };
                let earlier = if first { None } else { found.iter().position(same) };
                known[usize::from(count.shape)] |= bit;
                match earlier {
                    Some(at) if orders[at] < count.order => {}
                    // One pointer with a `*` may have led to several nodes.
                    Some(at) if orders[at] == count.order => {
                        found[at].amount = found[at].amount.merge(next.amount, next.how);
                    }
                    Some(at) => (found[at], orders[at]) = (next, count.order),
                    None => {
                        found.push(next);
                        orders.push(count.order);
                    }
                }
            }
        }
        let more = self.more.iter().map(|more| Found {
            shape: more.shape,
            class: more.class,
            amount: Amount::Known(more.count),
            how: format.shapes[usize::from(more.shape)].merge,
            call: None,
        });
        found.extend(more);
        found
    }

    fn one(&self, format: &Format, hit: &Hit, count: &Count, max_call_tokens: u64) -> Found {
        let object = hit.object.filter(|_| count.depth > 0).map(|object| self.objects[usize::from(object)]);
        let whole = object.map_or(self.whole, |object| object.whole && object.call.is_some());
        let how = match format.shapes[usize::from(count.shape)].merge {
            _ if object.is_some_and(|object| object.rest) => Merge::Sum,
            _ if whole => Merge::Last,
            merge => merge,
        };
        let amount = match how {
            _ if count.part => hit.sum,
            Merge::Last => hit.last,
            Merge::Sum => hit.sum,
            Merge::Max => hit.max,
        };
        let bound = if count.class == Class::Cost { u64::MAX } else { max_call_tokens };
        Found {
            shape: count.shape,
            class: count.class,
            amount: amount.within(bound),
            how,
            call: object.and_then(|object| object.call),
        }
    }
}

/// The counts of an answer's headers: of several names for one class the first that is there.
pub(super) fn in_headers<'a>(
    format: &Format,
    value: impl Fn(&str) -> Option<&'a [u8]>,
    max_call_tokens: u64,
) -> SmallVec<[Found; 16]> {
    let mut found: SmallVec<[Found; 16]> = SmallVec::new();
    for header in &format.headers {
        let known = found.iter().any(|found| (found.shape, found.class) == (header.shape, header.class));
        let Some(value) = value(&header.name).filter(|_| !known) else { continue };
        let amount = match header.class {
            Class::Cost => Amount::parse_dollars(value.trim_ascii()),
            _ => Amount::parse(value.trim_ascii()).map(|amount| amount.within(max_call_tokens)),
        };
        let Some(amount) = amount else { continue };
        found.push(Found { shape: header.shape, class: header.class, amount, how: Merge::Last, call: None });
    }
    found
}
