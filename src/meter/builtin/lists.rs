//! Lists of pointers, written short.

use std::collections::BTreeMap;

use super::super::format::RequestConfig;

/// What services wrap a provider's answer in. (Anthropic's `message_start` has a first guess of the usage under
/// `/message`, so that the formats with the same names leave that one out.)
pub(super) const ENVELOPES: [&str; 8] =
    ["/result", "/data", "/message", "/response", "/output", "/body", "/payload", "/response/body"];

pub(super) fn list(pointers: &[&str]) -> Vec<String> {
    pointers.iter().map(|pointer| (*pointer).to_owned()).collect()
}

/// The first name at every place, then the second at every place, and so on.
pub(super) fn names_first(places: &[&str], names: &[&str]) -> Vec<String> {
    names.iter().flat_map(|name| places.iter().map(move |place| format!("{place}/{name}"))).collect()
}

/// Every name at the first place, then at the second, and so on.
pub(super) fn places_first(places: &[&str], names: &[&str]) -> Vec<String> {
    places.iter().flat_map(|place| names.iter().map(move |name| format!("{place}/{name}"))).collect()
}

/// The same names at several places.
pub(super) fn when_at(pointers: &[&str], names: &[&str]) -> BTreeMap<String, Vec<String>> {
    pointers.iter().map(|pointer| ((*pointer).to_owned(), list(names))).collect()
}

pub(super) fn when(pointer: &str, names: &[&str]) -> BTreeMap<String, Vec<String>> {
    [(pointer.to_owned(), list(names))].into()
}

/// What a chat in OpenAI's manner holds beside its messages' words; its messages stand at `messages`.
pub(super) fn openai_prompt(messages: &str) -> RequestConfig {
    let under = |names: &[&str]| places_first(&[messages], names);
    RequestConfig {
        roles: under(&["role"]),
        names: under(&["name"]),
        calls: under(&["tool_calls/*/function/name"]),
        aside: under(&["tool_calls/*/function/arguments", "function_call/name", "function_call/arguments"]),
        tools: list(&["/tools", "/functions"]),
        images: under(&["content/*/image_url"]),
        ..RequestConfig::default()
    }
}

/// What a value is where all went well.
pub(super) fn unless(pointer: &str, values: &[&str]) -> BTreeMap<String, Vec<String>> {
    when(pointer, values)
}
