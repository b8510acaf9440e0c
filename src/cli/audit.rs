//! `tollgate audit verify`: the chains of audit events, and where they break.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::table::{columns, plain};
use crate::store::chain::{Chain, Head, Walked};

/// An anchor as `/metrics` and the log tell it: `CHAIN:SEQ:HASH`.
pub(super) fn anchor(text: &str) -> Result<Head, String> {
    let wrong = || format!("{text:?} is not CHAIN:SEQ:HASH, with 64 hex digits of hash");
    let mut parts = text.rsplitn(3, ':');
    let (hash, seq, chain) = (parts.next(), parts.next(), parts.next());
    let hash = hash.filter(|hash| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()));
    let seq = seq.and_then(|seq| seq.parse().ok()).filter(|seq| *seq > 0);
    match (chain.filter(|chain| !chain.is_empty()), seq, hash) {
        (Some(chain), Some(seq), Some(hash)) => {
            Ok(Head { chain: chain.to_owned(), seq, hash: hash.to_ascii_lowercase() })
        }
        _ => Err(wrong()),
    }
}

/// What was found, for people or (`json`) programs.
pub(super) fn told(walked: &Walked, json: bool) -> String {
    if json { format!("{:#}\n", whole(walked)) } else { text(walked) }
}

/// The first break, in a sentence; `None` when all is whole.
pub(super) fn first_break(walked: &Walked) -> Option<String> {
    let broken: Vec<String> = walked.chains.iter().filter_map(sentence).collect();
    let first = broken.first().cloned().or_else(|| slipped_in(walked))?;
    Some(if broken.len() > 1 { format!("{first} (and {} more chains)", broken.len() - 1) } else { first })
}

fn sentence(chain: &Chain) -> Option<String> {
    let found = chain.fault.as_ref()?;
    let event = found.event_id.as_ref().map(|id| format!(" (event {id})")).unwrap_or_default();
    Some(format!("chain {} breaks at number {}{event}: {}", plain(&chain.name), found.seq, found.fault))
}

fn slipped_in(walked: &Walked) -> Option<String> {
    (walked.slipped_in > 0).then(|| {
        format!("{} events without a chain came after chains began: they were slipped in", walked.slipped_in)
    })
}

fn whole(walked: &Walked) -> Value {
    let chains: Vec<Value> = walked.chains.iter().map(chain).collect();
    json!({
        "whole": walked.is_whole(),
        "chains": chains,
        "unchained": walked.unchained,
        "slipped_in": walked.slipped_in,
    })
}

fn chain(chain: &Chain) -> Value {
    json!({
        "chain": chain.name,
        "entries": chain.entries,
        "from": chain.from.map(|(seq, at)| json!({"seq": seq, "timestamp": at.to_string()})),
        "upto": chain.upto.as_ref().map(|head| json!({"seq": head.seq, "hash": head.hash})),
        "anchors_met": chain.anchors_met,
        "anchors_passed": chain.anchors_passed,
        "break": chain.fault.as_ref().map(|found| json!({
            "seq": found.seq,
            "event_id": found.event_id,
            "why": found.fault.to_string(),
        })),
    })
}

fn text(walked: &Walked) -> String {
    let head = ["CHAIN", "ENTRIES", "FROM", "SINCE", "UPTO", "HASH", "STATE"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(walked.chains.iter().map(|chain| {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let whole_second = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        vec![
            plain(&chain.name),
            chain.entries.to_string(),
            or_none(chain.from.map(|(seq, _)| seq.to_string())),
            or_none(chain.from.map(|(_, at)| whole_second(at))),
            or_none(chain.upto.as_ref().map(|head| head.seq.to_string())),
            or_none(chain.upto.as_ref().map(|head| head.hash.clone())),
            if chain.fault.is_some() { "broken" } else { "whole" }.to_owned(),
        ]
    }));
    let mut text = columns(&rows);
    let mut say = |line: String| text.extend([line.as_str(), "\n"]);
    walked.chains.iter().filter_map(sentence).for_each(&mut say);
    slipped_in(walked).into_iter().for_each(&mut say);
    let passed: u64 = walked.chains.iter().map(|chain| chain.anchors_passed).sum();
    if passed > 0 {
        say(format!("{passed} anchors are older than what was walked, and prove nothing"));
    }
    if walked.unchained > 0 && walked.slipped_in <= 0 {
        say(format!("{} events are from before there were chains", walked.unchained));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_is_a_chain_a_number_and_a_hash() {
        let hash = "AB".repeat(32);
        let read = anchor(&format!("0193a1c2-7d1e-7cc3-98c4-1f3b6a2d9e10/2:17:{hash}")).unwrap();
        assert_eq!(
            (read.chain.as_str(), read.seq, read.hash),
            ("0193a1c2-7d1e-7cc3-98c4-1f3b6a2d9e10/2", 17, hash.to_lowercase())
        );
        for wrong in ["", "a:1", ":1:ab", "a:0:ab", "a:1:ab", &format!("a:-1:{hash}"), &format!("1:{hash}")] {
            assert!(anchor(wrong).is_err(), "{wrong}");
        }
    }
}
