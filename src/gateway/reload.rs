//! Reload: on SIGHUP and when the config file changes. A valid config is swapped in whole and audited; an invalid
//! one is kept out, logged and counted, and the gateway goes on with what it has.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::policy;
use crate::model::event::{AuditEvent, Record};
use crate::proxy::Core;
use crate::settings::{Change, Settings};
use crate::telemetry::bump;

/// Editors write a file in several steps: what they leave is read once they have been quiet for so long.
const QUIET: Duration = Duration::from_millis(200);

/// Waits for reasons to reload, until `stop`.
pub(super) async fn watch(mut settings: Settings, core: Arc<Core>, stop: CancellationToken) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        tracing::warn!("SIGHUP can't be listened for: the config is read at the start only");
        return;
    };
    let (touched, mut touches) = mpsc::channel(1);
    let _watcher = settings.file.as_deref().and_then(|file| watch_file(file, touched.clone()));
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            Some(()) = touches.recv() => {
                tokio::time::sleep(QUIET).await;
                let _ = touches.try_recv();
            }
            () = stop.cancelled() => return,
        }
        if let Some(fresh) = reload(&settings, &core) {
            settings = fresh;
        }
    }
}

/// The directory is watched, not the file: editors and orchestrators replace it by a new one.
fn watch_file(file: &Path, touched: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let name = file.file_name()?.to_owned();
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let concerns = move |event: &notify::Event| {
        // Mounted config maps change by a symbolic link beside the file.
        let links = event
            .paths
            .iter()
            .any(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("..")));
        !event.kind.is_access() && (links || event.paths.iter().any(|path| path.file_name() == Some(&name)))
    };
    let handler = move |event: notify::Result<notify::Event>| {
        if event.as_ref().is_ok_and(&concerns) {
            let _ = touched.try_send(());
        }
    };
    let watching = notify::recommended_watcher(handler)
        .and_then(|mut watcher| watcher.watch(&dir, RecursiveMode::NonRecursive).map(|()| watcher));
    match watching {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "the config file can't be watched: send SIGHUP to have it read again");
            None
        }
    }
}

fn reload(old: &Settings, core: &Core) -> Option<Settings> {
    let refused = |why: String| {
        bump(&core.metrics.reloads, "result", "refused");
        tracing::error!(why, "the config was not reloaded; the former one stays in force");
        None
    };
    let fresh = match old.reload() {
        Ok(fresh) => fresh,
        Err(faults) => return refused(faults.to_string()),
    };
    let changes = fresh.changes_from(old);
    if changes.is_empty() {
        return None;
    }
    let policy = match policy::of(&fresh, &core.overrides, &core.metrics) {
        Ok(policy) => policy,
        Err(error) => return refused(error.to_string()),
    };
    core.policy.store(Arc::new(policy));
    bump(&core.metrics.reloads, "result", "ok");
    for change in changes.iter().filter(|change| change.needs_restart) {
        tracing::warn!(key = change.key, "this change takes hold at the next start only");
    }
    tracing::info!(changes = changes.len(), "the config was reloaded");
    drop(core.recorder.record([Record::Audit(Box::new(audit(&changes)))].into_iter().collect()));
    Some(fresh)
}

fn audit(changes: &[Change]) -> AuditEvent {
    let values = |pick: fn(&Change) -> &Option<String>| -> Value {
        let pairs = changes.iter().map(|change| (change.key.clone(), json!(pick(change))));
        Value::Object(pairs.collect::<Map<_, _>>())
    };
    let (id, now) = (Uuid::now_v7(), jiff::Timestamp::now());
    AuditEvent {
        entity_type: "config".into(),
        old_values: Some(values(|change| &change.old)),
        new_values: Some(values(|change| &change.new)),
        summary: Some(format!("{} keys changed", changes.len())),
        ..AuditEvent::new(id, now, "config_reloaded", "configuration_change", "update")
    }
}
