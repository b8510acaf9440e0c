//! Which model prices an answer that names none: not the one that its client would like.

use serde_json::{Value, json};

use super::usage;
use crate::harness::{TestGateway, Upstream, answer, gateway, request};
use crate::postgres::{Database, shared};

/// A service whose answers report 1,000 tokens in and 1,000 out, and name no model.
async fn nameless() -> Upstream {
    Upstream::answering(|_| {
        answer(200).json(&json!({"object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}}))
    })
    .await
}

const PRICES: &str = "
[prices.default]
input = 1.0
cached_input = 1.0
output = 1.0
[prices.cheap]
input = 0.1
output = 0.1
[prices.dear]
input = 100.0
output = 100.0
";

async fn start(upstream: &Upstream, database: &Database<'_>, routes: &str) -> TestGateway {
    gateway(upstream, database)
        .set("tenant.default_plan", "enterprise")
        .config(&format!("{PRICES}{routes}"))
        .start()
        .await
}

async fn ask(gateway: &TestGateway, path: &str, model: &str) {
    let body = json!({"model": model, "message": "hi"});
    let asked = request("POST", path).header("x-tenant-id", "tn_models").json(&body);
    let response = gateway.ask(asked).await;
    assert_eq!(response.status, 200, "{path}: {}", response.text());
}

/// Of each row: its model, its cost in thousandths of a dollar, who named the model, whether the default priced it.
async fn priced(database: &Database<'_>) -> Vec<Value> {
    let of = |row: Value| {
        let cost = (row["cost_usd"].as_f64().unwrap() * 1e6).round() / 1e3;
        let default = row["metadata"].get("default_price").is_some();
        json!([row["model"], cost, row["metadata"]["model_from"], default])
    };
    usage(database).await.into_iter().map(of).collect()
}

#[tokio::test]
async fn a_clients_word_sets_no_price_where_the_route_does_not_say_so() {
    let (upstream, database) = (nameless().await, shared().migrated());
    let routes = "
        [[routes]]
        path = \"/api/widget/chat\"
        [[routes]]
        path = \"/own\"
        model = \"dear\"
        [[routes]]
        path = \"/believing\"
        request_model = true
        model = \"dear\"
        models = { alias = \"cheap\" }
        [[routes]]
        path = \"/v1/chat/completions\"
    ";
    let gateway = start(&upstream, &database, routes).await;
    for (path, model) in [
        ("/api/widget/chat", "cheap"),
        ("/api/widget/chat", "dear"),
        ("/own", "cheap"),
        ("/believing", "cheap"),
        ("/believing", "alias"),
        ("/believing", "unheard-of"),
        ("/believing", ""),
        ("/v1/chat/completions", "cheap"),
    ] {
        ask(&gateway, path, model).await;
    }
    gateway.stop().await;
    assert_eq!(
        priced(&database).await,
        [
            json!([null, 2.0, "default", false]),
            json!([null, 2.0, "default", false]),
            json!(["dear", 200.0, "route", false]),
            json!(["cheap", 0.2, "request", false]),
            json!(["cheap", 0.2, "request", false]),
            json!(["unheard-of", 2.0, "request", true]),
            json!(["dear", 200.0, "route", false]),
            json!(["cheap", 0.2, "request", false]),
        ]
    );
}

#[tokio::test]
async fn an_answer_that_names_its_model_has_the_last_word() {
    let upstream = Upstream::answering(|_| {
        answer(200).json(&json!({"object": "chat.completion", "model": "cheap",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}}))
    })
    .await;
    let database = shared().migrated();
    let gateway = start(&upstream, &database, "[[routes]]\npath = \"/own\"\nmodel = \"dear\"\n").await;
    ask(&gateway, "/own", "dear").await;
    gateway.stop().await;
    assert_eq!(priced(&database).await, [json!(["cheap", 0.2, null, false])]);
}

#[tokio::test]
async fn a_clients_word_neither_empties_a_quota_of_cost_nor_goes_round_it() {
    let (upstream, database) = (nameless().await, shared().migrated());
    let routes = "
        [plans.enterprise]
        cost_usd_per_day = 0.003
        [[routes]]
        path = \"/api/widget/chat\"
        event = \"chat_message\"
    ";
    let gateway = start(&upstream, &database, routes).await;
    // What is reserved for it would be more than the day has, were it believed.
    ask(&gateway, "/api/widget/chat", "dear").await;
    ask(&gateway, "/api/widget/chat", "dear").await;
    let body = json!({"model": "cheap", "message": "hi"});
    let asked = request("POST", "/api/widget/chat").header("x-tenant-id", "tn_models").json(&body);
    assert_eq!(gateway.ask(asked).await.json()["dimension"], json!("cost_usd_per_day"));
    gateway.stop().await;
    assert_eq!(
        priced(&database).await,
        [
            json!([null, 2.0, "default", false]),
            json!([null, 2.0, "default", false]),
            json!([null, 0.0, "default", false]),
        ],
        "the refused one, too, has no model"
    );
}

#[tokio::test]
async fn a_path_that_names_the_model_prices_it() {
    let (upstream, database) = (nameless().await, shared().migrated());
    let routes = "
        [[routes]]
        path = \"/model/{id}/converse\"
        [[routes]]
        path = \"/exact/model/{id}/invoke\"
        match = \"exact\"
        [[routes]]
        path = \"/v1beta/models/{m}:generateContent\"
        [[routes]]
        path = \"/v1beta/models/{m}:countTokens\"
        format = \"none\"
        [[routes]]
        path = \"/v1beta/models/{other}\"
        [[routes]]
        path = \"/exact/models/{m}\"
        match = \"exact\"
        format = \"none\"
        [[routes]]
        path = \"/exact/models/{m}:generateContent\"
        match = \"exact\"
        [[routes]]
        path = \"/openai/deployments/{d}/chat/completions\"
        models = { prod = \"cheap\" }
        [[routes]]
        path = \"/run/{owner}/{name}\"
        model_segment = \"owner/name\"
        models = { \"acme/one\" = \"cheap\" }
    ";
    let gateway = start(&upstream, &database, routes).await;
    let arn = "arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Ainference-profile%2Fcheap";
    let cheap = |model: &str| json!([model, 0.2, "path", false]);
    let calls = [
        ("/model/cheap/converse".to_owned(), cheap("cheap")),
        ("/model/cheap%3A0/converse".to_owned(), cheap("cheap:0")),
        (format!("/model/{arn}/converse"), cheap("arn:aws:bedrock:eu-west-1:1:inference-profile/cheap")),
        (format!("/exact/model/{arn}/invoke"), cheap("arn:aws:bedrock:eu-west-1:1:inference-profile/cheap")),
        ("/v1beta/models/cheap:generateContent".to_owned(), cheap("cheap")),
        ("/v1beta/models/cheap%3AgenerateContent?key=k".to_owned(), cheap("cheap")),
        ("/v1beta/models/cheap:countTokens".to_owned(), json!(["cheap", 0.0, null, false])),
        ("/v1beta/models/cheap:predict".to_owned(), cheap("cheap")),
        ("/exact/models/cheap:generateContent".to_owned(), cheap("cheap")),
        ("/exact/models/cheap%3agenerateContent".to_owned(), cheap("cheap")),
        ("/openai/deployments/prod/chat/completions?api-version=1".to_owned(), cheap("cheap")),
        ("/openai/deployments/other/chat/completions".to_owned(), json!(["other", 2.0, "path", true])),
        ("/run/acme/one".to_owned(), cheap("cheap")),
    ];
    for (path, _) in &calls {
        ask(&gateway, path, "dear").await;
    }
    gateway.stop().await;
    let expected: Vec<_> = calls.into_iter().map(|(_, expected)| expected).collect();
    assert_eq!(priced(&database).await, expected);
}
