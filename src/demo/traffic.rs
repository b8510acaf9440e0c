//! The demo's visitors: they call Tollgate as a widget does, and keep count of what the answers said they used.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

use super::cast::Tenant;

const QUESTIONS: [&str; 6] = [
    "What are your opening hours?",
    "Do you deliver on Saturdays?",
    "How do I return something?",
    "Is there a better price for ten pieces?",
    "Can I talk to a human?",
    "Do you have this in green?",
];

/// One kind of call, whole or streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// One message.
    Single { streamed: bool },
    /// Several messages at once.
    Batch { messages: usize, streamed: bool },
    /// OpenAI's chat completion; the tenant is named by a token.
    Completion { streamed: bool },
    /// Some texts to embed; the tenant is named by a token.
    Embed { texts: usize },
}

/// What a visitor was answered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Calls that the service answered.
    pub(super) answered: u64,
    /// Calls that Tollgate refused for quota.
    pub(super) refused: u64,
    /// Tokens that the answers reported.
    pub(super) reported_tokens: u64,
}

/// Somebody on a tenant's site.
pub(super) struct Visitor {
    pub(super) tenant: Tenant,
    pub(super) tally: Tally,
    client: Client<HttpConnector, Full<Bytes>>,
    gateway: SocketAddr,
    token: String,
}

impl Visitor {
    /// A visitor of `tenant`'s site who calls the gateway, with a token signed by `jwt_secret` where no session names
    /// the tenant.
    pub(super) fn new(tenant: Tenant, gateway: SocketAddr, jwt_secret: &str) -> anyhow::Result<Self> {
        let in_an_hour = jiff::Timestamp::now().as_second() + 3600;
        let claims = json!({"tenantId": tenant.id, "type": "access", "exp": in_an_hour});
        let key = EncodingKey::from_secret(jwt_secret.as_bytes());
        let token = jsonwebtoken::encode(&Header::default(), &claims, &key).context("signing a token")?;
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Ok(Self { tenant, tally: Tally::default(), client, gateway, token })
    }

    /// Makes one call, and reads its answer to the end; whether it was answered rather than refused.
    pub(super) async fn make(&mut self, call: Call) -> anyhow::Result<bool> {
        let (status, body) = self.send(call).await?;
        match status {
            StatusCode::OK => {
                self.tally.answered += 1;
                self.tally.reported_tokens += reported(call, &body).with_context(|| {
                    format!("{call:?} of {}: not the answer it should be", self.tenant.id)
                })?;
                Ok(true)
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let refusal: Value = serde_json::from_slice(&body).context("a refusal is JSON")?;
                let known = refusal["code"] == "quota_exceeded" || refusal["code"] == "rate_limited";
                ensure!(known, "an unexpected refusal: {refusal}");
                self.tally.refused += 1;
                Ok(false)
            }
            _ => bail!(
                "{call:?} of {} was answered {status}: {}",
                self.tenant.id,
                String::from_utf8_lossy(&body)
            ),
        }
    }

    async fn send(&self, call: Call) -> anyhow::Result<(StatusCode, Bytes)> {
        let (target, body) = self.request(call);
        let mut request = Request::post(format!("http://{}{target}", self.gateway))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ORIGIN, "https://shop.example");
        if matches!(call, Call::Completion { .. } | Call::Embed { .. }) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        }
        let response = self.client.request(request.body(Full::from(body.to_string()))?).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await.context("an answer was cut short")?.to_bytes()))
    }

    fn request(&self, call: Call) -> (&'static str, Value) {
        let asked = usize::try_from(self.tally.answered).unwrap_or_default();
        let question = |number: usize| QUESTIONS[(asked + number) % QUESTIONS.len()];
        let chat = |streamed| if streamed { "/api/widget/chat?stream=true" } else { "/api/widget/chat" };
        let session = self.tenant.session;
        match call {
            Call::Single { streamed } => {
                (chat(streamed), json!({"sessionId": session, "message": question(0)}))
            }
            Call::Batch { messages, streamed } => {
                let messages: Vec<Value> =
                    (0..messages).map(|number| json!({"query": question(number)})).collect();
                (chat(streamed), json!({"sessionId": session, "messages": messages}))
            }
            Call::Completion { streamed } => {
                let mut body = json!({
                    "model": "gpt-4o-mini",
                    "messages": [
                        {"role": "system", "content": "You answer for a travel agency, shortly and politely."},
                        {"role": "user", "content": question(0)},
                    ],
                });
                if streamed {
                    body["stream"] = json!(true);
                    body["stream_options"] = json!({"include_usage": true});
                }
                ("/v1/chat/completions", body)
            }
            Call::Embed { texts } => {
                ("/api/embed-batch", json!({"texts": (0..texts).map(question).collect::<Vec<_>>()}))
            }
        }
    }
}

/// The tokens that an answer reports; an error when it is not of the call's form.
fn reported(call: Call, body: &[u8]) -> anyhow::Result<u64> {
    let whole = || serde_json::from_slice::<Value>(body).context("not JSON");
    let number = |value: &Value| value.as_u64().context("no token count");
    match call {
        Call::Single { streamed: false } => whole()?["reply"].as_str().map(|_| 0).context("no reply"),
        Call::Single { streamed: true } => match events(body).last() {
            Some(last) if last["done"] == true => Ok(0),
            _ => bail!("the stream's last event is missing"),
        },
        Call::Batch { streamed: false, .. } => number(&whole()?["totalTokens"]),
        Call::Batch { messages, streamed: true } => {
            let events = events(body);
            ensure!(events.len() == messages, "{} events for {messages} messages", events.len());
            events.iter().map(|event| number(&event["tokens_used"])).sum()
        }
        Call::Completion { streamed: false } => number(&whole()?["usage"]["total_tokens"]),
        Call::Completion { streamed: true } => match events(body).last() {
            Some(last) => number(&last["usage"]["total_tokens"]),
            None => bail!("the stream is empty"),
        },
        Call::Embed { texts } => {
            let answer = whole()?;
            ensure!(
                answer["embeddings"].as_array().is_some_and(|all| all.len() == texts),
                "not a vector a text"
            );
            Ok(0)
        }
    }
}

/// The events of a stream that are JSON.
fn events(body: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(body);
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::cast::TRAVEL;
    use super::super::service::{Service, Sessions};
    use super::*;

    /// The visitors understand the service, with nothing in between.
    #[tokio::test]
    async fn every_call_is_answered_and_what_it_reports_is_counted() {
        let sessions = Sessions::in_memory([(TRAVEL.session, TRAVEL.id.to_owned())]);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let service = Service::start(any, sessions, Duration::ZERO).await.unwrap();
        let mut visitor = Visitor::new(TRAVEL, service.addr, "a secret of the test's own").unwrap();
        for streamed in [false, true] {
            let before = visitor.tally.reported_tokens;
            visitor.make(Call::Single { streamed }).await.unwrap();
            assert_eq!(visitor.tally.reported_tokens, before, "the service reports nothing for one message");
            visitor.make(Call::Batch { messages: 3, streamed }).await.unwrap();
            visitor.make(Call::Completion { streamed }).await.unwrap();
            assert!(visitor.tally.reported_tokens > before + 3 * 160, "{:?}", visitor.tally);
        }
        visitor.make(Call::Embed { texts: 5 }).await.unwrap();
        assert_eq!((visitor.tally.answered, visitor.tally.refused), (7, 0));
    }

    #[test]
    fn an_answer_of_another_form_is_an_error_and_not_a_zero() {
        for call in [
            Call::Single { streamed: false },
            Call::Single { streamed: true },
            Call::Batch { messages: 1, streamed: false },
            Call::Batch { messages: 1, streamed: true },
            Call::Completion { streamed: false },
            Call::Completion { streamed: true },
            Call::Embed { texts: 1 },
        ] {
            assert!(reported(call, b"{}").is_err(), "{call:?}");
        }
    }
}
