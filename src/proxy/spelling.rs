//! The spellings of a path that services take for one route: each is a reading, and a request is metered when one of them
//! is a metered route's.
//!
//! | spelling | who takes it |
//! | --- | --- |
//! | `/API/Widget/Chat` | Express, ASP.NET, IIS |
//! | `/api/widget/chat/`, `//api`, `/x/../api`, `%63hat` | nearly all |
//! | `\api\widget` | URL parsers by the WHATWG (Node) |
//! | `chat;v=1`, `..;/` | Tomcat, Jetty, Undertow (Spring) |
//! | `chat;/../x` | Fastify, for which a query begins there |
//! | `chat.json` | Rails, older Spring |
//! | `chat.`, `chat%20` | Windows file names, IIS |
//! | `%u0063hat` | IIS |
//! | `/index.php/api` | PHP's front controllers |

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The front controller of PHP's frameworks, which takes what follows it for the path.
const FRONT: &str = "index.php";

/// One way to read a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading<'a> {
    /// The path, its letters as they came.
    pub(crate) path: Cow<'a, str>,
    /// It was split before it is decoded: what is left to decode is in its segments.
    pub(crate) split_first: bool,
}

impl<'a> Reading<'a> {
    fn new(path: impl Into<Cow<'a, str>>) -> Self {
        Self { path: path.into(), split_first: false }
    }
}

/// The ways to read a path, the likeliest first.
pub(crate) fn readings(path: &str) -> impl Iterator<Item = Reading<'_>> {
    let plain = std::iter::once_with(|| normalise(path));
    let more = std::iter::once_with(|| {
        let (before, _) = path.split_once(';').unzip();
        let before = before.map(|before| Reading::new(resolved(&decoded(before))));
        parameters_first(path).into_iter().chain(before).chain(with_escaped_slashes(path))
    });
    plain.chain(more.flatten())
}

/// The ways to read a path for which its last segment ends earlier: for where `readings` find no route.
pub(crate) fn without_tails(path: &str) -> impl Iterator<Item = Reading<'_>> {
    let tail = |reading: Reading<'_>| Some(Reading::new(without_tail(&reading.path)?));
    tail(normalise(path)).into_iter().chain(parameters_first(path).and_then(tail))
}

/// The path for a service that takes the parameters of segments off before it decodes.
fn parameters_first(path: &str) -> Option<Reading<'static>> {
    Some(Reading::new(resolved(&decoded(&without_parameters(path)?))))
}

/// The path as a lenient backend reads it: percent-decoded once, backslashes and repeated slashes as one slash
/// (the URL parsers of browsers and Node do so), without the parameters of its segments (RFC 3986 §3.3), dot segments
/// resolved (§5.2.4), no trailing slash.
pub(crate) fn normalise(path: &str) -> Reading<'_> {
    if is_normal(path) {
        return Reading::new(path);
    }
    Reading::new(resolved(&decoded(path)))
}

/// With small letters alone; byte for byte as long.
pub(crate) fn in_small_letters(path: &str) -> Cow<'_, str> {
    match path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(path.to_ascii_lowercase()),
        false => Cow::Borrowed(path),
    }
}

/// Percent-decoded; `%u0063` too, which IIS takes.
fn decoded(path: &str) -> Cow<'_, str> {
    if !path.contains("%u") && !path.contains("%U") {
        return percent_decode_str(path).decode_utf8_lossy();
    }
    let mut text = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find("%u").into_iter().chain(rest.find("%U")).min() {
        text.push_str(&rest[..at]);
        let digits = rest.get(at + 2..at + 6);
        match digits.and_then(|digits| char::from_u32(u32::from_str_radix(digits, 16).ok()?)) {
            Some(char) => {
                text.push(char);
                rest = &rest[at + 6..];
            }
            None => {
                text.push_str(&rest[at..at + 2]);
                rest = &rest[at + 2..];
            }
        }
    }
    text.push_str(rest);
    Cow::Owned(percent_decode_str(&text).decode_utf8_lossy().into_owned())
}

/// The path without the parameters of its segments.
fn without_parameters(path: &str) -> Option<String> {
    memchr::memchr(b';', path.as_bytes())?;
    let bare = |segment: &str| segment.split(';').next().unwrap_or_default().to_owned();
    Some(path.split('/').map(bare).collect::<Vec<_>>().join("/"))
}

/// The path for a service that splits it before it decodes, where that makes a difference: an escaped slash is a part of
/// its segment, as in the ARN of a model (`/model/arn%3Aaws%3A…%2F…/converse`).
fn with_escaped_slashes(path: &str) -> Option<Reading<'static>> {
    const KEPT: [&str; 3] = ["2F", "5C", "25"];
    memchr::memchr(b'%', path.as_bytes())?;
    let mut escapes = path.split('%');
    let mut text = Vec::with_capacity(path.len());
    let mut kept_slash = false;
    text.extend_from_slice(escapes.next()?.as_bytes());
    for rest in escapes {
        let code = rest.get(..2).unwrap_or_default();
        match KEPT.iter().find(|kept| kept.eq_ignore_ascii_case(code)) {
            Some(kept) => {
                kept_slash |= *kept != "25";
                text.push(b'%');
                text.extend_from_slice(rest.as_bytes());
            }
            None => text.extend(percent_decode_str(&format!("%{rest}"))),
        }
    }
    let path = || resolved(&String::from_utf8_lossy(&text));
    kept_slash.then(|| Reading { path: path().into(), split_first: true })
}

/// Without dot segments, with one slash for several, without parameters and the name of a front controller.
fn resolved(decoded: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let front = segments.first().is_some_and(|first| first.eq_ignore_ascii_case(FRONT));
    let behind = if front && segments.len() > 1 { &segments[1..] } else { &segments };
    format!("/{}", behind.join("/"))
}

/// The path without what some services take for no part of its last segment: dots and white space at its end, and what
/// they take for a format (`.json`).
fn without_tail(path: &str) -> Option<String> {
    let odd = |c: char| c == '.' || c.is_whitespace() || c.is_control();
    let bare = path.trim_end_matches(odd);
    let last = bare.rfind('/').map_or(0, |at| at + 1);
    let end = match bare[last..].rfind('.') {
        Some(dot) if dot > 0 => last + dot,
        _ => bare.len(),
    };
    let bare = bare[..end].trim_end_matches(odd);
    (bare.len() < path.len() && bare.len() > last).then(|| bare.to_owned())
}

fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    let odd = |pair: &[u8]| pair[0] == b'/' && (pair[1] == b'/' || pair[1] == b'.');
    let front = path.get(..FRONT.len() + 1).is_some_and(|begin| begin[1..].eq_ignore_ascii_case(FRONT));
    bytes.first() == Some(&b'/')
        && !front
        && (bytes.len() == 1 || bytes.last() != Some(&b'/'))
        && memchr::memchr3(b'%', b'\\', b';', bytes).is_none()
        && !bytes.windows(2).any(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_chat(path: &str) -> bool {
        readings(path)
            .chain(without_tails(path))
            .any(|reading| in_small_letters(&reading.path) == "/api/widget/chat")
    }

    #[test]
    fn fault_17_every_spelling_of_the_chat_route_is_read_as_the_chat_route() {
        for path in [
            "/api/widget/chat",
            "/api/widget/chat/",
            "//api//widget/chat",
            "/api/widget/%63hat",
            "/api%2fwidget%2Fchat",
            "/x/../api/widget/chat",
            "/api/./widget/chat/.",
            "/api\\widget\\chat",
            "/../../api/widget/chat",
            "/x/%2e%2e/api/widget/chat",
            "/API/Widget/CHAT",
            "/api/widget/%43HAT",
            "/api/widget/chat;v=1",
            "/api;a=b/widget;c/chat;",
            "/api/widget/chat%3Bv=1",
            "/x/..;/api/widget/chat",
            "/x/..;a=b/api/widget/chat",
            "/api/widget/chat;%2Fx",
            "/api/widget/chat;x/",
            "/api/widget/chat;/../x",
            "/api/widget/chat;?/x",
            "/api/widget/chat.json",
            "/api/widget/chat.JSON;v=1",
            "/api/widget/chat;v=1.json",
            "/api/widget/chat.",
            "/api/widget/chat...",
            "/api/widget/chat%20",
            "/api/widget/chat%20.%09",
            "/api/widget/chat%00",
            "/api/widget/%u0063hat",
            "/index.php/api/widget/chat",
            "/INDEX.PHP/api/widget/chat",
        ] {
            assert!(is_chat(path), "{path}");
        }
    }

    #[test]
    fn fault_17_other_paths_stay_other_paths() {
        for path in [
            "/api/widget/chats",
            "/api/widget/chat/x",
            "/api/widget/chat/x.json",
            "/api/widget/.chat",
            "/api/widget/%2563hat",
            "/api/widget/%u00zz",
            "/api/widget/;chat",
            "/index.php",
            "/index.phps/api/widget/chat",
            "/api.json/widget/chat",
            "/",
            "",
        ] {
            assert!(!is_chat(path), "{path}");
        }
    }

    #[test]
    fn an_escaped_slash_stays_in_its_segment_where_the_path_is_split_first() {
        let of = |path| with_escaped_slashes(path).map(|reading| reading.path);
        assert_eq!(
            of("/model/arn%3aaws%3Abedrock%2fanthropic.claude-v2%3A1//converse/").as_deref(),
            Some("/model/arn:aws:bedrock%2fanthropic.claude-v2:1/converse")
        );
        assert_eq!(of("/a%2Fb%2541%C3%A4").as_deref(), Some("/a%2Fb%2541ä"));
        assert_eq!(of("/model/a%20b"), None, "there it makes no difference");
        assert_eq!(of("/a%2"), None);
        assert_eq!(of("/a%2Fb%ä%").as_deref(), Some("/a%2Fb%ä%"));
    }

    #[test]
    fn an_ordinary_path_is_not_copied() {
        assert!(matches!(normalise("/api/widget/chat").path, Cow::Borrowed(_)));
        assert!(matches!(in_small_letters("/api/widget/chat"), Cow::Borrowed(_)));
    }
}
