//! `tollgate journal`: what waits on the local disk, told by its files alone.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::table::{ago, columns};
use crate::record::{Content, Files, Inspected, Summary, inspect, summary};

/// Why the newest record can look torn.
const TORN: &str = "a write in progress, if a gateway runs; else it is cut off at the next start";

/// How the journal in `dir` is, for people or as JSON.
pub(super) fn told(dir: &Path, as_json: bool, now: Timestamp) -> anyhow::Result<String> {
    let summary = summary(dir).with_context(|| unreadable(dir))?;
    Ok(if as_json { format!("{:#}\n", structured(dir, &summary, now)) } else { text(dir, &summary, now) })
}

/// Writes all that lies in the journal in `dir` as JSON lines. A reader that had enough is no fault.
pub(super) fn dump(dir: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let mut written = Ok(());
    inspect(dir, &mut |found| {
        written = writeln!(out, "{}", line(&found));
        written.is_ok()
    })
    .with_context(|| unreadable(dir))?;
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

fn unreadable(dir: &Path) -> String {
    format!("the journal in {} can't be read", dir.display())
}

fn line(found: &Inspected) -> Value {
    let Inspected { segment, offset, length, what } = found;
    let mut line = json!({ "segment": segment, "offset": offset, "length": length });
    let (name, value) = match what {
        Content::Record { seq, acknowledged, record } => {
            line["seq"] = json!(seq);
            line["acknowledged"] = json!(acknowledged);
            ("record", json!(record))
        }
        Content::Intent(intent) => ("intent", json!(intent)),
        Content::Mark(intents) => ("mark", json!({ "intents": intents })),
        Content::Torn => ("torn", json!(TORN)),
        Content::Unreadable(why) => ("unreadable", json!(why)),
    };
    line[name] = value;
    line
}

fn text(dir: &Path, summary: &Summary, now: Timestamp) -> String {
    let since = |at: Option<Timestamp>, what: &str| {
        at.map(|at| format!(", the oldest {what} {} ago ({at})", ago(seconds(at, now)))).unwrap_or_default()
    };
    let of = |files: Files, what: &str| format!("{} {what}, {} bytes", files.count, files.bytes);
    let records = of(summary.unacknowledged, "records") + &since(summary.oldest, "from");
    let intents = summary.open_intents.to_string() + &since(summary.oldest_intent, "admitted");
    let damaged = of(summary.damaged, "regions of the segments");
    let rows = [
        ("directory", dir.display().to_string()),
        ("unacknowledged", records),
        ("open intents", intents),
        ("segments", of(summary.segments, "files")),
        ("damaged", format!("{damaged}; {} set aside in damaged.jsonl", of(summary.set_aside, "regions"))),
        ("dead letters", format!("{} in dead-letter.jsonl", summary.dead_letters)),
    ];
    let mut text = columns(&rows.map(|(name, value)| vec![name.to_owned(), value]));
    if summary.torn_bytes > 0 {
        let _ = writeln!(text, "The newest record is cut short, at {} bytes: {TORN}.", summary.torn_bytes);
    }
    text
}

fn structured(dir: &Path, summary: &Summary, now: Timestamp) -> Value {
    let age = |at: Option<Timestamp>| at.map(|at| seconds(at, now));
    json!({
        "directory": dir.display().to_string(),
        "records": summary.unacknowledged.count,
        "record_bytes": summary.unacknowledged.bytes,
        "oldest_at": summary.oldest.map(|at| at.to_string()),
        "oldest_age_seconds": age(summary.oldest),
        "open_intents": summary.open_intents,
        "oldest_intent_at": summary.oldest_intent.map(|at| at.to_string()),
        "oldest_intent_age_seconds": age(summary.oldest_intent),
        "segments": summary.segments.count,
        "segment_bytes": summary.segments.bytes,
        "damaged_regions": summary.damaged.count,
        "damaged_bytes": summary.damaged.bytes,
        "torn_bytes": summary.torn_bytes,
        "set_aside_regions": summary.set_aside.count,
        "set_aside_bytes": summary.set_aside.bytes,
        "dead_letters": summary.dead_letters,
    })
}

fn seconds(at: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(at).as_secs_f64().max(0.0)
}
