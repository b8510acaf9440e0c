//! Single values of a JSON text, by pointer, taken in passing.
//!
//! Memory: a value of at most 512 bytes for each pointer, whatever the text's size. Nothing of a text counts that does
//! not come to its end.

use std::sync::Arc;

use serde_json::Value;

use super::pointer::{NodeId, PointerError, Tree, UNWANTED, parse};
use super::skim::Skimmer;
use super::wanted::{Sink, Wanted, want};

/// What is said of a string that is too long to be kept.
const TOO_LONG: &str = "(too long to keep)";

/// The places to take values from (RFC 6901).
#[derive(Debug)]
pub struct Pointers {
    wanted: Wanted<usize>,
    count: usize,
}

impl Pointers {
    /// Compiles pointers; [`glean`] gives their values in this order.
    ///
    /// # Errors
    /// One of them is no pointer.
    pub fn new<'a>(pointers: impl IntoIterator<Item = &'a str>) -> Result<Self, PointerError> {
        let pointers = pointers.into_iter().enumerate();
        let pointers = pointers.map(|(place, pointer)| Ok((parse(pointer)?, place)));
        let pointers: Vec<_> = pointers.collect::<Result<_, PointerError>>()?;
        let tree = Tree::new(&pointers)?;
        Ok(Self { wanted: Wanted::new(tree, |_| want::SCALAR), count: pointers.len() })
    }
}

/// The strings, numbers and literals at `pointers`; of a repeated key the last one counts.
pub fn glean(pointers: &Arc<Pointers>, text: &[u8]) -> Vec<Option<Value>> {
    let mut gleaner = Gleaner::new(pointers);
    gleaner.feed(text);
    gleaner.finish()
}

/// Takes values from a text that comes in pieces.
#[derive(Debug)]
pub(super) struct Gleaner {
    pointers: Arc<Pointers>,
    skimmer: Skimmer,
    values: Vec<Option<Value>>,
}

impl Gleaner {
    pub(super) fn new(pointers: &Arc<Pointers>) -> Self {
        let values = vec![None; pointers.count];
        Self { pointers: pointers.clone(), skimmer: Skimmer::default(), values }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if !self.skimmer.done() {
            let mut basket = Basket { pointers: &self.pointers, values: &mut self.values };
            self.skimmer.feed(bytes, &self.pointers.wanted, &mut basket);
        }
    }

    /// The values of a text that is whole; of any other, none.
    pub(super) fn finish(mut self) -> Vec<Option<Value>> {
        if !self.skimmer.done() {
            self.values.fill(None);
        }
        self.values
    }
}

struct Basket<'a> {
    pointers: &'a Pointers,
    values: &'a mut [Option<Value>],
}

impl Basket<'_> {
    fn put(&mut self, node: NodeId, value: Option<Value>) {
        for place in self.pointers.wanted.tree.actions(node) {
            self.values[*place].clone_from(&value);
        }
    }
}

impl Sink for Basket<'_> {
    fn wants_text(&self) -> bool {
        false
    }

    fn begin_text(&mut self, _: NodeId) {}

    fn text(&mut self, _: NodeId, _: &[u8]) {}

    fn string(&mut self, node: NodeId, value: Option<&[u8]>) {
        let text = value.map_or(Ok(TOO_LONG), std::str::from_utf8);
        self.put(node, text.ok().map(Value::from));
    }

    fn scalar(&mut self, node: NodeId, raw: Option<&[u8]>) {
        self.put(node, raw.and_then(|raw| serde_json::from_slice(raw).ok()));
    }

    fn container(&mut self, _: NodeId, _: bool) {}

    fn mark(&mut self, _: NodeId) {}

    fn replaced(&mut self, node: NodeId) {
        if node != UNWANTED {
            for below in self.pointers.wanted.tree.subtree(node) {
                self.put(below, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointers(pointers: &[&str]) -> Arc<Pointers> {
        Arc::new(Pointers::new(pointers.iter().copied()).unwrap())
    }

    #[test]
    fn values_keep_their_types_and_what_is_no_value_is_none() {
        let pointers = pointers(&["/a", "/b/c", "/d", "/e", "/f", "/g", "/a"]);
        let text = br#"{"a":"x\u00e9\n","b":{"c":14.5},"d":true,"e":null,"f":{"x":1},"h":2}"#;
        let expected = [
            Some(json!("xé\n")),
            Some(json!(14.5)),
            Some(json!(true)),
            Some(json!(null)),
            None,
            None,
            Some(json!("xé\n")),
        ];
        assert_eq!(glean(&pointers, text), expected);
    }

    #[test]
    fn any_split_gives_the_same() {
        let pointers = pointers(&["/plan", "/n/0/id"]);
        let text =
            r#" {"plan": "pr\"o", "n": [{"id": -7}, {"id": 8}], "more": [1, {"plan": 2}]} "#.as_bytes();
        let whole = glean(&pointers, text);
        assert_eq!(whole, [Some(json!("pr\"o")), Some(json!(-7))]);
        for at in 0..text.len() {
            let mut gleaner = Gleaner::new(&pointers);
            gleaner.feed(&text[..at]);
            gleaner.feed(&text[at..]);
            assert_eq!(gleaner.finish(), whole, "split at {at}");
        }
    }

    #[test]
    fn the_last_of_a_repeated_key_counts() {
        let pointers = pointers(&["/a/b", "/c"]);
        let text = br#"{"a":{"b":1},"c":1,"a":{},"c":2}"#;
        assert_eq!(glean(&pointers, text), [None, Some(json!(2))]);
    }

    #[test]
    fn a_text_that_breaks_off_or_is_none_gives_nothing() {
        let pointers = pointers(&["/a"]);
        for text in [&br#"{"a":1"#[..], br#"{"a":1,]"#, b"", b"<html>"] {
            assert_eq!(glean(&pointers, text), [None]);
        }
    }

    #[test]
    fn what_is_too_long_says_so() {
        let text = json!({"a": "x".repeat(600), "b": "y"}).to_string();
        let pointers = pointers(&["/a", "/b"]);
        assert_eq!(glean(&pointers, text.as_bytes()), [Some(json!(TOO_LONG)), Some(json!("y"))]);
    }
}
