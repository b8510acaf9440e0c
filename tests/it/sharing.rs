//! A small quota shared by replicas: all of it can be had, wherever its calls come in, and no more.

use crate::harness::{Upstream, answer, batch, batch_answer, gateway};
use crate::postgres::shared;

// A call reserves 150 tokens and uses 10: what one replica holds more than it needs, the others lack.
const PLAN: &str =
    "[plans.trial]\nchat_messages_per_day = 10\ntokens_per_day = 250\napi_calls_per_minute = \"unlimited\"\n";

#[tokio::test]
async fn of_a_small_quota_nothing_is_refused_while_another_replica_holds_a_part_of_it_unused() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(10))).await;
    let database = shared().migrated();
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(gateway(&upstream, &database).config(PLAN).start().await);
    }
    // Which replica gets each call: one after the other, changing over in the middle, one only at the end.
    let orders = ["0120120120", "0000011111", "0101010101", "0000000001", "0122222222", "2211001122"];
    for (number, order) in orders.into_iter().enumerate() {
        let tenant = format!("tn_{number}");
        for (at, replica) in order.bytes().enumerate() {
            let answer = replicas[usize::from(replica - b'0')].ask(batch(&tenant, 1)).await;
            assert_eq!(answer.status, 200, "call {at} of {order}: {}", answer.text());
        }
        for replica in &replicas {
            assert_eq!(replica.ask(batch(&tenant, 1)).await.status, 429, "all of {order} is used");
        }
    }
    for replica in replicas {
        replica.stop().await;
    }
    let most = "SELECT min(settled), max(settled) FROM quota_usage WHERE dimension = 'chat_messages_per_day'";
    assert_eq!(database.rows(most), [["10", "10"]]);
}
