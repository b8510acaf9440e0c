//! A request's body: whatever is read as JSON here, another strict reader takes too.
#![no_main]

use tollgate::meter::inspect;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(inspected) = inspect(&split::AUTO, &split::config(), data, &["/sessionId", "/a/0"]) {
        assert!(inspected.messages >= 1 && inspected.values.len() == 2);
        assert!(std::str::from_utf8(data).is_ok());
    }
});
