//! Signed requests (RFC 8555, section 6.2).

use aws_lc_rs::{digest, hmac, rand, signature};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A request whose signature is good.
pub struct Signed {
    pub url: String,
    pub nonce: String,
    pub signer: Signer,
    /// `None` for POST-as-GET.
    pub payload: Option<Value>,
}

pub enum Signer {
    /// The URL of an account.
    Account(String),
    /// The point of a key, and its thumbprint.
    Key(Vec<u8>, String),
}

/// What is wrong with a request: the problem's type and a detail.
pub type Wrong = (&'static str, String);

fn malformed(detail: &str) -> Wrong {
    ("malformed", detail.to_owned())
}

/// Reads and verifies. `key_of` finds the key of an account.
pub fn open(body: &[u8], key_of: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Signed, Wrong> {
    let jws: Value = serde_json::from_slice(body).map_err(|_| malformed("no JSON"))?;
    let part = |name: &str| jws[name].as_str().ok_or_else(|| malformed("a part of the JWS is missing"));
    let (protected, payload) = (part("protected")?, part("payload")?);
    let header: Value = serde_json::from_slice(&decode(protected)?).map_err(|_| malformed("the header is no JSON"))?;
    if header["alg"] != "ES256" {
        return Err(("badSignatureAlgorithm", "ES256 only".to_owned()));
    }
    let text = |name: &str| header[name].as_str().map(str::to_owned);
    // Section 6.2: "jwk" and "kid" are mutually exclusive.
    let (signer, key) = match (text("kid"), header.get("jwk")) {
        (Some(kid), None) => {
            let key = key_of(&kid).ok_or_else(|| ("accountDoesNotExist", format!("no account {kid}")))?;
            (Signer::Account(kid), key)
        }
        (None, Some(jwk)) => {
            let key = point(jwk)?;
            (Signer::Key(key.clone(), thumbprint(jwk)), key)
        }
        _ => return Err(malformed("exactly one of jwk and kid")),
    };
    let signature = decode(part("signature")?)?;
    signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, key)
        .verify(format!("{protected}.{payload}").as_bytes(), &signature)
        .map_err(|_| malformed("the signature is wrong"))?;
    let payload = match payload {
        "" => None,
        text => Some(serde_json::from_slice(&decode(text)?).map_err(|_| malformed("the payload is no JSON"))?),
    };
    let url = text("url").ok_or_else(|| malformed("no url"))?;
    let nonce = text("nonce").ok_or_else(|| ("badNonce", "no nonce".to_owned()))?;
    Ok(Signed { url, nonce, signer, payload })
}

/// Verifies an external account binding (section 7.3.4) of the account key `point`.
pub fn check_binding(binding: &Value, id: &str, key: &[u8], account_key: &[u8], url: &str) -> Result<(), Wrong> {
    let part = |name: &str| binding[name].as_str().ok_or_else(|| malformed("a part of the binding is missing"));
    let (protected, payload) = (part("protected")?, part("payload")?);
    let header: Value = serde_json::from_slice(&decode(protected)?).map_err(|_| malformed("no JSON"))?;
    if header["alg"] != "HS256" || header["kid"] != id || header["url"] != url || !header["nonce"].is_null() {
        return Err(("unauthorized", "the binding's header is wrong".to_owned()));
    }
    let signed = format!("{protected}.{payload}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let signature = decode(part("signature")?)?;
    let wrong = |detail: &str| ("unauthorized", detail.to_owned());
    hmac::verify(&key, signed.as_bytes(), &signature).map_err(|_| wrong("the binding's signature is wrong"))?;
    let jwk: Value = serde_json::from_slice(&decode(payload)?).map_err(|_| malformed("no JSON"))?;
    if point(&jwk)? != account_key {
        return Err(wrong("the binding is for another key"));
    }
    Ok(())
}

/// What nobody guesses, in base64url.
pub fn random() -> String {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).unwrap();
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A number below a hundred.
pub fn dice() -> u8 {
    let mut bytes = [0; 2];
    rand::fill(&mut bytes).unwrap();
    u8::try_from(u16::from_le_bytes(bytes) % 100).unwrap()
}

pub fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

pub fn decode(text: &str) -> Result<Vec<u8>, Wrong> {
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed("no base64url"))
}

pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

fn point(jwk: &Value) -> Result<Vec<u8>, Wrong> {
    if jwk["kty"] != "EC" || jwk["crv"] != "P-256" {
        return Err(("badPublicKey", "P-256 only".to_owned()));
    }
    let part = |name: &str| decode(jwk[name].as_str().unwrap_or_default());
    Ok([vec![4], part("x")?, part("y")?].concat())
}

/// RFC 7638.
fn thumbprint(jwk: &Value) -> String {
    let canonical = json!({ "crv": jwk["crv"], "kty": jwk["kty"], "x": jwk["x"], "y": jwk["y"] });
    encode(&sha256(canonical.to_string().as_bytes()))
}
