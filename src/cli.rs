//! The command line: parse, load, run, exit code.
//!
//! Exit codes: 0 done, 1 failed while running, 2 bad usage or config. What a command is for goes to stdout; logs,
//! warnings and faults go to stderr.

mod audit;
mod commands;
mod drift;
mod formats;
mod journal;
mod logs;
mod prices;
mod reconcile;
mod replicas;
mod reprice;
mod table;
mod what_if;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::commands::{Act, AuditAct, Cli, Command, ConfigFile, PricesAct};
use crate::gateway::{self, Gateway, Inherited};
use crate::settings::{Faults, Settings};
use crate::store::chain::Question;
use crate::store::replicas::Retired;

const FAILED: u8 = 1;
const BAD_CONFIG: u8 = 2;

/// The gateway makes its own threads for requests; these two ship the journal and answer operators.
const BACKGROUND_THREADS: usize = 2;

impl ConfigFile {
    fn load(&self) -> Result<Settings, Faults> {
        Settings::load(self.file.as_deref(), &environment())
    }
}

/// Runs the command that `args` (with the program's name) ask for, and says how it went.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come here too, with code 0. A closed pipe is no reason to fail.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(BAD_CONFIG));
        }
    };
    logs::init();
    let done = match &cli.command {
        Command::Serve(config) => serve(config),
        Command::Demo { once } => demo(*once),
        Command::Migrate { down, config } => migrate(config, *down),
        Command::CheckConfig(config) => check_config(config),
        Command::Aggregate(config) => aggregate(config),
        Command::Prices { act: Some(PricesAct::Import { map, to, providers, force }), .. } => {
            import_prices(map, to, providers, *force)
        }
        Command::Prices { config, json, at, models, act: None } => prices(config, *json, *at, models),
        Command::Formats { config, markdown, name } => formats(config, *markdown, name.as_deref()),
        Command::VerifyQuota { config, json } => verify_quota(config, *json),
        Command::Reconcile { config, invoice, tolerance, time_zone, json } => {
            reconcile(config, invoice, *tolerance, time_zone.clone(), *json)
        }
        Command::Journal { config, json, dump } => journal(config, *json, *dump),
        Command::Audit { act: AuditAct::Verify { config, chain, since, anchors, json } } => {
            let question = Question { chain: chain.clone(), since: *since, anchors: anchors.clone() };
            verify_audit(config, &question, *json)
        }
        Command::Replicas { config, act: None } => replicas(config),
        Command::Replicas { act: Some(Act::Retire { config, force, id }), .. } => retire(config, id, *force),
        Command::Reprice { config, question } => reprice(config, question),
        Command::WhatIf { config, question } => what_if(config, question),
    };
    done.map_or_else(|error| failure(&error), |()| ExitCode::SUCCESS)
}

/// The process's environment, as [`Settings::load`] takes it; what is not UTF-8 keeps a mark of that.
pub fn environment() -> BTreeMap<String, String> {
    let text = |text: OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// Tells what went wrong, once.
fn failure(error: &anyhow::Error) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    let _ = match faults_of(error) {
        Some(faults) => {
            let plural = if faults.0.len() == 1 { "" } else { "s" };
            writeln!(stderr, "{faults}\ntollgate: {} fault{plural} in the config", faults.0.len())
        }
        None => writeln!(stderr, "tollgate: {error:#}"),
    };
    ExitCode::from(code(error))
}

/// [`Faults`], from reading the config or from using it (a port that is taken), are a bad config, and an invoice's are bad
/// usage; all else failed while running.
fn code(error: &anyhow::Error) -> u8 {
    let bad_invoice = error.downcast_ref::<reconcile::InvoiceFaults>().is_some();
    if faults_of(error).is_some() || bad_invoice { BAD_CONFIG } else { FAILED }
}

fn faults_of(error: &anyhow::Error) -> Option<&Faults> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(BACKGROUND_THREADS).thread_name("background").enable_all().build()?)
}

fn serve(config: &ConfigFile) -> anyhow::Result<()> {
    // Before there are threads.
    let inherited = Inherited::from_env().map_err(anyhow::Error::msg)?;
    let settings = config.load()?;
    for warning in settings.warnings() {
        tracing::warn!("{warning}");
    }
    runtime()?.block_on(async {
        let Stop { begun, hurried } = stop_signals()?;
        let gateway = Box::pin(Gateway::start(settings, inherited)).await?;
        say(&format!("ready listen={} admin={}", gateway.address(), gateway.admin_address()));
        Box::pin(gateway.run_until(begun.cancelled_owned(), hurried.cancelled_owned())).await
    })
}

/// One line on stdout, at once, for whoever waits for it.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// How far the process was asked to stop.
#[derive(Clone, Default)]
struct Stop {
    /// Exchanges in flight may end.
    begun: CancellationToken,
    /// They are cut, and recorded as such.
    hurried: CancellationToken,
}

/// Follows SIGTERM and SIGINT: the first begins the stop, the second hurries it, a third ends the process at once, should
/// even that hang. Listens from here on, so that none is missed while the gateway starts.
fn stop_signals() -> anyhow::Result<Stop> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = Stop::default();
    let stopping = stop.clone();
    tokio::spawn(async move {
        let signal = either(&mut terminate, &mut interrupt).await;
        tracing::info!(signal, "stopping: no new connections, exchanges in flight may end");
        stopping.begun.cancel();
        let signal = either(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal, "stopping now: exchanges in flight are cut");
        stopping.hurried.cancel();
        let signal = either(&mut terminate, &mut interrupt).await;
        tracing::error!(signal, "stopping at once: what is not written yet is shipped by the next start");
        std::process::exit(i32::from(FAILED));
    });
    Ok(stop)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

fn check_config(config: &ConfigFile) -> anyhow::Result<()> {
    let settings = config.load()?;
    let mut stderr = std::io::stderr().lock();
    for warning in settings.warnings() {
        let _ = writeln!(stderr, "warning: {warning}");
    }
    let _ = std::io::stdout().lock().write_all(settings.masked().as_bytes());
    Ok(())
}

fn prices(config: &ConfigFile, json: bool, at: Option<Timestamp>, models: &[String]) -> anyhow::Result<()> {
    let settings = config.load()?;
    let at = at.unwrap_or_else(|| Timestamp::now().round(Unit::Second).unwrap_or_else(|_| Timestamp::now()));
    let listing = prices::Listing::new(&settings, models, at);
    let printed = if json { listing.json() } else { listing.text() };
    let _ = std::io::stdout().lock().write_all(printed.as_bytes());
    Ok(())
}

fn import_prices(map: &Path, to: &Path, providers: &[String], force: bool) -> anyhow::Result<()> {
    let told = prices::import::run(map, to, providers, force)?;
    let _ = std::io::stdout().lock().write_all(told.as_bytes());
    Ok(())
}

fn formats(config: &ConfigFile, markdown: bool, name: Option<&str>) -> anyhow::Result<()> {
    let formats = config.load()?.formats;
    let printed = match name {
        Some(name) => formats::rule(&formats, name)?,
        None if markdown => formats::markdown(&formats),
        None => formats::text(&formats),
    };
    let _ = std::io::stdout().lock().write_all(printed.as_bytes());
    Ok(())
}

fn demo(once: bool) -> anyhow::Result<()> {
    runtime()?.block_on(Box::pin(crate::demo::run(once)))
}

fn migrate(config: &ConfigFile, down: bool) -> anyhow::Result<()> {
    let settings = config.load()?;
    say(&runtime()?.block_on(Box::pin(gateway::migrate(&settings, down)))?);
    Ok(())
}

fn aggregate(config: &ConfigFile) -> anyhow::Result<()> {
    let settings = config.load()?;
    say(&runtime()?.block_on(Box::pin(gateway::aggregate(&settings)))?);
    Ok(())
}

fn verify_quota(config: &ConfigFile, json: bool) -> anyhow::Result<()> {
    let settings = config.load()?;
    let drift = runtime()?.block_on(Box::pin(gateway::verify_quota(&settings)))?;
    let _ = std::io::stdout().lock().write_all(drift::told(&drift, json).as_bytes());
    match drift.drifted {
        0 => Ok(()),
        n => anyhow::bail!("{n} of {} counters differ from their events", drift.counters),
    }
}

fn reconcile(
    config: &ConfigFile,
    invoice: &Path,
    tolerance: reconcile::Tolerance,
    zone: TimeZone,
    json: bool,
) -> anyhow::Result<()> {
    let settings = config.load()?;
    let question = reconcile::Question::read(invoice, zone)?;
    let days = question.ranges()?;
    let recorded = runtime()?.block_on(Box::pin(gateway::recorded_by_model(&settings, &days)))?;
    let comparison = question.compare(&recorded, tolerance)?;
    let _ = std::io::stdout().lock().write_all(comparison.told(json).as_bytes());
    match comparison.open() {
        (0, 0) => Ok(()),
        (gaps, not_compared) => anyhow::bail!(
            "{gaps} days of models differ by more than the tolerance, {not_compared} can't be compared"
        ),
    }
}

fn journal(config: &ConfigFile, json: bool, dump: bool) -> anyhow::Result<()> {
    let settings = config.load()?;
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    if dump {
        return journal::dump(&settings.record.dir, &mut stdout);
    }
    let told = journal::told(&settings.record.dir, json, Timestamp::now())?;
    let _ = stdout.write_all(told.as_bytes()).and_then(|()| stdout.flush());
    Ok(())
}

fn verify_audit(config: &ConfigFile, question: &Question, json: bool) -> anyhow::Result<()> {
    let settings = config.load()?;
    let walked = runtime()?.block_on(Box::pin(gateway::verify_audit(&settings, question)))?;
    let _ = std::io::stdout().lock().write_all(audit::told(&walked, json).as_bytes());
    match audit::first_break(&walked) {
        None => Ok(()),
        Some(why) => anyhow::bail!("{why}"),
    }
}

fn replicas(config: &ConfigFile) -> anyhow::Result<()> {
    let settings = config.load()?;
    let all = runtime()?.block_on(Box::pin(gateway::replicas(&settings)))?;
    let _ = std::io::stdout().lock().write_all(replicas::told(&all).as_bytes());
    Ok(())
}

fn retire(config: &ConfigFile, id: &str, force: bool) -> anyhow::Result<()> {
    let settings = config.load()?;
    match runtime()?.block_on(Box::pin(gateway::retire(&settings, id, force)))? {
        Retired::Done { leases } => say(&format!("{id} is retired, {leases} leases are free")),
        Retired::Alive { silent_secs } => anyhow::bail!(
            "{id} was heard of {silent_secs:.1} seconds ago: stop it, or give --force if it is gone for good"
        ),
        Retired::Unknown => anyhow::bail!("there is no replica {id}: `tollgate replicas` lists them"),
    }
    Ok(())
}

fn reprice(config: &ConfigFile, question: &reprice::Question) -> anyhow::Result<()> {
    let settings = config.load()?;
    let asked = question.asked()?;
    let done = runtime()?.block_on(Box::pin(gateway::reprice(&settings, &asked)))?;
    let _ = std::io::stdout().lock().write_all(reprice::render(&asked, &done, question.json).as_bytes());
    Ok(())
}

fn what_if(config: &ConfigFile, question: &what_if::Question) -> anyhow::Result<()> {
    let (settings, asked) = question.of(&config.load()?)?;
    let replayed = runtime()?.block_on(Box::pin(gateway::what_if(&settings, &asked)))?;
    let notes = what_if::notes(&asked, &replayed, Timestamp::now());
    let mut stderr = std::io::stderr().lock();
    for note in &notes {
        let _ = writeln!(stderr, "note: {note}");
    }
    let told = what_if::told(&asked, &replayed, &notes, question.json);
    let _ = std::io::stdout().lock().write_all(told.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn faults_are_a_bad_config_however_deep_they_lie_and_all_else_a_failure() {
        let faults = || anyhow::Error::new(Faults(Vec::new()));
        assert_eq!(code(&faults()), BAD_CONFIG);
        assert_eq!(
            code(&Err::<(), _>(faults()).context("starting").context("serving").unwrap_err()),
            BAD_CONFIG
        );
        assert_eq!(code(&anyhow::anyhow!("the disk is gone")), FAILED);
    }
}
