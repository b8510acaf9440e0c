//! Room for answers that are read on after their clients left, and how such a drain ends.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// What bounds all drains together.
#[derive(Debug)]
pub struct Drains {
    pub(crate) room: Arc<Semaphore>,
}

impl Drains {
    /// Room for `most` at once.
    pub fn new(most: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))) }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// The answer came to its end: its count is exact.
    Whole,
    /// It took too long.
    TimeLimit,
    /// It was too much.
    ByteLimit,
    /// The tenant's quota was used up, on a route that cuts streams then.
    OverLimit,
    /// The upstream failed, or broke it off.
    Broken,
    /// The gateway stopped.
    Stopped,
    /// Too many others were being read.
    NoRoom,
}

impl Drained {
    /// As the row's metadata and the metrics spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Drained::Whole => "whole",
            Drained::TimeLimit => "time_limit",
            Drained::ByteLimit => "byte_limit",
            Drained::OverLimit => "over_limit",
            Drained::Broken => "broken",
            Drained::Stopped => "stopped",
            Drained::NoRoom => "no_room",
        }
    }
}
