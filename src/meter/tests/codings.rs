//! What a `Content-Encoding` says, and what the bytes are.

use super::*;

const BODY: &[u8] =
    br#"{"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 3, "total_tokens": 33}}"#;
const EVENTS: &[u8] =
    b"data: {\"usage\": {\"prompt_tokens\": 30, \"completion_tokens\": 3}}\n\ndata: [DONE]\n\n";

/// The reading, the same in single bytes and in small pieces.
fn read_coded(body: &[u8], content_type: &str, coding: Option<&str>) -> Reading {
    let whole = read_pieces(&[body], 200, content_type, coding);
    for lengths in [&[1][..], &[3, 9, 1]] {
        assert_eq!(read_pieces(&pieces(body, lengths), 200, content_type, coding), whole, "{coding:?}");
    }
    whole
}

#[test]
fn a_content_encoding_that_is_no_coding_is_none() {
    for coding in [
        "UTF-8",
        "utf8",
        "Utf-16",
        "none",
        "NONE",
        "binary",
        "8bit",
        "identity",
        "",
        " ",
        ",",
        "iso-8859-1",
        "windows-1252",
        "us-ascii",
        "null",
        "identity, utf-8",
        "charset=utf-8",
    ] {
        assert_eq!(read_coded(BODY, JSON, Some(coding)).usage.total(), Some(33), "{coding}");
        let header = format!("{coding}, gzip");
        assert_eq!(
            read_coded(&encode(BODY, "gzip"), JSON, Some(&header)).usage.total(),
            Some(33),
            "{header}"
        );
    }
    for coding in ["compress", "aws-chunked", "gzip, br", "dcz", "utf", "exi", "*"] {
        let reading = read_coded(BODY, JSON, Some(coding));
        assert_eq!((reading.usage.total(), reading.flag), (None, Some("unknown_encoding")), "{coding}");
    }
}

#[test]
fn a_body_without_its_coding_is_read_as_it_is() {
    for coding in ["gzip", "deflate", "br", "zstd"] {
        assert_eq!(read_coded(BODY, JSON, Some(coding)).usage.total(), Some(33), "{coding}");
        assert_eq!(read_coded(EVENTS, SSE, Some(coding)).usage.total(), Some(33), "{coding}");
        assert_eq!(read_coded(b"{}", JSON, Some(coding)).flag, Some("unknown_format"), "{coding}");
        let padded = [b"\n \r\n\n\n\n\n\n\n", BODY].concat();
        assert_eq!(read_coded(&padded, JSON, Some(coding)).usage.total(), Some(33), "{coding}");
        // What is neither plainly text nor what the header says is not read.
        let reading = read_coded(b"{\"\x00\x01\x02usage and so on", JSON, Some(coding));
        assert!(reading.usage.total().is_none() && reading.flag.is_some(), "{coding}: {reading:?}");
    }
}

#[test]
fn gzip_that_no_header_names_is_read() {
    for coding in [None, Some("identity"), Some("utf-8")] {
        assert_eq!(read_coded(&encode(BODY, "gzip"), JSON, coding).usage.total(), Some(33));
        let reading = read_coded(&encode(EVENTS, "gzip"), SSE, coding);
        assert_eq!((reading.usage.total(), reading.streamed), (Some(33), true));
    }
    // No event of it can be told apart on the wire, so that none is held against a limit.
    let mut meter = Meter::new(&auto(), &config(), 200, Some(SSE.as_bytes()), None);
    meter.observe(&encode(b"data: {\"token\": \"a\"}\n\n", "gzip"));
    assert_eq!(meter.running(), None);
    let broken = read_coded(b"\x1fno gzip at all", JSON, None);
    assert_eq!(broken.flag, Some("corrupt_encoding"));
}

#[test]
fn a_genuine_answer_in_a_coding_never_looks_plain() {
    for case in cases() {
        for coding in ["gzip", "deflate", "raw deflate", "br", "zstd"] {
            let header = coding.trim_start_matches("raw ");
            let reading =
                read_pieces(&[&encode(&case.body, coding)], case.status, &case.content_type, Some(header));
            check(&case, &reading, coding);
        }
    }
}

/// Numbers as JSON, almost 8 MiB of them.
fn numbers() -> Vec<u8> {
    let mut body = BODY[..BODY.len() - 1].to_vec();
    body.extend_from_slice(b", \"numbers\": [1");
    body.resize((8 << 20) - 2, b' ');
    body[BODY.len() + 14..].chunks_exact_mut(2).for_each(|pair| pair.copy_from_slice(b",1"));
    body.extend_from_slice(b"]}");
    body
}

#[test]
fn what_a_few_bytes_decode_to_is_read_in_small_steps() {
    let body = numbers();
    let plain = read(JSON, std::str::from_utf8(&body).unwrap());
    assert_eq!(plain.usage.total(), Some(33));
    for coding in ["gzip", "deflate", "raw deflate", "br", "zstd"] {
        let encoded = encode(&body, coding);
        assert!(encoded.len() < 50 << 10, "{coding}: {}", encoded.len());
        let header = coding.trim_start_matches("raw ");
        let mut meter = Meter::new(&auto(), &config(), 200, Some(JSON.as_bytes()), Some(header.as_bytes()));
        let (mut rest, mut steps, mut most, mut before) = (&encoded[..], 1, 0, 0);
        while let Some(taken) = meter.step(rest) {
            rest = &rest[taken..];
            steps += 1;
            let decoded = meter.body.decoded();
            most = most.max(decoded - before);
            before = decoded;
        }
        assert!(steps >= 32 && most <= 256 << 10, "{coding}: {steps} steps, {most} bytes in one");
        assert_eq!(meter.finish(), plain, "{coding}");
        let pieces = pieces(&encoded, &[1, 7, 3000]);
        assert_eq!(read_pieces(&pieces, 200, JSON, Some(header)), plain, "{coding}");
    }
}

#[test]
fn what_decodes_to_nothing_is_read_in_steps_as_well() {
    let empty = encode(b"", "gzip").repeat(1000);
    let body = [&empty[..], &encode(BODY, "gzip")].concat();
    let mut meter = Meter::new(&auto(), &config(), 200, Some(JSON.as_bytes()), Some(b"gzip"));
    let (mut rest, mut steps) = (&body[..], 1);
    while let Some(taken) = meter.step(rest) {
        rest = &rest[taken..];
        steps += 1;
    }
    assert!(steps >= 8, "{steps}");
    assert_eq!(meter.finish().usage.total(), Some(33));
}

#[test]
fn brotli_has_no_larger_window_than_its_format() {
    let params = brotli::enc::BrotliEncoderParams { large_window: true, lgwin: 26, ..Default::default() };
    let mut encoded = Vec::new();
    brotli::BrotliCompress(&mut &numbers()[..], &mut encoded, &params).unwrap();
    let reading = read_pieces(&[&encoded], 200, JSON, Some("br"));
    assert_eq!(reading.flag, Some("corrupt_encoding"));
    assert_eq!(decode_request(&encoded, Some(b"br"), 16 << 20), Err(DecodeError::Corrupt));
}
