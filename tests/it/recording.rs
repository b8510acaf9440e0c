//! The journal from outside: what is recorded, what comes back, what is shipped, and what every fault does to it.

#[path = "recording/command.rs"]
mod command;
#[path = "recording/faults.rs"]
mod faults;
#[path = "recording/faulty.rs"]
mod faulty;
#[path = "recording/fixture.rs"]
mod fixture;
#[path = "recording/intents.rs"]
mod intents;
#[path = "recording/model.rs"]
mod model;
#[path = "recording/shipping.rs"]
mod shipping;
#[path = "recording/writing.rs"]
mod writing;
