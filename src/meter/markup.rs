//! The text of HTML or XML that comes in pieces: what stands between tags, without scripts and styles.
//!
//! A fragment that a widget puts into its page is the service's tags around the model's words. Entities are left as
//! they are: `&amp;` is a token or two, as `&` is one.

use smallvec::SmallVec;

/// Where it stands in a body.
#[derive(Debug, Default)]
pub(super) struct Markup {
    within: Within,
    /// The first bytes of a tag: its name, lower case.
    name: SmallVec<[u8; 8]>,
    /// What is not shown until its closing tag, such as `script`.
    hidden: Option<&'static [u8]>,
    /// White space was passed over.
    blank: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Text,
    /// A tag, and as long as it has no white space, its name.
    Name,
    Tag,
    /// A value in quotes, in a tag.
    Quoted(u8),
    /// A comment, and how much of its end was seen.
    Comment(u8),
}

const HIDDEN: [&[u8]; 3] = [b"script", b"style", b"head"];

impl Markup {
    /// The next bytes; gives the text among them to `text`, in pieces.
    pub(super) fn feed(&mut self, bytes: &[u8], text: &mut dyn FnMut(&[u8])) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            match self.within {
                Within::Text if byte == b'<' => {
                    self.within = Within::Name;
                    self.name.clear();
                }
                Within::Text if self.hidden.is_some() => {}
                Within::Text if byte.is_ascii_whitespace() => self.blank = true,
                Within::Text => {
                    let ends = |byte: &u8| *byte == b'<' || byte.is_ascii_whitespace();
                    let end = bytes[at..].iter().position(ends).map_or(bytes.len(), |run| at + run);
                    self.show(&bytes[at - 1..end], text);
                    at = end;
                }
                Within::Name => self.tag_name(byte, text),
                Within::Tag => match byte {
                    b'>' => self.end_tag(),
                    b'<' if self.hidden.is_some() => {
                        self.within = Within::Name;
                        self.name.clear();
                    }
                    // Within a script everything but its end is passed over, quotes too.
                    b'"' | b'\'' if self.hidden.is_none() => self.within = Within::Quoted(byte),
                    _ => {}
                },
                Within::Quoted(quote) if byte == quote => self.within = Within::Tag,
                Within::Quoted(_) => {}
                Within::Comment(seen) => {
                    self.within = match (byte, seen) {
                        (b'-', seen) => Within::Comment((seen + 1).min(2)),
                        (b'>', 2) => Within::Text,
                        _ => Within::Comment(0),
                    }
                }
            }
        }
    }

    fn show(&mut self, bytes: &[u8], text: &mut dyn FnMut(&[u8])) {
        if std::mem::take(&mut self.blank) {
            text(b" ");
        }
        text(bytes);
    }

    fn tag_name(&mut self, byte: u8, text: &mut dyn FnMut(&[u8])) {
        let begins = byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'!' | b'?');
        match byte {
            _ if self.name.is_empty() && !begins => {
                // `a < b` is no tag.
                self.within = Within::Text;
                if self.hidden.is_none() {
                    self.show(b"<", text);
                    self.feed(&[byte], text);
                }
            }
            b'>' => self.end_tag(),
            b'<' => self.name.clear(),
            b'-' if self.name[..] == *b"!-" => self.within = Within::Comment(0),
            _ if byte.is_ascii_whitespace() => self.within = Within::Tag,
            _ if self.name.len() < 8 => self.name.push(byte.to_ascii_lowercase()),
            _ => {}
        }
    }

    fn end_tag(&mut self) {
        self.within = Within::Text;
        // Words on both sides of a tag are two.
        self.blank = true;
        match self.hidden {
            Some(hidden) if self.name.strip_prefix(b"/") == Some(hidden) => self.hidden = None,
            Some(_) => {}
            None => self.hidden = HIDDEN.into_iter().find(|hidden| **hidden == self.name[..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(body: &str, length: usize) -> String {
        let mut markup = Markup::default();
        let mut shown = Vec::new();
        for piece in body.as_bytes().chunks(length) {
            markup.feed(piece, &mut |text| shown.extend_from_slice(text));
        }
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn the_text_between_tags_is_read_however_it_comes() {
        for (body, text) in [
            ("<p>Two <b>blue</b>\n  shoes.</p>", " Two blue shoes."),
            ("<!doctype html><head><title>x</title></head><body>Hi</body>", " Hi"),
            ("a<script>if (a < b && a<c) { \"</p>\" }</script>b<style>p {}</style>c", "a b c"),
            ("x <!-- not -- this > --> y", "x y"),
            ("<a title=\"1 > 2\" href='>'>z</a>", " z"),
            ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
            ("plain words", "plain words"),
        ] {
            for length in [1, 2, 3, 7, 1000] {
                assert_eq!(shown(body, length), text, "{body} by {length}");
            }
        }
    }
}
