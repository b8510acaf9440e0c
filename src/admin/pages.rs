//! The status page, and the API's description.

use std::sync::Arc;

use axum::extract;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

use super::answer;
use super::context::Context;

/// The API's description, as `/openapi.json` shows it.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

const PAGE: &str = include_str!("index.html");

/// Nothing is loaded and nothing runs; the page may not be framed.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

/// `GET /openapi.json`
pub(super) async fn openapi() -> Response {
    answer::plain(StatusCode::OK, "application/json", OPENAPI)
}

/// `GET /`: how the parts are, and where to look further.
pub(super) async fn index(context: extract::State<Arc<Context>>) -> Response {
    let health = (context.state.health)();
    let row = |part: &super::state::Part| {
        format!(
            "<tr><th>{}</th><td>{}</td><td>{}</td></tr>\n",
            escape(part.name),
            escape(part.state),
            escape(&part.detail)
        )
    };
    let page = PAGE
        .replace("{{version}}", env!("CARGO_PKG_VERSION"))
        .replace("{{status}}", health.status.as_str())
        .replace("{{parts}}", &health.parts.iter().map(row).collect::<String>());
    let mut response = answer::plain(StatusCode::OK, "text/html; charset=utf-8", page);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_a_part_says_is_text_and_not_markup() {
        assert_eq!(escape("<script>'a' & \"b\""), "&lt;script&gt;&#39;a&#39; &amp; &quot;b&quot;");
    }
}
