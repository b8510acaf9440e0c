//! Names with `*` for any run of characters.

use memchr::memmem;

/// A name in which `*` stands for any run of characters, none included. It fits whole names, never a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    /// What stands before, between and after the `*`: two pieces at least.
    pieces: Vec<String>,
    /// Whether there is a `/` in it: asked for every name.
    path: bool,
}

impl Pattern {
    /// `None` where there is no `*`: a name that means itself.
    pub fn parse(text: &str) -> Option<Self> {
        let pieces: Vec<String> = text.split('*').map(str::to_owned).collect();
        (pieces.len() > 1).then(|| Self { text: text.to_owned(), pieces, path: text.contains('/') })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Bytes that a name must have to fit: the more, the closer the fit.
    pub fn literal_bytes(&self) -> usize {
        self.pieces.iter().map(String::len).sum()
    }

    /// Whether it says something of a path before the name: `openrouter/*`.
    pub fn names_a_path(&self) -> bool {
        self.path
    }

    /// Whether `name` fits. Each piece is looked for once, from left to right: the leftmost place leaves the most room
    /// for the rest, so nothing is ever tried twice.
    pub fn fits(&self, name: &str) -> bool {
        let [first, between @ .., last] = self.pieces.as_slice() else { return false };
        let Some(mut rest) = name.strip_prefix(first.as_str()) else { return false };
        for piece in between {
            // Names are short: what `str::find` makes ready for a long search would cost more than the search.
            let Some(at) = memmem::find(rest.as_bytes(), piece.as_bytes()) else { return false };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fits(pattern: &str, name: &str) -> bool {
        Pattern::parse(pattern).unwrap().fits(name)
    }

    #[test]
    fn a_star_is_any_run_of_characters_and_the_rest_is_itself() {
        assert!(fits("claude-sonnet-4*", "claude-sonnet-4") && fits("claude-sonnet-4*", "claude-sonnet-4-6"));
        assert!(
            !fits("claude-sonnet-4*", "claude-sonnet-5") && !fits("claude-sonnet-4*", "a-claude-sonnet-4")
        );
        assert!(
            fits("*.claude*v1:0", "us.anthropic.claude-3-v1:0") && !fits("*.claude*v1:0", "x.claude-v1:01")
        );
        assert!(fits("*", "") && fits("**", "größe") && fits("a*b*b", "abb") && !fits("a*b*b", "ab"));
        assert!(!fits("ab*ba", "aba"), "the two ends do not share a character");
        assert_eq!(Pattern::parse("gpt-4o"), None);
    }

    /// The same by trying everything.
    fn slowly(pattern: &[char], name: &[char]) -> bool {
        match pattern {
            [] => name.is_empty(),
            ['*', rest @ ..] => (0..=name.len()).any(|skipped| slowly(rest, &name[skipped..])),
            [first, rest @ ..] => name.first() == Some(first) && slowly(rest, &name[1..]),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_fits_is_what_fits_when_everything_is_tried(pattern in "[abä*]{0,7}\\*[abä*]{0,4}", name in "[abä]{0,10}") {
            let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
            prop_assert_eq!(fits(&pattern, &name), slowly(&p, &n));
        }
    }
}
