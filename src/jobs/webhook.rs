//! Delivers alerts: one signed POST each.
//!
//! The receiver verifies `X-Tollgate-Signature: sha256=HEX`, where HEX is the HMAC-SHA256, keyed with the shared secret,
//! of the value of `X-Tollgate-Timestamp` (Unix seconds), a full stop, and the body's bytes; refuses a timestamp that is
//! minutes old; and forgets a second delivery of the same `X-Tollgate-Alert-Id`: delivery is at least once.

use std::error::Error as _;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use uuid::Uuid;

/// Where alerts go.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// `https://…`, or `http://…`. What follows the host may be a secret of its own.
    pub url: Uri,
    /// What signatures are keyed with.
    pub secret: String,
    /// From the beginning of a try to the head of the answer.
    pub timeout: Duration,
}

impl fmt::Debug for WebhookConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookConfig").field("host", &self.url.host()).finish_non_exhaustive()
    }
}

/// The receiver of alerts.
pub struct Webhook {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    key: hmac::Key,
    url: Uri,
    timeout: Duration,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("host", &self.url.host()).finish_non_exhaustive()
    }
}

impl Webhook {
    /// A client for `config`. An error is one sentence.
    pub fn new(config: &WebhookConfig) -> Result<Self, String> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.timeout));
        connector.enforce_http(false);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = HttpsConnectorBuilder::new();
        let builder = if config.url.scheme_str() == Some("https") {
            builder.with_provider_and_native_roots(provider).map_err(|error| {
                format!("TLS can't be set up, are there CA certificates on this machine? {error}")
            })?
        } else {
            let tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| format!("TLS can't be set up: {error}"))?;
            builder.with_tls_config(
                tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth(),
            )
        };
        // Alerts are rare: a connection kept for the next one would be found closed.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(builder.https_or_http().enable_http1().wrap_connector(connector));
        let key = hmac::Key::new(hmac::HMAC_SHA256, config.secret.as_bytes());
        Ok(Self { client, key, url: config.url.clone(), timeout: config.timeout })
    }

    /// Sends `body`, a JSON document, as the alert `id`. It is delivered once the receiver answers 2xx; redirects are not
    /// followed. An error is for operators: it tells neither the URL nor what the receiver says.
    pub async fn deliver(&self, id: Uuid, body: &str, now: jiff::Timestamp) -> Result<(), String> {
        let seconds = now.as_second().to_string();
        let request = Request::post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("tollgate/", env!("CARGO_PKG_VERSION")))
            .header("x-tollgate-timestamp", &seconds)
            .header("x-tollgate-signature", self.signature(&seconds, body))
            .header("x-tollgate-alert-id", id.to_string())
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .map_err(|_| "the request can't be built".to_owned())?;
        match tokio::time::timeout(self.timeout, self.client.request(request)).await {
            Err(_) => Err(format!("no answer in {:?}", self.timeout)),
            Ok(Err(error)) => Err(causes(&error)),
            Ok(Ok(answer)) => verdict(answer.status()),
        }
    }

    fn signature(&self, seconds: &str, body: &str) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [seconds, ".", body] {
            context.update(part.as_bytes());
        }
        let mut text = "sha256=".to_owned();
        for byte in context.sign().as_ref() {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

fn verdict(status: StatusCode) -> Result<(), String> {
    match status {
        status if status.is_success() => Ok(()),
        status if status.is_redirection() => {
            Err(format!("the receiver redirects ({}), which is not followed", status.as_u16()))
        }
        status => Err(format!("the receiver answered {}", status.as_u16())),
    }
}

fn causes(error: &hyper_util::client::legacy::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_openssl_makes_of_the_same() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 'the secret'
        let config = WebhookConfig {
            url: Uri::from_static("http://127.0.0.1:9/hook/T0KEN"),
            secret: "the secret".to_owned(),
            timeout: Duration::from_secs(1),
        };
        let webhook = Webhook::new(&config).unwrap();
        assert_eq!(
            webhook.signature("1700000000", "{\"a\":1}"),
            "sha256=674279675a06eb6ab63bbfce0df52e3113c6874ce9d29c36ae161f3c475b222e"
        );
        assert!(!format!("{config:?} {webhook:?}").contains("secret"));
        assert!(!format!("{config:?} {webhook:?}").contains("T0KEN"));
    }

    #[test]
    fn only_2xx_is_a_delivery() {
        let of = |status| verdict(StatusCode::from_u16(status).unwrap()).is_ok();
        assert!([200, 202, 204].into_iter().all(of));
        assert!(![301, 307, 400, 404, 410, 429, 500, 503].into_iter().any(of));
    }
}
