//! Reading a metered request's body within bounds, so that it can be inspected and then forwarded as it came; or
//! leaving it unread.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http_body::Body as _;
use serde_json::Value;

use super::body::{BodyWatch, RequestBody};
use super::budget::{Held, Share};
use super::charset;
use super::collect::{Collected, collect};
use super::config::BodyConfig;
use super::core::{Core, Policy};
use super::failure::Failure;
use super::pace::Pace;
use super::parameters;
use super::route::Route;
use super::uninspected::{Uninspected, is_lenient};
use crate::meter::{self, DecodeError, Inspected, decode_request};
use crate::model::spelling::canonical;
use crate::net::Upload;

/// The largest body that is inspected on the reactor: that takes it less than half a millisecond.
const INLINE: usize = 64 << 10;

/// A body, read as far as it is to be read.
#[derive(Debug)]
pub(crate) struct ReadBody {
    /// As it came, for the upstream.
    pub(crate) forward: RequestBody,
    /// Where to see whether what is still to come of it broke.
    pub(crate) watch: Option<BodyWatch>,
    /// What it says. `None` where it is not to be read, or can't be.
    pub(crate) inspected: Option<Inspected>,
    /// What the audit rules take from it.
    pub(crate) values: Vec<Option<Value>>,
    /// Why it was not read, where there is one.
    pub(crate) unread: Option<Uninspected>,
    /// The memory of what was taken from it.
    pub(crate) held: Option<Held>,
}

impl ReadBody {
    /// One of which nothing is known but why.
    pub(crate) fn unread(why: Uninspected) -> Self {
        let (inspected, values, held) = (None, Vec::new(), None);
        Self { forward: RequestBody::empty(), watch: None, inspected, values, unread: Some(why), held }
    }
}

/// What reads bodies: a route's rules, and the memory of a client address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    pub(crate) core: &'a Core,
    pub(crate) policy: &'a Arc<Policy>,
    pub(crate) route: &'a Arc<Route>,
    pub(crate) share: &'a Arc<Share>,
}

impl Reader<'_> {
    /// Reads a body as the route has it. Where what can't be inspected is charged or passes, it is streamed.
    pub(crate) async fn read(self, headers: &HeaderMap, body: Upload) -> Result<ReadBody, Failure> {
        match self.route.config.body {
            BodyConfig::Json { max_bytes } => {
                self.inspectable(headers, body, max_bytes, is_lenient(&self.route.config)).await
            }
            BodyConfig::Opaque { max_bytes } => {
                if let Some(limit) = max_bytes.filter(|limit| body.size_hint().lower() > *limit) {
                    return Err(Failure::BodyTooLarge {
                        limit: usize::try_from(limit).unwrap_or(usize::MAX),
                    });
                }
                let unread = (!body.is_end_stream()).then_some(Uninspected::Opaque);
                Ok(self.unread(Bytes::new(), body, max_bytes, unread))
            }
        }
    }

    /// The body as it comes, with what was read of it already.
    fn unread(self, first: Bytes, body: Upload, limit: Option<u64>, why: Option<Uninspected>) -> ReadBody {
        let (forward, watch) = RequestBody::rest(first, body, Pace::passing(self.core), limit);
        ReadBody { forward, watch, inspected: None, values: Vec::new(), unread: why, held: None }
    }

    /// Reads the body, at most `limit` bytes of it. What can't be inspected is refused, unless the route is `lenient`:
    /// then the rest of it passes unread.
    async fn inspectable(
        self,
        headers: &HeaderMap,
        body: Upload,
        limit: usize,
        lenient: bool,
    ) -> Result<ReadBody, Failure> {
        let coding = match coding(headers) {
            Ok(coding) => coding,
            Err(failure) if lenient => {
                return Ok(self.unread(Bytes::new(), body, None, Some(Uninspected::Unread(failure))));
            }
            Err(failure) => return Err(failure),
        };
        let too_large = Failure::BodyTooLarge { limit };
        if body.size_hint().lower() > limit as u64 {
            return match lenient {
                true => Ok(self.unread(Bytes::new(), body, None, Some(Uninspected::Unread(too_large)))),
                false => Err(too_large),
            };
        }
        let mut held = self.share.hold();
        let (data, trailers) = match collect(body, limit, Pace::whole(self.core), &mut held).await? {
            Collected::Whole { data, trailers } => (data, trailers),
            Collected::Over { first, rest } if lenient => {
                return Ok(self.unread(held.keep(first), rest, None, Some(Uninspected::Unread(too_large))));
            }
            Collected::Over { .. } => return Err(too_large),
        };
        let (route, policy) = (self.route.clone(), self.policy.clone());
        let job = Job {
            data: data.clone(),
            coding,
            charset_is_read: charset::is_read(headers),
            form: is_form(headers),
            limit,
            route,
            policy,
        };
        let read = self.run(job, &mut held).await;
        let texts_room = held.another();
        let (forward, watch) = RequestBody::read(held.keep(data), trailers);
        let read = match read {
            Ok(read) => read,
            Err(failure @ Failure::Overloaded) => return Err(failure),
            Err(failure) if lenient => Said { unread: Some(Uninspected::Unread(failure)), ..Said::default() },
            Err(failure) => return Err(failure),
        };
        // The texts outlive the body: they are counted when the answer is here.
        let texts = read.inspected.as_ref().map_or(0, Inspected::text_bytes);
        let mut held = (texts > 0).then_some(texts_room);
        if let Some(held) = &mut held {
            held.outlive(texts).await?;
        }
        let Said { inspected, values, unread } = read;
        Ok(ReadBody { forward, watch, inspected, values, unread, held })
    }

    /// Inspecting is work: that of a large body is done off the reactor, and so is inflating one. Few are at it at once,
    /// and one of a client address, so that a decoded copy needs no room of its own in the budget.
    async fn run(self, job: Job, held: &mut Held) -> Result<Said, Failure> {
        if job.coding.is_none() && job.data.len() <= INLINE {
            return job.run();
        }
        let slot = held.inspection().await?;
        let inspecting = tokio::task::spawn_blocking(move || {
            let said = job.run();
            drop(slot);
            said
        });
        inspecting.await.unwrap_or(Err(Failure::Malformed("the body can't be read")))
    }
}

/// What a body says.
#[derive(Debug, Default)]
struct Said {
    inspected: Option<Inspected>,
    values: Vec<Option<Value>>,
    unread: Option<Uninspected>,
}

/// A body to be inspected.
struct Job {
    data: Bytes,
    coding: Option<HeaderValue>,
    charset_is_read: bool,
    form: bool,
    limit: usize,
    route: Arc<Route>,
    policy: Arc<Policy>,
}

impl Job {
    fn run(self) -> Result<Said, Failure> {
        let plain = match &self.coding {
            Some(coding) => decode(&self.data, coding, self.limit)?,
            None => Cow::Borrowed(&self.data[..]),
        };
        if !self.charset_is_read && !plain.is_empty() {
            // In another coding it may well be JSON.
            return Ok(Said { unread: Some(Uninspected::NotJson { legible: true }), ..Said::default() });
        }
        let (format, event) = (&self.route.format, self.route.config.event);
        // Elsewhere a call is one call, whatever its form holds.
        let form = self.form && event.counts_items();
        if form && parameters::items(&plain, format, event) > 0 {
            return Ok(Said { unread: Some(Uninspected::not_json(&plain, form)), ..Said::default() });
        }
        let pointers: smallvec::SmallVec<[&str; 4]> = self.route.sources.pointers().collect();
        let config = &self.policy.meter;
        let read = meter::inspect_leniently(format, config, &plain, &pointers);
        let Ok((mut inspected, json)) = read else {
            let unread = (!plain.is_empty()).then(|| Uninspected::not_json(&plain, form));
            return Ok(Said { unread, ..Said::default() });
        };
        inspected.session = inspected.session.map(|session| canonical(&session).into_owned());
        // Where another parser than ours had to be followed, they are what that parser reads.
        let values = match self.route.audit.request() {
            Some(pointers) => meter::glean(pointers, &json),
            None => Vec::new(),
        };
        Ok(Said { inspected: Some(inspected), values, unread: None })
    }
}

/// Whether the body is a form by its type: what some services read like JSON. JSON may be sent under that name, too.
fn is_form(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
        let kind = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        kind.contains("x-www-form-urlencoded") || kind.contains("multipart/")
    })
}

/// The body's coding, where it has one. Listed in several header lines, it is none that can be undone.
fn coding(headers: &HeaderMap) -> Result<Option<HeaderValue>, Failure> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    match (values.next(), values.next()) {
        (first, None) => Ok(first.cloned()),
        (_, Some(_)) => Err(Failure::UnsupportedEncoding),
    }
}

fn decode<'a>(raw: &'a [u8], coding: &HeaderValue, limit: usize) -> Result<Cow<'a, [u8]>, Failure> {
    decode_request(raw, Some(coding.as_bytes()), limit).map_err(|error| match error {
        DecodeError::TooLarge => Failure::BodyTooLarge { limit },
        DecodeError::Unsupported | DecodeError::Corrupt => Failure::UnsupportedEncoding,
    })
}
