//! What a metered route offers the service to encode its answer with: only what the meter reads.

use serde_json::json;

use crate::harness::{Upstream, answer, gateway, request};
use crate::postgres::shared;

const CAME: &str = "gzip;q=0.5, br;q=1.0, compress;q=0.9, dcb";

#[tokio::test]
async fn a_metered_route_offers_the_service_what_the_meter_reads_and_nothing_that_the_client_did_not() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"reply": "hi"}))).await;
    let database = shared().database();
    let routes = "[[routes]]\npath = \"/narrow\"\n[[routes]]\npath = \"/as-it-came\"\n\
                  narrow_accept_encoding = false\n\
                  [[routes]]\npath = \"/may-pass\"\nunidentified = \"pass\"\n";
    let gateway = gateway(&upstream, &database).config(routes).start().await;
    for (path, came, goes) in [
        ("/narrow", Some(CAME), Some("gzip;q=0.5, br;q=1.0")),
        ("/narrow", Some("compress"), Some("identity")),
        ("/narrow", Some("gzip, deflate, br, zstd"), Some("gzip, deflate, br, zstd")),
        ("/narrow", None, None),
        ("/as-it-came", Some(CAME), Some(CAME)),
        ("/not-metered", Some(CAME), Some(CAME)),
    ] {
        let asked = request("POST", path).header("x-tenant-id", "tn_codings").json(&json!({"message": "hi"}));
        let asked = came.iter().fold(asked, |asked, came| asked.header("Accept-Encoding", came));
        assert_eq!(gateway.ask(asked).await.status, 200);
        let seen = upstream.requests().pop().unwrap();
        assert_eq!(seen.header("accept-encoding").as_deref(), goes, "{path}, {came:?}");
    }
    // What names no tenant is not metered, wherever it goes.
    let nobody = request("POST", "/may-pass").header("Accept-Encoding", CAME).json(&json!({"message": "hi"}));
    gateway.ask(nobody).await;
    assert_eq!(upstream.requests().pop().unwrap().header("accept-encoding").as_deref(), Some(CAME));
    gateway.stop().await;
}

#[tokio::test]
async fn a_chat_with_images_in_it_is_within_the_bound() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"reply": "a cat"}))).await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).start().await;
    let image = format!("data:image/png;base64,{}", "iVBORw0KGgo".repeat(700_000));
    let body = json!({"message": "What is it?", "image": image});
    let asked = request("POST", "/api/widget/chat").header("x-tenant-id", "tn_images").json(&body);
    assert_eq!(gateway.ask(asked).await.status, 200);
    assert_eq!(upstream.requests()[0].json(), body);
    gateway.stop().await;
}
