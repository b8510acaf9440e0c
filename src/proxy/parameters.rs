//! What a query, or a form, says of a call beside its JSON: Rails, Laravel and Spring merge it with the body.

use http::Uri;

use super::route::Route;
use crate::meter::Format;
use crate::model::event::EventType;

/// How many pairs hold what calls of `event` count, by the format's names for it: `texts[]=a&texts[]=b` are two.
pub(crate) fn items(pairs: &[u8], format: &Format, event: EventType) -> u64 {
    names(pairs).filter(|name| format.holds_items(name, event)).count() as u64
}

/// The same of a call's query, where the route reads its calls.
pub(crate) fn items_beside(route: &Route, target: &Uri) -> u64 {
    match is_merged(route) {
        true => items(query(target), &route.format, route.config.event),
        false => 0,
    }
}

/// Whether a service that merges a call's query with its body could find there whose call it is, though we look for that
/// in the body alone.
pub(crate) fn may_name(route: &Route, target: &Uri) -> bool {
    is_merged(route) && hold_any(query(target), route.sources.pointers())
}

/// Elsewhere a call is one call, whatever its query says.
fn is_merged(route: &Route) -> bool {
    route.config.event.counts_items() && !route.is_opaque()
}

fn query(target: &Uri) -> &[u8] {
    target.query().unwrap_or_default().as_bytes()
}

/// Whether a pair is what one of these pointers into a body finds there, or a part of it.
fn hold_any<'a>(pairs: &[u8], pointers: impl Iterator<Item = &'a str>) -> bool {
    let members: Vec<&str> = pointers.filter_map(|pointer| pointer.split('/').nth(1)).collect();
    names(pairs).any(|name| members.iter().any(|member| member.eq_ignore_ascii_case(&name)))
}

/// The names of the pairs, without what of them says where in a list or an object the value goes (`texts[]`, `user[id]`).
/// Pairs may be parted by `;` (Rack before 3); brackets and spaces before a name are no part of it (Rack, PHP), nor is
/// what follows a zero byte (PHP).
fn names(pairs: &[u8]) -> impl Iterator<Item = String> {
    pairs.split(|byte| matches!(byte, b'&' | b';')).flat_map(|pair| {
        url::form_urlencoded::parse(pair).map(|(name, _)| {
            let name = name.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '[' | ']'));
            name.split(['[', ']', '\0']).next().unwrap_or_default().to_owned()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_where_its_place_in_a_list_begins() {
        let of = |pairs: &str| names(pairs.as_bytes()).collect::<Vec<_>>();
        assert_eq!(of("texts[]=a&texts%5B0%5D=b;+[texts][]=c&%74exts%00x=d&texts"), ["texts"; 5]);
        assert_eq!(of("a=texts[]&b.c=1"), ["a", "b.c"]);
        assert_eq!(of(""), [""; 0]);
    }

    #[test]
    fn a_member_is_found_by_its_first_name_in_any_case() {
        let pointers = ["/sessionId", "/user/tenant"];
        for pairs in ["sessionid=a", "x=1&user[tenant]=a", "SESSIONID[]"] {
            assert!(hold_any(pairs.as_bytes(), pointers.into_iter()), "{pairs}");
        }
        assert!(!hold_any(b"session=a&tenant=b", pointers.into_iter()));
    }
}
