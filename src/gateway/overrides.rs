//! Follows what operators set, on whichever replica: at once when it is told, and within a second in any case.
//!
//! A notification can be lost (a connection that broke, a pooler that hands connections around), so the latest version is
//! asked for every second too: one statement on the end of an index, whatever the number of tenants.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::health::Live;
use super::notices::Subscriber;
use crate::proxy::Core;
use crate::store::{Heard, Store, StoreError, overrides};

/// Between two looks at the latest version.
const INTERVAL: Duration = Duration::from_secs(1);

/// How closely to look; the later ones do what the earlier ones do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    None,
    /// Whether there is something new.
    Glance,
    /// What is new.
    Changes,
    /// Everything.
    All,
}

impl Look {
    fn after(heard: &Heard) -> Self {
        match heard {
            Heard::Connected => Look::All,
            Heard::Said { channel, .. } if channel == overrides::CHANNEL => Look::Changes,
            Heard::Said { .. } => Look::None,
        }
    }
}

/// Reads all overrides.
pub(super) async fn read_all(store: &Store, core: &Core) -> Result<(), StoreError> {
    let (all, upto) = overrides::all(store).await?;
    core.overrides.replace(&all, upto);
    all.iter().for_each(|change| core.enforcer.limits_changed(&change.tenant));
    shown(core);
    Ok(())
}

/// Follows changes until `stop`.
pub(super) async fn follow(
    store: Store,
    core: Arc<Core>,
    live: Arc<Live>,
    mut notices: Subscriber,
    stop: CancellationToken,
) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let following = async {
        // Until then all is read by whoever reaches the database first.
        live.hydrated().await;
        // A look that failed is made up for by the next tick, as a whole.
        let mut behind = false;
        loop {
            let due = tokio::select! {
                first = notices.heard() => {
                    // What waits already is answered by the same look, which comes after it.
                    let heard = std::iter::once(first).chain(std::iter::from_fn(|| notices.waiting()));
                    heard.map(|heard| Look::after(&heard)).fold(Look::None, Look::max)
                }
                _ = ticks.tick() => match live.database().up {
                    true if behind => Look::All,
                    true => Look::Glance,
                    false => Look::None,
                }
            };
            let look = match due {
                Look::None => continue,
                Look::Glance => glance(&store, &core).await,
                Look::Changes => catch_up(&store, &core).await,
                Look::All => read_all(&store, &core).await,
            };
            behind = look.is_err();
            if let Err(error) = look {
                // Whoever watches over the database says that it is away.
                tracing::debug!(%error, "overrides can't be read; those that are known hold");
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = stop.cancelled() => {}
    }
}

/// Asks whether there is something new, and reads it.
async fn glance(store: &Store, core: &Core) -> Result<(), StoreError> {
    let known = core.overrides.upto();
    match overrides::latest(store).await? {
        latest if latest == known => Ok(()),
        latest if latest > known => catch_up(store, core).await,
        latest => {
            tracing::warn!(
                known,
                latest,
                "the database's overrides are older than those read before; they hold now"
            );
            read_all(store, core).await
        }
    }
}

async fn catch_up(store: &Store, core: &Core) -> Result<(), StoreError> {
    let (changes, upto) = overrides::since(store, core.overrides.upto()).await?;
    core.overrides.catch_up(&changes, upto);
    changes.iter().for_each(|change| core.enforcer.limits_changed(&change.tenant));
    shown(core);
    Ok(())
}

fn shown(core: &Core) {
    core.metrics.overridden.set(i64::try_from(core.overrides.tenants()).unwrap_or(i64::MAX));
}
