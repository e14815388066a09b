//! Messages: JSON-RPC 2.0.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::schema::{ErrorData, Waiting};
use crate::mapper::DmError;

/// Not JSON.
pub const PARSE_ERROR: i64 = -32700;
/// JSON, but no request.
pub const INVALID_REQUEST: i64 = -32600;
/// No such method.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// Parameters that the method does not have, or without one that it needs.
pub const INVALID_PARAMS: i64 = -32602;
/// An answer that cannot be written as JSON.
pub const INTERNAL_ERROR: i64 = -32603;
/// A line that is too long; the connection ends.
pub const LINE_TOO_LONG: i64 = -32000;
/// Too many clients; the connection ends.
pub const TOO_MANY_CLIENTS: i64 = -32001;
/// A client of another user; the connection ends.
pub const NOT_PERMITTED: i64 = -32002;

/// A request. What is not known before its method is stays text.
#[derive(Debug, Deserialize)]
pub(super) struct Request<'a> {
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    #[serde(borrow, default)]
    pub params: Option<&'a RawValue>,
    /// None: a notification, which has no answer. An id of `null` is one.
    #[serde(borrow, default, deserialize_with = "present")]
    pub id: Option<&'a RawValue>,
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Why a request is not done, as `error` of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Fault {
    /// An errno of a verb, or one of the negative numbers of this module.
    pub code: i64,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ErrorData>,
}

impl Fault {
    pub fn new(code: i64, message: impl Into<String>) -> Fault {
        Fault { code, message: message.into(), data: None }
    }
}

impl From<DmError> for Fault {
    fn from(error: DmError) -> Fault {
        let data = ErrorData { errno: error.symbol(), kernel: error.kernel.clone(), detail: error.detail.clone() };
        Fault { code: i64::from(error.errno), message: error.strerror(), data: Some(data) }
    }
}

/// Reads a line. The id that goes with a fault is the request's, if that is known.
pub(super) fn parse(line: &[u8]) -> Result<Request<'_>, (Fault, Option<&RawValue>)> {
    let first = line.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'[') {
        let text = "batches are not taken: send each request on a line of its own";
        return Err((Fault::new(INVALID_REQUEST, text), None));
    }
    let request: Request<'_> = serde_json::from_slice(line).map_err(|error| match error.classify() {
        Category::Data => (Fault::new(INVALID_REQUEST, format!("not a JSON-RPC request: {error}")), None),
        _ => (Fault::new(PARSE_ERROR, format!("not JSON: {error}")), None),
    })?;
    if request.id.is_some_and(|id| matches!(id.get().as_bytes().first(), Some(b'{' | b'[' | b't' | b'f'))) {
        return Err((Fault::new(INVALID_REQUEST, "an id is a string or a number"), None));
    }
    if request.jsonrpc != "2.0" {
        return Err((Fault::new(INVALID_REQUEST, "jsonrpc must be \"2.0\""), request.id));
    }
    Ok(request)
}

#[derive(Serialize)]
struct Answer<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Fault>,
    id: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Notification<'a> {
    jsonrpc: &'static str,
    method: &'static str,
    params: &'a Waiting,
}

/// An answer, as a line.
pub(super) fn answer(outcome: Result<&RawValue, &Fault>, id: Option<&RawValue>) -> Vec<u8> {
    line(&Answer { jsonrpc: "2.0", result: outcome.ok(), error: outcome.err(), id })
}

/// The notification `waiting`, as a line.
pub(super) fn waiting(params: &Waiting) -> Vec<u8> {
    line(&Notification { jsonrpc: "2.0", method: "waiting", params })
}

fn line(message: &impl Serialize) -> Vec<u8> {
    // Of maps with keys of text, numbers and text, none of which JSON lacks.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(line: &str) -> (i64, String) {
        let (fault, _) = parse(line.as_bytes()).unwrap_err();
        (fault.code, fault.message)
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        assert_eq!(fault("").0, PARSE_ERROR);
        assert_eq!(fault("{").0, PARSE_ERROR);
        assert_eq!(fault(&"{\"a\":".repeat(100_000)).0, PARSE_ERROR);
        assert_eq!(parse(b"{\"jsonrpc\":\"2.0\",\"method\":\"\xff\"}").unwrap_err().0.code, PARSE_ERROR);
        assert_eq!(fault("7").0, INVALID_REQUEST);
        assert_eq!(fault("{}").0, INVALID_REQUEST);
        assert_eq!(fault(r#"{"jsonrpc":"2.0","id":1}"#).0, INVALID_REQUEST);
        assert_eq!(fault(r#"{"jsonrpc":"1.0","method":"list","id":1}"#).0, INVALID_REQUEST);
        assert_eq!(fault(r#"{"jsonrpc":"2.0","method":"list","id":[1]}"#).0, INVALID_REQUEST);
        assert_eq!(fault(r#"{"jsonrpc":"2.0","method":7,"id":1}"#).0, INVALID_REQUEST);
        let (code, message) = fault(r#" [{"jsonrpc":"2.0","method":"list","id":1}]"#);
        assert_eq!(code, INVALID_REQUEST);
        assert!(message.contains("batches"), "{message}");
    }

    #[test]
    fn an_id_comes_back_as_it_was() {
        for id in ["1", "-7.50", "\"a\\u0041\"", "null"] {
            let line = format!(r#"{{"jsonrpc":"2.0","method":"list","id":{id}}}"#);
            let request = parse(line.as_bytes()).unwrap();
            let fault = Fault::new(METHOD_NOT_FOUND, "no");
            let answer = String::from_utf8(answer(Err(&fault), request.id)).unwrap();
            assert_eq!(
                answer,
                format!("{{\"jsonrpc\":\"2.0\",\"error\":{{\"code\":-32601,\"message\":\"no\"}},\"id\":{id}}}\n")
            );
        }
        assert!(parse(br#"{"jsonrpc":"2.0","method":"list"}"#).unwrap().id.is_none(), "a notification");
    }
}
