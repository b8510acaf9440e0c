//! What can be wrong with a config, and how it is told.

use std::fmt;

/// How faults name the default that is compiled in.
pub(super) const BUILT_IN: &str = "built-in default";

/// Everything that is wrong with a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file with its line, or the environment variable, or `built-in default`.
    pub origin: String,
    /// The key, dotted.
    pub key: String,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if !self.key.is_empty() && self.key != self.origin {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

impl Faults {
    /// In the order in which a reader of the file meets them.
    pub(super) fn sort(&mut self) {
        self.0.sort_by(|a, b| order(a).cmp(&order(b)));
        self.0.dedup();
    }
}

fn order(fault: &Fault) -> (&str, u32, &str) {
    let (place, line) = match fault.origin.rsplit_once(':') {
        Some((place, line)) => line.parse().map_or((fault.origin.as_str(), 0), |line| (place, line)),
        None => (fault.origin.as_str(), 0),
    };
    (place, line, &fault.key)
}
