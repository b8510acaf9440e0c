//! Values of config that are amounts: numbers, durations, sizes, limits, dollars, each within its bounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use config::ValueKind;

use super::reader::Slot;
use super::units;
use crate::model::quota::nanousd;

impl Slot<'_> {
    /// A duration within bounds.
    pub(super) fn duration(&self, bounds: RangeInclusive<Duration>) -> Option<Duration> {
        let wanted = "a string with a number and a unit, such as \"30s\"";
        self.parse(wanted, |text| {
            let duration = units::duration(text)?;
            let (least, most) = (units::show_duration(*bounds.start()), units::show_duration(*bounds.end()));
            within(&bounds, duration, || format!("{text:?} must be between {least} and {most}"))
        })
    }

    /// A size in bytes within bounds.
    pub(super) fn size(&self, bounds: RangeInclusive<u64>) -> Option<u64> {
        let wanted = "a string with a number and a unit, such as \"64KiB\"";
        self.parse(wanted, |text| {
            let (least, most) = (units::show_size(*bounds.start()), units::show_size(*bounds.end()));
            within(&bounds, units::size(text)?, || format!("{text:?} must be between {least} and {most}"))
        })
    }

    /// A size that memory must hold.
    pub(super) fn memory(&self, bounds: RangeInclusive<u64>) -> Option<usize> {
        self.size(bounds).and_then(|bytes| usize::try_from(bytes).ok())
    }

    /// A whole number within bounds.
    pub(super) fn integer(&self, bounds: RangeInclusive<u64>) -> Option<u64> {
        let value = self.present()?;
        let number = match &value.kind {
            ValueKind::I64(number) => i128::from(*number),
            ValueKind::String(text) if self.textual() => match text.trim().parse() {
                Ok(number) => number,
                Err(_) => {
                    self.fault(format!("{text:?} is no whole number"));
                    return None;
                }
            },
            ValueKind::String(text) if text.parse::<i64>().is_ok() => {
                self.fault(format!("must be a whole number, not a string: write {text} without quotes"));
                return None;
            }
            _ => {
                self.wrong_type(value, "a whole number");
                return None;
            }
        };
        self.leaf(value);
        let (least, most) = (*bounds.start(), *bounds.end());
        match u64::try_from(number).ok().filter(|number| bounds.contains(number)) {
            Some(number) => Some(number),
            None if most >= i64::MAX as u64 => {
                self.fault(format!("{number} is too small: it must be {least} or more"));
                None
            }
            None => {
                self.fault(format!("{number} must be between {least} and {most}"));
                None
            }
        }
    }

    /// A count of things within bounds.
    pub(super) fn count(&self, bounds: RangeInclusive<u64>) -> Option<usize> {
        self.integer(bounds).and_then(|count| usize::try_from(count).ok())
    }

    /// A quota's limit: a whole number, or `"unlimited"`.
    pub(super) fn limit(&self) -> Option<Option<u64>> {
        let value = self.present()?;
        match &value.kind {
            ValueKind::String(text) if text == "unlimited" => {
                self.leaf(value);
                Some(None)
            }
            ValueKind::String(text) if !self.textual() || text.trim().parse::<i64>().is_err() => {
                self.fault(format!(
                    "{text:?} is no limit: write a whole number without quotes, or \"unlimited\""
                ));
                None
            }
            ValueKind::I64(number) if *number < 0 => {
                self.fault(format!("{number} is no limit: write 0 or more, or \"unlimited\""));
                None
            }
            _ => self.integer(0..=i64::MAX as u64).map(Some),
        }
    }

    /// A limit of cost: US dollars, in nano-dollars, or unlimited.
    pub(super) fn limit_usd(&self) -> Option<Option<u64>> {
        let value = self.present()?;
        if matches!(&value.kind, ValueKind::String(text) if text == "unlimited") {
            self.leaf(value);
            return Some(None);
        }
        self.money("limit").and_then(nanousd).map(Some)
    }

    /// A number of US dollars, 0 or more.
    pub(super) fn dollars(&self) -> Option<f64> {
        self.money("price")
    }

    fn money(&self, what: &str) -> Option<f64> {
        let number = self.float("a number of US dollars")?;
        if (0.0..=1e9).contains(&number) {
            return Some(number);
        }
        self.fault(format!("{number} is no {what}: write US dollars, 0 or more"));
        None
    }

    /// A number within bounds, with a fraction or without.
    pub(super) fn number(&self, bounds: RangeInclusive<f64>) -> Option<f64> {
        let number = self.float("a number")?;
        let (least, most) = (bounds.start(), bounds.end());
        let reason = || format!("{number} must be between {least} and {most}");
        within(&bounds, number, reason).map_err(|reason| self.fault(reason)).ok()
    }

    fn float(&self, wanted: &str) -> Option<f64> {
        let value = self.present()?;
        let number = match &value.kind {
            ValueKind::I64(number) => *number as f64,
            ValueKind::Float(number) => *number,
            ValueKind::String(text) if self.textual() => text.trim().parse().unwrap_or(f64::NAN),
            ValueKind::String(text) if text.parse::<f64>().is_ok() => {
                self.fault(format!("must be a number, not a string: write {text} without quotes"));
                return None;
            }
            _ => {
                self.wrong_type(value, wanted);
                return None;
            }
        };
        self.leaf(value);
        Some(number)
    }
}

fn within<T: PartialOrd>(
    bounds: &RangeInclusive<T>,
    value: T,
    reason: impl FnOnce() -> String,
) -> Result<T, String> {
    if bounds.contains(&value) { Ok(value) } else { Err(reason()) }
}
