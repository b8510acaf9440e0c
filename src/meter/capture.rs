//! What is learnt from an answer, document by document.
//!
//! A document is a whole JSON answer, one event of an event stream, or one line. Nothing of it counts until it is
//! committed, so that one that turns out too large or broken leaves no trace.

use smallvec::SmallVec;

use super::calls::Calls;
use super::counting::estimate_bytes;
use super::counts::Counted;
use super::format::{Action, Count, Format};
use super::growth::{Growth, Place, Retold};
use super::pointer::{NodeId, UNWANTED};
use super::text::{Buffer, Mark, Text};
use super::unknown::Sample;
use super::usage::{Amount, Class, Resolved, complete, digits};
use super::wanted::Sink;
use crate::model::billing::Tier;

/// The document at hand.
#[derive(Debug, Default)]
struct Document {
    counted: Counted,
    marks: SmallVec<[(NodeId, Mark); 4]>,
    messages: SmallVec<[(NodeId, u64); 2]>,
    results: Option<u64>,
    /// The best name so far and its place in the list; no string where it is the one that is known already.
    model: Option<(u8, Option<String>)>,
    error: bool,
    /// The stream says that it failed, whatever else it says.
    failed: bool,
    failed_by_name: bool,
    /// It says that it is the stream's last.
    ended: bool,
    /// It has, or had until a key came twice, text or a count.
    found: bool,
    /// It has a piece of text, if only an empty one.
    has_text: bool,
    /// The alternative answer that it is a piece of.
    choice: Option<u64>,
    /// Where its text is.
    text_node: NodeId,
    begin: Mark,
    final_text: Option<Buffer>,
}

impl Document {
    fn clear(&mut self) {
        self.counted.clear();
        self.marks.clear();
        self.messages.clear();
        self.results = None;
        self.model = None;
        self.error = false;
        self.failed = false;
        self.failed_by_name = false;
        self.ended = false;
        self.found = false;
        self.has_text = false;
        self.choice = None;
        self.final_text = None;
    }

    /// What stands at `node` is so much.
    fn count(&mut self, node: NodeId, depth: u8, amount: Option<Amount>) {
        let Some(amount) = amount else { return };
        self.counted.number(node, depth, amount);
        self.found |= amount != Amount::Known(0);
    }

    fn message(&mut self, node: NodeId) {
        match self.messages.iter_mut().find(|(at, _)| *at == node) {
            Some((_, count)) => *count += 1,
            None => self.messages.push((node, 1)),
        }
    }

    fn results(&mut self, more: u64) {
        self.results = Some(self.results.unwrap_or(0) + more);
    }

    /// The model's name, at this place of its list. Every chunk of a stream names the model again: only a new name is
    /// worth a string.
    #[inline]
    fn name_model(&mut self, order: u8, name: &[u8], known: Option<&str>) {
        let better = self.model.as_ref().is_none_or(|(known, _)| order <= *known);
        if name.is_empty() || !better {
            return;
        }
        if known.is_some_and(|known| known.as_bytes() == name) {
            self.model = Some((order, None));
        } else if let Ok(name) = std::str::from_utf8(name) {
            self.model = Some((order, Some(name.to_owned())));
        }
    }
}

/// Of the counts that meet at a node the first one's class, and the deepest object.
#[inline]
fn deepest(known: Option<(Class, u8)>, next: &Count) -> (Class, u8) {
    known.map_or((next.class, next.depth), |(class, depth)| (class, depth.max(next.depth)))
}

/// The tokens of an answer that is still coming.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// As reported so far; where it is not, an estimate of the text so far.
    pub tokens: u64,
    /// Whether the request's are among them.
    pub with_input: bool,
}

/// What is learnt of an answer.
#[derive(Debug)]
pub(super) struct Capture {
    document: Document,
    calls: Calls,
    /// What the answer's headers report.
    headers: Option<Box<Resolved>>,
    resolved: Resolved,
    tier: Option<Tier>,
    /// One call's usage is at most this.
    max_call_tokens: u64,
    model: Option<String>,
    messages: Option<u64>,
    results: Option<u64>,
    /// The stream failed, or one of its messages did.
    failed: bool,
    /// It said so in so many words, whatever else it has.
    failed_for_sure: bool,
    any_error: bool,
    /// The pieces of text, and whether more are of use.
    text: Buffer,
    growth: Growth,
    place: Place,
    retold: Retold,
    final_text: Option<Buffer>,
    wants_text: bool,
    text_limit: usize,
    reported: bool,
    /// Something has come that is more than white space.
    has_body: bool,
    /// Some document had a place for text, if only for an empty one.
    found_text: bool,
    /// The last document had a piece of text.
    last_had_text: bool,
    /// The alternative answer that the last piece belongs to.
    choice: Option<u64>,
    /// The last document said that it is the stream's last.
    ended: bool,
}

/// A sink that knows the rules.
pub(super) struct Ruled<'a> {
    pub(super) format: &'a Format,
    pub(super) capture: &'a mut Capture,
}

impl Capture {
    pub(super) fn new(text_limit: usize, max_call_tokens: u64) -> Self {
        Self {
            document: Document::default(),
            calls: Calls::default(),
            headers: None,
            resolved: Resolved::default(),
            tier: None,
            max_call_tokens,
            model: None,
            messages: None,
            results: None,
            failed: false,
            failed_for_sure: false,
            any_error: false,
            text: Buffer::new(text_limit),
            growth: Growth::default(),
            place: Place::default(),
            retold: Retold::default(),
            final_text: None,
            wants_text: true,
            text_limit,
            reported: false,
            has_body: false,
            found_text: false,
            last_had_text: false,
            choice: None,
            ended: false,
        }
    }

    /// Text is of no use here: only errors, or nothing, are looked for.
    pub(super) fn without_text(&mut self) {
        self.wants_text = false;
        self.forget_text();
    }

    fn forget_text(&mut self) {
        self.text.forget();
        self.growth = Growth::default();
        self.retold = Retold::default();
    }

    /// Whether the document at hand has text, or counts something, or did until a key came twice.
    #[inline]
    pub(super) fn found(&self) -> bool {
        self.document.found
    }

    /// Whether it would, did what was written of a number end here.
    pub(super) fn would_find(format: &Format, node: NodeId, raw: &[u8]) -> bool {
        let counts = |action: &Action| matches!(action, Action::Count { .. });
        let amount = Amount::parse(raw);
        amount.is_some_and(|amount| amount != Amount::Known(0))
            && format.answer.tree.actions(node).iter().any(counts)
    }

    /// Whether it still does.
    pub(super) fn has_found(&self) -> bool {
        let document = &self.document;
        let text = self.text.mark().seen_bytes != document.begin.seen_bytes;
        text || document.final_text.is_some() || document.counted.counts()
    }

    /// Whether all tokens are known from what the answer reported so far.
    pub(super) fn reported(&self) -> bool {
        self.reported
    }

    /// Whether the last document said that it is the stream's last.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// The tokens up to here, if the last document was one of text and more of it may come: a document that only
    /// reports, or has the whole text once more, stands at a stream's end.
    pub(super) fn running(&self) -> Option<Running> {
        if !self.last_had_text || self.final_text.is_some() {
            return None;
        }
        let usage = &self.resolved.usage;
        if self.reported {
            return Some(Running { tokens: usage.total()?, with_input: true });
        }
        let (kept, seen_bytes) = self.text.so_far();
        let output = estimate_bytes(kept, seen_bytes.saturating_add(self.growth.left_out()))
            .max(usage.output.unwrap_or(0));
        let tokens = usage.input.unwrap_or(0).saturating_add(output).max(usage.total.unwrap_or(0));
        Some(Running {
            tokens,
            with_input: usage.total.is_some() || usage.input.is_some_and(|input| input > 0),
        })
    }

    /// Bytes of a document, or of what is none.
    #[inline]
    pub(super) fn see(&mut self, bytes: &[u8]) {
        self.has_body = self.has_body || !bytes.trim_ascii_start().is_empty();
    }

    /// Text that stands in no document.
    pub(super) fn plain_text(&mut self, bytes: &[u8]) {
        self.last_had_text = true;
        self.found_text = true;
        if self.wants_text {
            self.text.push(bytes);
        }
    }

    /// An event whose name says that the stream failed.
    pub(super) fn fail(&mut self) {
        self.document.failed_by_name = true;
    }

    /// Whether the document at hand ends the stream, whatever stands in it.
    pub(super) fn ends(&mut self, ended: bool) {
        self.document.ended = ended;
    }

    /// The document at hand broke off.
    pub(super) fn cut(&mut self, format: &Format) {
        self.document.ended = false;
        self.document.counted.cut(format);
    }

    /// Takes the counts of the answer's headers. To be asked before the first bytes.
    pub(super) fn headers<'a>(&mut self, format: &Format, value: impl Fn(&str) -> Option<&'a [u8]>) {
        let mut calls = Calls::default();
        for found in super::counts::in_headers(format, value, self.max_call_tokens) {
            calls.add(&found);
        }
        let resolved = calls.resolve(format);
        if resolved != Resolved::default() {
            self.headers = Some(Box::new(resolved));
            self.resolve(format);
        }
    }

    /// Forgets the document at hand, but for the name of its event.
    pub(super) fn roll_back(&mut self) {
        let failed_by_name = std::mem::take(&mut self.document.failed_by_name);
        self.text.go_back(self.document.begin);
        self.growth.forget(|_| true);
        self.document.clear();
        self.document.failed_by_name = failed_by_name;
    }

    /// The document at hand counts; the next one begins.
    #[inline]
    pub(super) fn commit(&mut self, format: &Format) {
        let document = &mut self.document;
        if let Some((_, Some(model))) = document.model.take() {
            self.model = Some(model);
        }
        if !document.messages.is_empty() {
            let messages = document.messages.iter().map(|(_, count)| *count).max().unwrap_or(0);
            self.messages = Some(self.messages.unwrap_or(0).saturating_add(messages));
        }
        if let Some(results) = document.results {
            self.results = Some(self.results.unwrap_or(0).saturating_add(results));
        }
        self.found_text |= document.has_text || document.final_text.is_some();
        if let Some(choice) = document.choice.filter(|_| document.has_text) {
            // Alternative answers come in turns; no token spans two of them.
            if self.choice.replace(choice).is_some_and(|last| last != choice) {
                let put_back = self.growth.stop(&mut self.text);
                document.begin.forward(put_back);
                self.text.cut_at(document.begin);
            }
        }
        // Of a message of several it is the message's own trouble.
        let failed = (document.failed && document.messages.is_empty()) || document.failed_by_name;
        self.failed_for_sure |= failed;
        self.failed |= failed || (document.error && document.messages.is_empty());
        self.any_error |= failed || document.failed || document.error;
        if let Some(text) = document.final_text.take() {
            self.final_text = Some(text);
            self.forget_text();
        } else if document.has_text && self.wants_text {
            self.count_once();
        }
        if let Some(tier) = self.document.counted.tier.take() {
            self.tier = tier;
        }
        if !self.document.counted.is_empty() {
            let has_text = self.document.has_text;
            if self.document.counted.commit(format, &mut self.calls, has_text, self.max_call_tokens) {
                self.resolve(format);
            }
        }
        self.last_had_text = self.document.has_text;
        self.ended = self.document.ended;
        self.document.clear();
        self.document.begin = self.text.mark();
    }

    #[inline]
    fn new_text(&mut self, bytes: &[u8]) {
        self.growth.push(self.place, bytes, &mut self.text);
        if self.text.is_full() {
            self.retold.beyond(bytes);
        }
    }

    /// What the document at hand says once more does not count again.
    fn count_once(&mut self) {
        let begin = &mut self.document.begin;
        let put_back = self.growth.commit(&mut self.text);
        begin.forward(put_back);
        if self.retold.is(self.document.text_node, &self.text, *begin) {
            self.text.go_back(*begin);
        }
    }

    fn resolve(&mut self, format: &Format) {
        self.resolved = self.calls.resolve(format);
        if let Some(headers) = &self.headers {
            self.resolved = self.resolved.or(headers);
        }
        self.reported = complete(&self.resolved.usage);
        if self.reported {
            self.without_text();
            self.final_text = None;
        }
    }

    /// Everything, at the end.
    pub(super) fn finish(&mut self) -> Learnt {
        self.growth.finish(&mut self.text);
        let text = match self.final_text.take() {
            _ if self.reported => Text::default(),
            Some(text) => text.into_text(),
            None => self.text.take().into_text(),
        };
        self.resolved.disbelieve_zeros(!text.is_empty());
        self.resolved.billing.tier = self.tier;
        Learnt {
            resolved: self.resolved,
            model: self.model.take(),
            messages: self.messages,
            results: self.results,
            failed: self.failed,
            failed_for_sure: self.failed_for_sure,
            any_error: self.any_error,
            ended: self.ended,
            has_body: self.has_body,
            found_text: self.found_text,
            text,
            guessed: false,
            unknown: false,
            shape: None,
        }
    }
}

/// What an answer told.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    pub(super) resolved: Resolved,
    pub(super) model: Option<String>,
    pub(super) messages: Option<u64>,
    pub(super) results: Option<u64>,
    /// Something says that the answer as a whole failed.
    pub(super) failed: bool,
    /// It says so in so many words, whatever else it has.
    pub(super) failed_for_sure: bool,
    /// Something says that something failed, one message of several perhaps.
    pub(super) any_error: bool,
    /// The last document said that nothing follows.
    pub(super) ended: bool,
    /// The body was more than white space.
    pub(super) has_body: bool,
    /// A text stood where the format has one, if only an empty one.
    pub(super) found_text: bool,
    pub(super) text: Text,
    /// The text was found by the last resort.
    pub(super) guessed: bool,
    /// There was something, and nobody knows what.
    pub(super) unknown: bool,
    /// What that looks like.
    pub(super) shape: Option<String>,
}

impl Learnt {
    /// Whether it has text, or counts something.
    pub(super) fn has_content(&self) -> bool {
        let usage = &self.resolved.usage;
        !self.text.is_empty()
            || [usage.total(), usage.input, usage.output].into_iter().flatten().any(|count| count > 0)
    }

    /// Nothing was found by the rules: looks through what was kept of the answer. `unread`: it had bytes that can't be.
    pub(super) fn last_resort(&mut self, sample: &Sample, unread: bool, text_limit: usize) {
        if self.failed || self.has_content() {
            return;
        }
        let found = sample.read(text_limit);
        // Where the format has a text, or no text is due, nothing more is looked for but what reads like one.
        let understood = self.results.is_some() || found.vectors || self.resolved.usage.total().is_some();
        let understood = understood || self.found_text || self.messages.is_some();
        if self.results.is_some() || (found.empty && !unread) {
        } else if found.failed {
            self.failed = true;
            self.any_error = true;
        } else if !found.text.is_empty() && !found.prose && !self.found_text {
            self.text = found.text;
            self.guessed = true;
            self.resolved.disbelieve_zeros(true);
        } else if found.prose || !understood {
            self.unknown = true;
            self.shape = (!found.shape.is_empty()).then_some(found.shape);
        }
    }
}

impl Sink for Ruled<'_> {
    #[inline]
    fn wants_text(&self) -> bool {
        self.capture.wants_text
    }

    #[inline]
    fn begin_text(&mut self, node: NodeId) {
        self.capture.place = Place::default();
        for action in self.format.answer.tree.actions(node) {
            match action {
                Action::Message => self.capture.document.message(node),
                Action::Text => {
                    let another = std::mem::replace(&mut self.capture.document.has_text, true);
                    // Two texts of one document are two things said.
                    if another {
                        self.capture.text.cut(b"");
                    }
                    self.capture.document.text_node = node;
                    if self.capture.wants_text {
                        self.capture.place = self.capture.growth.begin(node, &self.capture.text);
                    }
                }
                Action::FinalText if self.capture.wants_text => {
                    let limit = self.capture.text_limit;
                    self.capture.document.final_text.get_or_insert_with(|| Buffer::new(limit)).cut(b"");
                }
                _ => {}
            }
        }
    }

    #[inline]
    fn text(&mut self, node: NodeId, bytes: &[u8]) {
        self.capture.document.found = true;
        let is_final = self.capture.document.final_text.is_some() && self.is_final(node);
        match &mut self.capture.document.final_text {
            Some(buffer) if is_final => buffer.push(bytes),
            _ => self.capture.new_text(bytes),
        }
    }

    fn string(&mut self, node: NodeId, value: Option<&[u8]>) {
        let Capture { document, model, .. } = &mut *self.capture;
        let set = value.is_none_or(|value| !value.is_empty());
        let mut count: Option<(Class, u8)> = None;
        let mut named = None;
        for action in self.format.answer.tree.actions(node) {
            match action {
                Action::Count(next) => count = Some(deepest(count, next)),
                Action::CountWhen { shape, class, names } if is_one(names, value) => {
                    document.counted.one_more(node, *shape, *class);
                }
                Action::PartName(names) => document.counted.parts |= !is_one(names, value),
                Action::Name => document.counted.name(self.format, value.unwrap_or_default()),
                Action::NamedCount => {
                    document.counted.named_count(self.format, Some(Amount::parse_string(value)));
                }
                Action::Tier => document.counted.tier(value),
                Action::NoCost => document.counted.no_cost |= set,
                Action::CallEnd { shape } if set => document.counted.end(*shape),
                // Several shapes may have the id here.
                Action::CallId { depth, .. } if set && named != Some(*depth) => {
                    named = Some(*depth);
                    if let Some(id) = value {
                        document.counted.id(node, *depth, id);
                    }
                }
                Action::WholeWhen { depth, names } => document.counted.whole(*depth, is_one(names, value)),
                Action::TurnWhen { depth, names } if is_one(names, value) => document.counted.turn(*depth),
                Action::Model { order } => {
                    document.name_model(*order, value.unwrap_or_default(), model.as_deref());
                }
                Action::Message => document.message(node),
                Action::Result => document.results(1),
                Action::Error => document.error |= set,
                Action::ErrorWhen(names) => document.failed |= is_one(names, value),
                Action::ErrorUnless(names) => document.error |= !is_one(names, value),
                Action::End => document.ended |= set,
                Action::EndWhen(names) => document.ended |= is_one(names, value),
                _ => {}
            }
        }
        let Some((class, depth)) = count else { return };
        let amount = match class {
            Class::Cost => value.map_or(Some(Amount::Bad), Amount::parse_dollars),
            _ => Some(Amount::parse_string(value)),
        };
        document.count(node, depth, amount);
    }

    fn scalar(&mut self, node: NodeId, raw: Option<&[u8]>) {
        let document = &mut self.capture.document;
        let null = raw == Some(b"null");
        let set = !null && raw != Some(b"false");
        let mut count: Option<(Class, u8)> = None;
        let mut named = None;
        for action in self.format.answer.tree.actions(node) {
            match action {
                Action::Count(next) => count = Some(deepest(count, next)),
                Action::NamedCount => {
                    document.counted.named_count(self.format, raw.and_then(Amount::parse));
                }
                Action::NoCost => document.counted.no_cost |= set,
                Action::CallEnd { shape } if set => document.counted.end(*shape),
                // Several shapes may have the id here.
                Action::CallId { depth, .. } if set && named != Some(*depth) => {
                    named = Some(*depth);
                    if let Some(id) = raw {
                        document.counted.id(node, *depth, id);
                    }
                }
                Action::Message if !null => document.message(node),
                Action::Choice => document.choice = raw.and_then(digits),
                Action::Result => document.results(1),
                Action::Error => document.error |= set,
                Action::ErrorUnless(names) => document.error |= !null && !is_one(names, raw),
                Action::End => document.ended |= set,
                _ => {}
            }
        }
        let Some((class, depth)) = count else { return };
        let amount = match class {
            Class::Cost => raw.map_or(Some(Amount::Bad), Amount::parse_dollars),
            _ => raw.map_or(Some(Amount::Bad), Amount::parse),
        };
        document.count(node, depth, amount);
    }

    fn container(&mut self, node: NodeId, empty: bool) {
        for action in self.format.answer.tree.actions(node) {
            match action {
                Action::Message => self.capture.document.message(node),
                Action::Results => self.capture.document.results(0),
                Action::Result => self.capture.document.results(1),
                Action::Error => self.capture.document.error |= !empty,
                Action::End => self.capture.document.ended = true,
                Action::Named => self.capture.document.counted.named(node),
                Action::Call { depth } => self.capture.document.counted.open(*depth),
                Action::CallEnd { shape } => self.capture.document.counted.end(*shape),
                Action::NoCost => self.capture.document.counted.no_cost = true,
                _ => {}
            }
        }
    }

    #[inline]
    fn mark(&mut self, node: NodeId) {
        let mark = self.capture.text.mark();
        let marks = &mut self.capture.document.marks;
        match marks.iter_mut().find(|(at, _)| *at == node) {
            Some((_, old)) => *old = mark,
            None => marks.push((node, mark)),
        }
    }

    fn replaced(&mut self, node: NodeId) {
        if node == UNWANTED {
            return;
        }
        self.capture.place = Place::default();
        let below = self.format.answer.tree.subtree(node);
        let document = &mut self.capture.document;
        document.counted.forget(&below);
        document.messages.retain(|(at, _)| !below.contains(at));
        let counts = |action: &Action| matches!(action, Action::Results | Action::Result);
        if below.clone().any(|node| self.format.answer.tree.actions(node).iter().any(counts)) {
            document.results = None;
        }
        let ends = |action: &Action| matches!(action, Action::End | Action::EndWhen(_));
        if below.clone().any(|node| self.format.answer.tree.actions(node).iter().any(ends)) {
            document.ended = false;
        }
        if let Some((_, mark)) = document.marks.iter().find(|(at, _)| *at == node) {
            self.capture.text.go_back(*mark);
            self.capture.growth.forget(|node| below.contains(&node));
            document.final_text = None;
        }
    }
}

impl Ruled<'_> {
    fn is_final(&self, node: NodeId) -> bool {
        self.format.answer.tree.actions(node).iter().any(|action| matches!(action, Action::FinalText))
    }
}

fn is_one(names: &[String], value: Option<&[u8]>) -> bool {
    names.iter().any(|name| Some(name.as_bytes()) == value)
}
