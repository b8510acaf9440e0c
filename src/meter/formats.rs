//! All formats by name: those that come with the program, all of them at once, and the operator's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::builtin;
use super::format::{Format, FormatConfig, FormatError, RequestConfig};
use super::tokenizer::Counting;

/// All formats by name.
#[derive(Clone, Debug)]
pub struct Formats {
    by_name: Arc<BTreeMap<String, Arc<Format>>>,
    /// What `auto` tells apart, the most specific first.
    auto: Arc<Vec<(String, FormatConfig)>>,
}

impl Formats {
    /// The built-in formats: each by its name, and `auto`, which is all of them at once and tells them apart by the
    /// fields that an answer has; `text`, where all of it is text; and `none`, where nothing is.
    pub fn builtin() -> Self {
        let parts: Vec<_> =
            builtin::formats().into_iter().map(|(name, part)| (name.to_owned(), part)).collect();
        let all: Vec<_> = parts.iter().map(|(_, part)| part).collect();
        let nothing = FormatConfig {
            request: RequestConfig { session: vec!["/sessionId".to_owned()], ..RequestConfig::default() },
            ..FormatConfig::default()
        };
        let named = parts.iter().map(|(name, part)| (name.as_str(), vec![part]));
        let by_name = named
            .chain([(AUTO, all), ("text", Vec::new()), (NONE, vec![&nothing])])
            .filter_map(|(name, parts)| {
                let format = Format::new(name, &parts);
                debug_assert!(format.is_ok(), "the built-in format {name}: {format:?}");
                Some((name.to_owned(), Arc::new(format.ok()?)))
            })
            .collect();
        Self { by_name: Arc::new(by_name), auto: Arc::new(parts) }
    }

    /// These formats, and one more, or another in place of one of the same name. Where it is for `auto` too
    /// ([`FormatConfig::auto`]) it goes before the built-in ones: what fits it as well as one of them is its own. How
    /// `auto` counts text stays as it is.
    ///
    /// # Errors
    /// The key that has a pointer that is none, or the name `auto`, which is taken.
    pub fn with(mut self, name: &str, config: &FormatConfig) -> Result<Self, FormatError> {
        let taken = match name {
            AUTO => Some("`auto` is all the formats at once; give yours another name"),
            NONE => Some("`none` is what uses no tokens; give yours another name"),
            _ => None,
        };
        if let Some(reason) = taken {
            return Err(FormatError { format: name.to_owned(), key: "name", reason: reason.to_owned() });
        }
        let format = Arc::new(Format::new(name, &[config])?);
        if config.auto {
            let parts = Arc::make_mut(&mut self.auto);
            parts.retain(|(known, _)| known != name);
            parts.insert(0, (name.to_owned(), config.clone()));
            let all: Vec<_> = parts.iter().map(|(_, part)| part).collect();
            let mut auto = Format::new(AUTO, &all)?;
            auto.counting = Counting::Model;
            Arc::make_mut(&mut self.by_name).insert(AUTO.to_owned(), Arc::new(auto));
        }
        Arc::make_mut(&mut self.by_name).insert(name.to_owned(), format);
        Ok(self)
    }

    /// The format of that name.
    pub fn format(&self, name: &str) -> Option<Arc<Format>> {
        self.by_name.get(name).cloned()
    }

    /// What `auto` tells apart, the most specific first: each format's name and rules.
    pub fn rules(&self) -> impl Iterator<Item = (&str, &FormatConfig)> {
        self.auto.iter().map(|(name, config)| (name.as_str(), config))
    }

    /// The names of all formats, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }
}

impl Default for Formats {
    fn default() -> Self {
        Self::builtin()
    }
}

const AUTO: &str = "auto";
/// Nothing in its requests and answers is a token.
const NONE: &str = "none";
