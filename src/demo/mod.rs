//! The one-command demo: everything at once on loopback, nothing left behind.
//!
//! 1. A scratch directory holds all of it: a private Postgres, the config, Tollgate's data. It goes away at the end.
//! 2. The gateway is the real one, started from a config file as `tollgate serve` does.
//! 3. What is printed as metered was read back from Postgres, and held against what the answers said.

mod cast;
mod replies;
mod report;
pub mod service;
mod sessions;
mod traffic;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::cast::{BAKERY, CLINIC, TRAVEL};
use self::service::{Service, Sessions};
use self::traffic::{Call, Visitor};
use crate::gateway::{Gateway, Inherited};
use crate::settings::Settings;
use crate::store::private::PrivatePostgres;
use crate::store::{self, Store};

/// Between two events of the stand-in service's streams: visible to the eye, and soon over.
const PACE: Duration = Duration::from_millis(12);
/// Between two of the calls that go on until Ctrl-C: well within the 60 a minute of the starter plan.
const LIGHT: Duration = Duration::from_secs(2);
/// Calls within which the trial tenant must be refused: it uses about a thousand tokens a call, of ten thousand a day.
const CALLS_TO_REFUSAL: usize = 20;

/// Runs the demo: sets everything up, lets three tenants call, prints what was metered; with `once` that is all,
/// else it goes on, with light traffic, until Ctrl-C or SIGTERM.
///
/// An error is one sentence on what is off: a part that does not start, a call that is not answered as it should be,
/// or rows that are not what the answers said.
pub async fn run(once: bool) -> anyhow::Result<()> {
    let interrupted = interrupted()?;
    let scratch = tempfile::Builder::new()
        .prefix("tollgate-demo-")
        // Started as root, Postgres runs under another account, which must be able to pass.
        .permissions(Permissions::from_mode(0o711))
        .tempdir()
        .context("making a scratch directory")?;
    println!(
        "Starting a private Postgres, a stand-in chat service and Tollgate in {}\n",
        scratch.path().display()
    );
    let postgres = PrivatePostgres::start(&scratch.path().join("postgres")).await?;
    // Whatever comes of it, the database is shut down before its files are removed.
    let outcome = Box::pin(with_postgres(scratch.path(), &postgres.url(), once, interrupted)).await;
    postgres.stop().await;
    outcome
}

async fn with_postgres(
    scratch: &Path,
    database: &str,
    once: bool,
    interrupted: CancellationToken,
) -> anyhow::Result<()> {
    let store = Store::new(&store::Config {
        url: database.to_owned(),
        pool_size: 2,
        connect_timeout: Duration::from_secs(5),
        statement_timeout: Duration::from_secs(10),
    })?;
    cast::install(&store).await.context("making the chat service's tables")?;
    let sessions =
        Sessions::kept_in(store.clone(), cast::ALL.map(|tenant| (tenant.session, tenant.id.to_owned())));
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let service = Service::start(any, sessions, PACE).await.context("starting the stand-in chat service")?;

    let secrets = Secrets::generate();
    let config = write_config(scratch, service.addr, database)?;
    let settings = Settings::load(Some(&config), &secrets.environment())
        .map_err(|faults| anyhow::anyhow!("the demo's own config is wrong: {faults:?}"))?;
    let gateway = Gateway::start(settings, Inherited::default()).await.context("starting Tollgate")?;
    let stage = Stage {
        service: service.addr,
        gateway: gateway.address(),
        admin: gateway.admin_address(),
        database: database.to_owned(),
        config,
        secrets,
        store,
    };
    println!("{}", stage.addresses());

    let curtain = CancellationToken::new();
    let act = async {
        let outcome = stage.play(once, &interrupted).await;
        curtain.cancel();
        outcome
    };
    let (played, served) = tokio::join!(act, gateway.run_until(curtain.clone().cancelled_owned(), pending()));
    service.stop().await;
    played.and(served.context("stopping Tollgate"))
}

/// Cancelled by Ctrl-C or SIGTERM, from now on.
fn interrupted() -> anyhow::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let seen = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        seen.cancel();
    });
    Ok(token)
}

/// Secrets of this run alone.
struct Secrets {
    admin_token: String,
    jwt: String,
}

impl Secrets {
    fn generate() -> Self {
        let random = || {
            rand::random::<[u8; 24]>().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
        };
        Self { admin_token: random(), jwt: random() }
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let entry = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        BTreeMap::from([entry("ADMIN_TOKEN", &self.admin_token), entry("JWT_SECRET", &self.jwt)])
    }
}

/// Writes the config that the demo's gateway is started from: a file, so that it can be looked at.
fn write_config(scratch: &Path, service: SocketAddr, database: &str) -> anyhow::Result<PathBuf> {
    let data = scratch.join("data");
    let text = format!(
        r#"# The config of this demo. ADMIN_TOKEN and JWT_SECRET are in the environment.

[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
drain_timeout = "5s"

[upstream]
url = "http://{service}"

[database]
url = {database:?}

[data]
dir = {data:?}

# The tenant is the token's, or else the session's (the built-in default); its plan stands in the service's own table.
[tenant]
plan_query = "SELECT plan FROM tenants WHERE tenant_id = $1 AND status = 'active'"

[[routes]]
path = "/api/widget/chat"
methods = ["POST"]
event = "chat_message"

[[routes]]
path = "/v1/chat/completions"
methods = ["POST"]
event = "chat_message"

[[routes]]
path = "/api/embed-batch"
methods = ["POST"]
event = "embedding"
reserve_tokens = 0
"#
    );
    let file = scratch.join("tollgate.toml");
    std::fs::write(&file, text).context("writing the demo's config")?;
    Ok(file)
}

/// Everything that runs, and how to reach it.
struct Stage {
    service: SocketAddr,
    gateway: SocketAddr,
    admin: SocketAddr,
    database: String,
    config: PathBuf,
    secrets: Secrets,
    store: Store,
}

impl Stage {
    async fn play(&self, once: bool, interrupted: &CancellationToken) -> anyhow::Result<()> {
        let mut visitors = self.visitors()?;
        tokio::select! {
            outcome = self.first_act(&mut visitors) => outcome?,
            () = interrupted.cancelled() => return Ok(()),
        }
        if once {
            return Ok(());
        }
        println!("{}", self.commands());
        println!("Light traffic goes on. Ctrl-C ends it all.");
        tokio::select! {
            outcome = light_traffic(&mut visitors) => outcome,
            () = interrupted.cancelled() => {
                println!("\nStopping.");
                Ok(())
            }
        }
    }

    fn visitors(&self) -> anyhow::Result<[Visitor; 3]> {
        let visitor = |tenant| Visitor::new(tenant, self.gateway, &self.secrets.jwt);
        Ok([visitor(BAKERY)?, visitor(CLINIC)?, visitor(TRAVEL)?])
    }

    /// Three tenants on three plans call at once, each in its own ways; then the rows are read back and checked.
    async fn first_act(&self, visitors: &mut [Visitor; 3]) -> anyhow::Result<()> {
        let [bakery, clinic, travel] = visitors;
        println!(
            "Three tenants call, whole and streamed, one message and several; {} goes over its quota.\n",
            BAKERY.id
        );
        tokio::try_join!(until_refused(bakery), chat(clinic), everything(travel))?;
        let visitors = [&*bakery, &*clinic, &*travel];
        let lines = report::arrived(&self.store, &visitors).await?;
        println!("What was metered, read back from Postgres:\n\n{}", report::table(&lines));
        report::check(&lines, &visitors)?;
        println!("{}\n", report::summary(&visitors));
        // What the job does every few minutes, so that the operators' view has its hours and days already.
        self.store.aggregate().await.context("aggregating the usage")?;
        Ok(())
    }

    fn addresses(&self) -> String {
        let mut text = String::new();
        for (name, value) in [
            ("Tollgate", format!("http://{}", self.gateway)),
            ("its operators' side", format!("http://{}", self.admin)),
            ("an operator's token", self.secrets.admin_token.clone()),
            ("the chat service", format!("http://{}", self.service)),
            ("Postgres", self.database.clone()),
            ("Tollgate's config", self.config.display().to_string()),
        ] {
            // Writing to a String can't fail.
            let _ = writeln!(text, "  {name:<22}{value}");
        }
        text
    }

    fn commands(&self) -> String {
        let Self { gateway, admin, database, secrets, .. } = self;
        let (token, chat) = (&secrets.admin_token, format!("http://{gateway}/api/widget/chat"));
        let (clinic, bakery) = (CLINIC.session, BAKERY.session);
        format!(
            r#"Try:

  # a visitor's message, answered through Tollgate
  curl -si {chat} -H 'content-type: application/json' -d '{{"sessionId": "{clinic}", "message": "What are your opening hours?"}}'

  # the tenant that is over its quota: refused, in words that the widget knows
  curl -si {chat} -H 'content-type: application/json' -d '{{"sessionId": "{bakery}", "messages": [{{"query": "hours"}}, {{"query": "price"}}, {{"query": "returns"}}, {{"query": "delivery"}}, {{"query": "human"}}, {{"query": "hours"}}, {{"query": "price"}}]}}'

  # what an operator sees of it
  curl -s 'http://{admin}/api/admin/usage?tenantId={bakery_id}' -H 'authorization: Bearer {token}'

  # the rows themselves
  psql '{database}' -c 'SELECT event_timestamp, tenant_id, event_type, api_status_code, tokens_consumed, token_source, outcome FROM tenant_usage_realtime ORDER BY event_timestamp DESC LIMIT 10'
"#,
            bakery_id = BAKERY.id,
        )
    }
}

/// Batches of five until the daily tokens are used up, and twice more: a refusal charges nothing, so it stays one.
async fn until_refused(visitor: &mut Visitor) -> anyhow::Result<()> {
    for number in 0..CALLS_TO_REFUSAL {
        if !visitor.make(Call::Batch { messages: 5, streamed: number % 2 == 1 }).await? {
            for _ in 0..2 {
                visitor.make(Call::Batch { messages: 5, streamed: false }).await?;
            }
            return Ok(());
        }
    }
    let used = visitor.tally.reported_tokens;
    anyhow::bail!("{} used {used} tokens and was not refused", visitor.tenant.id)
}

/// Single messages: the service reports no tokens for these, so Tollgate counts them.
async fn chat(visitor: &mut Visitor) -> anyhow::Result<()> {
    for number in 0..8 {
        visitor.make(Call::Single { streamed: number % 2 == 1 }).await?;
    }
    Ok(())
}

/// One of everything else.
async fn everything(visitor: &mut Visitor) -> anyhow::Result<()> {
    for streamed in [false, true, false, true] {
        visitor.make(Call::Batch { messages: 3, streamed }).await?;
        visitor.make(Call::Completion { streamed }).await?;
    }
    visitor.make(Call::Embed { texts: 5 }).await?;
    Ok(())
}

async fn light_traffic([_, clinic, travel]: &mut [Visitor; 3]) -> anyhow::Result<()> {
    for streamed in [false, true].into_iter().cycle() {
        clinic.make(Call::Single { streamed }).await?;
        travel.make(Call::Batch { messages: 2, streamed }).await?;
        tokio::time::sleep(LIGHT).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_toml_whatever_the_paths_hold() {
        let scratch = tempfile::tempdir().unwrap();
        let odd = scratch.path().join("with \"quotes\" and ä");
        std::fs::create_dir(&odd).unwrap();
        let file =
            write_config(&odd, "127.0.0.1:3000".parse().unwrap(), "postgres://u@/db?host=%2Ftmp").unwrap();
        let read = config::Config::builder().add_source(config::File::from(file)).build().unwrap();
        assert_eq!(read.get_string("data.dir").unwrap(), odd.join("data").display().to_string());
        assert_eq!(read.get_string("upstream.url").unwrap(), "http://127.0.0.1:3000");
    }

    #[test]
    fn secrets_are_long_and_of_one_run() {
        let (first, second) = (Secrets::generate(), Secrets::generate());
        assert_eq!(first.admin_token.len(), 48);
        assert_ne!(first.admin_token, second.admin_token);
        assert_ne!(first.admin_token, first.jwt);
    }
}
