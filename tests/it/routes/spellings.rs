//! Every spelling that a service may take for a metered route is metered; what certainly is another is not.

use serde_json::json;

use super::{shipped, token};
use crate::harness::{Request, RequestText, TestGateway, Upstream, answer, batch_answer, request};
use crate::postgres::{Database, shared};

/// A service that takes a path as Express, ASP.NET, Rails, Tomcat, IIS and PHP do, all at once.
async fn lenient_service() -> Upstream {
    Upstream::answering(|seen| match route(seen).as_str() {
        "post /api/widget/chat" => answer(200).json(&batch_answer(7)),
        _ => answer(404).body("not found"),
    })
    .await
}

fn route(seen: &Request) -> String {
    let rewritten = ["x-original-url", "x-rewrite-url"].iter().find_map(|name| seen.header(name));
    let target = rewritten.unwrap_or_else(|| seen.target().to_owned());
    let path =
        target.split('?').next().unwrap_or_default().to_lowercase().replace("%20", " ").replace("%63", "c");
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split(['/', '\\']).map(|segment| segment.split(';').next().unwrap_or_default()) {
        match segment.trim_end_matches(['.', ' ']) {
            "" if segment == ".." => drop(segments.pop()),
            "" | "index.php" => {}
            segment => segments.push(segment.strip_suffix(".json").unwrap_or(segment)),
        }
    }
    let names = ["x-http-method-override", "x-method-override", "x_http_method_override"];
    let method = names.iter().find_map(|name| seen.header(name)).unwrap_or_else(|| seen.method().to_owned());
    format!("{} /{}", method.to_lowercase(), segments.join("/"))
}

async fn open() -> (Upstream, Database<'static>, TestGateway) {
    let upstream = lenient_service().await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    (upstream, database, gateway)
}

fn asked(method: &str, target: &str) -> RequestText {
    let bearer = format!("Bearer {}", token("tn_spell", None));
    request(method, target).header("authorization", &bearer).json(&json!({"message": "hi"}))
}

const SPELLINGS: [&str; 14] = [
    "/api/widget/chat",
    "/API/widget/chat",
    "/Api/Widget/%63HAT",
    "/api/widget/chat;v=1",
    "/api;a=b/widget;/chat;v=1",
    "/x/..;/api/widget/chat",
    "/api\\widget\\chat",
    "/api/widget/chat.json",
    "/api/widget/chat.JSON;v=1",
    "/api/widget/chat.",
    "/api/widget/chat%20",
    "/api/widget/chat/.",
    "/index.php/api/widget/chat",
    "/Index.PHP/API/Widget/Chat",
];

#[tokio::test]
async fn no_spelling_that_a_service_takes_for_the_chat_goes_round_it() {
    let (upstream, database, gateway) = open().await;
    for target in SPELLINGS {
        assert_eq!(gateway.ask(asked("POST", target)).await.status, 200, "{target}");
        assert_eq!(upstream.requests().last().unwrap().target(), target, "forwarded as it came");
        let nobody = request("POST", target).json(&json!({"message": "hi"}));
        assert_eq!(gateway.ask(nobody).await.status, 400, "{target}: refused without a tenant, so metered");
    }
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), SPELLINGS.len().to_string());
}

#[tokio::test]
async fn no_tail_of_a_path_makes_a_call_one_that_only_counts_tokens() {
    let upstream = Upstream::answering(|seen| match seen.target().contains("embed") {
        true => answer(200).json(&json!({"embeddings": [[0.5], [0.25], [0.125]]})),
        false => answer(200).json(&batch_answer(7)),
    })
    .await;
    let database = shared().migrated();
    let gateway = shipped(&upstream, &database, "").await;
    let bearer = format!("Bearer {}", token("tn_spell", None));
    let said = json!({
        "texts": ["a", "b", "c"],
        "messages": [{"query": "a"}, {"query": "b"}, {"query": "c"}],
    });
    let tails = [";v:tokenize", "/;count_tokens", ".x:tokenize", ";/count-tokens", "%3B:countTokens"];
    for tail in tails {
        for path in ["/api/embed-batch", "/api/widget/chat"] {
            let asked = request("POST", &format!("{path}{tail}")).header("authorization", &bearer);
            assert_eq!(gateway.ask(asked.json(&said)).await.status, 200, "{path}{tail}");
        }
    }
    gateway.stop().await;
    let rows = database.rows(
        "SELECT api_endpoint, embeddings::text, chat_messages::text, count(*)::text FROM tenant_usage_realtime
          GROUP BY 1, 2, 3 ORDER BY 1",
    );
    assert_eq!(rows, [["/api/embed-batch", "3", "0", "5"], ["/api/widget/chat", "0", "3", "5"]]);
}

#[tokio::test]
async fn what_services_take_for_two_metered_routes_is_refused() {
    let upstream = lenient_service().await;
    let database = shared().migrated();
    let routes = "[[routes]]\npath = \"/api/widget/chat\"\nmethods = [\"POST\"]\nevent = \"chat_message\"\n\
                  [[routes]]\npath = \"/api/widget/session\"\nunidentified = \"pass\"\ncharge = false\n\
                  [[routes]]\npath = \"/t/{tenant}/ask\"\nsources = [{ path = \"tenant\" }]\n\
                  [[routes]]\npath = \"/m\"\nmethods = [\"POST\"]\n\
                  [[routes]]\npath = \"/m\"\nmethods = [\"PUT\"]\n";
    let gateway = shipped(&upstream, &database, routes).await;
    for (name, asked) in [
        ("a chat for a session", asked("POST", "/api/widget/chat;/../session")),
        ("a session for a chat", asked("POST", "/api/widget/session;/../chat")),
        ("in another order", asked("POST", "/api/widget/session;a/..;b/chat")),
        ("one tenant for another", asked("POST", "/t/tn_one/ask;/../../tn_two/ask")),
        ("one method for another", asked("POST", "/m").header("x-http-method-override", "PUT")),
    ] {
        let answer = gateway.ask(asked).await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("bad_request")), "{name}");
    }
    assert!(upstream.requests().is_empty());
    assert_eq!(gateway.ask(asked("POST", "/api/widget/chat;/../chat")).await.status, 200, "one route");
    gateway.ask(asked("POST", "/api/widget/chat;/../x")).await;
    gateway.ask(asked("POST", "/m").header("x-http-method-override", "POST")).await;
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "3");
}

#[tokio::test]
async fn a_method_in_small_letters_or_overridden_is_metered_as_what_it_is_taken_for() {
    let (upstream, database, gateway) = open().await;
    let chat = "/api/widget/chat";
    for (name, asked) in [
        ("small letters", asked("post", chat)),
        ("overridden", asked("GET", chat).header("x-http-method-override", "POST")),
        ("by another name", asked("PUT", chat).header("X-Method-Override", "post")),
        ("by underscores", asked("PATCH", chat).header("X_HTTP_Method_Override", "POST")),
        ("by the query", asked("PUT", "/api/widget/chat?a=1&%5Fm%65thod=POST")),
        ("a preflight that is none", asked("OPTIONS", chat).header("x-http-method-override", "POST")),
    ] {
        gateway.ask(asked).await;
        assert!(upstream.requests().pop().is_some(), "{name}");
    }
    for plain in [request("GET", chat), request("OPTIONS", chat), request("PUT", chat).body("{}")] {
        assert_eq!(gateway.ask(plain).await.status, 404);
    }
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "6");
}

#[tokio::test]
async fn a_request_for_another_path_cannot_be_rewritten_into_a_chat() {
    let (upstream, database, gateway) = open().await;
    for name in ["X-Original-URL", "X-Rewrite-URL", "X_Original_URL", "X-Rewrite_Url"] {
        let asked = request("POST", "/free").header(name, "/api/widget/chat").json(&json!({"message": "hi"}));
        assert_eq!(gateway.ask(asked).await.status, 404, "{name}");
        assert_eq!(upstream.requests().pop().unwrap().header(name), None, "{name}");
    }
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "0");
}

#[tokio::test]
async fn other_paths_pass_unmetered() {
    let (_upstream, database, gateway) = open().await;
    for target in
        ["/api/widget/chats", "/api/widget/chat/history", "/widget/chat", "/api/widget/chat-2.json", "/.json"]
    {
        assert_eq!(gateway.ask(request("POST", target).body("{}")).await.status, 404, "{target}");
    }
    gateway.stop().await;
    assert_eq!(database.one("SELECT count(*) FROM tenant_usage_realtime"), "0");
}

#[tokio::test]
async fn an_exact_route_is_compared_byte_for_byte_and_names_keep_their_letters() {
    let upstream = Upstream::answering(|_| answer(200).json(&json!({"ok": true}))).await;
    let database = shared().migrated();
    let routes = "[[routes]]\npath = \"/exact\"\nmatch = \"exact\"\nsources = [{ query = \"t\" }]\n\
                  [[routes]]\npath = \"/T/{tenant}/Ask\"\nsources = [{ path = \"tenant\" }]\n";
    let gateway = shipped(&upstream, &database, routes).await;
    for target in ["/Exact?t=a", "/exact;v=1?t=a", "/exact.json?t=a"] {
        assert_eq!(gateway.ask(request("POST", target)).await.status, 200, "{target}");
    }
    for target in ["/t/TN_One/ask", "/T/TN_One;v=1/ASK.json", "/t/TN%5FOne/ask%20"] {
        assert_eq!(gateway.ask(request("POST", target)).await.status, 200, "{target}");
    }
    gateway.stop().await;
    let rows = database.rows("SELECT tenant_id, count(*)::text FROM tenant_usage_realtime GROUP BY 1");
    assert_eq!(rows, [["TN_One", "3"]]);
}
