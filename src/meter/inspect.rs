//! What a metered request's body says, read once and strictly.
//!
//! The service reads the same bytes with its own parser. Where two parsers could differ (invalid UTF-8, a byte order
//! mark, half a surrogate pair, absurd depth or numbers, something after the end) the body is refused as not JSON,
//! so that nobody is charged for another's request. (`mend` makes JSON of what the well-known parsers take.) Of a repeated
//! key the last one counts, as in `JSON.parse`.
//!
//! Some services don't tell the case of a key's letters (ASP.NET, Go). A body with a key in another case is read twice, as
//! it is and as they do: the larger counts hold, and a value that they could take from two keys is ambiguous.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::format::{Ask, Format};
use super::image::Image;
use super::key::Key;
use super::last_resort;
use super::pointer::{NodeId, Tree, UNWANTED, eq_in_any_case};
use super::prompt::{CALL, CALLS_TOGETHER, NAME, WORDS_AND_CALLS};
use super::text::{Buffer, Mark, Prompt, Text};

/// What a metered request's body says, read once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspected {
    /// The values found at the pointers asked for, in their order. Strings as they are, numbers as
    /// JavaScript would print them (below 10²¹); else `None`.
    pub values: Vec<Option<String>>,
    /// Messages in the request, at least 1.
    pub messages: u64,
    /// Texts to embed (`texts`, or OpenAI's `input`), else 0.
    pub embeddings: u64,
    /// The model asked for.
    pub model: Option<String>,
    /// The text of its messages, for counting, bounded by `max_text_bytes`. One line for each.
    pub text: Text,
    /// The text was found by the last resort, under keys that commonly hold text: no rule of the format names its place.
    pub guessed: bool,
    /// The names of the keys of a request that has strings, but no text that was found; no values, bounded.
    pub shape: Option<String>,
    /// `/sessionId`, when the format has one.
    pub session: Option<String>,
    /// Keys that differ in the case of their letters alone give different values at a pointer that was asked for.
    pub ambiguous: bool,
}

impl Inspected {
    /// The bytes of the body's text that it keeps.
    pub fn text_bytes(&self) -> usize {
        let values = self.values.iter().chain([&self.model, &self.session, &self.shape]);
        self.text.bytes() + values.flatten().map(String::len).sum::<usize>()
    }
}

/// The body is not JSON that the service's parser and ours must read alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body is not valid JSON")]
pub struct NotJson;

pub(super) fn inspect(
    format: &Format,
    text_limit: usize,
    body: &[u8],
    pointers: &[&str],
) -> Result<Inspected, NotJson> {
    let body = std::str::from_utf8(body).map_err(|_| NotJson)?;
    let (as_it_is, has_variants) = read(format, text_limit, body, pointers, false)?;
    if !has_variants {
        return Ok(as_it_is);
    }
    let (in_any_case, _) = read(format, text_limit, body, pointers, true)?;
    Ok(as_it_is.or_as(in_any_case))
}

impl Inspected {
    /// Of two readings of one body, what costs more; where one finds nothing, what the other finds.
    fn or_as(mut self, mut other: Self) -> Self {
        if other.text.kept.len() > self.text.kept.len() {
            std::mem::swap(&mut self, &mut other);
        }
        self.messages = self.messages.max(other.messages);
        self.embeddings = self.embeddings.max(other.embeddings);
        self.ambiguous |= other.ambiguous;
        for (value, other) in self.values.iter_mut().zip(other.values) {
            self.ambiguous |= value.is_some() && other.is_some() && *value != other;
            *value = value.take().or(other);
        }
        self.model = self.model.or(other.model);
        self.session = self.session.or(other.session);
        self
    }
}

/// Reads a body once; also says whether a wanted key stands there in another case. `in_any_case`: such a key is the one
/// that is wanted.
fn read(
    format: &Format,
    text_limit: usize,
    body: &str,
    pointers: &[&str],
    in_any_case: bool,
) -> Result<(Inspected, bool), NotJson> {
    let mut found = Found {
        in_any_case,
        has_variants: false,
        ambiguous: false,
        least: (0, 0),
        values: vec![None; pointers.len()],
        elements: SmallVec::new(),
        embeddings: SmallVec::new(),
        model: None,
        session: None,
        text: Buffer::new(text_limit),
        aside: Buffer::new(text_limit),
        tools: Buffer::new(text_limit),
        extras: SmallVec::new(),
        image: Image::default(),
        said: false,
        calls: 0,
        marks: SmallVec::new(),
    };
    let asked = pointers.iter().enumerate();
    let asked = asked.filter_map(|(index, pointer)| Some((index, pointer.strip_prefix('/')?))).collect();
    let mut parser = serde_json::Deserializer::from_str(body);
    let seed = At { tree: &format.request, node: Tree::<Ask>::ROOT, asked, found: &mut found };
    seed.deserialize(&mut parser).map_err(|_| NotJson)?;
    parser.end().map_err(|_| NotJson)?;

    found.keep_counts();
    let (messages, embeddings) = found.least;
    let (has_variants, ambiguous) = (found.has_variants, found.ambiguous);
    let prompt = found.prompt();
    let mut inspected = Inspected {
        values: found.values,
        messages: messages.max(1),
        embeddings,
        model: found.model.map(|(_, model)| model),
        session: found.session.map(|(_, session)| session),
        text: found.text.into_text(),
        guessed: false,
        shape: None,
        ambiguous,
    };
    if inspected.text.is_empty() && format.has_tokens() {
        let found = last_resort::read(body, text_limit);
        inspected.guessed = !found.text.is_empty();
        inspected.text = found.text;
        inspected.shape = found.shape;
    }
    inspected.text.prompt = (!prompt.is_empty()).then(|| Box::new(prompt));
    Ok((inspected, has_variants))
}

/// An array of messages: its elements, and those that have the member that makes them messages.
#[derive(Debug)]
struct Tally {
    node: NodeId,
    elements: u64,
    members: u64,
}

struct Found {
    /// The case of a key's letters does not matter.
    in_any_case: bool,
    /// A wanted key stands there in another case.
    has_variants: bool,
    ambiguous: bool,
    /// The most messages and embeddings that one of several keys gave.
    least: (u64, u64),
    values: Vec<Option<String>>,
    elements: SmallVec<[Tally; 2]>,
    embeddings: SmallVec<[(NodeId, u64); 2]>,
    model: Option<(NodeId, String)>,
    session: Option<(NodeId, String)>,
    text: Buffer,
    aside: Buffer,
    tools: Buffer,
    extras: SmallVec<[(NodeId, Extra, u64); 8]>,
    /// The image at hand.
    image: Image,
    /// The message at hand has words, and how many calls of tools. (They stand behind its role, as everybody's do.)
    said: bool,
    calls: u64,
    marks: SmallVec<[(NodeId, Marks); 8]>,
}

/// Where the texts stood.
type Marks = [Mark; 3];

/// What a prompt has beside text; a number of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    Message,
    SystemMessage,
    Token,
    /// A thing whose tokens are a guess.
    Guess,
}

impl Found {
    fn add(&mut self, node: NodeId, extra: Extra, count: u64) {
        match self.extras.iter_mut().find(|(at, kind, _)| *at == node && *kind == extra) {
            Some((.., sum)) => *sum += count,
            None => self.extras.push((node, extra, count)),
        }
    }

    /// Counts hold at least as they are now, whatever follows.
    fn keep_counts(&mut self) {
        let messages =
            self.elements.iter().filter(|tally| tally.members > 0).map(|tally| tally.elements).max();
        let embeddings = self.embeddings.iter().map(|(_, count)| *count).max();
        self.least.0 = self.least.0.max(messages.unwrap_or(0));
        self.least.1 = self.least.1.max(embeddings.unwrap_or(0));
    }

    fn aside(&mut self, value: &str) {
        self.aside.cut(b"\n");
        self.aside.push(value.as_bytes());
    }

    fn add_image(&mut self, node: NodeId, image: Image) {
        if image.present {
            let (tokens, guess) = image.tokens();
            self.add(node, Extra::Token, tokens);
            self.add(node, Extra::Guess, u64::from(guess));
        }
    }

    /// What the prompt holds beside its text, taken out.
    fn prompt(&mut self) -> Prompt {
        let of =
            |kind| self.extras.iter().filter(|(_, extra, _)| *extra == kind).map(|(.., count)| count).sum();
        let system: u64 = of(Extra::SystemMessage);
        let messages: u64 = of(Extra::Message);
        Prompt {
            messages: messages + system,
            system: system > 0,
            tokens: of(Extra::Token),
            estimated: of(Extra::Guess) > 0,
            aside: self.aside.take().into_text(),
            tools: self.tools.take().into_text().kept,
        }
    }

    fn marks(&self) -> Marks {
        [self.text.mark(), self.aside.mark(), self.tools.mark()]
    }

    fn go_back(&mut self, marks: Marks) {
        for (buffer, mark) in [&mut self.text, &mut self.aside, &mut self.tools].into_iter().zip(marks) {
            buffer.go_back(mark);
        }
    }
}

/// The rest of the pointers that lead here or below, with their places in the list.
type Asked<'p> = SmallVec<[(usize, &'p str); 4]>;

/// Reads the value at one place, and all below it.
struct At<'a, 'p> {
    tree: &'a Tree<Ask>,
    node: NodeId,
    asked: Asked<'p>,
    found: &'a mut Found,
}

/// Whether a token of a pointer, still escaped, is `key` by `same`.
fn is_token(token: &str, key: &str, same: fn(&str, &str) -> bool) -> bool {
    if token.contains('~') {
        same(&token.replace("~1", "/").replace("~0", "~"), key)
    } else {
        same(token, key)
    }
}

fn is_same(a: &str, b: &str) -> bool {
    a == b
}

impl<'p> At<'_, 'p> {
    fn actions(&self) -> &[Ask] {
        if self.node == UNWANTED { &[] } else { self.tree.actions(self.node) }
    }

    /// How keys are compared.
    fn comparison(&self) -> fn(&str, &str) -> bool {
        if self.found.in_any_case { eq_in_any_case } else { is_same }
    }

    /// The place of the member `key`, as keys are compared here.
    fn member(&mut self, key: &str, asked: &Asked<'_>) -> (NodeId, Option<u32>) {
        let exactly = match self.node {
            UNWANTED => (UNWANTED, None),
            node => self.tree.member(node, key.as_bytes()),
        };
        if exactly.1.is_some() {
            return exactly;
        }
        let in_any_case = match self.node {
            UNWANTED => exactly,
            node => self.tree.member_in_any_case(node, key),
        };
        if self.found.in_any_case {
            return in_any_case;
        }
        let is_asked = |(_, rest): &(usize, &str)| {
            let first = rest.split('/').next().unwrap_or_default();
            *rest != END && is_token(first, key, eq_in_any_case)
        };
        self.found.has_variants |=
            in_any_case.1.is_some() || asked.is_empty() && self.asked.iter().any(is_asked);
        exactly
    }

    fn below(&self, token: &str) -> Asked<'p> {
        let same = self.comparison();
        let step = |(index, rest): &(usize, &'p str)| {
            // An empty rest is a pointer that ended here; `\u{0}` marks it, as no path has it twice.
            let (first, rest) = rest.split_once('/').map_or((*rest, END), |(first, rest)| (first, rest));
            is_token(first, token, same).then_some((*index, rest))
        };
        self.asked.iter().filter(|(_, rest)| *rest != END).filter_map(step).collect()
    }

    /// A string, or a number as written.
    fn value(&mut self, value: &str, is_text: bool) {
        for (index, rest) in &self.asked {
            if *rest == END {
                self.found.values[*index] = Some(value.to_owned());
            }
        }
        if self.node == UNWANTED {
            return;
        }
        if is_text {
            self.string(value);
        }
        if self.actions().contains(&Ask::Session) {
            self.found.session = Some((self.node, value.to_owned()));
        }
        if is_text {
            self.embeddings(1);
        }
        self.member_or_element();
    }

    fn string(&mut self, value: &str) {
        let (node, found) = (self.node, &mut *self.found);
        let actions = self.tree.actions(node);
        for (place, ask) in actions.iter().enumerate() {
            // Several pointers may lead here for the same thing.
            if actions[..place].contains(ask) {
                continue;
            }
            match ask {
                Ask::Text if !last_resort::is_no_words(value) => {
                    found.text.cut(b"\n");
                    found.text.push(value.as_bytes());
                    if !value.is_empty() && !std::mem::replace(&mut found.said, true) && found.calls > 0 {
                        found.add(node, Extra::Token, WORDS_AND_CALLS);
                    }
                }
                Ask::Model => found.model = Some((node, value.to_owned())),
                Ask::Role => {
                    let system = matches!(value, "system" | "developer");
                    found.add(node, if system { Extra::SystemMessage } else { Extra::Message }, 1);
                }
                Ask::Name | Ask::Aside if !value.is_empty() => {
                    found.aside(value);
                    found.add(node, Extra::Token, if *ask == Ask::Name { NAME } else { 0 });
                }
                Ask::Call if !value.is_empty() => {
                    found.aside(value);
                    found.aside(value);
                    found.calls += 1;
                    let beside = match found.calls {
                        1 if found.said => WORDS_AND_CALLS,
                        2 => CALLS_TOGETHER,
                        _ => 0,
                    };
                    found.add(node, Extra::Token, CALL + beside);
                }
                Ask::Image => {
                    let mut image = Image::default();
                    image.see(value);
                    found.add_image(node, image);
                }
                Ask::ImageSource => found.image.see(value),
                Ask::ImageDetail => found.image.low = value == "low",
                _ => {}
            }
        }
    }

    /// A list of token ids (OpenAI takes them in place of a text) costs as many tokens where a text could stand.
    fn ids(&mut self, count: u64) -> bool {
        let node = self.node;
        let wanted = self.actions().iter().any(|ask| matches!(ask, Ask::Text | Ask::Embeddings));
        if wanted && count > 0 {
            self.found.add(node, Extra::Token, count);
        }
        wanted
    }

    fn embeddings(&mut self, count: u64) {
        if self.actions().contains(&Ask::Embeddings) {
            let node = self.node;
            match self.found.embeddings.iter_mut().find(|(at, _)| *at == node) {
                Some((_, sum)) => *sum += count,
                None => self.found.embeddings.push((node, count)),
            }
        }
    }

    fn member_or_element(&mut self) {
        let actions = self.actions();
        let (element, member) = (actions.contains(&Ask::Element), actions.contains(&Ask::Member));
        if element || member {
            self.tally(element, member);
        }
    }

    fn tally(&mut self, element: bool, member: bool) {
        // A member's node comes right after its element's: the tree is numbered depth first.
        let node = self.node;
        if element {
            match self.found.elements.iter_mut().find(|tally| tally.node == node) {
                Some(tally) => tally.elements += 1,
                None => self.found.elements.push(Tally { node, elements: 1, members: 0 }),
            }
        }
        if member {
            let tree = self.tree;
            let of = |tally: &&mut Tally| tally.node != node && tree.subtree(tally.node).contains(&node);
            if let Some(tally) = self.found.elements.iter_mut().find(of) {
                tally.members += 1;
            }
        }
    }

    /// The key stood in this object before: what it gave is void.
    fn replaced(&mut self, node: NodeId, asked: &Asked<'_>) {
        if self.found.in_any_case {
            self.found.keep_counts();
        }
        for (index, _) in asked {
            self.found.values[*index] = None;
        }
        if node == UNWANTED {
            return;
        }
        let below = self.tree.subtree(node);
        let found = &mut *self.found;
        found.elements.retain(|tally| !below.contains(&tally.node));
        found.embeddings.retain(|(at, _)| !below.contains(at));
        found.model.take_if(|(at, _)| below.contains(at));
        found.session.take_if(|(at, _)| below.contains(at));
        found.extras.retain(|(at, ..)| !below.contains(at));
        if let Some((_, marks)) = found.marks.iter().find(|(at, _)| *at == node) {
            let marks = *marks;
            found.go_back(marks);
        }
    }

    /// Whether an object here is a message, whatever the order of its keys.
    fn is_message(&self) -> bool {
        if self.node == UNWANTED {
            return false;
        }
        let (role, place) = self.tree.member(self.node, b"role");
        place.is_some() && self.tree.actions(role).contains(&Ask::Role)
    }

    fn values_at(&self, asked: &Asked<'_>) -> Vec<Option<String>> {
        asked.iter().map(|(index, _)| self.found.values[*index].clone()).collect()
    }

    fn mark(&mut self, node: NodeId) {
        let mark = self.found.marks();
        match self.found.marks.iter_mut().find(|(at, _)| *at == node) {
            Some((_, old)) => *old = mark,
            None => self.found.marks.push((node, mark)),
        }
    }
}

/// The rest of a pointer that ends here. No token can be this: a slash would have to follow.
const END: &str = "\u{0}";

impl<'de> DeserializeSeed<'de> for At<'_, '_> {
    /// Token ids in a list that nobody has counted yet; else 0.
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        if !self.actions().contains(&Ask::Tools) {
            return deserializer.deserialize_any(self);
        }
        let tools = <&RawValue>::deserialize(deserializer)?.get();
        if tools != "null" {
            self.found.tools.cut(b"\n");
            self.found.tools.push(tools.as_bytes());
        }
        serde_json::Deserializer::from_str(tools).deserialize_any(self).map_err(D::Error::custom)
    }
}

impl<'de> Visitor<'de> for At<'_, '_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<u64, E> {
        self.value(value, true);
        Ok(0)
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<u64, E> {
        self.value(&value.to_string(), false);
        Ok(0)
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<u64, E> {
        self.value(&value.to_string(), false);
        Ok(0)
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<u64, E> {
        self.value(&value.to_string(), false);
        Ok(0)
    }

    fn visit_bool<E: Error>(mut self, _value: bool) -> Result<u64, E> {
        self.member_or_element();
        Ok(0)
    }

    fn visit_unit<E: Error>(mut self) -> Result<u64, E> {
        self.member_or_element();
        Ok(0)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<u64, A::Error> {
        self.member_or_element();
        let mut index: u32 = 0;
        let mut first = Kind::Other;
        let (mut ids, mut others, mut texts) = (0, false, 0);
        let mut name = String::new();
        loop {
            let node = if self.node == UNWANTED { UNWANTED } else { self.tree.element(self.node, index) };
            let asked = if self.asked.is_empty() {
                Asked::new()
            } else {
                name.clear();
                fmt::Write::write_fmt(&mut name, format_args!("{index}")).map_err(A::Error::custom)?;
                self.below(&name)
            };
            let mut kind = Kind::Other;
            let seed =
                Element { at: At { tree: self.tree, node, asked, found: self.found }, kind: &mut kind };
            if seq.next_element_seed(seed)?.is_none() {
                break;
            }
            if index == 0 {
                first = kind;
            }
            match kind {
                Kind::Number { id } => {
                    ids += u64::from(id);
                    others |= !id;
                }
                Kind::List { ids: inner } => ids += inner,
                Kind::Text | Kind::Other => others = true,
            }
            texts += u64::from(matches!(kind, Kind::Text | Kind::List { .. }));
            index = index.saturating_add(1);
        }
        // Strings or token lists are a text each, whatever stands before them; bare tokens are one text; objects are no
        // texts (they are the input of a conversation).
        match first {
            Kind::Text | Kind::List { .. } => self.embeddings(u64::from(index)),
            Kind::Number { .. } | Kind::Other if texts > 0 => self.embeddings(texts),
            Kind::Number { .. } => self.embeddings(1),
            Kind::Other => {}
        }
        // What holds other things too is no list of ids.
        let ids = if others { 0 } else { ids };
        Ok(if self.ids(ids) { 0 } else { ids })
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<u64, A::Error> {
        if self.is_message() {
            (self.found.said, self.found.calls) = (false, 0);
        }
        self.member_or_element();
        let is_image = self.actions().contains(&Ask::Image);
        let around = is_image.then(|| std::mem::take(&mut self.found.image));
        let mut seen: SmallVec<[String; 2]> = SmallVec::new();
        let mut seen_nodes: SmallVec<[NodeId; 8]> = SmallVec::new();
        while let Some(key) = map.next_key_seed(Key)? {
            let asked = self.below(&key);
            let (node, place) = self.member(&key, &asked);
            let same = self.comparison();
            let known_node = place.is_some() && seen_nodes.contains(&node);
            let is_variant =
                seen.iter().any(|known| same(known, &key)) && !seen.iter().any(|known| *known == key);
            let before = is_variant.then(|| self.values_at(&asked));
            if known_node || seen.iter().any(|known| same(known, &key)) {
                self.replaced(if place.is_some() { node } else { UNWANTED }, &asked);
            }
            if place.is_some() {
                if !known_node {
                    seen_nodes.push(node);
                }
                self.mark(node);
            }
            if !asked.is_empty() && !seen.iter().any(|known| *known == key) {
                seen.push(key.into_owned());
            }
            let places = if before.is_some() { asked.clone() } else { Asked::default() };
            map.next_value_seed(At { tree: self.tree, node, asked, found: self.found })?;
            let differ = |before: Vec<Option<String>>| {
                let pairs = before.into_iter().zip(self.values_at(&places));
                pairs.into_iter().any(|pair| matches!(pair, (Some(a), Some(b)) if a != b))
            };
            self.found.ambiguous |= before.is_some_and(differ);
        }
        if let Some(around) = around {
            let image = std::mem::replace(&mut self.found.image, around);
            self.found.add_image(self.node, image);
        }
        Ok(0)
    }
}

/// What an array's element is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// A number, and whether it can be a token's id.
    Number {
        id: bool,
    },
    /// A list, and the token ids in it.
    List {
        ids: u64,
    },
    Other,
}

/// An element, and what it turned out to be.
struct Element<'a, 'p> {
    at: At<'a, 'p>,
    kind: &'a mut Kind,
}

impl<'de> DeserializeSeed<'de> for Element<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Element<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        *self.kind = Kind::Text;
        self.at.visit_str(value).map(drop)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        *self.kind = Kind::Number { id: true };
        self.at.visit_u64(value).map(drop)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        *self.kind = Kind::Number { id: false };
        self.at.visit_i64(value).map(drop)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        *self.kind = Kind::Number { id: false };
        self.at.visit_f64(value).map(drop)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.at.visit_bool(value).map(drop)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.at.visit_unit().map(drop)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        *self.kind = Kind::List { ids: self.at.visit_seq(seq)? };
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        self.at.visit_map(map).map(drop)
    }
}
