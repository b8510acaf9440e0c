//! What was before: old values of audit events that are in a history.

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use tollgate::model::event::{AuditEvent, Record};
use tollgate::record::EventSink;
use uuid::Uuid;

use super::records::{audit, audited, hours_ago};
use crate::postgres::{Database, shared};

fn change(tenant: &str, entity: &str, at: Timestamp, new_values: Value) -> AuditEvent {
    AuditEvent {
        entity_type: "branding".into(),
        entity_id: Some(entity.into()),
        new_values: Some(new_values),
        in_history: true,
        ..audit(tenant, "branding_updated", at)
    }
}

fn records(events: &[AuditEvent]) -> Vec<Record> {
    events.iter().cloned().map(audited).collect()
}

fn old_values(database: &Database<'_>, event: &AuditEvent) -> Value {
    let old = database.one(&format!(
        "SELECT coalesce(old_values, 'null') FROM audit_events WHERE event_id = '{}'",
        event.event_id
    ));
    serde_json::from_str(&old).unwrap()
}

#[tokio::test]
async fn events_of_one_batch_follow_each_other() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let events = [
        change("tn_h", "e", now, json!({"color": "red", "tone": "warm"})),
        change("tn_h", "e", now, json!({"color": "blue"})),
        change("tn_h", "e", now + 1.second(), json!({"color": "green", "tone": "cool", "font": "serif"})),
    ];
    database.store().write(&records(&events)).await.unwrap();
    let olds: Vec<_> = events.iter().map(|event| old_values(&database, event)).collect();
    assert_eq!(olds, [json!(null), json!({"color": "red"}), json!({"color": "blue", "tone": "warm"})]);
}

#[tokio::test]
async fn events_of_later_batches_and_months_follow_the_last_one() {
    let database = shared().migrated();
    let store = database.store();
    let (long_ago, now) = (hours_ago(24 * 100), Timestamp::now());
    let first = change("tn_h", "e", long_ago, json!({"color": "red"}));
    let second = change("tn_h", "e", now, json!({"color": "blue"}));
    store.write(&records(std::slice::from_ref(&first))).await.unwrap();
    store.write(&records(std::slice::from_ref(&second))).await.unwrap();
    assert_eq!(old_values(&database, &second), json!({"color": "red"}));
    // Sent again, in another company: nothing changes.
    let third = change("tn_h", "e", now, json!({"color": "green"}));
    store.write(&records(&[first.clone(), second.clone(), third.clone()])).await.unwrap();
    let olds = [&first, &second, &third].map(|event| old_values(&database, event));
    assert_eq!(olds, [json!(null), json!({"color": "red"}), json!({"color": "blue"})]);
}

#[tokio::test]
async fn another_tenants_another_entity_and_what_is_in_no_history_are_not_what_was_before() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let mut elsewhere = [
        change("tn_other", "e", now, json!({"color": "a"})),
        change("tn_h", "f", now, json!({"color": "b"})),
        AuditEvent { entity_type: "other".into(), ..change("tn_h", "e", now, json!({"color": "c"})) },
        AuditEvent { in_history: false, ..change("tn_h", "e", now, json!({"color": "d"})) },
        change("tn_h", "e", now, json!({"tone": "e"})),
        change("tn_h", "e", now + 1.hour(), json!({"color": "f"})),
        AuditEvent { new_values: None, ..change("tn_h", "e", now, json!({})) },
        AuditEvent { new_values: Some(json!([1])), ..change("tn_h", "e", now, json!({})) },
        AuditEvent { tenant_id: None, ..change("tn_h", "e", now, json!({"color": "g"})) },
    ]
    .to_vec();
    let this = change("tn_h", "e", now + 1.second(), json!({"color": "red"}));
    elsewhere.push(this.clone());
    database.store().write(&records(&elsewhere)).await.unwrap();
    assert_eq!(old_values(&database, &this), json!(null));
}

#[tokio::test]
async fn old_values_that_are_known_stay() {
    let database = shared().migrated();
    let now = Timestamp::now();
    let first = change("tn_h", "e", now, json!({"color": "red"}));
    let second = AuditEvent {
        old_values: Some(json!({"color": "as told"})),
        ..change("tn_h", "e", now + 1.second(), json!({"color": "blue"}))
    };
    database.store().write(&records(&[first, second.clone()])).await.unwrap();
    assert_eq!(old_values(&database, &second), json!({"color": "as told"}));
}

/// Whatever the planner believes of the partitions, a history is read by its own index.
#[test]
fn a_history_is_found_by_key_among_many_events_of_its_tenant() {
    let database = shared().migrated();
    database.rows(
        "INSERT INTO audit_events (tenant_id, event_type, category, entity_type, entity_id, action, actor_type, new_values, in_history, \"timestamp\")
         SELECT 'tn_h', 'x', 'chat_activity', 'branding', 'e', 'create', 'system', '{\"color\": 1}', n % 5000 = 0, now() - n * interval '1 minute'
         FROM generate_series(1, 20000) n",
    );
    for analyze in ["", "ANALYZE audit_events;"] {
        let id = Uuid::now_v7();
        database.rows(analyze);
        let nothing = "ARRAY[NULL::text]";
        let seen = database.rows(&format!(
            "BEGIN;
             SELECT tollgate_write_audit('r', ARRAY['{id}'::uuid], ARRAY['tn_h'], ARRAY['x'], ARRAY['configuration_change'],
                 ARRAY['branding'], ARRAY['e'], ARRAY['update'], ARRAY['system'], {nothing}, {nothing}, ARRAY['{{\"color\": 2}}'],
                 {nothing}, ARRAY['success'], {nothing}, ARRAY[NULL::inet], {nothing}, {nothing}, ARRAY[now()], ARRAY[true]);
             SELECT sum(seq_tup_read) + sum(coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables WHERE relname LIKE 'audit_events%';
             ROLLBACK"
        ));
        assert_eq!(seen[0], ["1"], "written");
        let read: u64 = seen[1][0].parse().unwrap();
        assert!(read <= 20, "{analyze}: of 20,000 rows {read} were read for it");
    }
}
