//! Lists of pointers, written short.

use std::collections::BTreeMap;

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

pub(super) fn when(pointer: &str, names: &[&str]) -> BTreeMap<String, Vec<String>> {
    [(pointer.to_owned(), list(names))].into()
}
