//! The config: as typed (built-in default, file, environment) → as checked, with every fault reported at once.
//!
//! 1. A config is taken whole or not at all: [`Settings::load`] gives a checked one or the list of its faults.
//! 2. Each fault names the place (file and line, or variable), the key, and what to do.
//! 3. No secret is in a fault, a warning, [`Settings::masked`], a [`Change`] or the `Debug` output.
//! 4. Nothing here looks at the process or the clock: the environment is handed in, and only the config's own file and
//!    the key files that it names are read.
//!
//! The way of a value: `toml_text` and `variables` read what is typed, `layers` merges it, `reader` (with `amounts`) is
//! asked for each key by its type, `parts`, `tenants`, `routes`, `formats`, `prices` and `alerts` make each part's own
//! config of it, `checked` puts them together.

mod alerts;
mod amounts;
mod audit;
mod checked;
mod effective;
mod fault;
mod formats;
mod layers;
mod parts;
mod path;
mod prices;
mod reader;
mod routes;
mod tenants;
mod toml_text;
mod units;
mod variables;

pub use checked::Settings;
pub use effective::{Change, needs_restart};
pub use fault::{Fault, Faults};
pub use parts::OnOutage;
pub use prices::{DEFAULT as DEFAULT_PRICE, PriceOrigin};
pub use units::date_or_instant;
