//! A stand-in chat service: the formats of the real one, with words that never change.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /api/widget/chat`, single or batch, `?stream=true` or not | the four forms that the meter knows by default |
//! | `OPTIONS` on any path | a CORS preflight's answer |
//! | `POST /api/widget/session` | 201 with a new session |
//! | `POST /api/embed-batch` | one small vector a text |
//! | `POST /v1/chat/completions` | OpenAI's form, whole or streamed, with its usage |
//! | anything else | a small text page |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use super::replies::{estimate, pieces, reply, tokens_used};
pub use super::sessions::Sessions;

/// The largest request body it reads; the real one's limit is of that order.
const MAX_BODY_BYTES: usize = 1 << 20;

/// A running stand-in service. It stops when it is dropped, its connections with it.
pub struct Service {
    /// Where it listens.
    pub addr: SocketAddr,
    accepting: JoinHandle<()>,
}

/// What every request of a service sees.
struct Shared {
    sessions: Sessions,
    /// Between two events of a stream, and before a whole answer.
    pace: Duration,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Service {
    /// Listens on `addr` (port 0: any) and answers for these sessions, pausing for `pace` between the events of a
    /// stream. An error when the address can't be had.
    pub async fn start(addr: SocketAddr, sessions: Sessions, pace: Duration) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, Arc::new(Shared { sessions, pace })));
        Ok(Self { addr, accepting })
    }

    /// Stops: when it returns, the port refuses connections.
    pub async fn stop(mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the stand-in service can't accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        connections.spawn(async move {
            let answer = hyper::service::service_fn(move |request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(shared.answer(request).await) }
            });
            let server = auto::Builder::new(TokioExecutor::new());
            if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
                tracing::debug!(error, "a connection to the stand-in service ended early");
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        if head.method == Method::OPTIONS {
            return preflight();
        }
        let path = head.uri.path().to_owned();
        if head.method != Method::POST || !is_json_route(&path) {
            let size =
                Limited::new(body, MAX_BODY_BYTES).collect().await.map_or(0, |body| body.to_bytes().len());
            return page(&head.method, &head.uri, size);
        }
        let Ok(body) = Limited::new(body, MAX_BODY_BYTES).collect().await else {
            return refusal(StatusCode::BAD_REQUEST, "Invalid request body", "too large, or cut short");
        };
        let Ok(body) = serde_json::from_slice::<Value>(&body.to_bytes()) else {
            return refusal(StatusCode::BAD_REQUEST, "Invalid request body", "not JSON");
        };
        match path.as_str() {
            "/api/widget/chat" => {
                let streamed =
                    head.uri.query().is_some_and(|query| query.split('&').any(|part| part == "stream=true"));
                self.chat(&body, streamed).await
            }
            "/api/widget/session" => self.session(&body).await,
            "/api/embed-batch" => embed(&body),
            _ => self.completion(&body).await,
        }
    }

    async fn chat(&self, body: &Value, streamed: bool) -> Response<Body> {
        let session = body["sessionId"].as_str().unwrap_or_default();
        let single = body["message"].as_str();
        let batch = body["messages"].as_array();
        if session.is_empty() || (single.is_none() && batch.is_none_or(Vec::is_empty)) {
            return refusal(
                StatusCode::BAD_REQUEST,
                "Invalid request body",
                "sessionId and message or messages",
            );
        }
        if !self.sessions.know(session) {
            return refusal(StatusCode::NOT_FOUND, "Session not found", session);
        }
        let limit = body["responseCharacterLimit"].as_u64().and_then(|limit| usize::try_from(limit).ok());
        match (single, batch, streamed) {
            (Some(question), _, false) => {
                tokio::time::sleep(self.pace).await;
                whole(StatusCode::OK, &single_answer(question, limit))
            }
            (Some(question), _, true) => self.events(single_events(question, limit)),
            (None, questions, false) => {
                tokio::time::sleep(self.pace).await;
                whole(StatusCode::OK, &batch_answer(session, questions.map_or(&[], Vec::as_slice)))
            }
            (None, questions, true) => {
                let questions = questions.map_or(&[][..], Vec::as_slice);
                self.events(questions.iter().map(|question| batch_item(session, question)).collect())
            }
        }
    }

    async fn session(&self, body: &Value) -> Response<Body> {
        let Some(tenant) = body["tenantId"].as_str() else {
            return refusal(StatusCode::BAD_REQUEST, "Invalid request body", "tenantId");
        };
        match self.sessions.open(tenant).await {
            Ok(id) => whole(StatusCode::CREATED, &json!({"sessionId": id})),
            Err(error) => {
                let details = format!("{error:#}");
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "Failed to create session", &details)
            }
        }
    }

    async fn completion(&self, body: &Value) -> Response<Body> {
        let model = body["model"].as_str().unwrap_or("gpt-4o-mini").to_owned();
        let messages = body["messages"].as_array().map_or(&[][..], Vec::as_slice);
        let prompt: String = messages.iter().filter_map(|message| message["content"].as_str()).collect();
        let question = messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default();
        let text = reply(question, None);
        let usage = openai_usage(&prompt, &text);
        if body["stream"] == true {
            let usage = (body["stream_options"]["include_usage"] == true).then_some(usage);
            return self.openai_events(&model, &text, usage);
        }
        tokio::time::sleep(self.pace).await;
        whole(
            StatusCode::OK,
            &json!({
                "id": "chatcmpl-demo", "object": "chat.completion", "created": 0, "model": model,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": usage,
            }),
        )
    }

    fn events(&self, events: Vec<Value>) -> Response<Body> {
        self.event_stream(events.iter().map(|event| format!("data: {event}\n\n")).collect())
    }

    fn openai_events(&self, model: &str, text: &str, usage: Option<Value>) -> Response<Body> {
        let chunk = |choices: Value| {
            json!({"id": "chatcmpl-demo", "object": "chat.completion.chunk", "created": 0, "model": model,
                   "choices": choices})
        };
        let delta = |delta: Value, finish: Value| {
            chunk(json!([{"index": 0, "delta": delta, "finish_reason": finish}]))
        };
        let mut events = vec![delta(json!({"role": "assistant", "content": ""}), Value::Null)];
        events.extend(pieces(text).map(|piece| delta(json!({"content": piece}), Value::Null)));
        events.push(delta(json!({}), json!("stop")));
        if let Some(usage) = usage {
            let mut last = chunk(json!([]));
            last["usage"] = usage;
            events.push(last);
        }
        let lines = events.iter().map(|event| format!("data: {event}\n\n"));
        self.event_stream(lines.chain(std::iter::once("data: [DONE]\n\n".to_owned())).collect())
    }

    fn event_stream(&self, lines: Vec<String>) -> Response<Body> {
        let body = StreamBody::new(paced(lines, self.pace).map(|line| Ok(Frame::data(Bytes::from(line)))));
        let mut response = Response::new(body.boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache"));
        allow_any_origin(response)
    }
}

/// The lines, the first at once, a pause before each other.
fn paced(lines: Vec<String>, pace: Duration) -> impl Stream<Item = String> + Send {
    stream::iter(lines.into_iter().enumerate()).then(move |(index, line)| async move {
        if index > 0 {
            tokio::time::sleep(pace).await;
        }
        line
    })
}

fn is_json_route(path: &str) -> bool {
    matches!(path, "/api/widget/chat" | "/api/widget/session" | "/api/embed-batch" | "/v1/chat/completions")
}

fn single_answer(question: &str, limit: Option<usize>) -> Value {
    json!({"reply": reply(question, limit), "sources": sources(), "metadata": {"intent": "faq"}})
}

fn single_events(question: &str, limit: Option<usize>) -> Vec<Value> {
    let text = reply(question, limit);
    let mut partial = String::new();
    let mut events: Vec<Value> = pieces(&text)
        .map(|piece| {
            partial.push_str(piece);
            json!({"token": piece, "partial": partial})
        })
        .collect();
    let metadata = json!({"intent": "faq"});
    events.push(
        json!({"done": true, "final": text, "confidence": 0.9, "metadata": metadata, "sources": sources()}),
    );
    events
}

fn batch_item(session: &str, message: &Value) -> Value {
    let question = message["query"].as_str().unwrap_or_default();
    let text = reply(question, None);
    json!({
        "tokens_used": tokens_used(question, &text), "reply": text, "sources": sources(), "latency_ms": 5,
        "error": null, "query": question, "sessionId": session, "status": "success",
        "timestamp": "2026-01-01T00:00:00.000Z",
    })
}

fn batch_answer(session: &str, messages: &[Value]) -> Value {
    let items: Vec<Value> = messages.iter().map(|message| batch_item(session, message)).collect();
    let total = |field: &str| items.iter().filter_map(|item| item[field].as_u64()).sum::<u64>();
    let (tokens, latency) = (total("tokens_used"), total("latency_ms"));
    json!({
        "aggregated": true, "totalTokens": tokens, "totalLatency": latency, "audits": [],
        "summary": {"batchSize": items.len(), "totalTokens": tokens, "totalLatency": latency},
        "batch": items,
    })
}

fn sources() -> Value {
    json!([{"text": "From the shop's own pages.", "similarity": 0.87}])
}

fn embed(body: &Value) -> Response<Body> {
    let Some(texts) = body["texts"].as_array() else {
        return refusal(StatusCode::BAD_REQUEST, "Invalid request body", "texts");
    };
    let vector = |text: &Value| {
        let length = text.as_str().map_or(0, str::len) as f64;
        json!([length, length / 2.0, 0.25])
    };
    whole(StatusCode::OK, &json!({"embeddings": texts.iter().map(vector).collect::<Vec<_>>()}))
}

fn openai_usage(prompt: &str, completion: &str) -> Value {
    let (prompt, completion) = (estimate(prompt), estimate(completion));
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

fn whole(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::from(body.to_string()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    allow_any_origin(response)
}

fn refusal(status: StatusCode, error: &str, details: &str) -> Response<Body> {
    whole(status, &json!({"error": error, "details": details}))
}

fn page(method: &Method, uri: &http::Uri, body_bytes: usize) -> Response<Body> {
    let text =
        format!("The chat service's own page.\n{method} {uri}\n{body_bytes} bytes in the request's body.\n");
    let mut response = Response::new(Full::from(text).boxed_unsync());
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn preflight() -> Response<Body> {
    let mut response = Response::new(Full::<Bytes>::default().boxed_unsync());
    *response.status_mut() = StatusCode::NO_CONTENT;
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, x-request-id"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    allow_any_origin(response)
}

fn allow_any_origin(mut response: Response<Body>) -> Response<Body> {
    let any = header::HeaderValue::from_static("*");
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
    response
}
