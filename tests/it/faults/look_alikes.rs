//! Headers that look like others to the service: to WSGI, PHP and CGI `X_Tenant_Id` is `X-Tenant-Id`.

use serde_json::json;

use super::gate;
use crate::harness::{Upstream, answer, batch_answer, gateway, request};
use crate::postgres::shared;

const LOOK_ALIKES: [&str; 16] = [
    "X_Tenant_Id",
    "X-Tenant_Id",
    "X_Tenant-Id",
    "x_tenant_id",
    "X_Forwarded_For",
    "X-Forwarded_For",
    "X_Forwarded_Proto",
    "X_Forwarded_Host",
    "X_Real_Ip",
    "X_Request_Id",
    "X-Request_Id",
    "Content_Length",
    "Transfer_Encoding",
    "X_Original_URL",
    "X_Rewrite_URL",
    "Content_Type",
];

#[tokio::test]
async fn what_spells_a_header_that_matters_is_stripped_and_other_underscores_pass() {
    let (upstream, _database, gateway) = gate().await;
    for path in ["/api/widget/chat", "/elsewhere"] {
        let mut asked = request("POST", path).header("x-tenant-id", "tn_one");
        for name in LOOK_ALIKES {
            asked = asked.header(name, "6");
        }
        let kept = asked.header("X_Own_Header", "1").header("sec_ret", "2").json(&json!({"message": "hi"}));
        assert_eq!(gateway.ask(kept).await.status, 200, "{path}");
        let seen = upstream.requests().pop().unwrap();
        for name in LOOK_ALIKES {
            assert_eq!(seen.header(name), None, "{path}: {name}");
        }
        assert_eq!(
            (seen.header("x_own_header").as_deref(), seen.header("sec_ret").as_deref()),
            (Some("1"), Some("2"))
        );
        assert_eq!(seen.header("x-tenant-id").as_deref(), Some("tn_one"));
    }
    let stripped = gateway.metric("tollgate_misleading_headers_total").await;
    assert!(stripped >= 2.0 * LOOK_ALIKES.len() as f64 - 2.0, "counted: {stripped}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_trailer_cannot_spell_them_either() {
    let (upstream, _database, gateway) = gate().await;
    let names = LOOK_ALIKES.join(", ");
    for path in ["/api/widget/chat", "/elsewhere"] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: test\r\nx-tenant-id: tn_one\r\ntransfer-encoding: chunked\r\n\
             trailer: x-sum, {names}, Forwarded\r\n\r\n"
        );
        let trailers: String = LOOK_ALIKES.iter().map(|name| format!("{name}: 6\r\n")).collect();
        let body = "{\"message\": \"hi\"}";
        let sent = format!("{head}{:x}\r\n{body}\r\n0\r\nx-sum: 1\r\n{trailers}\r\n", body.len());
        assert_eq!(gateway.ask(sent).await.status, 200, "{path}");
        let seen = upstream.requests().pop().unwrap();
        let announced = seen.header("trailer").unwrap_or_default();
        assert!(!announced.contains('_') && !announced.contains("orwarded"), "{path}: {announced}");
        for name in LOOK_ALIKES {
            assert_eq!(seen.header(name), None, "{path}: {name}");
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_tenant_header_with_an_underscore_is_itself_and_its_hyphens_are_the_look_alike() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).sources("[{ header = \"x_tenant\" }]").start().await;
    let asked = request("POST", "/api/widget/chat").header("x_tenant", "tn_one").header("x-tenant", "tn_two");
    assert_eq!(gateway.ask(asked.json(&json!({"message": "hi"}))).await.status, 200);
    let seen = &upstream.requests()[0];
    assert_eq!((seen.header("x_tenant").as_deref(), seen.header("x-tenant")), (Some("tn_one"), None));
    gateway.stop().await;
    assert_eq!(database.one("SELECT tenant_id FROM tenant_usage_realtime"), "tn_one");
}

#[tokio::test]
async fn a_forwarded_for_is_read_in_every_way_that_proxies_write_it() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let gateway =
        gateway(&upstream, &database).set("server.trusted_proxies", "127.0.0.0/8,10.0.0.0/8").start().await;
    let cases = [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:51234", "203.0.113.7"),
        ("203.0.113.7:51234, 10.0.0.6:80", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:51234", "2001:db8::7"),
        ("\"[2001:db8::7]:51234\"", "2001:db8::7"),
        ("fe80::7%eth0", "fe80::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[::ffff:203.0.113.7]:443, ::ffff:10.0.0.6", "203.0.113.7"),
        ("unknown, 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, unknown", "127.0.0.1"),
        ("203.0.113.7, unknown, 10.0.0.6", "10.0.0.6"),
        (", ,203.0.113.7,, ", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7, ,10.0.0.6", "203.0.113.7"),
        ("", "127.0.0.1"),
        ("\u{e9}, 203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, \u{e9}, 10.0.0.6", "10.0.0.6"),
        ("10.0.0.5, 10.0.0.6", "10.0.0.5"),
    ];
    for (place, (said, _)) in cases.iter().enumerate() {
        let asked = crate::harness::chat(&format!("tn_{place:02}"), "hi").header("x-forwarded-for", said);
        assert_eq!(gateway.ask(asked).await.status, 200, "{said}");
    }
    gateway.stop().await;
    let seen = database.rows(
        "SELECT DISTINCT tenant_id, host(ip_address) FROM audit_events
          WHERE event_type = 'chat_message_received' ORDER BY 1",
    );
    for ((said, client), row) in cases.iter().zip(&seen) {
        assert_eq!(row[1], *client, "{said}");
    }
    assert_eq!(seen.len(), cases.len());
}
