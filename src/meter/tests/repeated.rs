//! Text that is said more than once in an answer counts once.

use proptest::prelude::*;
use serde_json::json;

use super::splits::cases_of;
use super::*;

const WORDS: [&str; 8] = ["There", " are", " two", " shoes", " in", " the", " box", ", both of them blue."];

fn stream(documents: &[Value]) -> String {
    documents.iter().map(|document| format!("data: {document}\n\n")).collect()
}

/// Each place of text, with a document that has it.
fn places() -> Vec<fn(&str) -> Value> {
    vec![
        |text| json!({"text": text}),
        |text| json!({"answer": text}),
        |text| json!({"output": {"choices": [{"message": {"role": "assistant", "content": text}}]}}),
        |text| json!({"data": {"answer": text}}),
        |text| json!([{"type": "ai", "content": text}]),
        // None that we know of.
        |text| json!({"x": {"reply": text}}),
    ]
}

fn read_all(body: &str) -> Reading {
    let whole = read(SSE, body);
    assert_eq!(read_pieces(&pieces(body.as_bytes(), &[1]), 200, SSE, None), whole);
    assert_eq!(read_pieces(&pieces(body.as_bytes(), &[3, 11]), 200, SSE, None), whole);
    whole
}

#[test]
fn a_text_that_grows_in_every_event_counts_once_wherever_it_is() {
    for document in places() {
        let grown: Vec<_> = (1..=WORDS.len()).map(|count| document(&WORDS[..count].concat())).collect();
        assert_eq!(read_all(&stream(&grown)).text, Text::whole(WORDS.concat()), "{}", grown[0]);
    }
}

#[test]
fn a_text_in_pieces_counts_whole_wherever_it_is() {
    for document in places() {
        let mut pieces: Vec<_> = WORDS.iter().map(|word| document(word)).collect();
        assert_eq!(read_all(&stream(&pieces)).text, Text::whole(WORDS.concat()), "{}", pieces[0]);
        // And once, if it is told whole after that, at the same place or another.
        pieces.push(document(&WORDS.concat()));
        assert_eq!(read_all(&stream(&pieces)).text, Text::whole(WORDS.concat()), "{}", pieces[0]);
    }
    let mut pieces: Vec<_> = WORDS.iter().map(|word| json!({"type": "stream", "token": word})).collect();
    pieces.push(json!({"type": "finalAnswer", "text": WORDS.concat()}));
    assert_eq!(read_all(&stream(&pieces)).text, Text::whole(WORDS.concat()));
}

#[test]
fn a_whole_after_thoughts_counts_once() {
    let thoughts = ["The user asks about a box.", " I look into it."];
    let mut documents: Vec<_> = thoughts.iter().map(|text| json!({"reasoning_content": text})).collect();
    documents.extend(WORDS.iter().map(|text| json!({"content": text})));
    documents.push(json!({"content": WORDS.concat()}));
    assert_eq!(read_all(&stream(&documents)).text, Text::whole([thoughts.concat(), WORDS.concat()].concat()));
}

#[test]
fn an_event_that_breaks_in_a_growing_text_leaves_no_trace() {
    let body = stream(&[json!({"text": "There are two"}), json!({"text": "There are two shoes"})])
        + "data: {\"text\": \"There are two shoes in th\n\n"
        + &stream(&[json!({"text": "There are two shoes in the box"})]);
    assert_eq!(read_all(&body).text, Text::whole("There are two shoes in the box"));
}

#[test]
fn a_text_beyond_what_is_kept_is_told_by_its_length() {
    let config = Config { max_text_bytes: 1000, ..Config::default() };
    let words: Vec<_> = (0..400).map(|n| format!("word{n} ")).collect();
    let text = words.concat();
    let read = |documents: &[Value]| {
        let mut meter = Meter::new(&auto(), &config, 200, Some(SSE.as_bytes()), None);
        stream(documents).as_bytes().chunks(100).for_each(|chunk| meter.observe(chunk));
        meter.finish().text
    };
    let mut grown: Vec<Value> = Vec::new();
    let mut end = 0;
    for word in &words {
        end += word.len();
        grown.push(json!({"text": &text[..end]}));
    }
    let mut told: Vec<_> = words.iter().map(|word| json!({"token": word})).collect();
    told.push(json!({"text": text.trim()}));
    for documents in [grown, told] {
        let read = read(&documents);
        assert_eq!((read.kept.as_str(), read.seen_bytes), (&text[..1000], text.len() as u64));
    }
}

proptest! {
    #![proptest_config(cases_of(64))]

    #[test]
    fn any_pieces_and_any_growing_text_have_one_reading_however_they_come(
        words in prop::collection::vec("[a-z]{1,6}( |\n|)", 2..20), grows: bool, whole: bool, place in 0..5usize,
        lengths in prop::collection::vec(1usize..40, 1..20),
    ) {
        let document = places()[place];
        let text = words.concat();
        let mut end = 0;
        let mut documents: Vec<_> = words.iter().map(|word| {
            end += word.len();
            document(if grows { &text[..end] } else { word })
        }).collect();
        if whole {
            documents.push(document(&text));
        }
        let body = stream(&documents);
        let reading = read(SSE, &body);
        prop_assert_eq!(&read_pieces(&pieces(body.as_bytes(), &lengths), 200, SSE, None), &reading);
        let (read, once) = (reading.text.seen_bytes, text.len() as u64);
        if grows && once >= 64 {
            prop_assert_eq!(read, once);
        } else if !grows {
            // Few letters are no proof: at worst they count as often as they were said.
            prop_assert!(read >= once && read <= 2 * once, "{} of {}", read, once);
            prop_assert!(!whole || once < 32 || read == once, "{} of {}", read, once);
        }
    }
}

#[test]
fn pieces_that_are_alike_are_said_again_and_count_each_time() {
    for piece in ["again ", "the same sentence of forty bytes or so. "] {
        for document in places().into_iter().take(5) {
            let body = stream(&vec![document(piece); 60]);
            assert_eq!(read_all(&body).text, Text::whole(piece.repeat(60)), "{}", document(piece));
            let mut meter = Meter::new(&auto(), &config(), 200, Some(SSE.as_bytes()), None);
            meter.observe(body.as_bytes());
            let running = meter.running().unwrap().tokens;
            assert_eq!(running, (60 * piece.len() as u64).div_ceil(4), "{}", document(piece));
        }
    }
}
