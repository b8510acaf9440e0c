//! `tollgate reprice`: what rows without a price cost by the prices of today's config.

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::table::{columns, plain};
use crate::gateway::Reprice;
use crate::settings::{Fault, Faults, date_or_instant, since};
use crate::store::reprice::{Repricing, Sums};

#[derive(Debug, Args)]
pub(super) struct Question {
    /// Calls from then on: an RFC 3339 time, a date (its 00:00 UTC), or how long ago, such as 7d
    #[arg(long, value_name = "TIME", value_parser = |text: &str| since(text, Timestamp::now()))]
    since: Timestamp,
    /// The end of the range, which is not in it; now, unless given
    #[arg(long, value_name = "TIME", value_parser = date_or_instant)]
    until: Option<Timestamp>,
    /// Only this model; * stands for any characters
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Change nothing: only say what would change
    #[arg(long)]
    dry_run: bool,
    /// Who does it, for the audit trail; the user that runs this, unless given
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Question {
    /// What is asked.
    pub(super) fn asked(&self) -> anyhow::Result<Reprice> {
        let until = self.until.unwrap_or_else(Timestamp::now);
        if self.since >= until {
            let reason = format!("{} is not before --until, {until}", self.since);
            let fault = Fault { origin: "--since".to_owned(), key: "--since".to_owned(), reason };
            return Err(Faults(vec![fault]).into());
        }
        Ok(Reprice {
            since: self.since,
            until,
            model: self.model.clone(),
            author: self.author.clone().or_else(user).unwrap_or_else(|| "operator".to_owned()),
            dry_run: self.dry_run,
        })
    }
}

fn user() -> Option<String> {
    ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).filter(|name| !name.is_empty())
}

/// What was done, for people or (`json`) programs.
pub(super) fn render(asked: &Reprice, done: &Repricing, as_json: bool) -> String {
    if as_json { format!("{:#}\n", whole(asked, done)) } else { text(asked, done) }
}

fn whole(asked: &Reprice, done: &Repricing) -> Value {
    let models: Vec<Value> = done
        .models
        .iter()
        .map(|(model, sums)| {
            let mut line = sums_json(sums);
            line["model"] = json!(model);
            line
        })
        .collect();
    let mut whole = sums_json(&done.sums());
    whole["dry_run"] = json!(asked.dry_run);
    whole["from"] = json!(done.from.unwrap_or(asked.since).to_string());
    whole["until"] = json!(asked.until.to_string());
    whole["left"] = json!(done.left);
    whole["counters"] = json!(done.counters);
    whole["models"] = json!(models);
    whole
}

fn sums_json(sums: &Sums) -> Value {
    json!({"rows": sums.rows, "old_cost_usd": usd(sums.old_nanousd), "new_cost_usd": usd(sums.new_nanousd)})
}

/// Exact, with eight decimals as the column has them.
fn usd(nanousd: i128) -> String {
    let units = nanousd / 10;
    let sign = if units < 0 { "-" } else { "" };
    let (whole, rest) = (units.abs() / 100_000_000, units.abs() % 100_000_000);
    format!("{sign}{whole}.{rest:08}")
}

fn text(asked: &Reprice, done: &Repricing) -> String {
    let mut text = String::new();
    if let Some(from) = done.from {
        text.push_str(&format!("events before {from} are partly gone: their rows are left as they are\n"));
    }
    let all = done.sums();
    if all.rows > 0 {
        let head = ["MODEL", "ROWS", "USD BEFORE", "USD NOW"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(done.models.iter().map(|(model, sums)| line(&plain(model), sums)));
        rows.push(line("all", &all));
        text.push_str(&columns(&rows));
        text.push('\n');
    }
    let did = if asked.dry_run { "would be priced anew" } else { "were priced anew" };
    text.push_str(&format!("{} rows {did}", all.rows));
    if !asked.dry_run && all.rows > 0 {
        text.push_str(&format!(", {} counters and the aggregates with them", done.counters));
    }
    text.push('\n');
    if done.left > 0 {
        text.push_str(&format!(
            "{} rows have no price still, or were not asked for: `tollgate prices MODEL` says which price a model has\n",
            done.left
        ));
    }
    text
}

fn line(model: &str, sums: &Sums) -> Vec<String> {
    vec![model.to_owned(), sums.rows.to_string(), usd(sums.old_nanousd), usd(sums.new_nanousd)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_told_to_the_last_decimal_of_a_row() {
        assert_eq!(usd(1_234_567_890), "1.23456789");
        assert_eq!(usd(-10), "-0.00000001");
        assert_eq!(usd(0), "0.00000000");
    }
}
