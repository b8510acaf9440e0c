//! What Tollgate keeps on disk names tenants, sessions and addresses: nobody else on the machine may read it.

use std::fs::{Permissions, metadata, read_dir, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::harness::{Upstream, answer, batch_answer, chat, gateway, gateway_to};
use crate::postgres::shared;

/// Everything in a folder that others than its owner may do something with.
fn open_to_others(folder: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let meta = metadata(&entry).unwrap();
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            found.push((entry.clone(), mode));
        }
        if meta.is_dir() {
            found.extend(open_to_others(&entry));
        }
    }
    // The test's own.
    found.retain(|(path, _)| !path.ends_with("tollgate.toml"));
    found
}

#[tokio::test]
async fn files_and_folders_of_the_data_directory_are_its_owners_alone() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let database = shared().database();
    let running = gateway(&upstream, &database).start().await;
    assert_eq!(running.ask(chat("tn_disk", "hi")).await.status, 200);
    let data = running.stop().await;
    assert_eq!(open_to_others(data.path()), []);

    let journal = data.path().join("journal");
    set_permissions(&journal, Permissions::from_mode(0o755)).unwrap();
    for file in read_dir(&journal).unwrap() {
        set_permissions(file.unwrap().path(), Permissions::from_mode(0o644)).unwrap();
    }
    let running = gateway(&upstream, &database).data(data).start().await;
    assert_eq!(running.ask(chat("tn_disk", "hi")).await.status, 200);
    let data = running.stop().await;
    assert_eq!(open_to_others(data.path()), [], "what an earlier release left open is closed");
}

#[tokio::test]
async fn so_are_those_of_the_private_postgres() {
    let upstream = Upstream::answering(|_| answer(200).json(&batch_answer(7))).await;
    let home = tempfile::tempdir_in("/tmp").unwrap();
    set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
    let running = gateway_to(&upstream.url(), "").private_database().data(home).start().await;
    assert_eq!(running.ask(chat("tn_disk", "hi")).await.status, 200);
    let data = running.stop().await;
    assert_eq!(open_to_others(data.path()), []);
}
