//! The routes around the chat: what they leave in the tables, and that they stay transparent.

mod codings;
mod interim;
mod models;
mod rules;
mod shipped;
mod spellings;
mod transparency;
mod uploads;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::harness::{TestGateway, Upstream, gateway};
use crate::postgres::Database;

const SECRET: &str = "a-secret-of-the-tests-of-32-bytes";

/// The shipped sources of tenants, but for the session, which needs the service's database.
const SOURCES: &str = "[{ jwt = { claim = \"tenantId\", secret_env = \"JWT_SECRET\" } }]";

/// A gateway with the shipped routes, and more config.
async fn shipped(upstream: &Upstream, database: &Database<'_>, config: &str) -> TestGateway {
    gateway(upstream, database).sources(SOURCES).config(config).env("JWT_SECRET", SECRET).start().await
}

/// The service's own token for a tenant, and somebody of it.
fn token(tenant: &str, subject: Option<&str>) -> String {
    let mut claims = json!({"tenantId": tenant, "exp": jiff::Timestamp::now().as_second() + 3600});
    if let Some(subject) = subject {
        claims["sub"] = json!(subject);
    }
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

/// All rows of a table, as JSON, in their order.
async fn table(database: &Database<'_>, table: &str, order: &str) -> Vec<Value> {
    let query = format!("SELECT to_jsonb(t) FROM {table} t ORDER BY {order}");
    database.connect().await.query(&query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn usage(database: &Database<'_>) -> Vec<Value> {
    table(database, "tenant_usage_realtime", "event_timestamp, event_id").await
}

async fn audits(database: &Database<'_>) -> Vec<Value> {
    table(database, "audit_events", "timestamp, event_id").await
}

/// `row` restricted to what is expected of it.
fn of_it(row: &Value, expected: &Value) -> Value {
    expected
        .as_object()
        .unwrap()
        .keys()
        .map(|key| (key.clone(), row[key].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
