//! What lies in a segment of the journal: frames, what is in them, and the search for the next one.
#![no_main]

use tollgate::record::codec::{self, Held};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut at = Some(0);
    while let Some(from) = at {
        if let Ok(frame) = codec::decode(&data[from..]) {
            let mut written = Vec::new();
            frame.write_to(&mut written);
            assert_eq!(codec::decode(&written).map(|again| again.payload), Ok(frame.payload));
            read_again(&frame);
        }
        at = codec::find(data, from + 1);
    }
    // Hardly any change of a frame passes its checksum: what comes behind that is reached by a way of its own.
    if let Some((&kind, payload)) = data.split_first() {
        read_again(&codec::Frame { seq: 1, kind, version: 1, payload });
    }
});

/// What was read is read as the same, once it is written.
fn read_again(frame: &codec::Frame<'_>) {
    let mut written = Vec::new();
    let encoded = match frame.read() {
        Ok(Held::Record(record)) => codec::encode(&record, frame.seq, &mut written),
        Ok(Held::Intent(intent)) => codec::encode_intent(&intent, frame.seq, &mut written),
        Ok(Held::Mark(intents)) => codec::encode_mark(intents, frame.seq, &mut written),
        Err(_) => return,
    };
    if encoded.is_ok() {
        assert_eq!(codec::decode(&written).map(|again| again.read()), Ok(frame.read()));
    }
}
