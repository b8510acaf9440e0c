//! Bearer tokens: who they say is calling, and whether one that is not believed is ours all the same.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use http::header::{self, HeaderMap};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::audit::Bearer;
use super::config::JwtKey;
use crate::model::tenant::TenantId;

/// Clocks of token issuers may differ from ours by so many seconds.
const JWT_LEEWAY_SECONDS: u64 = 30;

/// Tokens of a request whose signature is compared, to see whether one is ours. Who shows more is taken to hide one.
const MAX_TOKENS_LOOKED_AT: usize = 8;

/// Where a credential may end within a line: readers differ, and some drop what does not belong into a signature.
const ENDS: [&[u8]; 4] = [b" \t,;\"=\x85\xa0", b",=", b",", b""];

/// Takes a last character with bits that stand for nothing, as most decoders do.
const LOOSE: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A token that is shown and not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unbelieved {
    /// Nothing says that it is one of ours.
    Foreign,
    /// Its signature is by our key: expired, shown twice, or with what we don't understand.
    Ours,
}

/// What the credentials of a request are.
enum Shown {
    /// None, or none of the scheme that tokens have.
    Nothing,
    /// A valid token that names no tenant.
    Other,
    /// A valid token, and whose it is.
    Tenant(TenantId, Bearer),
}

/// Verifies bearer tokens.
pub(crate) struct Verifier {
    claim: String,
    /// `None`: the secret is not set, so no token can be believed.
    key: Option<DecodingKey>,
    /// The algorithms by which a service with the same key could believe a token.
    family: &'static [Algorithm],
    validation: Validation,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({})", self.claim)
    }
}

fn is_bearer(credentials: &str) -> bool {
    credentials.split(' ').next().is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"))
}

/// The message and the signature of the token that a piece of a line ends with. The message must be as it was signed; the
/// signature is read as the laxest decoders do: in either alphabet, whatever stands between its characters or after it.
fn written(piece: &[u8]) -> Option<(&str, String)> {
    let in_alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let dot = memchr::memrchr(b'.', piece)?;
    let (head, signature) = (&piece[..dot], &piece[dot + 1..]);
    let begin = head.iter().rposition(|byte| !in_alphabet(byte) && *byte != b'.').map_or(0, |at| at + 1);
    let message = std::str::from_utf8(&head[begin..]).ok().filter(|message| message.contains('.'))?;
    let url_safe = signature.iter().map(|byte| match byte {
        b'+' => b'-',
        b'/' => b'_',
        other => *other,
    });
    let mut characters: Vec<u8> = url_safe.filter(in_alphabet).collect();
    // One character alone is less than a byte.
    characters.truncate(characters.len() - usize::from(characters.len() % 4 == 1));
    Some((message, URL_SAFE_NO_PAD.encode(LOOSE.decode(characters).ok()?)))
}

/// The algorithms that take the key of `algorithm`.
fn family(algorithm: Algorithm) -> &'static [Algorithm] {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512]
        }
        Algorithm::RS256 => &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        _ => &[Algorithm::ES256],
    }
}

impl Verifier {
    /// Verifies tokens by `key`, whose `claim` names the tenant. An error is one sentence.
    pub(crate) fn new(claim: &str, key: &JwtKey) -> Result<Self, String> {
        let (key, algorithm) = match key {
            JwtKey::Hs256 { secret, .. } => {
                (secret.as_ref().map(|secret| DecodingKey::from_secret(secret.as_bytes())), Algorithm::HS256)
            }
            JwtKey::Pem { file, pem, algorithm } => {
                let key = match algorithm {
                    Algorithm::RS256 => DecodingKey::from_rsa_pem(pem),
                    Algorithm::ES256 => DecodingKey::from_ec_pem(pem),
                    other => {
                        return Err(format!(
                            "tenant source jwt: {other:?} is not supported: use RS256 or ES256"
                        ));
                    }
                };
                (
                    Some(
                        key.map_err(|error| format!("tenant source jwt: {file} holds no such key: {error}"))?,
                    ),
                    *algorithm,
                )
            }
        };
        let mut validation = Validation::new(algorithm);
        validation.leeway = JWT_LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.validate_aud = false;
        Ok(Verifier { claim: claim.to_owned(), key, family: family(algorithm), validation })
    }

    /// The tenant of the request's bearer token; `None` when it has none, or one that is valid and names no tenant: the
    /// service has such tokens for others than tenants.
    pub(crate) fn tenant(&self, headers: &HeaderMap) -> Result<Option<(TenantId, Bearer)>, Unbelieved> {
        match self.shown(headers) {
            Ok(Shown::Tenant(tenant, bearer)) => Ok(Some((tenant, bearer))),
            Ok(Shown::Other) => Ok(None),
            Err(_) | Ok(Shown::Nothing) if self.has_ours(headers) => Err(Unbelieved::Ours),
            Ok(Shown::Nothing) => Ok(None),
            Err(unbelieved) => Err(unbelieved),
        }
    }

    /// Whether a token of ours stands anywhere among the credentials, whatever is wrong with it or around it: its
    /// signature is by our key. A service may go by another line, part or scheme than we do, or take a token that we refuse.
    fn has_ours(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.key else { return false };
        let mut seen = Vec::new();
        for line in headers.get_all(header::AUTHORIZATION) {
            let pieces = ENDS.iter().flat_map(|ends| line.as_bytes().split(|byte| ends.contains(byte)));
            for token in pieces.filter_map(written) {
                if seen.contains(&token) {
                    continue;
                }
                if seen.len() == MAX_TOKENS_LOOKED_AT || self.is_signed(&token, key) {
                    return true;
                }
                seen.push(token);
            }
        }
        false
    }

    /// By the algorithm that its head names; one whose head only other parsers can read, by any.
    fn is_signed(&self, (message, signature): &(&str, String), key: &DecodingKey) -> bool {
        let named = jsonwebtoken::decode_header(format!("{message}.{signature}")).map(|head| head.alg);
        let by_our_key = |algorithm: &&Algorithm| {
            named.as_ref().map_or(true, |named| named == *algorithm)
                && jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, **algorithm)
                    .unwrap_or(false)
        };
        self.family.iter().any(|algorithm| by_our_key(&algorithm))
    }

    fn shown(&self, headers: &HeaderMap) -> Result<Shown, Unbelieved> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(Shown::Nothing) };
        let invalid = Unbelieved::Foreign;
        if values.next().is_some() {
            return Err(invalid);
        }
        let Ok(value) = value.to_str() else { return Err(invalid) };
        let Some((scheme, token)) = value.trim().split_once(' ') else { return Err(invalid) };
        if !scheme.eq_ignore_ascii_case("bearer") {
            // Two credentials in one line: which of them the service behind goes by is not for us to guess.
            let joined = value.split(',').skip(1).any(|part| is_bearer(part.trim_start()));
            return if joined { Err(invalid) } else { Ok(Shown::Nothing) };
        }
        let Some(key) = &self.key else { return Err(invalid) };
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token.trim(), key, &self.validation);
        let Ok(claims) = claims else { return Err(invalid) };
        // What is critical to its issuer is nothing that we know of (RFC 7515, section 4.1.11).
        if claims.header.crit.is_some() {
            return Err(invalid);
        }
        let mut claims = claims.claims;
        let Some(tenant) = claims.get(&self.claim) else { return Ok(Shown::Other) };
        let tenant = tenant.as_str().and_then(|id| TenantId::parse(id).ok());
        let subject = match claims.remove("sub") {
            Some(Value::String(subject)) if self.claim != "sub" => Some(subject),
            _ => None,
        };
        tenant.map(|tenant| Shown::Tenant(tenant, Bearer { subject })).ok_or(invalid)
    }
}
