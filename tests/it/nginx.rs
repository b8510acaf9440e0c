//! `deploy/nginx/` in the real nginx: only the widget's path goes through Tollgate, and past it when it is down.
#![allow(clippy::unwrap_used, reason = "the helpers of tests too end with the test")]

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Client, Ended, Signal, Step, Upstream, answer, request, within};

/// An nginx of this test's own, with the snippets as they stand in `deploy/nginx/` but for the addresses.
struct Nginx {
    address: std::net::SocketAddr,
    _process: Child,
    _folder: tempfile::TempDir,
}

impl Nginx {
    async fn start(tollgate: &Upstream, service: &Upstream) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let snippet = |name: &str| {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx").join(name);
            let text = std::fs::read_to_string(file).unwrap();
            text.replace("127.0.0.1:8080", &tollgate.addr().to_string())
                .replace("127.0.0.1:3000", &service.addr().to_string())
        };
        std::fs::write(folder.path().join("upstream.conf"), snippet("tollgate-upstream.conf")).unwrap();
        std::fs::write(folder.path().join("location.conf"), snippet("tollgate-location.conf")).unwrap();
        let config =
            CONFIG.replace("SERVICE", &service.addr().to_string()).replace("LISTEN", &address.to_string());
        std::fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let mut process = Command::new(program())
            .args(["-e", "stderr", "-c", "nginx.conf", "-p"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let ready = async {
            let mut said = Vec::new();
            while let Some(line) = log.next_line().await.unwrap() {
                // Said once its sockets listen: `using the "epoll" event method`.
                if line.contains(" event method") {
                    return;
                }
                said.push(line);
            }
            panic!("nginx ended at its start: {said:#?}");
        };
        within("nginx is ready", ready).await;
        // Its log goes on, and must be read for it to go on.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self { address, _process: process, _folder: folder }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }
}

/// One process (a worker would outlive a killed master), no files outside its folder; the rest of the site goes
/// straight to the service.
const CONFIG: &str = "
daemon off;
master_process off;
pid nginx.pid;
error_log stderr notice;
events { worker_connections 256; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include upstream.conf;
    server {
        listen LISTEN;
        include location.conf;
        location / { proxy_pass http://SERVICE; }
    }
}
";

/// nginx, wherever it is: it stands in `sbin`, which is not in everybody's `PATH`.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/local/bin"].map(PathBuf::from);
    let mut found = std::env::split_paths(&path).chain(more).map(|folder| folder.join("nginx"));
    found.find(|file| file.is_file()).expect("nginx is not installed: run `scripts/setup --with-nginx`")
}

async fn named(name: &'static str) -> Upstream {
    Upstream::answering(move |_| answer(200).body(name)).await
}

fn chat() -> Vec<u8> {
    request("POST", "/api/widget/chat").json(&json!({"sessionId": "s", "message": "hello"})).bytes()
}

#[tokio::test]
async fn only_the_widgets_path_goes_through_tollgate() {
    let (tollgate, service) = (named("tollgate").await, named("service").await);
    let nginx = Nginx::start(&tollgate, &service).await;
    let mut client = nginx.connect().await;
    for target in [
        "/api/widget/chat",
        "/api/widget/chat?stream=true",
        "/api/widget/chat/",
        "//api/widget/chat",
        "/api/widget/%63hat",
        "/x/../api/widget/chat",
        "/api/widget/chat;a=b",
    ] {
        client.send(request("POST", target).json(&json!({"message": "x"}))).await;
        assert_eq!(client.read_response().await.text(), "tollgate", "{target}");
        assert_eq!(tollgate.requests().last().unwrap().target(), target, "forwarded as it came");
    }
    for target in ["/", "/api/widget/session", "/api/embed-batch", "/api/widget", "/API/widget/chat"] {
        client.send(request("POST", target).json(&json!({"message": "x"}))).await;
        assert_eq!(client.read_response().await.text(), "service", "{target}");
    }
}

#[tokio::test]
async fn tollgate_is_told_the_address_that_nginx_saw_and_not_the_claimed_one() {
    let (tollgate, service) = (named("tollgate").await, named("service").await);
    let nginx = Nginx::start(&tollgate, &service).await;
    let claim = request("POST", "/api/widget/chat").header("x-forwarded-for", "203.0.113.9").body("{}");
    Client::ask(nginx.address, claim).await;
    let seen = &tollgate.requests()[0];
    assert_eq!(seen.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(seen.header("host").as_deref(), Some("test"));
}

#[tokio::test]
async fn while_tollgate_is_down_the_service_answers_and_afterwards_tollgate_again() {
    let (tollgate, service) = (named("tollgate").await, named("service").await);
    let nginx = Nginx::start(&tollgate, &service).await;
    let address = tollgate.addr();
    assert_eq!(Client::ask(nginx.address, chat()).await.text(), "tollgate");
    tollgate.stop().await;
    for _ in 0..3 {
        let response = Client::ask(nginx.address, chat()).await;
        assert_eq!((response.status, response.text().as_str()), (200, "service"));
    }
    assert_eq!(service.requests().len(), 3);
    let _tollgate = Upstream::answering_at(address, |_| answer(200).body("tollgate again")).await;
    assert_eq!(Client::ask(nginx.address, chat()).await.text(), "tollgate again");
}

#[tokio::test]
async fn a_call_that_tollgate_took_is_never_sent_a_second_time() {
    for last in [Step::Reset, Step::Close] {
        let tollgate = Upstream::answering(move |_| vec![last.clone()]).await;
        let service = named("service").await;
        let nginx = Nginx::start(&tollgate, &service).await;
        assert_eq!(Client::ask(nginx.address, chat()).await.status, 502);
        assert_eq!((tollgate.requests().len(), service.requests().len()), (1, 0));
    }
}

#[tokio::test]
async fn a_refusal_is_an_answer_and_no_reason_to_ask_the_service() {
    let tollgate = Upstream::answering(|_| answer(429).header("retry-after", "9").body("quota")).await;
    let service = named("service").await;
    let nginx = Nginx::start(&tollgate, &service).await;
    let response = Client::ask(nginx.address, chat()).await;
    assert_eq!((response.status, response.header("retry-after")), (429, Some("9")));
    assert_eq!(service.requests().len(), 0);
}

#[tokio::test]
async fn a_streamed_answer_passes_as_it_comes() {
    let go = Signal::new();
    let script = answer(200)
        .header("content-type", "text/event-stream")
        .chunk("data: 1\n\n")
        .then(Step::Wait(go.clone()))
        .chunk("data: 2\n\n")
        .steps();
    let tollgate = Upstream::answering(move |_| script.clone()).await;
    let service = named("service").await;
    let nginx = Nginx::start(&tollgate, &service).await;
    let mut client = nginx.connect().await;
    client.send(chat()).await;
    let head = client.read_head().await;
    assert_eq!(client.read_up_to(b"\n\n").await, b"data: 1\n\n", "before the second exists");
    go.fire();
    let rest = client.rest_of(head).await;
    assert_eq!((&*rest.body, rest.ended), (&b"data: 2\n\n"[..], Ended::Clean));
}

#[tokio::test]
async fn tollgate_learns_that_the_client_has_left() {
    let gone = Signal::new();
    let script = answer(200).chunk("data: 1\n\n").then(Step::UntilPeerGone(gone.clone())).unended();
    let tollgate = Upstream::answering(move |_| script.clone()).await;
    let service = named("service").await;
    let nginx = Nginx::start(&tollgate, &service).await;
    let mut client = nginx.connect().await;
    client.send(chat()).await;
    client.read_head().await;
    drop(client);
    within("Tollgate's connection ends", gone.wait()).await;
}
