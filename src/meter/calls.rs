//! The model calls of one answer, and what each of them used.
//!
//! 1. Of one call the counts are merged as its format says; the calls are added up.
//! 2. Every shape tells the calls apart by its own ids and knows nothing of the others; the shape that fits best is
//!    believed, alone.
//! 3. Memory: [`MAX_CALLS`] calls. Where there are more, the oldest are added into one, so that no count is lost.

use smallvec::SmallVec;

use super::format::Format;
use super::usage::{
    Amount, Class, Counts, Doubt, Fit, Merge, Resolved, TOKEN_CLASSES, billing, fit, resolve,
};

/// How many calls of an answer are told apart.
const MAX_CALLS: usize = 256;

/// Shapes that share the fields of most answers.
const USUAL_TALLIES: usize = 8;

/// A call as its shape names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallId {
    /// No id was seen.
    Nameless,
    /// A hash of its id.
    Named(u64),
    /// All that are too many to be told apart.
    Rest,
}

impl CallId {
    /// The call of an id as the answer has it, a string or a number. Every chunk of a stream has one, so that the hash
    /// is a quick one (multiply and fold, eight bytes at a time): whoever makes up ids that collide is the provider.
    pub(super) fn new(id: &[u8]) -> Self {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let mix = |hash: u64, word: u64| {
            let product = u128::from(hash ^ word) * u128::from(FACTOR);
            (product as u64) ^ ((product >> 64) as u64)
        };
        let (words, rest) = id.as_chunks();
        let mut hash = id.len() as u64 ^ FACTOR;
        for word in words {
            hash = mix(hash, u64::from_be_bytes(*word)).wrapping_add(FACTOR);
        }
        let rest = rest.iter().fold(1, |word, byte| (word << 8) | u64::from(*byte));
        CallId::Named(mix(hash, rest))
    }
}

/// What one shape has counted of one call.
#[derive(Debug)]
struct Tally {
    shape: u8,
    call: CallId,
    counts: Counts,
    /// A count that was not believed, and one kept in its place.
    doubt: Option<Doubt>,
}

/// The call that a shape's counts belong to, where nothing else is said.
#[derive(Clone, Copy, Debug)]
struct Current {
    shape: u8,
    call: CallId,
    ended: bool,
}

/// A count of a document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) shape: u8,
    pub(super) class: Class,
    pub(super) amount: Amount,
    pub(super) how: Merge,
    /// Of the object that it stands in, where that has an id.
    pub(super) call: Option<CallId>,
}

/// The id of the call that a document is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) shape: u8,
    pub(super) call: CallId,
    /// A new one always begins a new call; else only where more speaks for it.
    pub(super) strong: bool,
}

/// Each shape, how well it fits the best of its calls, and how many calls it knows.
type Fits = SmallVec<[(u8, (Fit, usize)); 8]>;

/// The calls of an answer.
#[derive(Debug, Default)]
pub(super) struct Calls {
    tallies: Vec<Tally>,
    current: SmallVec<[Current; 4]>,
    /// Some count that is no zero has a price of its own.
    asides: bool,
}

impl Calls {
    /// A document is about the call of that name.
    ///
    /// An id that comes with every event of one call, changing, is common enough (a proxy that makes one up for each
    /// chunk) that a new id alone is not a new call: its input differs from the call's before, or the call before said
    /// why it ended and now there is text again.
    pub(super) fn name(&mut self, name: Name, found: &[Found], has_text: bool) {
        let Name { shape, call, strong } = name;
        let current = self.current(shape);
        if self.current[current].call == call {
            return;
        }
        let before = self.find(shape, self.current[current].call);
        let known = self.find(shape, call).is_some();
        let begins = before.is_some_and(|tally| {
            let tally = &self.tallies[tally];
            let input = tally.counts[Class::Input as usize].positive();
            let next = found
                .iter()
                .find(|found| found.shape == shape && found.class == Class::Input && found.call.is_none());
            let next = next.and_then(|found| found.amount.positive());
            let differs = input.zip(next).is_some_and(|(input, next)| input != next);
            strong || differs || (self.current[current].ended && has_text)
        });
        if !known
            && !begins
            && let Some(before) = before
        {
            self.tallies[before].call = call;
        }
        let ended = self.current[current].ended && !known && !begins;
        self.current[current] = Current { shape, call, ended };
    }

    /// The call that a document is about is over.
    pub(super) fn end(&mut self, shape: u8) {
        let current = self.current(shape);
        self.current[current].ended = true;
    }

    /// Takes a count.
    pub(super) fn add(&mut self, found: &Found) {
        let Found { shape, class, amount, how, call } = *found;
        let call = call.unwrap_or_else(|| self.current_call(shape));
        self.asides |= class as usize >= TOKEN_CLASSES && amount.positive().is_some();
        let tally = self.tally(shape, call);
        let count = &mut tally.counts[class as usize];
        let merged = count.merge(amount, how);
        if merged != amount && (class as usize) < TOKEN_CLASSES {
            tally.doubt = Doubt::or(tally.doubt, amount.doubt());
        }
        *count = merged;
    }

    /// All calls together, by the shape that fits best: the first of those that fit equally well and know as many
    /// calls.
    pub(super) fn resolve(&self, format: &Format) -> Resolved {
        let mut best = (((0, 0), 0), u8::MAX);
        for (shape, fits) in self.fits() {
            if fits > best.0 || (fits == best.0 && shape < best.1) {
                best = (fits, shape);
            }
        }
        let Some(shape) = format.shapes.get(usize::from(best.1)) else { return Resolved::default() };
        let mut sum: Option<Resolved> = None;
        for tally in self.tallies.iter().filter(|tally| tally.shape == best.1) {
            let mut call = resolve(shape, &tally.counts);
            call.doubt = Doubt::or(call.doubt, tally.doubt);
            sum = Some(sum.map_or(call, |sum| sum.plus(call)));
        }
        let mut sum = sum.unwrap_or_default();
        if self.asides {
            sum.billing = billing(&self.asides(best.1), &sum.usage);
        }
        sum
    }

    /// How well each shape fits: the best of its calls, and how many it knows.
    fn fits(&self) -> Fits {
        let mut fits = Fits::new();
        for tally in &self.tallies {
            let fit = fit(&tally.counts);
            match fits.iter_mut().find(|(shape, _)| *shape == tally.shape) {
                Some((_, (best, calls))) => (*best, *calls) = ((*best).max(fit), *calls + 1),
                None => fits.push((tally.shape, (fit, 1))),
            }
        }
        fits
    }

    /// What has a price of its own, as `shape` has it, else as the first shape that does.
    fn asides(&self, shape: u8) -> Counts {
        let mut sums = Counts::default();
        for (class, sum) in sums.iter_mut().enumerate().skip(TOKEN_CLASSES) {
            let tells = |tally: &&Tally| tally.counts[class].positive().is_some();
            let others = || self.tallies.iter().filter(tells).map(|tally| tally.shape).min();
            let ours = self.tallies.iter().filter(tells).any(|tally| tally.shape == shape);
            let Some(shape) = ours.then_some(shape).or_else(others) else { continue };
            let told = self.tallies.iter().filter(|tally| tally.shape == shape);
            *sum = told.map(|tally| tally.counts[class]).fold(Amount::Unknown, Amount::plus);
        }
        sums
    }

    fn find(&self, shape: u8, call: CallId) -> Option<usize> {
        self.tallies.iter().rposition(|tally| tally.shape == shape && tally.call == call)
    }

    fn current(&mut self, shape: u8) -> usize {
        let known = self.current.iter().position(|current| current.shape == shape);
        known.unwrap_or_else(|| {
            self.current.push(Current { shape, call: CallId::Nameless, ended: false });
            self.current.len() - 1
        })
    }

    fn current_call(&self, shape: u8) -> CallId {
        let current = self.current.iter().find(|current| current.shape == shape);
        current.map_or(CallId::Nameless, |current| current.call)
    }

    fn tally(&mut self, shape: u8, call: CallId) -> &mut Tally {
        let place = self.find(shape, call).unwrap_or_else(|| {
            if self.tallies.len() >= MAX_CALLS {
                self.fold_oldest();
            }
            self.tallies.reserve(USUAL_TALLIES);
            self.tallies.push(Tally { shape, call, counts: Counts::default(), doubt: None });
            self.tallies.len() - 1
        });
        &mut self.tallies[place]
    }

    /// Adds the oldest call into the rest of its shape.
    fn fold_oldest(&mut self) {
        let Some(oldest) = self.tallies.iter().position(|tally| tally.call != CallId::Rest) else { return };
        let oldest = self.tallies.remove(oldest);
        let Some(rest) = self.find(oldest.shape, CallId::Rest) else {
            self.tallies.insert(0, Tally { call: CallId::Rest, ..oldest });
            // One more, so that the next one makes room.
            return;
        };
        let rest = &mut self.tallies[rest];
        for (sum, count) in rest.counts.iter_mut().zip(oldest.counts) {
            *sum = sum.plus(count);
        }
        rest.doubt = Doubt::or(rest.doubt, oldest.doubt);
    }
}
