//! `deploy/nginx/` in the real nginx: what is metered goes through Tollgate, and past it when it is down.
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
async fn every_metered_route_goes_through_tollgate_in_every_spelling_and_nothing_else() {
    let (tollgate, service) = (named("tollgate").await, named("service").await);
    let nginx = Nginx::start(&tollgate, &service).await;
    let mut client = nginx.connect().await;
    let routes = built_in_routes();
    assert!(routes.len() >= 10, "{routes:?}");
    let targets = routes.iter().flat_map(|route| SPELLINGS.map(|spell| spell(route)));
    for target in targets {
        client.send(request("POST", &target).json(&json!({"message": "x"}))).await;
        assert_eq!(client.read_response().await.text(), "tollgate", "{target}");
        assert_eq!(tollgate.requests().last().unwrap().target(), target, "forwarded as it came");
    }
    for target in
        ["/", "/api/widget", "/api/trial", "/api/widget/config", "/api/admin/trials", "/static/chat.js"]
    {
        client.send(request("POST", target).json(&json!({"message": "x"}))).await;
        assert_eq!(client.read_response().await.text(), "service", "{target}");
    }
}

/// The paths of the routes of the built-in config, with a tenant where they name one.
fn built_in_routes() -> Vec<String> {
    let config = include_str!("../../config/default.toml");
    let paths = config.lines().filter_map(|line| line.strip_prefix("path = \"")?.split('"').next());
    paths.map(|path| path.replace("{tenant}", "tn_one")).collect()
}

/// The spellings of a path that one service or another takes for it.
const SPELLINGS: [fn(&str) -> String; 14] = [
    |path| path.to_owned(),
    |path| format!("{path}?stream=true"),
    |path| format!("{path}/"),
    |path| format!("/{path}"),
    |path| path.replacen("pi", "%70%69", 1),
    |path| format!("/x/..{path}"),
    |path| path.to_uppercase(),
    |path| format!("{path};v=1"),
    |path| path.replacen("/api/", "/api;a=b/", 1),
    |path| format!("/x/..;{path}"),
    |path| format!("{path}.json"),
    |path| format!("{path}."),
    |path| format!("{path}%20"),
    |path| format!("/index.php{path}"),
];

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
async fn an_upload_of_any_size_goes_through_tollgate() {
    let (tollgate, service) = (named("tollgate").await, named("service").await);
    let nginx = Nginx::start(&tollgate, &service).await;
    let upload = request("POST", "/api/trial/kb/upload").body(vec![b'x'; 20 << 20]);
    assert_eq!(Client::ask(nginx.address, upload).await.text(), "tollgate");
    assert_eq!(tollgate.requests()[0].body.len(), 20 << 20);
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
