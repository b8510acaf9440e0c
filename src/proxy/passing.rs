//! Requests that are not metered: they reach the other side as they came.

use http::header::{self, HeaderMap, HeaderName};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::{Body, BodyWatch, RequestBody};
use super::core::Policy;
use super::departure::Departure;
use super::failure::Failure;
use super::headers::{remove_hop_by_hop, restrict_trailers};
use super::pause::Idle;
use super::upstream::Upstream;

/// Forwards a request whose forwarding headers are set, and returns the upstream's answer.
pub(crate) async fn pass(
    upstream: &Upstream,
    policy: &Policy,
    mut request: Request<RequestBody>,
    watch: Option<BodyWatch>,
    idle: std::time::Duration,
) -> Result<Response<Body>, Failure> {
    let upgrade = upgrade_asked(request.headers()).map(|protocol| {
        let client = request.extensions_mut().remove::<OnUpgrade>();
        (protocol, client)
    });
    prepare(request.headers_mut(), policy.rules.tenant_headers());
    if let Some((protocol, _)) = &upgrade {
        request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, protocol.clone());
    }
    let response = upstream.send(request, watch, &Departure::default()).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match upgrade {
            Some((_, Some(client))) => Ok(switch(response, client)),
            // Nobody asked for it: whatever follows would be read as another protocol than it is.
            _ => Err(Failure::UpstreamUnreachable),
        };
    }
    let (mut head, body) = response.into_parts();
    clean(&mut head.headers);
    head.version = Version::HTTP_11;
    Ok(Response::from_parts(head, Body::Passing(body, Idle::new(idle))))
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

fn upgrade_asked(headers: &HeaderMap) -> Option<header::HeaderValue> {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked =
        named.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    if asked { headers.get(header::UPGRADE).cloned() } else { None }
}

/// Joins both sides once they have switched; both connections end together.
fn switch(mut response: Response<Incoming>, client: OnUpgrade) -> Response<Body> {
    let server = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    let (mut head, _) = response.into_parts();
    let protocol = head.headers.get(header::UPGRADE).cloned();
    clean(&mut head.headers);
    head.headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        head.headers.insert(header::UPGRADE, protocol);
    }
    Response::from_parts(head, Body::Empty)
}
