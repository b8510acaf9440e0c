//! The paths of routes: `/v1beta/models/{model}:generateContent`. A name in braces stands for one segment, or for what of
//! it comes before the text behind the braces.

/// One segment of a route's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// This and nothing else.
    Literal(&'a str),
    /// Anything, at least a character of it, and then `suffix`.
    Named { name: &'a str, suffix: &'a str },
}

impl<'a> Piece<'a> {
    fn of(segment: &'a str) -> Self {
        let named = segment.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        named.map_or(Piece::Literal(segment), |(name, suffix)| Piece::Named { name, suffix })
    }

    /// Its name.
    pub(crate) fn name(self) -> Option<&'a str> {
        match self {
            Piece::Literal(_) => None,
            Piece::Named { name, .. } => Some(name),
        }
    }

    /// Its text, where it is nothing but text.
    pub(crate) fn literal(self) -> Option<&'a str> {
        match self {
            Piece::Literal(text) => Some(text),
            Piece::Named { .. } => None,
        }
    }

    /// Whether an operation follows what it names, as in Google's APIs.
    pub(crate) fn has_verb(self) -> bool {
        match self {
            Piece::Literal(text) => text.contains(':'),
            Piece::Named { suffix, .. } => suffix.starts_with(':'),
        }
    }
}

/// The segments of a route's path, without the empty one before its first `/`.
pub(crate) fn pieces(path: &str) -> impl Iterator<Item = Piece<'_>> {
    path.strip_prefix('/').unwrap_or(path).split('/').map(Piece::of)
}

/// The names that a route's path has for its segments, in order.
///
/// # Errors
/// The segment that can't work, and why; one sentence.
pub fn segment_names(path: &str) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::new();
    for segment in path.split('/').filter(|segment| segment.contains(['{', '}'])) {
        let Piece::Named { name, suffix } = Piece::of(segment) else {
            return Err(format!(
                "{path:?} holds {segment:?}: {{name}} stands for a segment, or for its beginning, as in {{name}}:verb"
            ));
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(format!("{path:?} holds {segment:?}: a name is of letters, digits and _"));
        }
        if suffix.contains(['{', '}']) {
            return Err(format!("{path:?} holds {segment:?}: one segment has one name"));
        }
        if suffix.contains('%') {
            return Err(format!("{path:?} holds {segment:?}: write what follows the name unescaped"));
        }
        if names.iter().any(|known| known == name) {
            return Err(format!("{path:?} holds {segment:?} twice: give each its own name"));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}
