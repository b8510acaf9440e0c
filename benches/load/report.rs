//! Medians over the rounds, and ratios to nginx within a round.

use std::fmt::Write as _;

/// A closed-loop run.
#[derive(Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Of the target, a request.
    pub(crate) cpu_us: Option<f64>,
}

/// A run with open streams.
#[derive(Clone, Copy)]
pub(crate) struct Streams {
    pub(crate) events_per_second: f64,
    /// Of the target, an event.
    pub(crate) cpu_us: f64,
    pub(crate) kb_per_stream: f64,
}

/// A target's runs.
pub(crate) struct Row<Run> {
    name: &'static str,
    runs: Vec<Run>,
}

pub(crate) type RequestRow = Row<Requests>;
pub(crate) type StreamRow = Row<Streams>;

impl<Run: Copy> Row<Run> {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, runs: Vec::new() }
    }

    pub(crate) fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of).collect())
    }

    fn ratio(&self, to: &Self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().zip(&to.runs).map(|(mine, other)| of(mine) / of(other)).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn requests(rows: &[RequestRow]) -> String {
    let nginx = rows.iter().find(|row| row.name == "nginx");
    let cpu = |run: &Requests| run.cpu_us.unwrap_or(f64::NAN);
    let header = ("target", "requests/s", "p50 ms", "p99 ms", "CPU us/request", "x nginx");
    let mut text = format!(
        "{:<10}{:>12}{:>9}{:>9}{:>16}{:>9}\n",
        header.0, header.1, header.2, header.3, header.4, header.5
    );
    for row in rows {
        let per_second = row.median(|run| run.per_second);
        let (p50, p99) = (row.median(|run| run.p50_ms), row.median(|run| run.p99_ms));
        let _ = write!(text, "{:<10}{per_second:>12.0}{p50:>9.2}{p99:>9.2}", row.name);
        match nginx.filter(|_| row.runs.iter().all(|run| run.cpu_us.is_some())) {
            Some(nginx) => {
                let _ = writeln!(text, "{:>16.1}{:>9.2}", row.median(cpu), row.ratio(nginx, cpu));
            }
            None => text.push_str(&format!("{:>16}{:>9}\n", "-", "-")),
        }
    }
    text
}

pub(crate) fn streams(rows: &[StreamRow]) -> String {
    let nginx = rows.iter().find(|row| row.name == "nginx");
    let header = ("target", "events/s", "CPU us/event", "x nginx", "KB/stream");
    let mut text =
        format!("{:<10}{:>12}{:>16}{:>9}{:>11}\n", header.0, header.1, header.2, header.3, header.4);
    for row in rows {
        let ratio = nginx.map_or(f64::NAN, |nginx| row.ratio(nginx, |run| run.cpu_us));
        // The first round's: later ones find the memory of earlier ones, which is resident already.
        let kb = row.runs.first().map_or(f64::NAN, |run| run.kb_per_stream);
        let (events, cpu) = (row.median(|run| run.events_per_second), row.median(|run| run.cpu_us));
        let _ = writeln!(text, "{:<10}{events:>12.0}{cpu:>16.1}{ratio:>9.2}{kb:>11.1}", row.name);
    }
    text
}
