//! What is written is read back, by this release and the next; and nothing else is taken for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::*;
use crate::model::event::EventType;
use crate::model::quota::{Amounts, Charge};
use crate::model::tenant::TenantId;

/// An event as the API of version 1 knew it: what it is read as must not change with the release.
fn record(kind: &str) -> Record {
    let charge = json!({
        "dimension": "tokens_per_day", "window_start": 1_800_000_000_000_000_u64,
        "window_end": 1_800_086_400_000_000_u64, "amount": -5, "limit": 10_000
    });
    let usage = json!({ "input": 120, "cached_input": 20, "cache_write_input": null, "output": 380, "reasoning": null, "total": null });
    let id = "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f";
    let value = match kind {
        "usage" => json!({
            "kind": "usage", "event_id": id, "tenant_id": "tn_ab12cd", "event_type": "chat_message",
            "at": 1_800_000_001_000_001_u64, "method": "POST", "endpoint": "/api/widget/chat", "status": 200,
            "response_time_us": 830_000, "first_byte_us": 210_000, "chat_session_id": "s-1", "usage": usage,
            "tokens_consumed": 500, "token_source": "reported", "messages": 1, "embeddings": 0,
            "model": "gpt-4o-mini", "outcome": "completed", "streamed": true, "cost_nanousd": 246_000,
            "request_id": "r-1", "metadata": { "flag": "x", "n": 1.5 }, "charges": [charge]
        }),
        "audit" => json!({
            "kind": "audit", "event_id": id, "tenant_id": null, "event_type": "security_violation",
            "category": "security", "entity_type": "request", "entity_id": null, "action": "execute",
            "actor": "visitor", "actor_id": null, "old_values": null, "new_values": { "a": [1, "ü", true] },
            "summary": null, "result": "failure", "error_message": "no", "ip_address": "2001:db8::7",
            "user_agent": "curl", "request_id": "r-1", "at": 1_800_000_001_000_001_u64
        }),
        _ => json!({
            "kind": "amend", "event_id": id, "tenant_id": "tn_ab12cd", "at": 1_800_000_001_000_001_u64,
            "usage": usage, "tokens_consumed": 7, "token_source": "counted", "cost_nanousd": 1, "charges": [charge]
        }),
    };
    serde_json::from_value(value).unwrap()
}

fn intent() -> Intent {
    let charge = |dimension: &str, start, length, amount, limit| Charge {
        dimension: dimension.parse().unwrap(),
        window_start: jiff::Timestamp::from_second(start).unwrap(),
        window_end: jiff::Timestamp::from_second(start + length).unwrap(),
        amount,
        limit,
    };
    Intent {
        event_id: "018f6b1e-6f7e-7c3a-9d3e-0a1b2c3d4e5f".parse().unwrap(),
        tenant_id: TenantId::parse("tn_ab12cd").unwrap(),
        event_type: EventType::ChatMessage,
        at: jiff::Timestamp::from_microsecond(1_800_000_001_000_001).unwrap(),
        method: "POST".into(),
        endpoint: "/api/widget/chat".into(),
        chat_session_id: Some("0d6a2f2e-5f0e-4d0c-9a53-0b8f6c1d2e3f".into()),
        model: None,
        request_id: "0193a1c2-7d1e-7cc3-98c4-1f3b6a2d9e10".into(),
        reserved: Amounts { tokens: 150, api_calls: 1, chat_messages: 1, ..Default::default() },
        charges: vec![
            charge("tokens_per_day", 1_800_000_000, 86_400, 150, Some(10_000)),
            charge("api_calls_per_minute", 1_800_000_000, 60, 1, Some(30)),
            charge("chat_messages_per_day", 1_800_000_000, 86_400, 1, None),
        ],
        lease_run: 7,
        metadata: [("unleased".to_owned(), json!(true))].into_iter().collect(),
    }
}

#[test]
fn an_intent_and_a_mark_are_read_back_and_are_small() {
    let mut bytes = Vec::new();
    let length = encode_intent(&intent(), 43, &mut bytes).unwrap();
    encode_mark(1_000_000, 43, &mut bytes).unwrap();
    let frame = decode(&bytes).unwrap();
    assert_eq!((frame.seq, frame.is_record()), (43, false));
    assert_eq!(frame.read().unwrap(), Held::Intent(Box::new(intent())));
    let mut again = Vec::new();
    encode_intent_again(frame.payload, 43, &mut again).unwrap();
    assert_eq!(again, bytes[..length]);
    let mark = decode(&bytes[length..]).unwrap();
    assert_eq!((mark.seq, mark.is_record()), (43, false));
    assert_eq!(mark.read().unwrap(), Held::Mark(1_000_000));
    assert!(length < 256, "{length} bytes");
}

fn frame_of(record: &Record, seq: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(record, seq, &mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_encoded_is_read_back() {
    for kind in ["usage", "audit", "amend"] {
        let bytes = frame_of(&record(kind), 42);
        let frame = decode(&bytes).unwrap();
        assert_eq!((frame.seq, frame.size(), frame.version), (42, bytes.len(), VERSION));
        assert_eq!(frame.read().unwrap(), Held::Record(record(kind)));
        assert!(frame.is_record());
        let mut again = Vec::new();
        frame.write_to(&mut again);
        assert_eq!(again, bytes);
    }
}

/// Frames as version 1 wrote them. When this fails, journals of the last release can't be read: give the new
/// fields defaults, or raise the version and keep a reader for the old one. Never change the stored frames.
#[test]
fn frames_that_an_earlier_release_wrote_are_read() {
    let stored: Vec<_> =
        include_str!("../frames-v1.txt").lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(stored.len(), 5);
    for (kind, stored) in stored {
        let bytes = STANDARD.decode(stored).unwrap();
        let held = match kind {
            "intent" => Held::Intent(Box::new(intent())),
            "mark" => Held::Mark(1_000_000),
            _ => Held::Record(record(kind)),
        };
        assert_eq!(decode(&bytes).unwrap().read().unwrap(), held, "{kind}");
    }
}

#[test]
fn any_changed_byte_and_any_missing_end_is_noticed() {
    let whole = frame_of(&record("usage"), 7);
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        assert!(decode(&changed).is_err(), "byte {at}");
        assert!(matches!(decode(&whole[..at]), Err(NoFrame::Incomplete(_))), "cut at {at}");
    }
}

#[test]
fn the_search_finds_the_next_frame_and_is_not_fooled_by_text() {
    let mut bytes = frame_of(&record("usage"), 1);
    let second = bytes.len();
    bytes.extend(frame_of(&record("audit"), 2));
    assert_eq!(find(&bytes, 1), Some(second));
    assert_eq!(find(&bytes, second + 1), None);
    assert!(
        MARK.contains(&0xff),
        "a byte that UTF-8 never has (RFC 3629, section 1), so no text can hold the mark"
    );
}

#[test]
fn what_is_too_large_leaves_the_buffer_as_it_was() {
    let Record::Audit(mut event) = record("audit") else { unreachable!() };
    event.user_agent = Some("x".repeat(MAX_PAYLOAD_BYTES));
    let mut bytes = vec![1, 2, 3];
    assert!(encode(&Record::Audit(event), 1, &mut bytes).is_err());
    assert_eq!(bytes, [1, 2, 3]);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let mut framed = MARK.to_vec();
        framed.extend(&bytes);
        for bytes in [&bytes, &framed] {
            let _ = decode(bytes);
            let _ = find(bytes, 0);
            for kind in 0..7 {
                let _ = Frame { seq: 1, kind, version: VERSION, payload: bytes }.read();
            }
        }
    }
}
