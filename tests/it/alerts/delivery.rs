//! The way to the webhook.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::{QUICK, SECRET, calls, listed, looked_again, ok, service, verified};
use crate::harness::{Signal, Step, Upstream, answer, gateway, request, within};
use crate::postgres::{Server, shared};

#[tokio::test]
async fn each_threshold_of_a_quota_is_delivered_once_though_two_replicas_look_and_verifies() {
    let (upstream, receiver) = (service().await, Upstream::answering(|_| ok().steps()).await);
    let database = shared().database();
    let replica = || {
        gateway(&upstream, &database)
            .config(QUICK)
            .set("alerts.webhook_url", &format!("{}/hook?key=k", receiver.url()))
            .env("ALERT_WEBHOOK_SECRET", SECRET)
    };
    let (here, there) = (replica().start().await, replica().start().await);
    calls(&here, "tn_alert", 4).await;
    looked_again(&here, 2.0).await;
    looked_again(&there, 2.0).await;
    assert!(receiver.requests().is_empty(), "40 % is no threshold");

    calls(&here, "tn_alert", 6).await;
    within("three deliveries", receiver.seen(3)).await;
    looked_again(&here, 3.0).await;
    looked_again(&there, 3.0).await;
    let deliveries = receiver.requests();
    let alerts: Vec<_> = deliveries.iter().map(verified).collect();
    assert_eq!(alerts.len(), 3, "once each: {alerts:?}");
    let raised = "tollgate_alerts_total{kind=\"quota_threshold\"}";
    assert_eq!(here.metric(raised).await + there.metric(raised).await, 3.0);
    let thresholds: BTreeSet<i64> = alerts.iter().map(|alert| alert["threshold"].as_i64().unwrap()).collect();
    assert_eq!(thresholds, [50, 80, 100].into());
    for (alert, delivery) in alerts.iter().zip(&deliveries) {
        assert_eq!(delivery.target(), "/hook?key=k");
        assert_eq!(
            (&alert["kind"], &alert["tenant_id"], &alert["dimension"], &alert["reference"]),
            (&json!("quota_threshold"), &json!("tn_alert"), &json!("chat_messages_per_day"), &json!(10))
        );
        assert!(alert["observed"].as_i64() >= alert["threshold"].as_i64().map(|t| t / 10), "{alert}");
    }

    within("they are noted as sent", async { while listed(&here, "?state=sent").await.len() < 3 {} }).await;
    let first = here.operate(request("GET", "/api/admin/alerts?tenantId=tn_alert&limit=2")).await.json();
    assert_eq!(first["alerts"].as_array().unwrap().len(), 2);
    let more = format!(
        "?tenantId=tn_alert&limit=2&cursor={}",
        first["nextCursor"].as_str().expect("there is one more")
    );
    let rest = listed(&there, &more).await;
    assert_eq!((rest.len(), &rest[0]["attempts"], &rest[0]["last_error"]), (1, &json!(1), &json!(null)));
    assert!(rest[0]["sent_at"].is_string() && rest[0]["next_attempt_at"].is_null(), "{rest:?}");
    assert!(listed(&here, "?tenantId=tn_other").await.is_empty());
    assert_eq!(here.operate(request("GET", "/api/admin/alerts?state=lost")).await.status, 400);
    let audited = database.rows(
        "SELECT category, actor_type, entity_id = new_values ->> 'id', new_values ->> 'dimension'
         FROM audit_events WHERE event_type = 'alert_raised' AND tenant_id = 'tn_alert'",
    );
    assert_eq!(audited, vec![["error", "system", "t", "chat_messages_per_day"].map(str::to_owned); 3]);
    here.stop().await;
    there.stop().await;
}

#[tokio::test]
async fn a_delivery_that_fails_is_tried_again_as_the_same_alert_until_it_is_taken() {
    let upstream = service().await;
    let tries = AtomicUsize::new(0);
    let receiver = Upstream::answering(move |_| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => answer(500).steps(),
        1 => vec![Step::Reset],
        _ => ok().steps(),
    })
    .await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database)
        .config(QUICK)
        .set("alerts.quota_thresholds", "[50]")
        .set("alerts.webhook_url", &receiver.url())
        .env("ALERT_WEBHOOK_SECRET", SECRET)
        .start()
        .await;
    calls(&gateway, "tn_retry", 5).await;
    within("it is delivered", async { while listed(&gateway, "?state=sent").await.is_empty() {} }).await;
    looked_again(&gateway, 3.0).await;
    let deliveries = receiver.requests();
    let alerts: Vec<_> = deliveries.iter().map(verified).collect();
    assert_eq!(alerts.len(), 3, "{alerts:?}");
    assert!(deliveries.iter().all(|one| one.body == deliveries[0].body), "the same bytes each time");
    let row = listed(&gateway, "").await.remove(0);
    assert_eq!((&row["attempts"], &row["last_error"]), (&json!(3), &json!(null)));
    assert_eq!(gateway.metric("tollgate_alert_deliveries_total{result=\"retried\"}").await, 2.0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_nothing_up_and_is_given_up_with_an_audit_event() {
    let (upstream, never) = (service().await, Signal::new());
    let receiver = Upstream::answering(move |_| vec![Step::Wait(never.clone())]).await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database)
        .config(QUICK)
        .set("alerts.quota_thresholds", "[50]")
        .set("alerts.webhook_url", &receiver.url())
        .set("alerts.webhook_timeout", "200ms")
        .set("alerts.max_attempts", "2")
        .env("ALERT_WEBHOOK_SECRET", SECRET)
        .start()
        .await;
    calls(&gateway, "tn_hang", 5).await;
    within("the receiver is asked", receiver.seen(1)).await;
    calls(&gateway, "tn_other", 3).await;
    within("it is given up", async { while listed(&gateway, "?state=failed").await.is_empty() {} }).await;
    let row = listed(&gateway, "?state=failed").await.remove(0);
    assert_eq!((&row["attempts"], &row["last_error"]), (&json!(2), &json!("no answer in 200ms")));
    let failed = database.rows(
        "SELECT tenant_id, result, error_message, new_values ->> 'attempts' FROM audit_events
         WHERE event_type = 'alert_failed'",
    );
    assert_eq!(failed, [["tn_hang", "failure", "no answer in 200ms", "2"].map(str::to_owned)]);
    looked_again(&gateway, 3.0).await;
    assert_eq!(receiver.requests().len(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn a_redirect_is_no_delivery_and_is_not_followed() {
    let (upstream, elsewhere) = (service().await, Upstream::answering(|_| ok().steps()).await);
    let location = elsewhere.url();
    let receiver = Upstream::answering(move |_| answer(307).header("location", &location).body("")).await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database)
        .config(QUICK)
        .set("alerts.quota_thresholds", "[50]")
        .set("alerts.webhook_url", &receiver.url())
        .set("alerts.max_attempts", "1")
        .env("ALERT_WEBHOOK_SECRET", SECRET)
        .start()
        .await;
    calls(&gateway, "tn_redirect", 5).await;
    within("it is given up", async { while listed(&gateway, "?state=failed").await.is_empty() {} }).await;
    assert!(elsewhere.requests().is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn what_crosses_a_threshold_while_the_database_is_away_is_told_once_it_is_back() {
    let server = Server::start();
    let (upstream, receiver) = (service().await, Upstream::answering(|_| ok().steps()).await);
    let database = server.database();
    let gateway = gateway(&upstream, &database)
        .config(QUICK)
        .set("alerts.quota_thresholds", "[50]")
        .set("alerts.webhook_url", &receiver.url())
        .env("ALERT_WEBHOOK_SECRET", SECRET)
        .start()
        .await;
    calls(&gateway, "tn_away", 1).await;
    server.stop();
    calls(&gateway, "tn_away", 5).await;
    assert!(receiver.requests().is_empty());
    server.restart();
    let deliveries = within("it is delivered", receiver.seen(1)).await;
    assert_eq!(verified(&deliveries[0])["threshold"], 50);
    looked_again(&gateway, 3.0).await;
    assert_eq!(receiver.requests().len(), 1);
    gateway.stop().await;
}
