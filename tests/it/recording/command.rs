//! `tollgate journal`, beside a journal that is open and on one that was left.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use tollgate::record::{Journal, Records};
use tollgate::telemetry::Metrics;

use super::fixture::{audit, config, intent, one, usage};

/// Runs it with `data` for data directory.
fn run(data: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .arg("journal")
        .args(arguments)
        .env_clear()
        .env("TOLLGATE__DATA__DIR", data)
        .output()
        .unwrap()
}

fn printed(data: &Path, arguments: &[&str]) -> String {
    let output = run(data, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn lines(data: &Path) -> Vec<Value> {
    printed(data, &["--dump"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A data directory with a journal of one record that ended, and one exchange in flight.
async fn journal_in(data: &TempDir) -> Journal {
    let (recorder, journal) = Journal::open(config(&data.path().join("journal")), Metrics::new()).unwrap();
    recorder.intend(intent(1)).await;
    recorder.intend(intent(2)).await;
    recorder.record(Records::from_iter([usage(1), audit(101)])).await;
    journal
}

#[tokio::test]
async fn it_says_how_a_journal_is_that_a_gateway_holds() {
    let data = TempDir::new().unwrap();
    let _journal = journal_in(&data).await;
    let told: Value = serde_json::from_str(&printed(data.path(), &["--json"])).unwrap();
    let told = |name: &str| told[name].clone();
    assert_eq!((told("records"), told("open_intents"), told("segments")), (json!(2), json!(1), json!(1)));
    assert_eq!(
        (told("dead_letters"), told("damaged_regions"), told("torn_bytes")),
        (json!(0), json!(0), json!(0))
    );
    assert_eq!(told("oldest_at"), json!("2027-01-15T08:00:00Z"));
    assert_eq!(told("oldest_intent_at"), json!("2027-01-15T08:00:02Z"));
    assert!(told("record_bytes").as_u64() < told("segment_bytes").as_u64());
    assert_eq!(told("directory"), json!(data.path().join("journal")));
    let text = printed(data.path(), &[]);
    assert!(text.contains("unacknowledged  2 records, "), "{text}");
    assert!(text.contains("open intents    1, the oldest admitted "), "{text}");
    assert!(!text.contains("cut short"), "{text}");
}

#[tokio::test]
async fn a_dump_has_a_line_for_all_that_lies_in_it_with_its_place() {
    let data = TempDir::new().unwrap();
    let journal = journal_in(&data).await;
    let lines = lines(data.path());
    let kinds: Vec<&str> = ["mark", "intent", "intent", "record", "record"].to_vec();
    let kind =
        |line: &Value| *["mark", "intent", "record"].iter().find(|kind| line.get(*kind).is_some()).unwrap();
    assert_eq!(lines.iter().map(kind).collect::<Vec<_>>(), kinds);
    let mut offset = 24;
    for line in &lines {
        assert_eq!((&line["segment"], &line["offset"]), (&json!("0000000000000001.seg"), &json!(offset)));
        offset += line["length"].as_u64().unwrap();
    }
    assert_eq!(lines[2]["intent"]["request_id"], "r-2");
    let record = &lines[3];
    assert_eq!((&record["seq"], &record["acknowledged"]), (&json!(1), &json!(false)));
    assert_eq!(
        (&record["record"]["kind"], &record["record"]["request_id"]),
        (&json!("usage"), &json!("r-1"))
    );
    drop(journal);
    assert_eq!(self::lines(data.path()), lines, "stopped, it lies there as before");
}

#[tokio::test]
async fn a_record_that_is_cut_short_may_be_a_write_in_progress_and_is_left_as_it_is() {
    let data = TempDir::new().unwrap();
    drop(journal_in(&data).await);
    let segment = data.path().join("journal").join("0000000000000001.seg");
    let bytes = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, &bytes[..bytes.len() - 10]).unwrap();
    let text = printed(data.path(), &[]);
    assert!(text.contains("unacknowledged  1 records, "), "{text}");
    assert!(text.contains("cut short") && text.contains("a write in progress, if a gateway runs"), "{text}");
    let last = lines(data.path()).pop().unwrap();
    assert!(last["torn"].as_str().unwrap().starts_with("a write in progress"), "{last}");
    assert_eq!(std::fs::metadata(&segment).unwrap().len(), bytes.len() as u64 - 10);
}

#[tokio::test]
async fn without_a_journal_it_says_so_and_ends_with_1() {
    let data = TempDir::new().unwrap();
    for arguments in [&[][..], &["--dump"]] {
        let output = run(data.path(), arguments);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("journal") && said.contains("can't be read"), "{said}");
    }
}

#[tokio::test]
async fn damage_and_dead_letters_are_counted() {
    let data = TempDir::new().unwrap();
    let dir = data.path().join("journal");
    let (recorder, journal) = Journal::open(config(&dir), Metrics::new()).unwrap();
    for n in 0..3 {
        recorder.record(one(usage(n))).await;
    }
    drop(journal);
    let lines = lines(data.path());
    let (offset, length) = (lines[2]["offset"].as_u64().unwrap(), lines[2]["length"].as_u64().unwrap());
    let segment = dir.join("0000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[usize::try_from(offset).unwrap() + 40] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    std::fs::write(dir.join("dead-letter.jsonl"), "{}\n{}\n{\"cut").unwrap();
    let told: Value = serde_json::from_str(&printed(data.path(), &["--json"])).unwrap();
    assert_eq!((&told["damaged_regions"], &told["damaged_bytes"]), (&json!(1), &json!(length)));
    assert_eq!((&told["dead_letters"], &told["set_aside_regions"]), (&json!(2), &json!(0)));
    drop(Journal::open(config(&dir), Metrics::new()).unwrap());
    let told: Value = serde_json::from_str(&printed(data.path(), &["--json"])).unwrap();
    assert_eq!((&told["set_aside_regions"], &told["set_aside_bytes"]), (&json!(1), &json!(length)));
}
