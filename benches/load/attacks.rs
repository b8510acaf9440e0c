//! The attacks of the soak, each in a loop of its own, in a process of their own that runs until it is killed: what they
//! compute must not be found in the latency of the honest callers.
//!
//! Attackers come from addresses of their own (127.0.1.1 and on), as many callers each as one host could be.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// Where an attacker attacks, and from where.
#[derive(Clone)]
struct Attack {
    public: SocketAddr,
    admin: SocketAddr,
    from: Ipv4Addr,
    /// [`packed_numbers`]' request.
    packed: Rc<[u8]>,
}

/// A pause after which an attacker that was thrown out comes again.
const AGAIN: Duration = Duration::from_millis(200);

const METERED: &str = "POST /api/widget/chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

/// Attacks the gateway with these listeners, for ever.
pub(crate) async fn run(public: SocketAddr, admin: SocketAddr) -> anyhow::Result<()> {
    let packed: Rc<[u8]> = packed_numbers()?.into();
    let mut all = JoinSet::new();
    let mut host = 0;
    let mut crowd = |count: usize, attack: fn(Attack) -> Attempt| {
        host += 1;
        let from = Ipv4Addr::new(127, 0, 1, host);
        let attack_from = Attack { public, admin, from, packed: packed.clone() };
        for _ in 0..count {
            let this = attack_from.clone();
            all.spawn_local(async move {
                loop {
                    // What an attacker sees is the gateway's affair.
                    let _ = attack(this.clone()).await;
                    tokio::time::sleep(AGAIN).await;
                }
            });
        }
    };
    crowd(120, |attack| Box::pin(unfinished_body(attack)));
    crowd(40, |attack| Box::pin(trickled_body(attack)));
    crowd(500, |attack| Box::pin(one_byte(attack)));
    crowd(100, |attack| Box::pin(half_a_head(attack)));
    crowd(50, |attack| Box::pin(preface_alone(attack)));
    crowd(20, |attack| Box::pin(pings(attack)));
    crowd(4, |attack| Box::pin(sends_packed_numbers(attack)));
    crowd(4, |attack| Box::pin(refusals(attack)));
    crowd(4, |attack| Box::pin(invented_tenants(attack)));
    crowd(50, |attack| Box::pin(never_reads(attack)));
    crowd(50, |attack| Box::pin(tunnels(attack)));
    crowd(10, |attack| Box::pin(garbage(attack)));
    crowd(600, |attack| Box::pin(silent_admin(attack)));
    crowd(4, |attack| Box::pin(guesses(attack)));
    while all.join_next().await.is_some() {}
    Ok(())
}

type Attempt = std::pin::Pin<Box<dyn Future<Output = std::io::Result<()>>>>;

impl Attack {
    async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.from, 0).into())?;
        socket.connect(to).await
    }

    async fn say(&self, first: &[u8]) -> std::io::Result<TcpStream> {
        let mut stream = self.connect(self.public).await?;
        stream.write_all(first).await?;
        Ok(stream)
    }
}

/// Waits until the gateway closes.
async fn hold(mut stream: TcpStream) -> std::io::Result<()> {
    let mut sink = [0; 4096];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

/// 8 MiB announced, all but a byte sent as far as it is taken, and then nothing.
async fn unfinished_body(attack: Attack) -> std::io::Result<()> {
    let head = format!("{METERED}content-length: 8388608\r\n\r\n");
    let mut stream = attack.say(head.as_bytes()).await?;
    let piece = [b' '; 65_536];
    for _ in 0..127 {
        stream.write_all(&piece).await?;
    }
    hold(stream).await
}

/// A byte of a body a second.
async fn trickled_body(attack: Attack) -> std::io::Result<()> {
    let mut stream = attack.say(format!("{METERED}content-length: 100000\r\n\r\n").as_bytes()).await?;
    loop {
        stream.write_all(b" ").await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn one_byte(attack: Attack) -> std::io::Result<()> {
    hold(attack.say(b"P").await?).await
}

async fn half_a_head(attack: Attack) -> std::io::Result<()> {
    hold(attack.say(METERED.as_bytes()).await?).await
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn preface_alone(attack: Attack) -> std::io::Result<()> {
    hold(attack.say(&PREFACE[..20]).await?).await
}

/// A connection of HTTP/2 that does nothing but ping (RFC 9113, section 6.7).
async fn pings(attack: Attack) -> std::io::Result<()> {
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let mut stream = attack.say(&[PREFACE, SETTINGS].concat()).await?;
    let mut sink = [0; 4096];
    loop {
        stream.write_all(PING).await?;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            read = stream.read(&mut sink) => if read? == 0 { return Ok(()) },
        }
    }
}

/// 8 MB of numbers in some kilobytes of gzip.
fn packed_numbers() -> std::io::Result<Vec<u8>> {
    let numbers =
        format!("{{\"tenantId\": \"tn_packed\", \"message\": \"x\", \"n\": [{}0]}}", "1,".repeat(4_000_000));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(numbers.as_bytes())?;
    let packed = packed.finish()?;
    let head = format!("{METERED}content-encoding: gzip\r\ncontent-length: {}\r\n\r\n", packed.len());
    Ok([head.as_bytes(), &packed].concat())
}

async fn sends_packed_numbers(attack: Attack) -> std::io::Result<()> {
    loop {
        answered(&attack, &attack.packed).await?;
    }
}

/// Sends a request on a connection of its own, and reads what comes until it is closed.
async fn answered(attack: &Attack, request: &[u8]) -> std::io::Result<()> {
    let mut stream = attack.say(request).await?;
    let mut sink = [0; 4096];
    // An answer of ours, and the bench's service's, comes in one or two pieces; the rest is of no interest.
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut sink)).await;
    read.unwrap_or(Ok(0)).map(|_| ())
}

fn claimed(tenant: &str) -> Vec<u8> {
    let body = format!("{{\"tenantId\": \"{tenant}\", \"message\": \"When are you open?\"}}");
    format!("{METERED}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Calls of one tenant whose quota is used up, on a kept connection, as fast as they are answered.
async fn refusals(attack: Attack) -> std::io::Result<()> {
    let request = claimed("tn_greedy");
    let mut stream = attack.connect(attack.public).await?;
    let mut sink = [0; 4096];
    loop {
        stream.write_all(&request).await?;
        if stream.read(&mut sink).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Each call of a tenant that nobody has heard of.
async fn invented_tenants(attack: Attack) -> std::io::Result<()> {
    loop {
        answered(&attack, &claimed(&format!("tn_{:08x}", rand::random::<u32>()))).await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks for a page again and again, and reads none.
async fn never_reads(attack: Attack) -> std::io::Result<()> {
    let mut stream = attack.connect(attack.public).await?;
    loop {
        stream.write_all(b"GET /page HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A proper WebSocket handshake and an offer of h2c.
async fn tunnels(attack: Attack) -> std::io::Result<()> {
    let websocket = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    answered(&attack, websocket.as_bytes()).await?;
    let h2c = "GET /any HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n\
               http2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
    hold(attack.say(h2c.as_bytes()).await?).await
}

async fn garbage(attack: Attack) -> std::io::Result<()> {
    let bytes: Vec<u8> = (0..2000).map(|_| rand::random()).collect();
    hold(attack.say(&bytes).await?).await
}

async fn silent_admin(attack: Attack) -> std::io::Result<()> {
    hold(attack.connect(attack.admin).await?).await
}

/// Wrong tokens.
async fn guesses(attack: Attack) -> std::io::Result<()> {
    let mut stream = attack.connect(attack.admin).await?;
    let guess = format!(
        "GET /admin/alerts HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {:x}\r\nconnection: close\r\n\r\n",
        rand::random::<u64>()
    );
    stream.write_all(guess.as_bytes()).await?;
    hold(stream).await
}
