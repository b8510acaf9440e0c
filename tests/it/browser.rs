//! A real browser, and a page on another origin than the gateway's: what its script can read.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::gateway::pick;
use crate::harness::{Request, Step, Upstream, answer, batch_answer, gateway};
use crate::postgres::shared;

/// Starting a browser takes seconds where others use the machine too.
const PATIENCE: Duration = Duration::from_secs(90);

/// Calls the gateway twice, as the chat's widget would, and tells its own origin what it could read.
const PAGE: &str = r#"<!doctype html><title>A shop</title><script>
const call = async () => {
  const answer = await fetch("GATEWAY/api/widget/chat", {
    method: "POST",
    headers: {"content-type": "application/json", "x-tenant-id": "tn_browser"},
    body: JSON.stringify({sessionId: "session-0001", messages: [{query: "hello"}]}),
  });
  const names = ["ratelimit", "ratelimit-policy", "retry-after", "x-request-id", "x-own", "x-hidden"];
  const headers = Object.fromEntries(names.map((name) => [name, answer.headers.get(name)]));
  return {status: answer.status, headers, body: await answer.json()};
};
const tell = (what) => fetch("/told", {method: "POST", body: JSON.stringify(what)});
(async () => [await call(), await call()])().then(tell, (error) => tell({error: String(error)}));
</script>"#;

fn installed() -> PathBuf {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> =
        std::env::split_paths(&folders).flat_map(|folder| names.map(|name| folder.join(name))).collect();
    places.extend(
        ["Google Chrome", "Chromium"]
            .map(|name| format!("/Applications/{name}.app/Contents/MacOS/{name}").into()),
    );
    let found = places.into_iter().find(|place| place.is_file());
    found.unwrap_or_else(|| panic!("there is no Chromium here: run scripts/setup --with-browser"))
}

/// The chat service, as it answers a browser on another origin.
fn service(request: &Request) -> Vec<Step> {
    let origin = request.header("origin").unwrap_or_default();
    let to_origin = |status| answer(status).header("access-control-allow-origin", &origin);
    if request.method() == "OPTIONS" {
        return to_origin(204)
            .header("access-control-allow-methods", "POST")
            .header("access-control-allow-headers", "content-type, x-tenant-id")
            .steps();
    }
    to_origin(200)
        .header("access-control-expose-headers", "X-Own")
        .header("x-own", "the service's")
        .header("x-hidden", "nobody's")
        .json(&batch_answer(10))
}

#[tokio::test]
async fn a_page_on_another_origin_reads_answers_and_refusals_whole() {
    let upstream = Upstream::answering(service).await;
    let database = shared().database();
    let config = "[plans.trial]\nchat_messages_per_day = 1\n";
    let gateway = gateway(&upstream, &database).config(config).start().await;
    let page = PAGE.replace("GATEWAY", &format!("http://{}", gateway.address));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let shop = Upstream::answering(move |request| {
        if request.target() == "/told" {
            let _ = tell.send(request.json());
        }
        answer(200).header("content-type", "text/html").body(&page)
    })
    .await;
    let profile = tempfile::tempdir().unwrap();
    let mut browser = Command::new(installed())
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--no-proxy-server"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(shop.url())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let told: Value =
        tokio::time::timeout(PATIENCE, told.recv()).await.expect("the page tells in time").unwrap();
    browser.kill().await.unwrap();

    let (served, refused) = (&told[0], &told[1]);
    assert_eq!(served["status"], json!(200), "{told}");
    let text = |answer: &Value, name: &str| answer["headers"][name].as_str().unwrap_or_default().to_owned();
    assert!(text(served, "ratelimit").contains("\"chat_messages_per_day\";r=0;t="), "{told}");
    assert!(text(served, "ratelimit-policy").contains("\"chat_messages_per_day\";q=1;w=86400"), "{told}");
    assert!(!text(served, "x-request-id").is_empty(), "{told}");
    assert_eq!(text(served, "x-own"), "the service's");
    assert_eq!(served["headers"]["x-hidden"], Value::Null, "what the service does not expose stays hidden");
    assert_eq!(served["body"], batch_answer(10));

    assert_eq!(refused["status"], json!(429), "{told}");
    let expected = [json!("quota_exceeded"), json!("chat_messages_per_day"), json!(1), json!(1), json!(0)];
    let fields = ["code", "dimension", "limit", "used", "quota_remaining"];
    assert_eq!(pick(&refused["body"], &fields), expected, "{told}");
    assert!(text(refused, "retry-after").parse::<u64>().is_ok_and(|s| (1..=86_400).contains(&s)), "{told}");
    assert!(text(refused, "ratelimit").contains("\"chat_messages_per_day\";r=0;t="), "{told}");
    assert_eq!(refused["body"]["request_id"], json!(text(refused, "x-request-id")));
    gateway.stop().await;
}
