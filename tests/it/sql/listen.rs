//! LISTEN: what is said is heard, in order, and a lost connection is made again and told.

use std::time::Duration;

use tollgate::store::{Heard, Listener};

use crate::harness::within;
use crate::postgres::{Server, shared, store};

async fn heard(listener: &mut Listener) -> Heard {
    within("something is heard", listener.heard()).await
}

fn said(channel: &str, payload: &str) -> Heard {
    Heard::Said { channel: channel.to_owned(), payload: payload.to_owned() }
}

#[tokio::test]
async fn one_connection_hears_all_channels_in_the_order_of_the_commits() {
    let db = shared().migrated();
    let mut listener = db.store().listen(&["tollgate_overrides", "tollgate_leases"]);
    assert_eq!(heard(&mut listener).await, Heard::Connected);
    let client = db.connect().await;
    for statement in [
        "NOTIFY tollgate_leases, 'one'",
        "NOTIFY somebody_else, 'x'",
        "BEGIN; NOTIFY tollgate_overrides, 'taken back'; ROLLBACK",
        "NOTIFY tollgate_overrides, 'two'",
        "NOTIFY tollgate_leases",
    ] {
        client.batch_execute(statement).await.unwrap();
    }
    let all = [heard(&mut listener).await, heard(&mut listener).await, heard(&mut listener).await];
    assert_eq!(
        all,
        [said("tollgate_leases", "one"), said("tollgate_overrides", "two"), said("tollgate_leases", "")]
    );
}

#[tokio::test]
async fn waiting_may_be_given_up_and_taken_up_again_without_a_loss() {
    let db = shared().migrated();
    let mut listener = db.store().listen(&["tollgate_overrides"]);
    let client = db.connect().await;
    let mut seen = Vec::new();
    // A wait that is dropped after the first poll, again and again, must still connect and hear.
    within("the connection and ten notifications", async {
        while seen.len() < 11 {
            tokio::select! {
                biased;
                heard = listener.heard() => {
                    if seen.len() < 10 {
                        client.batch_execute(&format!("NOTIFY tollgate_overrides, '{}'", seen.len())).await.unwrap();
                    }
                    seen.push(heard);
                }
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await;
    let numbers = (0..10).map(|n| said("tollgate_overrides", &n.to_string()));
    assert_eq!(seen, [Heard::Connected].into_iter().chain(numbers).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lost_connection_is_made_again_and_told() {
    let db = shared().migrated();
    let mut listener = db.store().listen(&["tollgate_overrides"]);
    assert_eq!(heard(&mut listener).await, Heard::Connected);
    let client = db.connect().await;
    let ended: bool = client
        .query_one(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND query LIKE 'LISTEN%'",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    assert!(ended);
    assert_eq!(heard(&mut listener).await, Heard::Connected);
    client.batch_execute("NOTIFY tollgate_overrides, 'after'").await.unwrap();
    assert_eq!(heard(&mut listener).await, said("tollgate_overrides", "after"));
}

#[tokio::test]
async fn a_server_that_is_away_at_first_is_listened_to_when_it_comes() {
    let server = Server::start();
    let db = server.database();
    let mut listener = store(&db.url(), Duration::from_secs(5)).listen(&["tollgate_overrides"]);
    server.stop();
    assert!(tokio::time::timeout(Duration::from_millis(300), listener.heard()).await.is_err());
    server.restart();
    assert_eq!(heard(&mut listener).await, Heard::Connected);
}
