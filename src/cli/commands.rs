//! The commands and what they are told: their names, arguments and help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{audit, reconcile, reprice, what_if};
use crate::store::chain::Head;

#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the gateway
    #[command(after_help = "Example:\n  tollgate serve --config /etc/tollgate/tollgate.toml\n\n\
        Prints one line, `ready` with both addresses, once it accepts connections. SIGTERM drains and stops, a second \
        one cuts what is left, a third ends at once; SIGHUP reads the config again.")]
    Serve(ConfigFile),
    /// Show everything at once on loopback: gateway, chat service, database, traffic
    #[command(after_help = "Example:\n  tollgate demo --once")]
    Demo {
        /// Run the traffic, print what was metered, and end
        #[arg(long)]
        once: bool,
    },
    /// Bring the database's schema up, or take it away
    #[command(
        after_help = "Example:\n  DATABASE_URL=postgres://tollgate:PASSWORD@db/tollgate tollgate migrate"
    )]
    Migrate {
        /// Take the schema away, with all that was recorded
        #[arg(long)]
        down: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Say what is wrong with a config, or print what it comes to
    #[command(after_help = "Example:\n  tollgate check-config --config /etc/tollgate/tollgate.toml\n\n\
        Ends with 2 when something is wrong. Secrets are masked.")]
    CheckConfig(ConfigFile),
    /// Print what models cost: the whole table, or the entries that price the models named
    #[command(
        after_help = "Example:\n  tollgate prices --config /etc/tollgate/tollgate.toml gpt-4o-2024-08-06\n\n\
        Prices are US dollars per million tokens. Cached input and cache writes are parts of the input, reasoning is a \
        part of the output. A model without an entry has the default's."
    )]
    #[command(args_conflicts_with_subcommands = true)]
    Prices {
        #[command(flatten)]
        config: ConfigFile,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// As of this date (its 00:00 UTC) or RFC 3339 time, instead of now
        #[arg(long, value_name = "DATE", value_parser = crate::settings::date_or_instant)]
        at: Option<Timestamp>,
        /// Models, named as answers name them
        #[arg(value_name = "MODEL")]
        models: Vec<String>,
        #[command(subcommand)]
        act: Option<PricesAct>,
    },
    /// Print the answer formats: what each reports, or one of them as a rule to start from
    #[command(
        after_help = "Examples:\n  tollgate formats\n  tollgate formats openai-chat > my-format.toml\n\n\
        docs/formats.md says how a rule of one's own is written."
    )]
    Formats {
        #[command(flatten)]
        config: ConfigFile,
        /// The table as Markdown, as docs/formats.md has it
        #[arg(long, conflicts_with = "name")]
        markdown: bool,
        /// The format to print as a `[formats.NAME]` rule
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Run one aggregation and retention pass
    #[command(after_help = "Example:\n  tollgate aggregate --config /etc/tollgate/tollgate.toml")]
    Aggregate(ConfigFile),
    /// Compare the live quota counters with the events that they count
    #[command(after_help = "Example:\n  tollgate verify-quota --config /etc/tollgate/tollgate.toml\n\n\
        Ends with 0 when every counter is the sum of its events, with 1 when one is not, and prints those. Windows whose \
        events are partly gone (30 days) are left out. Reads every event that is kept, in one snapshot.")]
    VerifyQuota {
        #[command(flatten)]
        config: ConfigFile,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Compare a provider's invoice with what was recorded, by day and model
    #[command(
        after_help = "Example:\n  tollgate reconcile --config /etc/tollgate/tollgate.toml --file invoice.csv\n\n\
        The file is CSV with a header: `date`, `model`, and `cost` (USD), `tokens`, or `input_tokens` and `output_tokens`; \
        other columns are left alone. Ends with 0 when every day of every model is within the tolerance, with 1 when one is \
        not or can't be compared, with 2 when lines of the file are wrong, and prints which. docs/reconciliation.md has more."
    )]
    Reconcile {
        #[command(flatten)]
        config: ConfigFile,
        /// The invoice
        #[arg(long = "file", value_name = "CSV")]
        invoice: PathBuf,
        /// How large a gap may be, in per cent of the larger side; cents are let pass
        #[arg(long, value_name = "PERCENT", default_value = "1%")]
        tolerance: reconcile::Tolerance,
        /// Whose days the invoice has, as an IANA name such as America/New_York
        #[arg(long, value_name = "ZONE", default_value = "UTC", value_parser = time_zone)]
        time_zone: TimeZone,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what waits in the journal on the local disk
    #[command(after_help = "Example:\n  tollgate journal --config /etc/tollgate/tollgate.toml\n\n\
        Reads the files alone: it takes no lock and changes nothing, so it may be run beside a gateway, and says how the \
        journal was a moment ago. What is in flight has an open intent; after a crash these are charged at the next start.")]
    Journal {
        #[command(flatten)]
        config: ConfigFile,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Print all that lies in it instead, one JSON object a line, with the place of each
        #[arg(long, conflicts_with = "json")]
        dump: bool,
    },
    /// Look after the audit trail
    Audit {
        #[command(subcommand)]
        act: AuditAct,
    },
    /// List the Tollgate processes that share the database, or take one for dead
    #[command(after_help = "Example:\n  tollgate replicas --config /etc/tollgate/tollgate.toml\n\n\
        LEASES counts those of windows that run; OUTSTANDING is what may still be spent under them, by unit.")]
    #[command(args_conflicts_with_subcommands = true)]
    Replicas {
        #[command(flatten)]
        config: ConfigFile,
        #[command(subcommand)]
        act: Option<Act>,
    },
    /// Price recorded calls anew whose model had no price: rows, live counters and aggregates
    #[command(
        after_help = "Example:\n  tollgate reprice --config /etc/tollgate/tollgate.toml --since 2026-11-01 --dry-run\n\n\
        Of calls that were priced by the default, or by what their answer said, those whose model the config has a price for \
        now. Each gets the price that holds at its time. Rows, quotas of cost and aggregates change in one transaction a \
        batch, with an audit event; a second run finds nothing to do. docs/prices.md has more."
    )]
    Reprice {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        question: reprice::Question,
    },
    /// Replay recorded calls against other limits: who would have been refused, when, by what
    #[command(
        after_help = "Example:\n  tollgate what-if --config /etc/tollgate/tollgate.toml --plan tighter.toml --since 7d\n\n\
        FILE has [plans.NAME] and [overrides.\"TENANT\"] as the config has them, and stands over it: a key that it does not \
        name stays as it is. Calls that were refused are replayed too. A call that would be refused uses nothing. Ends with \
        0 whether or not there are any."
    )]
    WhatIf {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        question: what_if::Question,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum PricesAct {
    /// Make [prices] out of LiteLLM's published price map
    #[command(
        after_help = "Example:\n  tollgate prices import model_prices_and_context_window.json \\\n    \
        --provider openai --provider anthropic --to prices.toml\n\n\
        The map is https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json. Says what could not \
        be taken, and why. The file is a config of prices alone: put it into yours. docs/prices.md has more."
    )]
    Import {
        /// The map (JSON)
        #[arg(value_name = "FILE")]
        map: PathBuf,
        /// Where the prices go
        #[arg(long, value_name = "FILE", default_value = "prices.toml")]
        to: PathBuf,
        /// Only models of this litellm_provider, named without its path; may be given often
        #[arg(long = "provider", value_name = "NAME")]
        providers: Vec<String>,
        /// Even if the file is there: it is replaced
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Act {
    /// Take a replica for dead: what it was granted is free for the others
    #[command(after_help = "Example:\n  tollgate replicas retire 0193a1c2-7d1e-7cc3-98c4-1f3b6a2d9e10\n\n\
        For a machine that does not come back: without this its leases are held until their windows end. What it used and \
        had not written yet is not counted any more, so the others may exceed a limit by that much. One that lives all \
        the same begins a new run with its next heartbeat.")]
    Retire {
        #[command(flatten)]
        config: ConfigFile,
        /// Even if it was heard of in the last 10 seconds
        #[arg(long)]
        force: bool,
        /// The replica's id
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditAct {
    /// Walk the chains of audit events, and name the first break of each
    #[command(
        after_help = "Example:\n  tollgate audit verify --config /etc/tollgate/tollgate.toml --anchor database:812:9c0f…\n\n\
        Ends with 0 when every chain is whole, with 1 when one is not. Whoever can write to the database can make a chain \
        anew: only heads noted elsewhere, from the log or from tollgate_audit_chain_seq in /metrics, prove that nobody did."
    )]
    Verify {
        #[command(flatten)]
        config: ConfigFile,
        /// One chain, or all those of the replica of this id
        #[arg(long, value_name = "NAME")]
        chain: Option<String>,
        /// From the first event of this date (its 00:00 UTC) or RFC 3339 time on
        #[arg(long, value_name = "DATE", value_parser = crate::settings::date_or_instant)]
        since: Option<Timestamp>,
        /// A head that was noted outside; may be given often
        #[arg(long = "anchor", value_name = "CHAIN:SEQ:HASH", value_parser = audit::anchor)]
        anchors: Vec<Head>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct ConfigFile {
    /// The config file (TOML); without one, the built-in default and the environment
    #[arg(long = "config", value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
}

fn time_zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| "must be an IANA time zone, such as UTC or Europe/Berlin".to_owned())
}
