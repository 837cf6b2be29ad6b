//! What an answer has to repeat, repeated where the authority forgot to.
//!
//! RFC 9773, section 5: a server that accepts `replaces` "MUST reflect that field in the response". instant-acme takes
//! an answer without it for a failure and does not tell the order's URL then. But the order is placed: it would be
//! lost, and a second one placed that is written down nowhere. Nothing depends on the field.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use instant_acme::BodyWrapper;
use serde_json::Value;

const REPLACES: &str = "replaces";

/// The `replaces` that `request` carries.
pub(super) async fn of(request: Request<BodyWrapper<Bytes>>) -> (Request<BodyWrapper<Bytes>>, Option<Value>) {
    if *request.method() != Method::POST {
        return (request, None);
    }
    let (parts, body) = request.into_parts();
    // It is in memory: there is no error.
    let Ok(body) = body.collect().await;
    let bytes = body.to_bytes();
    let replaces = read(&bytes);
    (Request::from_parts(parts, BodyWrapper::from(Vec::from(bytes))), replaces)
}

/// RFC 8555, section 6.2: the payload is base64url within a flattened JWS.
fn read(jws: &[u8]) -> Option<Value> {
    let jws: Value = serde_json::from_slice(jws).ok()?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(jws.get("payload")?.as_str()?).ok()?;
    let payload: Value = serde_json::from_slice(&payload).ok()?;
    payload.get(REPLACES).filter(|replaces| replaces.is_string()).cloned()
}

/// The body of an answer to a request with `replaces`.
pub(super) fn repeated(status: StatusCode, body: Bytes, replaces: Option<Value>) -> Bytes {
    let Some(replaces) = replaces.filter(|_| status.is_success()) else { return body };
    let Ok(Value::Object(mut answer)) = serde_json::from_slice(&body) else { return body };
    answer.insert(REPLACES.to_owned(), replaces);
    Value::Object(answer).to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_repeated() {
        let payload = BASE64_URL_SAFE_NO_PAD.encode(r#"{"identifiers": [], "replaces": "aki.serial"}"#);
        let jws = format!(r#"{{"protected": "", "payload": "{payload}", "signature": ""}}"#);
        let replaces = read(jws.as_bytes());
        assert_eq!(replaces, Some("aki.serial".into()));
        for other in ["", "[]", r#"{"payload": ""}"#, r#"{"payload": "e30"}"#, r#"{"payload": "?"}"#] {
            assert_eq!(read(other.as_bytes()), None, "{other}");
        }
        for answer in [r#"{"status":"pending"}"#, r#"{"status":"pending","replaces":"of.another"}"#] {
            let body = repeated(StatusCode::CREATED, answer.into(), replaces.clone());
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["replaces"], "aki.serial");
        }
        for (status, answer) in [(StatusCode::CREATED, "no JSON"), (StatusCode::CONFLICT, "{}")] {
            assert_eq!(repeated(status, answer.into(), replaces.clone()), answer);
        }
        assert_eq!(repeated(StatusCode::CREATED, "{}".into(), None), "{}");
    }
}
