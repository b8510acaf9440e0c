//! TLS to the database: what each `sslmode` asks of the server's certificate.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tollgate::store::Store;

use crate::postgres::{Server, store};

fn openssl(directory: &Path, arguments: &str) {
    let output =
        Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output().expect("openssl");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A server with a certificate for `localhost` by an authority of its own; the authority's file.
fn server_with_tls(directory: &Path) -> Server {
    openssl(
        directory,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt",
    );
    openssl(
        directory,
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
    );
    std::fs::write(directory.join("ext"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
        .unwrap();
    openssl(
        directory,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.crt",
    );
    let server = Server::start();
    for file in ["server.crt", "server.key"] {
        server.put(file, &std::fs::read(directory.join(file)).unwrap());
    }
    server.put("postgresql.auto.conf", b"ssl = on\n");
    server.stop();
    server.restart();
    server
}

async fn encrypted(store: &Store) -> Result<bool, String> {
    let client = store.client().await.map_err(|error| error.to_string())?;
    let row =
        client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
    Ok(row.get(0))
}

#[tokio::test]
async fn each_sslmode_asks_what_it_asks_of_libpq() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_with_tls(directory.path());
    let ca = directory.path().join("ca.crt").display().to_string();
    openssl(
        directory.path(),
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=other -keyout other.key -out other.crt",
    );
    let other = directory.path().join("other.crt").display().to_string();
    let connect = async |host: &str, options: &str| {
        let url =
            format!("postgres://postgres@{host}:{}/postgres?hostaddr=127.0.0.1&{options}", server.port());
        encrypted(&store(&url, Duration::from_secs(5))).await
    };

    assert_eq!(connect("localhost", "sslmode=disable").await, Ok(false));
    assert_eq!(connect("localhost", "").await, Ok(true), "prefer is the default");
    assert_eq!(connect("elsewhere.example", "sslmode=require").await, Ok(true), "require does not verify");
    assert_eq!(connect("localhost", &format!("sslmode=verify-full&sslrootcert={ca}")).await, Ok(true));
    assert_eq!(connect("elsewhere.example", &format!("sslmode=verify-ca&sslrootcert={ca}")).await, Ok(true));

    let error =
        connect("elsewhere.example", &format!("sslmode=verify-full&sslrootcert={ca}")).await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    for mode in ["verify-full", "verify-ca", "require"] {
        let error = connect("localhost", &format!("sslmode={mode}&sslrootcert={other}")).await.unwrap_err();
        assert!(error.contains("certificate"), "{mode}: {error}");
    }
    let error = connect("localhost", "sslmode=verify-full").await.unwrap_err();
    assert!(error.contains("certificate"), "the machine's own roots don't know it: {error}");
}

#[tokio::test]
async fn require_is_not_content_with_a_server_without_tls() {
    let url = crate::postgres::shared().url("postgres", "postgres");
    let error =
        encrypted(&store(&format!("{url}?sslmode=require"), Duration::from_secs(5))).await.unwrap_err();
    assert!(error.contains("does not support TLS"), "{error}");
}
