//! A provider's invoice as a CSV file: a header, then lines of a day, a model, and tokens or cost.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use csv::{ReaderBuilder, StringRecord, Trim};
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// Faults that are told one by one.
const MOST_FAULTS: usize = 50;

/// What can be compared, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    /// All tokens.
    Tokens,
    /// Input tokens.
    Input,
    /// Output tokens.
    Output,
    /// Cost, in nano-dollars.
    Cost,
}

/// The columns that are read, by any of their names.
const MEASURES: [(Measure, &[&str]); 4] = [
    (Measure::Tokens, &["tokens", "total_tokens"]),
    (Measure::Input, &["input_tokens", "prompt_tokens"]),
    (Measure::Output, &["output_tokens", "completion_tokens"]),
    (Measure::Cost, &["cost", "cost_usd", "amount"]),
];
const DATES: &[&str] = &["date", "day"];
const MODELS: &[&str] = &["model"];

/// What was invoiced.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Invoice {
    /// What the file's columns let compare.
    pub(super) measures: Vec<Measure>,
    /// By day and model, the amounts in the order of `measures`; lines of one day and model are added up.
    pub(super) billed: BTreeMap<(Date, String), Vec<i128>>,
    /// Lines read, without the header.
    pub(super) lines: u64,
}

/// What is wrong with the file: one sentence for each bad line.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct InvoiceFaults(pub(super) Vec<String>);

impl std::error::Error for InvoiceFaults {}

impl fmt::Display for InvoiceFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in self.0.iter().take(MOST_FAULTS) {
            writeln!(f, "{fault}")?;
        }
        let left_out = self.0.len().saturating_sub(MOST_FAULTS);
        if left_out > 0 {
            writeln!(f, "and {left_out} more")?;
        }
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "{} fault{plural} in the invoice", self.0.len())
    }
}

/// Reads an invoice; `name` is what faults call the file, `zone` what a time's day is taken in.
pub(super) fn read(file: impl Read, name: &str, zone: &TimeZone) -> Result<Invoice, InvoiceFaults> {
    let mut reader = ReaderBuilder::new().trim(Trim::All).flexible(true).from_reader(file);
    let columns = match reader.headers() {
        Ok(header) => Columns::find(header),
        Err(error) => Err(vec![error.to_string()]),
    };
    let columns = columns.map_err(|faults| {
        InvoiceFaults(faults.into_iter().map(|why| format!("{name}:1: {why}")).collect())
    })?;
    let mut invoice = Invoice {
        measures: columns.measures.iter().map(|(measure, _)| *measure).collect(),
        ..Invoice::default()
    };
    let mut faults = Vec::new();
    let mut record = StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                match columns.line(&record, zone) {
                    Ok((day, model, amounts)) => {
                        invoice.lines += 1;
                        let sums =
                            invoice.billed.entry((day, model)).or_insert_with(|| vec![0; amounts.len()]);
                        for (sum, amount) in sums.iter_mut().zip(amounts) {
                            *sum = sum.saturating_add(amount);
                        }
                    }
                    Err(why) => faults.push(format!("{name}:{line}: {why}")),
                }
            }
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                let why = match error.kind() {
                    csv::ErrorKind::Utf8 { .. } => "this line is not UTF-8".to_owned(),
                    _ => error.to_string(),
                };
                faults.push(format!("{name}:{line}: {why}"));
                if error.is_io_error() {
                    break;
                }
            }
        }
    }
    if faults.is_empty() && invoice.lines == 0 {
        faults.push(format!("{name}: there is no line below the header"));
    }
    if faults.is_empty() { Ok(invoice) } else { Err(InvoiceFaults(faults)) }
}

/// Where the columns stand.
struct Columns {
    date: usize,
    model: usize,
    measures: Vec<(Measure, usize)>,
}

impl Columns {
    fn find(header: &StringRecord) -> Result<Self, Vec<String>> {
        let name = |cell: &str| cell.trim_start_matches('\u{feff}').trim().to_ascii_lowercase();
        let header: Vec<String> = header.iter().map(name).collect();
        let mut faults = Vec::new();
        let mut find = |names: &[&str]| {
            let mut found = (0..header.len()).filter(|at| names.contains(&header[*at].as_str()));
            let first = found.next();
            if let (Some(first), Some(second)) = (first, found.next()) {
                faults
                    .push(format!("the columns `{}` and `{}` mean the same", header[first], header[second]));
            }
            first
        };
        let (date, model) = (find(DATES), find(MODELS));
        let measures: Vec<_> =
            MEASURES.iter().filter_map(|(measure, names)| Some((*measure, find(names)?))).collect();
        if date.is_none() {
            faults.push("the header names no column `date`".to_owned());
        }
        if model.is_none() {
            faults.push("the header names no column `model`".to_owned());
        }
        if measures.is_empty() {
            faults.push(
                "the header names none of the columns `tokens`, `input_tokens`, `output_tokens` and `cost`: there is \
                 nothing to compare"
                    .to_owned(),
            );
        }
        match (date, model) {
            (Some(date), Some(model)) if faults.is_empty() => Ok(Self { date, model, measures }),
            _ => Err(faults),
        }
    }

    fn line(&self, record: &StringRecord, zone: &TimeZone) -> Result<(Date, String, Vec<i128>), String> {
        let cell = |at: usize| record.get(at).unwrap_or("");
        let day = day(cell(self.date), zone)?;
        let mut amounts = Vec::with_capacity(self.measures.len());
        for (measure, at) in &self.measures {
            amounts.push(match (cell(*at), measure) {
                // Embeddings have no output, and some lines no tokens.
                ("", _) => 0,
                (text, Measure::Cost) => nanousd(text)?,
                (text, _) => tokens(text)?,
            });
        }
        if self.measures.iter().all(|(_, at)| cell(*at).is_empty()) {
            return Err("neither tokens nor cost are given".to_owned());
        }
        Ok((day, cell(self.model).to_owned(), amounts))
    }
}

/// `2026-11-01`, or an instant, of which the day is that in `zone`.
fn day(text: &str, zone: &TimeZone) -> Result<Date, String> {
    let day = if text.len() > "2026-11-01".len() {
        text.parse::<jiff::Timestamp>().map(|at| zone.to_datetime(at).date())
    } else {
        text.parse::<Date>()
    };
    day.map_err(|_| format!("`{text}` is no date: it must be like 2026-11-01 or 2026-11-01T00:00:00Z"))
}

fn tokens(text: &str) -> Result<i128, String> {
    let number = || text.parse::<u64>().ok();
    // Some exports write whole numbers with decimals.
    let number = number().or_else(|| text.strip_suffix(".0")?.parse().ok());
    number.map(i128::from).ok_or_else(|| format!("`{text}` is no whole number of tokens"))
}

/// US dollars, in nano-dollars: what is beyond the ninth decimal is rounded. Credits are negative.
fn nanousd(text: &str) -> Result<i128, String> {
    let wrong = || {
        format!("`{text}` is no amount of US dollars: it must be like 12.34, without thousands separators")
    };
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let digits = digits.strip_prefix('$').unwrap_or(digits);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || digits.len() > 30 || whole.len() + fraction.len() == 0 {
        return Err(wrong());
    }
    let padded = format!("{whole}{fraction:0<9}");
    let (kept, rest) = padded.split_at(whole.len() + 9);
    let nano = kept.parse::<i128>().map_err(|_| wrong())?;
    let nano = if rest.as_bytes().first().is_some_and(|digit| *digit >= b'5') { nano + 1 } else { nano };
    Ok(if negative { -nano } else { nano })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Invoice, Vec<String>> {
        read(text.as_bytes(), "bill.csv", &TimeZone::UTC).map_err(|faults| faults.0)
    }

    #[test]
    fn columns_come_in_any_order_and_by_several_names_and_lines_of_a_day_and_model_add_up() {
        let text = "\u{feff}Project, Cost_USD,model,DAY ,prompt_tokens\n\
            a,0.5,gpt-4o,2026-11-01,10\nb, $1.25 ,gpt-4o,2026-11-01T23:59:59Z,5\n\nc,-0.0000000015,m,2026-11-02,\n";
        let invoice = parse(text).unwrap();
        assert_eq!((invoice.measures.clone(), invoice.lines), (vec![Measure::Input, Measure::Cost], 3));
        let billed: Vec<_> =
            invoice.billed.into_iter().map(|((day, model), sums)| (day.to_string(), model, sums)).collect();
        assert_eq!(
            billed,
            [
                ("2026-11-01".to_owned(), "gpt-4o".to_owned(), vec![15, 1_750_000_000]),
                ("2026-11-02".to_owned(), "m".to_owned(), vec![0, -2]),
            ]
        );
    }

    #[test]
    fn every_bad_line_is_told_with_its_number() {
        let text = "date,model,tokens,cost\n2026-02-30,m,1,1\n2026-11-01,m,1,1\n2026-11-01,m,1.5,1\n\
            2026-11-01,m,1,\"1,234.00\"\n2026-11-01,m,,\n2026-11-01,m\n2026-11-01,m,-1,1\n";
        let faults = parse(text).unwrap_err();
        assert_eq!(
            faults,
            [
                "bill.csv:2: `2026-02-30` is no date: it must be like 2026-11-01 or 2026-11-01T00:00:00Z",
                "bill.csv:4: `1.5` is no whole number of tokens",
                "bill.csv:5: `1,234.00` is no amount of US dollars: it must be like 12.34, without thousands separators",
                "bill.csv:6: neither tokens nor cost are given",
                "bill.csv:7: neither tokens nor cost are given",
                "bill.csv:8: `-1` is no whole number of tokens",
            ]
        );
        let bytes = b"date,model,tokens\n2026-11-01,m,1\n2026-11-01,\xff,1\n";
        assert_eq!(read(&bytes[..], "b", &TimeZone::UTC).unwrap_err().0, ["b:3: this line is not UTF-8"]);
    }

    #[test]
    fn a_header_that_does_not_say_enough_is_told_as_a_whole() {
        assert_eq!(parse("when,what\n").unwrap_err().len(), 3);
        assert_eq!(
            parse("date,model,cost,amount\n").unwrap_err(),
            ["bill.csv:1: the columns `cost` and `amount` mean the same"]
        );
        assert_eq!(parse("date,model,cost\n").unwrap_err(), ["bill.csv: there is no line below the header"]);
        assert_eq!(parse("").unwrap_err().len(), 3);
    }

    #[test]
    fn dollars_are_exact_to_the_nano_dollar() {
        let of = |text| nanousd(text).unwrap();
        assert_eq!(
            [of("0.000000001"), of("12"), of(".5"), of("1."), of("-3.10")],
            [1, 12_000_000_000, 500_000_000, 1_000_000_000, -3_100_000_000]
        );
        assert_eq!([of("0.0000000014"), of("0.00000000149999")], [1, 1]);
        assert!(["", ".", "-", "1e3", "1,5", "NaN", "0x1", "--1"].iter().all(|text| nanousd(text).is_err()));
    }
}
