//! What is noticed, and how often a delivery is tried.

use std::time::Duration;

use super::webhook::WebhookConfig;
use crate::model::window::Window;

/// Tries grow apart up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// `[alerts]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Alerting {
    /// How often each replica offers to look.
    pub interval: Duration,
    /// What counts as worth an alert.
    pub alertness: Alertness,
    /// Where alerts go; `None`: they are in the outbox and the audit trail only.
    pub webhook: Option<WebhookConfig>,
    /// Before a delivery that failed is tried a second time.
    pub retry_first: Duration,
    /// Tries of one delivery, in all.
    pub max_attempts: u32,
}

/// The thresholds.
#[derive(Clone, Debug, PartialEq)]
pub struct Alertness {
    /// Parts of a quota, in per cent.
    pub quota_thresholds: Vec<f64>,
    /// Of which windows' quotas.
    pub quota_windows: Vec<Window>,
    /// Of an hour's calls, the share that fails; 0 to 1.
    pub error_rate: f64,
    /// With fewer calls, an hour says nothing of errors and latency.
    pub min_calls: u64,
    /// Of an hour's calls, the time within which 99 of 100 are answered.
    pub p99: Duration,
    /// A day's cost, as a multiple of the average of the seven days before.
    pub cost_factor: f64,
    /// A day that costs no more, in US dollars, is no alert.
    pub min_cost_usd: f64,
}

impl Alerting {
    /// How long to wait after a try that failed, the `attempt`th; `None`: it was the last. `chance`, 0 to 1, spreads the
    /// waits over their later half, so that what failed together is not tried together again.
    pub fn pause_after(&self, attempt: u32, chance: f64) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let doubled = 2u32.saturating_pow(attempt.saturating_sub(1).min(30));
        let pause = self.retry_first.saturating_mul(doubled).min(LONGEST_PAUSE);
        Some(pause.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour_and_then_it_is_given_up() {
        let alerting = Alerting {
            interval: Duration::from_secs(30),
            alertness: Alertness {
                quota_thresholds: Vec::new(),
                quota_windows: Vec::new(),
                error_rate: 0.05,
                min_calls: 20,
                p99: Duration::from_secs(5),
                cost_factor: 2.0,
                min_cost_usd: 0.0,
            },
            webhook: None,
            retry_first: Duration::from_secs(2),
            max_attempts: 20,
        };
        let seconds =
            |attempt, chance| alerting.pause_after(attempt, chance).map(|pause| pause.as_secs_f64());
        assert_eq!([seconds(1, 1.0), seconds(2, 1.0), seconds(3, 1.0)], [Some(2.0), Some(4.0), Some(8.0)]);
        assert_eq!(
            [seconds(1, 0.0), seconds(19, 0.0), seconds(19, 1.0)],
            [Some(1.0), Some(1800.0), Some(3600.0)]
        );
        assert_eq!([seconds(20, 0.5), seconds(u32::MAX, 0.5)], [None, None]);
    }
}
