//! `[formats.*]`: the operator's own answer formats, beside the built-in ones.

use std::collections::BTreeMap;

use super::reader::{Slot, Table, all};
use crate::meter::{Counting, FormatConfig, Formats, Merge, RequestConfig};

pub(super) fn formats(root: &Table<'_>) -> Option<Formats> {
    let Some(slot) = root.optional("formats") else { return Some(Formats::builtin()) };
    let named = slot.table()?.named();
    let configs = all(named.iter().map(|(name, slot)| Some((name, slot, format(slot)?))))?;
    let (mut formats, mut faulty) = (Formats::builtin(), false);
    for (name, slot, config) in configs {
        match formats.clone().with(name, &config) {
            Ok(more) => formats = more,
            Err(error) => {
                slot.fault(format!("{}: {}", error.key, error.reason));
                faulty = true;
            }
        }
    }
    (!faulty).then_some(formats)
}

fn format(slot: &Slot<'_>) -> Option<FormatConfig> {
    let table = slot.table()?;
    let default = FormatConfig::default();
    let auto = boolean(&table, "auto", default.auto);
    let input = pointers(&table, "input");
    let extra_input = pointers(&table, "extra_input");
    let cached_input = pointers(&table, "cached_input");
    let cache_write_input = pointers(&table, "cache_write_input");
    let output = pointers(&table, "output");
    let reasoning = pointers(&table, "reasoning");
    let total = pointers(&table, "total");
    let billed_input = pointers(&table, "billed_input");
    let billed_output = pointers(&table, "billed_output");
    let input_includes_cached = boolean(&table, "input_includes_cached", default.input_includes_cached);
    let output_includes_reasoning =
        boolean(&table, "output_includes_reasoning", default.output_includes_reasoning);
    let merge = choice(&table, "merge", default.merge, &MERGES);
    let model = pointers(&table, "model");
    let messages = pointers(&table, "messages");
    let results = pointers(&table, "results");
    let error = pointers(&table, "error");
    let error_when = names_at(&table, "error_when");
    let end = pointers(&table, "end");
    let end_when = names_at(&table, "end_when");
    let text = pointers(&table, "text");
    let final_text = pointers(&table, "final_text");
    let counting = choice(&table, "counting", default.counting, &COUNTINGS);
    let request = table.optional("request").map_or(Some(RequestConfig::default()), |slot| request(&slot));
    Some(FormatConfig {
        auto: auto?,
        input: input?,
        extra_input: extra_input?,
        cached_input: cached_input?,
        cache_write_input: cache_write_input?,
        output: output?,
        reasoning: reasoning?,
        total: total?,
        billed_input: billed_input?,
        billed_output: billed_output?,
        input_includes_cached: input_includes_cached?,
        output_includes_reasoning: output_includes_reasoning?,
        merge: merge?,
        model: model?,
        messages: messages?,
        results: results?,
        error: error?,
        error_when: error_when?,
        end: end?,
        end_when: end_when?,
        text: text?,
        final_text: final_text?,
        counting: counting?,
        request: request?,
    })
}

const MERGES: [(&str, Merge); 3] = [("last", Merge::Last), ("sum", Merge::Sum), ("max", Merge::Max)];

const COUNTINGS: [(&str, Counting); 4] = [
    ("model", Counting::Model),
    ("o200k", Counting::O200k),
    ("cl100k", Counting::Cl100k),
    ("chars4", Counting::Chars4),
];

fn request(slot: &Slot<'_>) -> Option<RequestConfig> {
    let table = slot.table()?;
    let batches = pointers(&table, "batches");
    let embeddings = pointers(&table, "embeddings");
    let text = pointers(&table, "text");
    let model = pointers(&table, "model");
    let session = pointers(&table, "session");
    Some(RequestConfig {
        batches: batches?,
        embeddings: embeddings?,
        text: text?,
        model: model?,
        session: session?,
    })
}

/// JSON pointers. Whether they are any, the meter says, which knows more of them than RFC 6901.
fn pointers(table: &Table<'_>, key: &str) -> Option<Vec<String>> {
    table.optional(key).map_or(Some(Vec::new()), |slot| slot.strings(|text| Ok(text.to_owned())))
}

fn boolean(table: &Table<'_>, key: &str, default: bool) -> Option<bool> {
    table.optional(key).map_or(Some(default), |slot| slot.boolean())
}

fn choice<T: Copy>(table: &Table<'_>, key: &str, default: T, choices: &[(&str, T)]) -> Option<T> {
    table.optional(key).map_or(Some(default), |slot| slot.choice(choices))
}

/// Names by the pointers to where they stand.
fn names_at(table: &Table<'_>, key: &str) -> Option<BTreeMap<String, Vec<String>>> {
    let Some(slot) = table.optional(key) else { return Some(BTreeMap::new()) };
    let pairs = slot.table()?.named();
    let pairs = all(pairs
        .iter()
        .map(|(pointer, slot)| Some((pointer.clone(), slot.strings(|text| Ok(text.to_owned()))?))));
    Some(pairs?.into_iter().collect())
}
