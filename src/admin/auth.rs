//! Who may do what: bearer tokens and the cron secret, compared in constant time.
//!
//! 1. Every wrong answer looks the same: none, empty, wrong, shortened and extended secrets get one 401.
//! 2. Digests are compared, all of them each time, so neither the length of a secret nor which one was nearly
//!    right shows in the time taken.
//! 3. A request with two credentials in one header is refused: which of the two counts is a question that
//!    proxies answer differently.

use aws_lc_rs::digest::{SHA256, digest};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};
use subtle::{Choice, ConstantTimeEq};

use super::problem::Problem;
use super::state::Config;

/// The one path that the cron secret opens.
pub(super) const AGGREGATE_PATH: &str = "/api/admin/metrics/aggregate";

const CRON_SECRET: &str = "x-cron-secret";

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Read and change.
    Operator,
    /// Read.
    Viewer,
    /// Start an aggregation, and ask when it last ran.
    Cron,
}

impl Role {
    /// As audit events name the actor.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Role::Operator => "operator",
            Role::Viewer => "viewer",
            Role::Cron => "cron",
        }
    }

    /// Whether this role may call `method`.
    pub(super) fn permits(self, method: &Method) -> bool {
        self != Role::Viewer || matches!(*method, Method::GET | Method::HEAD)
    }
}

/// The digest of a secret; `None` where none is set.
struct Digest(Option<[u8; 32]>);

impl Digest {
    /// An empty secret is no secret (the config refuses one; this is the second lock).
    fn of(secret: Option<&str>) -> Self {
        Self(secret.filter(|s| !s.is_empty()).map(sha256))
    }

    fn matches(&self, presented: &[u8; 32]) -> Choice {
        match &self.0 {
            Some(known) => known.ct_eq(presented),
            None => Choice::from(0),
        }
    }
}

fn sha256(secret: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    bytes
}

/// The secrets that open the admin API.
pub(super) struct Keys {
    operator: Digest,
    viewer: Digest,
    cron: Digest,
}

impl Keys {
    /// Digests of the config's secrets; the secrets themselves are not kept here.
    pub(super) fn new(config: &Config) -> Self {
        Self {
            operator: Digest::of(config.operator_token.as_deref()),
            viewer: Digest::of(config.viewer_token.as_deref()),
            cron: Digest::of(config.cron_secret.as_deref()),
        }
    }

    /// Whether there is a secret at all that could open `path`.
    pub(super) fn any_for(&self, path: &str) -> bool {
        let token = self.operator.0.is_some() || self.viewer.0.is_some();
        token || path == AGGREGATE_PATH && self.cron.0.is_some()
    }

    /// The role that the credentials in `headers` give on `path`.
    pub(super) fn role(&self, path: &str, headers: &HeaderMap) -> Result<Role, Problem> {
        let bearer = bearer(headers)?.map(sha256);
        let cron = single(headers, CRON_SECRET)?.filter(|_| path == AGGREGATE_PATH).map(sha256);
        let none = [0; 32];
        let presented = bearer.as_ref().unwrap_or(&none);
        let operator = self.operator.matches(presented);
        let viewer = self.viewer.matches(presented);
        let cron_ok = self.cron.matches(cron.as_ref().unwrap_or(&none));
        if bearer.is_some() && operator.into() {
            Ok(Role::Operator)
        } else if cron.is_some() && cron_ok.into() {
            Ok(Role::Cron)
        } else if bearer.is_some() && viewer.into() {
            Ok(Role::Viewer)
        } else {
            Err(Problem::Unauthorized)
        }
    }
}

/// Whether the request carries any credential: a guess, that is, and not merely a call without one.
pub(super) fn presents_any(headers: &HeaderMap) -> bool {
    headers.contains_key(AUTHORIZATION) || headers.contains_key(CRON_SECRET)
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750, section 2.1), if there is one such header.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = single(headers, AUTHORIZATION.as_str())? else { return Ok(None) };
    let (scheme, token) = value.split_once(' ').ok_or(Problem::Unauthorized)?;
    let one = |b: u8| b.is_ascii_graphic() && b != b',';
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || !token.bytes().all(one) {
        return Err(Problem::Unauthorized);
    }
    Ok(Some(token))
}

/// The value of a header that may stand once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::Unauthorized);
    }
    value.to_str().map(Some).map_err(|_| Problem::Unauthorized)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(operator: &str, viewer: &str, cron: &str) -> Keys {
        let some = |s: &str| Some(s.to_owned());
        Keys::new(&Config {
            listen: ([127, 0, 0, 1], 0).into(),
            operator_token: some(operator),
            viewer_token: some(viewer),
            cron_secret: some(cron),
        })
    }

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let pair = |(n, v): &(&str, &str)| (n.parse::<http::HeaderName>().unwrap(), v.parse().unwrap());
        let mut map = HeaderMap::new();
        list.iter().map(pair).for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    const KEYS: (&str, &str, &str) = ("operator-token", "viewer-token", "cron-secret");

    fn role(path: &str, list: &[(&str, &str)]) -> Result<Role, Problem> {
        keys(KEYS.0, KEYS.1, KEYS.2).role(path, &headers(list))
    }

    #[test]
    fn each_secret_gives_its_role() {
        let usage = "/api/admin/usage";
        assert_eq!(role(usage, &[("authorization", "Bearer operator-token")]), Ok(Role::Operator));
        assert_eq!(role(usage, &[("authorization", "bearer viewer-token")]), Ok(Role::Viewer));
        assert_eq!(role(AGGREGATE_PATH, &[("x-cron-secret", "cron-secret")]), Ok(Role::Cron));
        assert_eq!(role(usage, &[("x-cron-secret", "cron-secret")]), Err(Problem::Unauthorized));
        assert_eq!(role(usage, &[("authorization", "Bearer cron-secret")]), Err(Problem::Unauthorized));
        let both = [("authorization", "Bearer viewer-token"), ("x-cron-secret", "cron-secret")];
        assert_eq!(role(AGGREGATE_PATH, &both), Ok(Role::Cron));
    }

    #[test]
    fn fault_88_none_empty_wrong_shortened_and_extended_tokens_are_refused_alike() {
        assert_eq!(role("/api/admin/usage", &[]), Err(Problem::Unauthorized));
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer operator-toke",
            "Bearer operator-token2",
            "Bearer  operator-token",
            "Bearer Operator-token",
            "Basic operator-token",
            "operator-token",
        ] {
            let seen = role("/api/admin/usage", &[("authorization", value)]);
            assert_eq!(seen, Err(Problem::Unauthorized), "{value:?}");
        }
    }

    #[test]
    fn fault_89_two_credentials_are_refused_though_one_is_right() {
        let good = ("authorization", "Bearer operator-token");
        for list in [
            vec![good, good],
            vec![good, ("authorization", "Bearer x")],
            vec![("authorization", "Bearer operator-token,Bearer x")],
            vec![("authorization", "Bearer operator-token, Bearer operator-token")],
            vec![("authorization", "Bearer x,operator-token")],
        ] {
            assert_eq!(role("/api/admin/usage", &list), Err(Problem::Unauthorized), "{list:?}");
        }
        let twice = [("x-cron-secret", "cron-secret"), ("x-cron-secret", "cron-secret")];
        assert_eq!(role(AGGREGATE_PATH, &twice), Err(Problem::Unauthorized));
    }

    #[test]
    fn fault_95_an_empty_secret_opens_nothing() {
        let keys = keys("", "", "");
        assert!(!keys.any_for("/api/admin/usage") && !keys.any_for(AGGREGATE_PATH));
        for value in ["", "Bearer "] {
            let headers = headers(&[("authorization", value), ("x-cron-secret", "")]);
            assert_eq!(keys.role(AGGREGATE_PATH, &headers), Err(Problem::Unauthorized));
        }
    }

    #[test]
    fn a_viewer_reads_and_does_not_change() {
        assert!(Role::Viewer.permits(&Method::GET) && Role::Viewer.permits(&Method::HEAD));
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            assert!(!Role::Viewer.permits(&method) && Role::Operator.permits(&method));
        }
    }
}
