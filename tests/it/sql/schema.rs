//! The migrations, by psql and by the gateway.

use std::path::Path;

use tollgate::store::{SCHEMA_VERSION, SchemaState};

use crate::postgres::{migrations, shared};

fn rollback() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/rollback.sql")
}

const OURS: &str = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
const FUNCTIONS: &str = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace";

#[test]
fn psql_can_run_every_migration_twice_and_take_all_away() {
    let database = shared().database();
    for _ in 0..2 {
        for file in migrations() {
            database.file(&file);
            database.file(&file);
        }
    }
    assert_eq!(database.one("SELECT max(version) FROM tollgate_schema"), SCHEMA_VERSION.to_string());
    database.file(&rollback());
    database.file(&rollback());
    assert_eq!((database.one(OURS).as_str(), database.one(FUNCTIONS).as_str()), ("0", "0"));
}

#[test]
fn the_services_own_tables_are_neither_needed_nor_touched() {
    let database = shared().database();
    database.rows(
        "CREATE TABLE tenants (tenant_id TEXT PRIMARY KEY); CREATE TABLE chat_sessions (session_id UUID)",
    );
    for file in migrations() {
        database.file(&file);
    }
    database.file(&rollback());
    assert_eq!(database.one("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "2");
    for file in migrations() {
        database.file(&file);
    }
}

#[tokio::test]
async fn functions_of_an_earlier_attempt_give_way() {
    let database = shared().database();
    database.rows("CREATE FUNCTION aggregate_usage_metrics() RETURNS void LANGUAGE sql AS 'SELECT'");
    database.store().migrate().await.unwrap();
    assert_eq!(database.store().aggregate().await.unwrap().hourly, 0);
}

#[tokio::test]
async fn a_table_of_the_same_name_that_is_not_ours_is_reported_and_kept() {
    let database = shared().database();
    database.rows("CREATE TABLE audit_events (id INT); INSERT INTO audit_events VALUES (7)");
    let error = database.store().migrate().await.unwrap_err().to_string();
    assert!(error.contains("audit_events") && error.contains("RENAME"), "{error}");
    assert_eq!(database.one("SELECT id FROM audit_events"), "7");
}

#[tokio::test]
async fn the_gateway_says_what_schema_it_finds_and_brings_it_up() {
    let database = shared().database();
    let store = database.store();
    assert_eq!(store.schema_state().await.unwrap(), SchemaState::Missing);

    let first = store.migrate().await.unwrap();
    assert_eq!((first.from, first.applied.len()), (SchemaState::Missing, migrations().len()));
    assert_eq!(store.schema_state().await.unwrap(), SchemaState::Current);
    assert!(store.migrate().await.unwrap().applied.is_empty());

    database.rows(&format!("DELETE FROM tollgate_schema WHERE version = {SCHEMA_VERSION}"));
    let before = database.one("SELECT max(version) FROM tollgate_schema").parse().unwrap();
    assert_eq!(store.schema_state().await.unwrap(), SchemaState::Older(before));
    assert_eq!(store.migrate().await.unwrap().applied.len(), 1);

    database.rows("INSERT INTO tollgate_schema VALUES (99, 'tomorrow')");
    assert_eq!(store.schema_state().await.unwrap(), SchemaState::Newer(99));
    assert!(store.migrate().await.unwrap().applied.is_empty());

    store.migrate_down().await.unwrap();
    store.migrate_down().await.unwrap();
    assert_eq!(store.schema_state().await.unwrap(), SchemaState::Missing);
}

#[tokio::test]
async fn replicas_that_migrate_at_once_wait_for_each_other() {
    let database = shared().database();
    let stores: Vec<_> = (0..4).map(|_| database.store()).collect();
    let runs = futures_util::future::join_all(stores.iter().map(|store| store.migrate())).await;
    for run in runs {
        run.unwrap();
    }
    assert_eq!(database.store().schema_state().await.unwrap(), SchemaState::Current);
}
