//! `tollgate reconcile`: a provider's invoice against what was recorded, by day and model.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::table::{columns, plain};
use crate::store::reconcile::{ModelDay, Recorded};
use invoice::{Invoice, Measure};

mod invoice;

pub(super) use invoice::InvoiceFaults;

/// Days that an invoice may span.
const MOST_DAYS: usize = 1100;

/// Invoices are in cents: what a day's model is off by less than one is rounding.
const CENT_NANOUSD: i128 = 10_000_000;

/// An invoice, and the days that it is about.
pub(super) struct Question {
    invoice: Invoice,
    zone: TimeZone,
    /// From the first day invoiced to the last one.
    days: Vec<Date>,
}

impl Question {
    /// Reads `file`; days are those of `zone`.
    pub(super) fn read(file: &Path, zone: TimeZone) -> anyhow::Result<Self> {
        let name = file.display().to_string();
        let content = File::open(file).with_context(|| format!("can't read {name}"))?;
        let invoice = invoice::read(content, &name, &zone)?;
        let invoiced = || invoice.billed.keys().map(|(day, _)| *day);
        let (Some(first), Some(last)) = (invoiced().min(), invoiced().max()) else {
            anyhow::bail!("{name} has no lines");
        };
        let days: Vec<Date> = first
            .series(jiff::Span::new().days(1))
            .take_while(|day| *day <= last)
            .take(MOST_DAYS + 1)
            .collect();
        if days.len() > MOST_DAYS {
            let why = format!(
                "{name}: its days are from {first} to {last}, more than {MOST_DAYS}: is a year mistyped?"
            );
            return Err(InvoiceFaults(vec![why]).into());
        }
        Ok(Self { invoice, zone, days })
    }

    /// The days as ranges of time. Usage is kept by the UTC hour, so days must begin with one.
    pub(super) fn ranges(&self) -> anyhow::Result<Vec<(Timestamp, Timestamp)>> {
        let start = |day: Date| anyhow::Ok(day.to_zoned_datetime(self.zone.clone())?.timestamp());
        self.days
            .iter()
            .map(|day| {
                let range = (start(*day)?, start(day.tomorrow()?)?);
                anyhow::ensure!(
                    range.0.as_second() % 3600 == 0 && range.1.as_second() % 3600 == 0,
                    "{day} does not begin on a full hour of UTC in this time zone, and usage is kept by the hour: \
                     compare in a zone that is whole hours from UTC"
                );
                Ok(range)
            })
            .collect()
    }

    /// What the two come to, with gaps of up to `tolerance` parts per million let pass.
    pub(super) fn compare(self, recorded: &Recorded, tolerance: Tolerance) -> anyhow::Result<Comparison> {
        let ranges = self.ranges()?;
        let mut found: BTreeMap<(Date, String), Line> = BTreeMap::new();
        let Invoice { measures, billed, lines } = self.invoice;
        for (key, amounts) in billed {
            found.entry(key).or_default().invoiced = Some(amounts);
        }
        for model in &recorded.models {
            if let Some(day) = self.days.get(model.day) {
                let line = found.entry((*day, model.model.clone())).or_default();
                line.recorded = Some(measures.iter().map(|measure| amount(model, *measure)).collect());
                line.estimated = model.estimated_tokens;
            }
        }
        let kept_from = recorded.complete_from;
        let partial: Vec<Date> = self
            .days
            .iter()
            .zip(&ranges)
            .filter(|(_, (start, _))| kept_from.is_some_and(|from| *start < from))
            .map(|(day, _)| *day)
            .collect();
        for ((day, _), line) in &mut found {
            line.status = line.judge(&measures, tolerance, partial.contains(day));
        }
        Ok(Comparison { measures, lines, found, tolerance, kept_from, zone: self.zone })
    }
}

fn amount(model: &ModelDay, measure: Measure) -> i128 {
    match measure {
        Measure::Tokens => model.tokens,
        Measure::Input => model.input_tokens,
        Measure::Output => model.output_tokens,
        Measure::Cost => model.cost_nanousd,
    }
}

/// How large a gap may be, in parts per million of the larger side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tolerance(u32);

impl std::str::FromStr for Tolerance {
    type Err = String;

    /// Per cent: `1`, `0.5%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').unwrap_or(text).trim_end().parse::<f64>();
        match number {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self((percent * 10_000.0).round() as u32)),
            _ => Err("must be per cent from 0 to 100, such as 0.5%".to_owned()),
        }
    }
}

impl Tolerance {
    fn allows(self, measure: Measure, invoiced: i128, recorded: i128) -> bool {
        let gap = invoiced.abs_diff(recorded);
        let larger = invoiced.unsigned_abs().max(recorded.unsigned_abs());
        let cents = measure == Measure::Cost && gap < CENT_NANOUSD.unsigned_abs();
        cents || gap.saturating_mul(1_000_000) <= larger.saturating_mul(u128::from(self.0))
    }

    fn percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Status {
    #[default]
    Within,
    Gap,
    NotRecorded,
    NotInvoiced,
    NotKept,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::Within => "ok",
            Status::Gap => "gap",
            Status::NotRecorded => "not recorded",
            Status::NotInvoiced => "not invoiced",
            Status::NotKept => "not kept",
        }
    }
}

/// A model on a day.
#[derive(Debug, Default)]
struct Line {
    invoiced: Option<Vec<i128>>,
    recorded: Option<Vec<i128>>,
    estimated: i128,
    status: Status,
}

impl Line {
    fn judge(&self, measures: &[Measure], tolerance: Tolerance, partial: bool) -> Status {
        let pairs = measures.iter().enumerate().map(|(at, measure)| (*measure, self.pair(at)));
        let within = |(measure, (invoiced, recorded))| tolerance.allows(measure, invoiced, recorded);
        match (&self.invoiced, &self.recorded) {
            _ if partial => Status::NotKept,
            _ if pairs.into_iter().all(within) => Status::Within,
            (Some(_), None) => Status::NotRecorded,
            (None, _) => Status::NotInvoiced,
            (Some(_), Some(_)) => Status::Gap,
        }
    }

    fn pair(&self, at: usize) -> (i128, i128) {
        let of = |side: &Option<Vec<i128>>| side.as_ref().and_then(|side| side.get(at)).copied().unwrap_or(0);
        (of(&self.invoiced), of(&self.recorded))
    }
}

/// An invoice and what was recorded, side by side.
pub(super) struct Comparison {
    measures: Vec<Measure>,
    lines: u64,
    found: BTreeMap<(Date, String), Line>,
    tolerance: Tolerance,
    kept_from: Option<Timestamp>,
    zone: TimeZone,
}

impl Comparison {
    /// How many days of models differ by more than the tolerance, and how many can't be compared.
    pub(super) fn open(&self) -> (usize, usize) {
        let not_kept = self.with(Status::NotKept);
        (self.found.len() - self.with(Status::Within) - not_kept, not_kept)
    }

    fn with(&self, status: Status) -> usize {
        self.found.values().filter(|line| line.status == status).count()
    }

    /// Both sides' sums over what can be compared, for each measure.
    fn totals(&self) -> Vec<(i128, i128)> {
        let compared = || self.found.values().filter(|line| line.status != Status::NotKept);
        let add = |(a, b): (i128, i128), (c, d): (i128, i128)| (a.saturating_add(c), b.saturating_add(d));
        (0..self.measures.len()).map(|at| compared().map(|line| line.pair(at)).fold((0, 0), add)).collect()
    }

    /// For people or (`json`) programs.
    pub(super) fn told(&self, json: bool) -> String {
        if json { format!("{:#}\n", self.json()) } else { self.text() }
    }

    fn text(&self) -> String {
        let mut head = vec!["DAY".to_owned(), "MODEL".to_owned()];
        for measure in &self.measures {
            let name = label(*measure);
            head.extend([
                format!("{name} INVOICED"),
                "RECORDED".to_owned(),
                "GAP".to_owned(),
                "%".to_owned(),
            ]);
        }
        head.push("STATUS".to_owned());
        let mut rows = vec![head];
        for ((day, model), line) in &self.found {
            let name = if model.is_empty() { "(none)".to_owned() } else { plain(model) };
            let pairs = (0..self.measures.len()).map(|at| line.pair(at));
            rows.push(self.row([day.to_string(), name], pairs, line.status.as_str()));
        }
        rows.push(self.row(["total".to_owned(), "-".to_owned()], self.totals().into_iter(), "-"));
        let (gaps, not_kept) = self.open();
        let mut text = columns(&rows);
        text.push_str(&format!(
            "\n{} lines, {} days of models (a day is one of {}): {gaps} differ by more than {} %\n",
            self.lines,
            self.found.len(),
            self.zone.iana_name().unwrap_or("UTC"),
            self.tolerance.percent()
        ));
        if let (Some(from), true) = (self.kept_from, not_kept > 0) {
            text.push_str(&format!(
                "{not_kept} can't be compared, and are not in the total: events are kept for 30 days, and those before \
                 {from} were gone when usage by model began to be kept\n"
            ));
        }
        text
    }

    fn row(
        &self,
        front: [String; 2],
        pairs: impl Iterator<Item = (i128, i128)>,
        status: &str,
    ) -> Vec<String> {
        let mut row = front.to_vec();
        for (measure, (invoiced, recorded)) in self.measures.iter().zip(pairs) {
            let gap = invoiced.saturating_sub(recorded);
            row.extend([invoiced, recorded, gap].map(|amount| printed(*measure, amount)));
            let larger = invoiced.unsigned_abs().max(recorded.unsigned_abs());
            let percent = if larger == 0 { 0.0 } else { gap as f64 * 100.0 / larger as f64 };
            row.push(format!("{percent:.2}"));
        }
        row.push(status.to_owned());
        row
    }

    fn json(&self) -> Value {
        let (gaps, not_kept) = self.open();
        let days: Vec<Value> = self
            .found
            .iter()
            .map(|((day, model), line)| {
                let pairs = (0..self.measures.len()).map(|at| line.pair(at));
                let mut whole = self.sides(pairs);
                whole.insert("day".into(), json!(day.to_string()));
                whole.insert("model".into(), json!(model));
                whole.insert("status".into(), json!(line.status.as_str()));
                whole.insert("estimated_tokens".into(), amount_json(Measure::Tokens, line.estimated));
                Value::Object(whole)
            })
            .collect();
        json!({
            "time_zone": self.zone.iana_name().unwrap_or("UTC"),
            "tolerance_percent": self.tolerance.percent(),
            "lines": self.lines,
            "days": days,
            "total": self.sides(self.totals().into_iter()),
            "gaps": gaps,
            "not_compared": not_kept,
            "kept_from": self.kept_from.map(|at| at.to_string()),
        })
    }

    fn sides(&self, pairs: impl Iterator<Item = (i128, i128)>) -> Map<String, Value> {
        let side = |(measure, (invoiced, recorded)): (&Measure, (i128, i128))| {
            let of = |amount| amount_json(*measure, amount);
            let gap = invoiced.saturating_sub(recorded);
            (
                key(*measure).to_owned(),
                json!({"invoiced": of(invoiced), "recorded": of(recorded), "gap": of(gap)}),
            )
        };
        self.measures.iter().zip(pairs).map(side).collect()
    }
}

fn label(measure: Measure) -> &'static str {
    match measure {
        Measure::Tokens => "TOKENS",
        Measure::Input => "INPUT",
        Measure::Output => "OUTPUT",
        Measure::Cost => "USD",
    }
}

fn key(measure: Measure) -> &'static str {
    match measure {
        Measure::Tokens => "tokens",
        Measure::Input => "input_tokens",
        Measure::Output => "output_tokens",
        Measure::Cost => "cost_usd",
    }
}

fn printed(measure: Measure, amount: i128) -> String {
    match measure {
        // Hundredths of a cent, rounded half away from zero.
        Measure::Cost => {
            let units = (amount.unsigned_abs() + 50_000) / 100_000;
            let sign = if amount < 0 && units > 0 { "-" } else { "" };
            format!("{sign}{}.{:04}", units / 10_000, units % 10_000)
        }
        _ => amount.to_string(),
    }
}

fn amount_json(measure: Measure, amount: i128) -> Value {
    match (measure, i64::try_from(amount)) {
        (Measure::Cost, _) => json!(amount as f64 / 1e9),
        (_, Ok(amount)) => json!(amount),
        (_, Err(_)) => json!(amount as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tolerance_is_of_the_larger_side_and_cents_are_rounding() {
        let one: Tolerance = "1%".parse().unwrap();
        let tokens = |a, b| one.allows(Measure::Tokens, a, b);
        assert!(tokens(100, 99) && tokens(99, 100) && !tokens(100, 98) && !tokens(0, 1) && tokens(0, 0));
        let none: Tolerance = "0".parse().unwrap();
        assert!(
            none.allows(Measure::Cost, 0, CENT_NANOUSD - 1) && !none.allows(Measure::Cost, 0, CENT_NANOUSD)
        );
        assert!(["-1", "101", "x", "NaN", ""].iter().all(|text| text.parse::<Tolerance>().is_err()));
    }

    #[test]
    fn dollars_are_printed_to_the_hundredth_of_a_cent() {
        let of = |nano| printed(Measure::Cost, nano);
        assert_eq!([of(1_234_550_000), of(-49_999), of(-50_000)], ["1.2346", "0.0000", "-0.0001"]);
    }
}
