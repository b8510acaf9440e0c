//! A value by its pointer, against another reader: the first line is the pointer, the rest is JSON.
#![no_main]

use std::sync::Arc;

use serde_json::Value;
use tollgate::meter::{Pointers, glean};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else { return };
    let (Ok(pointer), text) = (std::str::from_utf8(&data[..end]), &data[end + 1..]) else { return };
    let Ok(pointers) = Pointers::new([pointer]) else { return };
    let found = glean(&Arc::new(pointers), text);
    assert_eq!(found.len(), 1);
    // `*` is ours alone, and what is longer is not kept.
    if pointer.contains('*') || text.len() > 200 {
        return;
    }
    let Ok(whole) = serde_json::from_slice::<Value>(text) else { return };
    let single = |value: &&Value| !value.is_array() && !value.is_object();
    let expected = whole.pointer(pointer).filter(single);
    // A number of more than 64 digits is not kept either.
    if !(expected.is_some_and(Value::is_number) && text.len() > 64) {
        assert_eq!(found[0].as_ref(), expected, "{pointer}");
    }
});
