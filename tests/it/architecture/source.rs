//! Reads Rust as far as the rules need it: tokens without comments and tests, modules, and the paths that they name.
//!
//! A lexer and not a full parser: it sees into macros, which a parser of items does not, and needs no dependency.

use std::collections::{BTreeMap, BTreeSet};

/// A word or a sign of the source, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) word: bool,
}

/// A path that a file names, from the crate's root: `["quota", "ledger", "Ledger"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) line: usize,
    pub(super) segments: Vec<String>,
    pub(super) glob: bool,
    /// The name under which a `pub use` offers it to others.
    offered_as: Option<String>,
}

/// One file without its tests.
#[derive(Debug)]
pub(super) struct File {
    /// Relative to `src/`.
    pub(super) name: String,
    /// `["quota", "ledger"]`; a `mod.rs` is its directory.
    pub(super) module: Vec<String>,
    pub(super) tokens: Vec<Token>,
    pub(super) paths: Vec<Path>,
    defined: BTreeSet<String>,
}

/// All files of a crate.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) files: Vec<File>,
    modules: BTreeMap<Vec<String>, usize>,
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    File(usize),
    /// Nothing of this crate's modules.
    Nowhere,
}

impl Tree {
    /// Reads a crate, given as its files relative to `src/`.
    pub(super) fn read(sources: &BTreeMap<String, String>) -> Self {
        let mut bodies = Vec::new();
        let mut tests: Vec<Vec<String>> = Vec::new();
        for (name, text) in sources {
            let module = module_of(name);
            let (tokens, test_modules) = without_tests(lex(text));
            tests.extend(test_modules.into_iter().map(|test| joined(&module, &test)));
            bodies.push((name.clone(), module, tokens));
        }
        bodies.retain(|(_, module, _)| !tests.iter().any(|test| module.starts_with(test)));
        let mut modules: BTreeMap<Vec<String>, usize> = BTreeMap::new();
        for (at, (_, module, tokens)) in bodies.iter().enumerate() {
            modules.insert(module.clone(), at);
            inline_modules(module, tokens).into_iter().for_each(|inline| {
                modules.entry(inline).or_insert(at);
            });
        }
        let known: BTreeSet<Vec<String>> = modules.keys().cloned().collect();
        let files = bodies.into_iter().map(|(name, module, tokens)| {
            let paths = paths(&module, &tokens, &known);
            let defined = defined(&tokens);
            File { name, module, tokens, paths, defined }
        });
        Self { files: files.collect(), modules }
    }

    /// The file that defines what `path` names; a re-export is followed to where it comes from.
    pub(super) fn target(&self, path: &Path) -> Target {
        self.resolve(&path.segments, 16)
    }

    fn resolve(&self, segments: &[String], depth: usize) -> Target {
        let known = (0..=segments.len()).rev().find(|&len| self.modules.contains_key(&segments[..len]));
        // lib.rs is the module of no name; a path that gets no further than there leads nowhere.
        let Some(len) = known.filter(|len| *len > 0) else { return Target::Nowhere };
        let at = self.modules[&segments[..len]];
        let (file, rest) = (&self.files[at], &segments[len..]);
        let Some(name) = rest.first().filter(|name| depth > 0 && !file.defined.contains(*name)) else {
            return Target::File(at);
        };
        for offer in &file.paths {
            let through = if offer.glob && offer.offered_as.is_some() {
                joined(&offer.segments, name)
            } else if offer.offered_as.as_ref() == Some(name) {
                offer.segments.clone()
            } else {
                continue;
            };
            let through = [through.as_slice(), &rest[1..]].concat();
            match self.resolve(&through, depth - 1) {
                // A glob offers only what its target really has.
                Target::File(found) if offer.glob && !self.files[found].defined.contains(name) => continue,
                Target::File(found) => return Target::File(found),
                Target::Nowhere => continue,
            }
        }
        Target::File(at)
    }
}

fn joined(module: &[String], name: &str) -> Vec<String> {
    let mut path = module.to_vec();
    path.push(name.to_owned());
    path
}

fn module_of(file: &str) -> Vec<String> {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let stem = stem.strip_suffix("/mod").unwrap_or(stem);
    match stem {
        "lib" => Vec::new(),
        stem => stem.split('/').map(str::to_owned).collect(),
    }
}

/// Cuts text into tokens. Comments go, literals stay as one token each, so that nothing within them is taken for code.
fn lex(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1);
    let mut tokens = Vec::new();
    while at < bytes.len() {
        let begin = at;
        let rest = &text[at..];
        let byte = bytes[at];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += block_comment(rest);
        } else if let Some(length) = string(rest) {
            at += length;
            tokens.push(Token { line, text: "\"\"".into(), word: false });
        } else if byte == b'\'' {
            at += character(rest);
            tokens.push(Token { line, text: "'".into(), word: false });
        } else if byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii() {
            let length = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            at += length.max(1);
            tokens.push(Token { line, text: text[begin..at].into(), word: true });
        } else if rest.starts_with("::") {
            at += 2;
            tokens.push(Token { line, text: "::".into(), word: false });
        } else {
            at += 1;
            if !byte.is_ascii_whitespace() {
                tokens.push(Token { line, text: char::from(byte).into(), word: false });
            }
        }
        line += text[begin..at].matches('\n').count();
    }
    tokens
}

fn block_comment(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (at, depth) = (at + 2, depth + 1);
        } else if rest.starts_with(b"*/") {
            (at, depth) = (at + 2, depth - 1);
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of the string literal that `text` begins with: plain, byte, C, or raw.
fn string(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        let after = text.strip_prefix(prefix);
        after.is_some_and(|after| after.trim_start_matches('#').starts_with('"'))
    })?;
    let body = &text[prefix.len()..];
    let hashes = body.len() - body.trim_start_matches('#').len();
    if !prefix.ends_with('r') {
        if hashes > 0 {
            return None;
        }
        let mut escaped = false;
        for (at, byte) in body.bytes().enumerate().skip(1) {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => return Some(prefix.len() + at + 1),
                _ => {}
            }
        }
        return Some(text.len());
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let open = prefix.len() + hashes + 1;
    Some(text[open..].find(&end).map_or(text.len(), |at| open + at + end.len()))
}

/// The length of a character literal, or of the quote of a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 3)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

/// The index after the group that opens at `at`.
fn group_end(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0_i32;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth <= 0 {
            return index + 1;
        }
    }
    tokens.len()
}

/// Takes away what only tests see, and names the modules of other files that only tests see.
fn without_tests(tokens: Vec<Token>) -> (Vec<Token>, Vec<String>) {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut modules = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let inner = usize::from(tokens.get(at + 1).is_some_and(|token| token.text == "!"));
        let opens =
            tokens[at].text == "#" && tokens.get(at + 1 + inner).is_some_and(|token| token.text == "[");
        if !opens {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let end = group_end(&tokens, at + 1 + inner);
        let words: Vec<_> =
            tokens[at..end].iter().filter(|token| token.word).map(|token| token.text.as_str()).collect();
        let of_tests = match words.as_slice() {
            ["cfg", rest @ ..] => rest.contains(&"test") && !rest.contains(&"not"),
            [.., "test"] => words[0] != "cfg_attr",
            _ => false,
        };
        if !of_tests {
            kept.extend_from_slice(&tokens[at..end]);
            at = end;
        } else if inner == 1 {
            return (Vec::new(), modules);
        } else {
            let (next, module) = skip_item(&tokens, end);
            modules.extend(module);
            at = next;
        }
    }
    (kept, modules)
}

/// The index after the item, field or arm that begins at `at` (further attributes included), and the name of the module
/// if it is one in a file of its own.
fn skip_item(tokens: &[Token], mut at: usize) -> (usize, Option<String>) {
    const ITEMS: [&str; 16] = [
        "fn",
        "mod",
        "use",
        "struct",
        "enum",
        "impl",
        "const",
        "static",
        "trait",
        "type",
        "async",
        "unsafe",
        "extern",
        "union",
        "let",
        "macro_rules",
    ];
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    while text(at) == "#" {
        at = group_end(tokens, at + 1);
    }
    if text(at) == "pub" {
        at += 1;
        if text(at) == "(" {
            at = group_end(tokens, at);
        }
    }
    let (first, name) = (text(at), text(at + 1).to_owned());
    let item = ITEMS.contains(&first);
    while at < tokens.len() {
        match text(at) {
            ";" if first == "mod" => return (at + 1, Some(name)),
            ";" => return (at + 1, None),
            "," if !item => return (at + 1, None),
            ")" | "]" | "}" => return (at, None),
            "{" if item && first != "use" => return (group_end(tokens, at), None),
            "(" | "[" | "{" => at = group_end(tokens, at),
            _ => at += 1,
        }
    }
    (at, None)
}

/// Calls `each` with the module that every token stands in.
fn walk(module: &[String], tokens: &[Token], mut each: impl FnMut(&[String], usize)) {
    let mut here = module.to_vec();
    let mut ends: Vec<usize> = Vec::new();
    for at in 0..tokens.len() {
        while ends.last().is_some_and(|end| at >= *end) {
            ends.pop();
            here.pop();
        }
        each(&here, at);
        let opens = tokens[at].text == "{" && at >= 2 && tokens[at - 2].text == "mod" && tokens[at - 1].word;
        if opens {
            here.push(tokens[at - 1].text.clone());
            ends.push(group_end(tokens, at));
        }
    }
}

fn inline_modules(module: &[String], tokens: &[Token]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    walk(module, tokens, |here, _| {
        if here.len() > module.len() {
            found.insert(here.to_vec());
        }
    });
    found
}

/// The names of the items that a file defines, at whatever depth.
fn defined(tokens: &[Token]) -> BTreeSet<String> {
    const BEFORE: [&str; 9] = ["fn", "struct", "enum", "union", "trait", "type", "const", "static", "mut"];
    let pairs = tokens.windows(2).filter(|pair| BEFORE.contains(&pair[0].text.as_str()) && pair[1].word);
    let macros = tokens.windows(3).filter(|three| three[0].text == "macro_rules" && three[1].text == "!");
    pairs.map(|pair| pair[1].text.clone()).chain(macros.map(|three| three[2].text.clone())).collect()
}

/// Every path into this crate that the tokens name, from the crate's root.
fn paths(module: &[String], tokens: &[Token], known: &BTreeSet<Vec<String>>) -> Vec<Path> {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    let mut skip_to = 0;
    walk(module, tokens, |here, at| {
        let before = if at == 0 { "" } else { text(at - 1) };
        if at < skip_to || !tokens[at].word {
            return;
        }
        if text(at) == "use" {
            let public = before == "pub" || before == ")";
            let mut tree = Vec::new();
            skip_to = use_tree(tokens, at + 1, &[], public, &mut tree);
            found.extend(tree.into_iter().filter_map(|path| rooted(here, path, known)));
        } else if text(at + 1) == "::" && !["::", ".", "in"].contains(&before) {
            let mut segments = vec![text(at).to_owned()];
            let mut end = at + 1;
            while text(end) == "::" && tokens.get(end + 1).is_some_and(|token| token.word) {
                segments.push(text(end + 1).to_owned());
                end += 2;
            }
            skip_to = end;
            let path = Path { line: tokens[at].line, segments, glob: false, offered_as: None };
            found.extend(rooted(here, path, known));
        }
    });
    found
}

/// Reads one tree of a `use` from `at`, and returns the index after it.
fn use_tree(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    public: bool,
    found: &mut Vec<Path>,
) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut segments = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |token| token.line);
    loop {
        match text(at) {
            "::" => at += 1,
            "{" => {
                let end = group_end(tokens, at);
                at += 1;
                while at < end - 1 {
                    at = use_tree(tokens, at, &segments, public, found);
                    at += usize::from(text(at) == ",");
                }
                return end;
            }
            "*" => {
                found.push(Path { line, segments, glob: true, offered_as: public.then(String::new) });
                return at + 1;
            }
            "as" => {
                let alias = text(at + 1).to_owned();
                found.push(Path { line, segments, glob: false, offered_as: public.then_some(alias) });
                return at + 2;
            }
            _ if tokens.get(at).is_some_and(|token| token.word) => {
                if text(at) != "self" || segments.is_empty() {
                    segments.push(text(at).to_owned());
                }
                at += 1;
            }
            _ => {
                let offered_as = segments.last().cloned().filter(|_| public);
                if !segments.is_empty() {
                    found.push(Path { line, segments, glob: false, offered_as });
                }
                return at;
            }
        }
    }
}

/// The path from the crate's root, if it leads into this crate at all.
fn rooted(here: &[String], mut path: Path, known: &BTreeSet<Vec<String>>) -> Option<Path> {
    let all = path.segments.as_slice();
    let (mut base, mut rest) = match all.first()?.as_str() {
        "crate" | "tollgate" => (Vec::new(), &all[1..]),
        "self" => (here.to_vec(), &all[1..]),
        "super" => (here.to_vec(), all),
        child if !here.is_empty() && known.contains(&joined(here, child)) => (here.to_vec(), all),
        _ => return None,
    };
    while rest.first().is_some_and(|segment| segment == "super") {
        base.pop();
        rest = &rest[1..];
    }
    base.extend_from_slice(rest);
    path.segments = base;
    Some(path)
}
