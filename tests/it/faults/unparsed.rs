//! What we can't parse, the service can: a known tenant never gets for less what it spoils for us, and nobody passes whom
//! the part that we can't read could name.

use serde_json::{Value, json};

use super::identity::{SECRET, bearer, claims, hs256, session_source, token, told};
use crate::harness::{RequestText, TestGateway, Upstream, answer, batch_answer, gateway, request};
use crate::postgres::{Database, shared};

/// A chat, and a route for embeddings that lets pass who names nobody.
const ROUTES: &str = "
[plans.trial]
tokens_per_day = \"unlimited\"
chat_messages_per_day = 5000
embeddings_per_day = 4500
[[routes]]
path = \"/chat\"
event = \"chat_message\"
[[routes]]
path = \"/embed\"
event = \"embedding\"
unidentified = \"pass\"
max_body_bytes = \"64KiB\"
[[routes]]
path = \"/embed-20\"
event = \"embedding\"
unread_items = 20
[[routes]]
path = \"/call\"
unidentified = \"pass\"
";

async fn open() -> (Upstream, Database<'static>, TestGateway) {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    database.rows(
        "CREATE TABLE chat_sessions (session_id text PRIMARY KEY, tenant_id text);
         CREATE TABLE trial_tenants (tenant_id text PRIMARY KEY, plan_upgraded_to text);
         INSERT INTO chat_sessions VALUES ('s-one', 'tn_one'), ('s-two', 'tn_two')",
    );
    let running = gateway(&upstream, &database)
        .sources(&format!("[{}, {}]", hs256(), session_source()))
        .config(ROUTES)
        .env("TEST_JWT_SECRET", SECRET)
        .start()
        .await;
    (upstream, database, running)
}

fn ours() -> String {
    token(&claims("tn_one", 3600))
}

fn known(path: &str, body: impl AsRef<[u8]>) -> RequestText {
    bearer(request("POST", path).body(body), &ours())
}

/// A chat of nine messages with `more` beside them.
fn nine(more: &str) -> String {
    format!("{{\"messages\": {}{more}}}", Value::from(vec![json!({"query": "q"}); 9]))
}

/// The same of a text in UTF-16.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A column of the usage rows, in their order.
async fn counted(database: &Database<'_>, gateway: TestGateway, column: &str) -> Vec<String> {
    gateway.stop().await;
    let query =
        format!("SELECT {column}::text FROM tenant_usage_realtime ORDER BY event_timestamp, entry_id");
    database.rows(&query).into_iter().map(|mut row| row.remove(0)).collect()
}

#[tokio::test]
async fn what_services_read_is_read_and_charged_in_full() {
    let (upstream, database, gateway) = open().await;
    let deep = format!(", \"x\": {}{}", "[".repeat(130), "]".repeat(130));
    let bodies: Vec<Vec<u8>> = vec![
        nine(", \"x\": \"\\ud800\"").into(),
        nine(", \"x\": 1e999").into(),
        nine(", \"x\": NaN").into(),
        nine(&deep).into(),
        nine(", \"x\": \"?\"").bytes().map(|byte| if byte == b'?' { 0xe4 } else { byte }).collect(),
        format!("\u{feff}{}", nine("")).into(),
        utf16(&format!("\u{feff}{}", nine(""))),
        utf16(&nine("")),
    ];
    for body in &bodies {
        assert_eq!(gateway.ask(known("/chat", body)).await.status, 200, "{}", String::from_utf8_lossy(body));
    }
    let seen: Vec<_> = upstream.requests().into_iter().map(|seen| seen.body).collect();
    assert_eq!(seen, bodies, "the service gets it as it came");
    assert_eq!(counted(&database, gateway, "chat_messages").await, ["9"; 8]);
}

#[tokio::test]
async fn a_session_is_found_however_its_body_is_spoilt() {
    let (_upstream, database, gateway) = open().await;
    let body = "{\"sessionId\": \"s-one\", \"message\": \"\\ud800\", \"n\": 1e999}";
    for body in [body.as_bytes().to_vec(), utf16(body), format!("\u{feff}{body}").into()] {
        assert_eq!(gateway.ask(request("POST", "/chat").body(&body)).await.status, 200);
        assert_eq!(gateway.ask(request("POST", "/embed").body(&body)).await.status, 200);
    }
    assert_eq!(
        counted(&database, gateway, "tenant_id").await,
        ["tn_one"; 6],
        "on the route that lets pass too"
    );
}

#[tokio::test]
async fn keys_in_another_case_are_read_as_a_service_that_does_not_tell_it_reads_them() {
    let (_upstream, database, gateway) = open().await;
    let one = "[{\"query\": \"q\"}]";
    let three = "[{\"Query\": \"q\"}, {\"Query\": \"q\"}, {\"Query\": \"q\"}]";
    for body in [
        format!("{{\"Messages\": {three}}}"),
        format!("{{\"MESSAGES\": {three}, \"messages\": {one}}}"),
        format!("{{\"messages\": {one}, \"Messages\": {three}}}"),
        format!("{{\"me\u{17f}sages\": {three}}}"),
    ] {
        assert_eq!(gateway.ask(known("/chat", &body)).await.status, 200, "{body}");
    }
    let session = "{\"SessionId\": \"s-one\", \"message\": \"hi\"}";
    assert_eq!(gateway.ask(request("POST", "/chat").body(session)).await.status, 200);
    let twice =
        |first: &str, second: &str| format!("{{\"sessionId\": \"{first}\", \"SESSIONID\": \"{second}\"}}");
    assert_eq!(gateway.ask(request("POST", "/chat").body(twice("s-one", "s-one"))).await.status, 200);
    for (first, second) in [("s-one", "s-two"), ("s-two", "s-one")] {
        let refused = gateway.ask(request("POST", "/chat").body(twice(first, second))).await;
        assert_eq!(told(&refused), (400, "tenant_unidentified".to_owned()), "{first} {second}");
        let refused = gateway.ask(request("POST", "/embed").body(twice(first, second))).await;
        assert_eq!(told(&refused), (400, "tenant_unidentified".to_owned()), "{first} {second}");
    }
    let expected = ["3", "3", "3", "3", "1", "1"];
    assert_eq!(counted(&database, gateway, "chat_messages").await, expected);
}

/// Bodies that some parser may take, and ours does not.
const UNREADABLE: [&str; 6] = [
    "{'texts': ['a', 'b']}",
    "// a\n{\"texts\": []}",
    "# a\n{\"texts\": []}",
    "{\"texts\": [],}",
    "{\"texts\": []} {}",
    ")]}'\n{}",
];

#[tokio::test]
async fn a_known_tenant_is_refused_or_charged_the_worst_for_what_cannot_be_read() {
    let (upstream, database, gateway) = open().await;
    let large = format!("{{\"texts\": [\"{}\"]}}", "x".repeat(100_000));
    for body in UNREADABLE.into_iter().chain(["texts=a&texts=b"]) {
        assert_eq!(
            told(&gateway.ask(known("/chat", body)).await),
            (400, "body_unreadable".to_owned()),
            "{body}"
        );
    }
    assert!(upstream.requests().is_empty());
    for body in [UNREADABLE[0], "texts=a&texts=b", &large] {
        assert_eq!(gateway.ask(known("/embed", body)).await.status, 200, "{body}");
    }
    assert_eq!(gateway.ask(known("/embed", "{}").header("content-encoding", "zip")).await.status, 200);
    assert_eq!(gateway.ask(known("/embed", &large)).await.status, 429, "what is left is less than the worst");
    assert_eq!(gateway.ask(known("/embed-20", UNREADABLE[0])).await.status, 200);
    assert_eq!(gateway.ask(known("/embed-20", "")).await.status, 200, "nothing is nothing to be read");
    gateway.stop().await;
    let rows = database.rows(
        "SELECT embeddings::text, metadata->>'request_unread' FROM tenant_usage_realtime
          WHERE api_status_code = 200 ORDER BY event_timestamp, entry_id",
    );
    let expected = [
        ["1000", "not_json"],
        ["1000", "not_json"],
        ["1000", "body_too_large"],
        ["1000", "unsupported_encoding"],
        ["20", "not_json"],
        ["1", ""],
    ];
    assert_eq!(rows, expected);
}

#[tokio::test]
async fn nobody_passes_whom_a_body_that_cannot_be_read_could_name() {
    let (upstream, database, gateway) = open().await;
    let large = format!("{{\"sessionId\": \"s-one\", \"x\": \"{}\"}}", "x".repeat(100_000));
    let asked = |body: &str| request("POST", "/embed").body(body);
    for body in UNREADABLE {
        assert_eq!(told(&gateway.ask(asked(body)).await), (400, "body_unreadable".to_owned()), "{body}");
    }
    assert_eq!(told(&gateway.ask(asked(&large)).await), (413, "body_too_large".to_owned()));
    let zipped = asked("{}").header("content-encoding", "zip");
    assert_eq!(told(&gateway.ask(zipped).await), (415, "unsupported_encoding".to_owned()));
    assert!(upstream.requests().is_empty());
    for body in ["", "{}", "texts=a", "--x\r\n\r\nsessionId\r\n--x--"] {
        assert_eq!(gateway.ask(asked(body)).await.status, 200, "{body}");
    }
    super::no_rows(&database, gateway).await;
}

const FORM: &str = "application/x-www-form-urlencoded";

#[tokio::test]
async fn a_form_that_could_name_a_tenant_and_hold_texts_does_not_pass() {
    let (upstream, database, gateway) = open().await;
    let asked =
        |path: &str, kind: &str, body: &str| request("POST", path).header("content-type", kind).body(body);
    let parts = "--x\r\ncontent-disposition: form-data; name=\"texts[]\"\r\n\r\na\r\n--x--";
    let hidden = "{\"a\": \"&sessionId=s-one&texts[]=a&texts%5B%5D=b&\"}";
    let forms = [
        (FORM, "sessionId=s-one&texts[]=a&texts[]=b"),
        ("Application/X-WWW-Form-URLencoded; charset=utf-8", "texts=a"),
        ("multipart/form-data; boundary=x", parts),
        (FORM, hidden),
    ];
    for (kind, body) in forms {
        let refused = told(&gateway.ask(asked("/embed", kind, body)).await);
        assert_eq!(refused, (400, "body_unreadable".to_owned()), "{kind} {body}");
    }
    let messages = "{\"message\": \"&messages[][query]=a&messages[][query]=b&\"}";
    let refused = told(&gateway.ask(bearer(asked("/chat", FORM, messages), &ours())).await);
    assert_eq!(refused, (400, "body_unreadable".to_owned()), "of a known tenant, whose row tells it");
    assert!(upstream.requests().is_empty());
    // One call is one call, whatever its form holds; and a client may forget to say that it sends JSON.
    for (path, kind, body) in [
        ("/call", FORM, forms[0].1),
        ("/embed", "text/plain", "texts"),
        ("/embed", FORM, "{\"texts\": [\"a & b = c\"]}"),
    ] {
        assert_eq!(gateway.ask(asked(path, kind, body)).await.status, 200, "{path} {body}");
    }
    let rows = counted(&database, gateway, "api_status_code").await;
    assert_eq!(rows, ["400"], "the others pass");
}

#[tokio::test]
async fn texts_and_messages_in_the_query_are_counted_as_services_merge_them_with_the_body() {
    let (_upstream, database, gateway) = open().await;
    for (path, body) in [
        ("/embed?texts[]=a&TEXTS%5B%5D=b&texts[2]=c&other=d&texts%5b%5d", "{}"),
        ("/embed?texts[]=a", "{\"texts\": [\"a\", \"b\", \"c\"]}"),
        ("/embed?text=a&xtexts[]=b&page=2", "{}"),
    ] {
        assert_eq!(gateway.ask(known(path, body)).await.status, 200, "{path}");
    }
    let chat = "/chat?messages[][query]=a&messages[][query]=b&texts[]=c";
    assert_eq!(gateway.ask(known(chat, "{\"message\": \"hi\"}")).await.status, 200);
    let counts = "embeddings || ' ' || chat_messages";
    assert_eq!(counted(&database, gateway, &format!("({counts})")).await, ["4 0", "3 0", "1 0", "0 2"]);
}

#[tokio::test]
async fn nobody_passes_whose_session_the_service_finds_in_the_query() {
    let (upstream, database, gateway) = open().await;
    for query in ["sessionId=s-one", "a=b&SESSION%49D=s-one", "sessionId[]=s-one"] {
        let asked = request("POST", &format!("/embed?{query}")).body("{\"texts\": [\"a\"]}");
        let refused = told(&gateway.ask(asked).await);
        assert_eq!(refused, (400, "tenant_unidentified".to_owned()), "{query}");
    }
    assert!(upstream.requests().is_empty());
    assert_eq!(gateway.ask(request("POST", "/embed?session=s").body("{}")).await.status, 200);
    assert_eq!(gateway.ask(request("POST", "/call?sessionId=s-one").body("{}")).await.status, 200);
    super::no_rows(&database, gateway).await;
}

/// The same signature by another last character: it has two bits that stand for nothing.
fn respelt(token: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (start, last) = token.split_at(token.len() - 1);
    let at = ALPHABET.iter().position(|byte| [*byte] == last.as_bytes()).expect("base64url");
    format!("{start}{}", char::from(ALPHABET[at ^ 1]))
}

/// A token whose signature has characters that base64 writes otherwise, written so.
fn in_the_other_alphabet() -> String {
    let tokens = (0..).map(|n| token(&claims("tn_one", 3600 + n)));
    let mut parts = tokens.filter_map(|token| {
        let (message, signature) = token.rsplit_once('.')?;
        let other = signature.replace('-', "+").replace('_', "/");
        (other != signature).then(|| format!("{message}.{other}"))
    });
    parts.next().expect("one of them has such a character")
}

#[tokio::test]
async fn a_token_of_ours_never_passes_for_none_however_it_is_shown() {
    let (upstream, database, gateway) = open().await;
    let expired = token(&claims("tn_one", -3600));
    let hs512 = {
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS512);
        jsonwebtoken::encode(&header, &claims("tn_one", 3600), &key).expect("a token")
    };
    let embed = || request("POST", "/embed").body("{\"texts\": [\"a\", \"b\"]}");
    let shown = |value: &str| embed().header("authorization", value);
    let good = ours();
    for (name, asked) in [
        ("twice", bearer(bearer(embed(), &good), &good)),
        ("beside another", bearer(shown("Basic YTpi"), &good)),
        ("before another", bearer(embed(), &good).header("authorization", "Bearer none-of-yours")),
        ("in one line with another", shown(&format!("Bearer none-of-yours, Bearer {good}"))),
        ("expired", bearer(embed(), &expired)),
        ("by another algorithm", bearer(embed(), &hs512)),
        ("under another scheme", shown(&format!("Token {good}"))),
        ("without a scheme", shown(&good)),
        ("after a tab", shown(&format!("Bearer\t{good}"))),
        ("with padding", bearer(embed(), &format!("{good}="))),
        ("with padding and more", bearer(embed(), &format!("{good}=x"))),
        ("with a bit that stands for nothing", bearer(embed(), &respelt(&good))),
        ("in the other alphabet", bearer(embed(), &in_the_other_alphabet())),
        (
            "with what decoders drop",
            bearer(embed(), &format!("{}~{}", &good[..good.len() - 9], &good[good.len() - 9..])),
        ),
        (
            "with a space within",
            bearer(embed(), &format!("{} {}", &good[..good.len() - 9], &good[good.len() - 9..])),
        ),
        ("after a space that is not ASCII", bearer(embed(), &format!("\u{a0}{good}"))),
        ("after a line end of Latin-1", bearer(embed(), &format!("\u{85}{good}"))),
        ("among many", shown(&format!("Bearer {}{good}", "a.b.c,".repeat(20)))),
    ] {
        assert_eq!(told(&gateway.ask(asked).await), (401, "token_invalid".to_owned()), "{name}");
    }
    assert!(upstream.requests().is_empty());
    for other in ["Bearer none-of-yours", "Bearer a.b.c", "Basic YTpi"] {
        assert_eq!(gateway.ask(shown(other)).await.status, 200, "{other}");
    }
    super::no_rows(&database, gateway).await;
}

#[tokio::test]
async fn a_valid_token_that_names_no_tenant_is_no_credential_of_ours() {
    let (_upstream, database, gateway) = open().await;
    let exp = jiff::Timestamp::now().as_second() + 3600;
    let internal = token(&json!({"role": "admin", "exp": exp}));
    let embed = || request("POST", "/embed").body("{\"texts\": [\"a\"]}");
    assert_eq!(gateway.ask(bearer(embed(), &internal)).await.status, 200, "it passes");
    let chat = request("POST", "/chat").body("{\"sessionId\": \"s-one\", \"message\": \"hi\"}");
    assert_eq!(gateway.ask(bearer(chat, &internal)).await.status, 200, "the session names the tenant");
    let nobody = gateway.ask(bearer(request("POST", "/chat").body("{}"), &internal)).await;
    assert_eq!(told(&nobody), (400, "tenant_unidentified".to_owned()));
    for (name, asked) in [
        ("expired", bearer(embed(), &token(&json!({"role": "admin", "exp": exp - 7200})))),
        ("without an end", bearer(embed(), &token(&json!({"role": "admin"})))),
        ("the claim is no text", bearer(embed(), &token(&json!({"tenantId": null, "exp": exp})))),
        ("beside one that names one", bearer(bearer(embed(), &internal), &ours())),
        ("before one that names one", bearer(embed(), &format!("{internal}, Bearer {}", ours()))),
    ] {
        assert_eq!(told(&gateway.ask(asked).await), (401, "token_invalid".to_owned()), "{name}");
    }
    assert_eq!(counted(&database, gateway, "tenant_id").await, ["tn_one"]);
}

#[tokio::test]
async fn a_charset_that_hides_the_text_from_us_makes_it_unreadable() {
    let (upstream, database, gateway) = open().await;
    let shown = |request: RequestText, types: &[&str]| {
        types.iter().fold(request, |request, value| request.header("content-type", value))
    };
    let hidden: [&[&str]; 9] = [
        &["application/json; charset=utf-7"],
        &["application/json; charset=utf-8; charset=utf-7"],
        &["application/json; charset=\"utf-7\"; charset=utf-8"],
        &["application/json; charset=utf-8", "application/json; charset=utf-7"],
        &["application/json; charset=utf-8, application/json; charset=utf-7"],
        &["application/json; CharSet = UTF-7-IMAP"],
        &["application/json; x=\"a;b\"; charset=\"u\\tf-;7\""],
        &["application/json; charset*=utf-8''utf-7"],
        &["application/json; charset=Shift_JIS"],
    ];
    for types in hidden {
        let known = gateway.ask(shown(known("/chat", nine("")), types)).await;
        assert_eq!(told(&known), (400, "body_unreadable".to_owned()), "{types:?}");
        let unknown = gateway.ask(shown(request("POST", "/embed").body("+AHs-+AH0-"), types)).await;
        assert_eq!(told(&unknown), (400, "body_unreadable".to_owned()), "{types:?}");
    }
    assert!(upstream.requests().is_empty());
    let plain = [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
        "application/json; charset=utf8; profile=\"x;y\"",
        "application/json; charset=us-ascii",
        "application/json; charset=ISO-8859-1",
        "application/json; charset=windows-1252",
        "application/json; charset=",
        "application/json; profile=\"https://example.org/charsets\"",
    ];
    for value in plain {
        assert_eq!(gateway.ask(shown(known("/chat", nine("")), &[value])).await.status, 200, "{value}");
    }
    let wide = shown(known("/chat", utf16(&nine(""))), &["application/json; charset=utf-16le"]);
    assert_eq!(gateway.ask(wide).await.status, 200);
    let expected = [vec!["0"; hidden.len()], vec!["9"; plain.len() + 1]].concat();
    assert_eq!(counted(&database, gateway, "chat_messages").await, expected);
}

#[tokio::test]
async fn a_parameter_in_another_case_names_the_tenant_too_and_two_name_none() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let gateway = gateway(&upstream, &database).sources("[{ query = \"tenantId\" }]").start().await;
    let at = |query: &str| request("POST", &format!("/api/widget/chat?{query}")).body("{}");
    assert_eq!(gateway.ask(at("TenantId=tn_one")).await.status, 200);
    assert_eq!(gateway.ask(at("tenantId=tn_one&TENANTID=tn_two")).await.status, 400);
    assert_eq!(counted(&database, gateway, "tenant_id").await, ["tn_one"]);
}
