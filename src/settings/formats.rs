//! `[formats.*]`: the operator's own answer formats, beside the built-in ones.

use std::collections::BTreeMap;

use super::reader::{Slot, Table, all};
use crate::meter::{
    BillingConfig, CallsConfig, Counting, FormatConfig, Formats, HeadersConfig, Merge, RequestConfig,
};

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
    let error_unless = names_at(&table, "error_unless");
    let end = pointers(&table, "end");
    let end_when = names_at(&table, "end_when");
    let text = pointers(&table, "text");
    let final_text = pointers(&table, "final_text");
    let envelopes = pointers(&table, "envelopes");
    let parts = names_at(&table, "parts");
    let named = names_at(&table, "named");
    let billing = table.optional("billing").map_or(Some(BillingConfig::default()), |slot| billing(&slot));
    let calls = table.optional("calls").map_or(Some(CallsConfig::default()), |slot| calls(&slot));
    let headers = table.optional("headers").map_or(Some(HeadersConfig::default()), |slot| headers(&slot));
    let choices = pointers(&table, "choices");
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
        error_unless: error_unless?,
        end: end?,
        end_when: end_when?,
        text: text?,
        final_text: final_text?,
        envelopes: envelopes?,
        parts: parts?,
        named: named?,
        billing: billing?,
        calls: calls?,
        headers: headers?,
        choices: choices?,
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

fn billing(slot: &Slot<'_>) -> Option<BillingConfig> {
    let table = slot.table()?;
    let tier = pointers(&table, "tier");
    let cache_write_1h = pointers(&table, "cache_write_1h");
    let audio_input = pointers(&table, "audio_input");
    let audio_output = pointers(&table, "audio_output");
    let image_input = pointers(&table, "image_input");
    let image_output = pointers(&table, "image_output");
    let web_searches = pointers(&table, "web_searches");
    let web_searches_when = names_at(&table, "web_searches_when");
    let rerank_units = pointers(&table, "rerank_units");
    let reported_cost = pointers(&table, "reported_cost");
    let reported_cost_unless = pointers(&table, "reported_cost_unless");
    Some(BillingConfig {
        tier: tier?,
        cache_write_1h: cache_write_1h?,
        audio_input: audio_input?,
        audio_output: audio_output?,
        image_input: image_input?,
        image_output: image_output?,
        web_searches: web_searches?,
        web_searches_when: web_searches_when?,
        rerank_units: rerank_units?,
        reported_cost: reported_cost?,
        reported_cost_unless: reported_cost_unless?,
    })
}

fn calls(slot: &Slot<'_>) -> Option<CallsConfig> {
    let table = slot.table()?;
    let each = pointers(&table, "each");
    let id = pointers(&table, "id");
    let event_id = pointers(&table, "event_id");
    let end = pointers(&table, "end");
    let whole_when = names_at(&table, "whole_when");
    let turn_when = names_at(&table, "turn_when");
    Some(CallsConfig {
        each: each?,
        id: id?,
        event_id: event_id?,
        end: end?,
        whole_when: whole_when?,
        turn_when: turn_when?,
    })
}

fn headers(slot: &Slot<'_>) -> Option<HeadersConfig> {
    let table = slot.table()?;
    let input = pointers(&table, "input");
    let cached_input = pointers(&table, "cached_input");
    let cache_write_input = pointers(&table, "cache_write_input");
    let output = pointers(&table, "output");
    let total = pointers(&table, "total");
    let reported_cost = pointers(&table, "reported_cost");
    Some(HeadersConfig {
        input: input?,
        cached_input: cached_input?,
        cache_write_input: cache_write_input?,
        output: output?,
        total: total?,
        reported_cost: reported_cost?,
    })
}

fn request(slot: &Slot<'_>) -> Option<RequestConfig> {
    let table = slot.table()?;
    let batches = pointers(&table, "batches");
    let embeddings = pointers(&table, "embeddings");
    let text = pointers(&table, "text");
    let model = pointers(&table, "model");
    let session = pointers(&table, "session");
    let roles = pointers(&table, "roles");
    let names = pointers(&table, "names");
    let calls = pointers(&table, "calls");
    let aside = pointers(&table, "aside");
    let tools = pointers(&table, "tools");
    let images = pointers(&table, "images");
    Some(RequestConfig {
        batches: batches?,
        embeddings: embeddings?,
        text: text?,
        model: model?,
        session: session?,
        roles: roles?,
        names: names?,
        calls: calls?,
        aside: aside?,
        tools: tools?,
        images: images?,
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
