//! Requests that are not metered: they reach the other side as they came.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::body::{Body, BodyWatch, RequestBody};
use super::core::Policy;
use super::departure::Departure;
use super::failure::Failure;
use super::headers::{remove_hop_by_hop, restrict_trailers};
use super::pause::Idle;
use super::settlement::Settlement;
use super::tunnel::Tunnel;
use super::upgrade::Offer;
use super::upstream::Upstream;
use crate::model::event::Outcome;

/// Forwards a request whose forwarding headers are set, and returns the upstream's answer.
pub(crate) async fn pass(
    upstream: &Upstream,
    policy: &Policy,
    mut request: Request<RequestBody>,
    watch: Option<BodyWatch>,
    idle: std::time::Duration,
    offer: Option<Offer>,
) -> Result<Response<Body>, Failure> {
    prepare(request.headers_mut(), policy.rules.tenant_headers());
    if let Some(offer) = &offer {
        offer.put(request.headers_mut());
    }
    let response = upstream.send(request, watch, &Departure::default()).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(response, offer, None);
    }
    let (mut head, body) = response.into_parts();
    clean(&mut head.headers);
    head.version = Version::HTTP_11;
    Ok(Response::from_parts(head, Body::Passing(body, Idle::new(idle))))
}

/// The answer of a service that switched; both sides are joined once the client has it. `settlement` is that of a metered
/// request.
///
/// Errors: where nobody asked for what it switched to, since what follows would be read as another protocol than it is.
pub(crate) fn switch(
    mut response: Response<Incoming>,
    offer: Option<Offer>,
    settlement: Option<Settlement>,
) -> Result<Response<Body>, Failure> {
    let Some(offer) = offer.filter(|offer| offer.is_taken_by(&response)) else {
        if let Some(settlement) = settlement {
            settlement.failed(Outcome::UpstreamError, Failure::UpstreamUnreachable.status().as_u16());
        }
        return Err(Failure::UpstreamUnreachable);
    };
    let service = hyper::upgrade::on(&mut response);
    let (mut head, _) = response.into_parts();
    let protocol = head.headers.get(header::UPGRADE).cloned();
    clean(&mut head.headers);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        head.headers.insert(header::UPGRADE, protocol);
    }
    offer.switch.put(Tunnel::new(offer.protocol(), offer.client, service, settlement));
    Ok(Response::from_parts(head, Body::Empty))
}

/// Makes a request's headers fit for the next hop.
pub(crate) fn prepare(headers: &mut HeaderMap, tenant_headers: &[HeaderName]) {
    remove_hop_by_hop(headers, tenant_headers);
    restrict_trailers(headers, tenant_headers);
    // The server half answers `100 Continue` itself when the body is asked for.
    headers.remove(header::EXPECT);
}

/// Makes an answer's headers fit for the client.
pub(crate) fn clean(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers, &[]);
}
