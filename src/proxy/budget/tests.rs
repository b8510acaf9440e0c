use std::collections::BTreeMap;

use super::*;
use crate::settings::Settings;

const KIB: usize = 1 << 10;

/// 1 MiB in all, 512 KiB for each address; nobody waits.
fn budget(wait: &str) -> (Arc<Budget>, Arc<Metrics>) {
    let environment: BTreeMap<String, String> = [
        ("TOLLGATE__SERVER__MAX_BUFFERED_BYTES", "1MiB"),
        ("TOLLGATE__SERVER__MAX_CLIENT_BUFFERED_BYTES", "512KiB"),
        ("TOLLGATE__SERVER__BUFFER_WAIT", wait),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let settings = Settings::load(None, &environment).unwrap();
    let metrics = Metrics::new();
    (Budget::new(&settings.server, 4, metrics.clone()), metrics)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn an_address_has_its_share_and_all_have_the_whole() {
    let (budget, metrics) = budget("0ms");
    let mut held = Vec::new();
    for client in ["192.0.2.1", "192.0.2.2"] {
        let share = budget.share(address(client));
        let mut first = share.hold();
        first.grow(400 * KIB).await.unwrap();
        assert_eq!(share.hold().grow(64 * KIB).await, Err(Failure::Overloaded), "over its share");
        held.push(first);
    }
    assert_eq!(metrics.buffered_bytes.get(), 800 << 10);
    let third = budget.share(address("192.0.2.3"));
    assert_eq!(third.hold().grow(64 * KIB).await, Err(Failure::Overloaded), "over the whole");
    let mut small = third.hold();
    small.grow(16 * KIB).await.unwrap();
    drop(held);
    third.hold().grow(300 * KIB).await.unwrap();
    drop(small);
    assert_eq!(metrics.buffered_bytes.get(), 0);
}

#[tokio::test]
async fn what_never_fits_is_too_large_and_what_may_fit_waits() {
    let (budget, _) = budget("60s");
    let share = budget.share(address("192.0.2.1"));
    let limit = 400 * KIB;
    assert_eq!(share.hold().grow(401 * KIB).await, Err(Failure::BodyTooLarge { limit }));
    let mut first = share.hold();
    first.grow(400 * KIB).await.unwrap();
    let mut second = share.hold();
    let mut waiting = std::pin::pin!(second.grow(100 * KIB));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    let bytes = first.keep(Bytes::from_static(b"held as long as these"));
    let part = bytes.slice(..4);
    drop(bytes);
    assert!(futures_util::poll!(waiting.as_mut()).is_pending(), "a part of the bytes is still there");
    drop(part);
    waiting.await.unwrap();
}

#[tokio::test]
async fn a_share_is_forgotten_with_the_last_that_has_it() {
    let (budget, _) = budget("0ms");
    let first = budget.share(address("2001:db8::1"));
    let neighbour = budget.share(address("2001:db8::ffff:1"));
    assert!(Arc::ptr_eq(&first, &neighbour), "one network of 64 bits");
    assert!(!Arc::ptr_eq(&first, &budget.share(address("2001:db8:0:1::1"))));
    assert!(
        Arc::ptr_eq(&budget.share(address("::ffff:192.0.2.1")), &budget.share(address("192.0.2.1")))
            || budget.shares.lock().unwrap().len() == 1
    );
    drop((first, neighbour));
    assert!(budget.shares.lock().unwrap().is_empty());
}

#[tokio::test]
async fn few_inspect_at_once_and_one_of_an_address() {
    let (budget, _) = budget("0ms");
    let held = |client| budget.share(address(client)).hold();
    let (mut one, mut two) = (held("192.0.2.1"), held("192.0.2.2"));
    let first = one.inspection().await.unwrap();
    assert!(one.inspection().await.is_err(), "one of an address");
    let _second = two.inspection().await.unwrap();
    assert!(held("192.0.2.3").inspection().await.is_err(), "half of four cores");
    drop(first);
    held("192.0.2.3").inspection().await.unwrap();
}

fn head(bytes: usize) -> Parts {
    let request = http::Request::get("/").header("x-long", "x".repeat(bytes)).body(()).unwrap();
    request.into_parts().0
}

#[tokio::test]
async fn beginnings_of_bodies_and_texts_leave_heads_their_room() {
    let (budget, _) = budget("0ms");
    let mut held = Vec::new();
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let share = budget.share(address(client));
        loop {
            let mut body = share.hold();
            if body.grow(16 * KIB).await.is_err() {
                break;
            }
            held.push(body);
        }
        assert_eq!(share.hold().outlive(16 * KIB).await, Err(Failure::Overloaded));
        assert!(share.head(&head(20 * KIB)).is_ok(), "{client}");
    }
    // Where only beginnings have no room left, they take what is left of the rest, and so do heads.
    held.truncate(4);
    let share = budget.share(address("192.0.2.9"));
    let heads: Vec<_> = (0..10).map(|_| share.head(&head(20 * KIB))).collect();
    assert!(heads.iter().all(Result::is_ok));
}
