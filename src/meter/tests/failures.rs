//! Failures under a 200.

use serde_json::json;

use super::*;

fn failed(body: &Value) -> bool {
    let body = body.to_string();
    let whole = read(JSON, &body);
    assert_eq!(read_pieces(&pieces(body.as_bytes(), &[1]), 200, JSON, None), whole, "{body}");
    assert!(!whole.failed || (whole.flag.is_none() && whole.text.is_empty() && !whole.guessed), "{whole:?}");
    whole.failed
}

#[test]
fn an_answer_that_is_nothing_but_an_error_failed() {
    for body in [
        json!({"error": {"message": "overloaded", "type": "server_error", "code": 502}}),
        json!({"error": "Failed to process message. Please try again.", "details": "x"}),
        json!({"success": false, "message": "Quota exceeded"}),
        json!({"success": false, "errors": [{"code": 7009, "message": "Upstream error"}], "result": null}),
        json!({"status": "error", "message": "boom"}),
        json!({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": null}),
        json!({"code": "DataInspectionFailed", "message": "Output data may be inappropriate.", "request_id": "q"}),
        json!({"code": 102, "message": "You do not own the assistant.", "data": null}),
        json!({"id": "gm3q", "status": "failed", "error": "out of memory", "output": null}),
        json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    ] {
        assert!(failed(&body), "{body}");
    }
}

#[test]
fn an_error_that_says_nothing_is_none() {
    for error in [json!(null), json!(""), json!(false), json!([]), json!({})] {
        for body in
            [json!({"error": error, "reply": "Two shoes."}), json!({"error": error, "answer": "Two shoes."})]
        {
            assert!(!failed(&body), "{body}");
            assert_eq!(read(JSON, &body.to_string()).text, Text::whole("Two shoes."), "{body}");
        }
        // Nor where nothing else is there: that is an answer that nobody understands.
        let reading = read(JSON, &json!({"error": error, "n": 1}).to_string());
        assert_eq!((reading.failed, reading.flag), (false, Some("unknown_format")), "{error}");
    }
}

#[test]
fn an_error_beside_an_answer_is_no_failure_of_the_whole() {
    for body in [
        json!({"error": "no sources found", "answer": "Two shoes."}),
        json!({"success": false, "reply": "Two shoes."}),
        json!({"error": {"message": "tool failed"}, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}),
        json!({"base_resp": {"status_code": 0, "status_msg": "success"}, "reply": "Two shoes."}),
        json!({"success": true, "result": {"response": "Two shoes."}, "errors": []}),
        json!({"code": 0, "message": "success", "data": {"answer": "Two shoes."}}),
        json!({"code": "x1", "message": "Two shoes.", "data": {"x": {"y": "many more words than there are there"}}}),
        json!({"batch": [{"query": "a", "reply": "Two shoes."}, {"query": "b", "error": "boom"}]}),
        json!({"message": "Two shoes."}),
    ] {
        assert!(!failed(&body), "{body}");
    }
}

#[test]
fn a_stream_that_fails_by_its_own_words_failed() {
    for body in [
        "id:1\nevent:error\n:HTTP_STATUS/400\ndata:{\"code\":\"DataInspectionFailed\",\"message\":\"x\",\"request_id\":\"q\"}\n\n",
        "data: {\"code\":\"DataInspectionFailed\",\"message\":\"x\",\"request_id\":\"q\"}\n\n",
        "data: {\"event\": \"error\", \"data\": \"boom\"}\n\n",
        "data: {\"success\": false, \"message\": \"boom\"}\n\n",
        "event: conversation.chat.failed\ndata: {\"id\": \"7\", \"status\": \"failed\", \"last_error\": {\"code\": 5000, \"msg\": \"x\"}}\n\n",
    ] {
        let reading = read(SSE, body);
        assert!(reading.error_event && reading.failed, "{body}");
        assert_eq!(reading.flag, None, "{body}");
    }
}
