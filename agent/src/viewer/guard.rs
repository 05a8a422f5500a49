//! Who may ask, and how much at once: host and origin, the token, requests in the air; and the headers of every answer.
//!
//! A page elsewhere could point its name at us (DNS rebinding), so without a token only our own names are answered. With
//! one, whoever has it is let in by any name. The page itself holds no data and is given to everybody: it asks for the
//! token. Tokens are compared by their digests, in a time that says nothing about them. Called by `viewer`'s routers.

use super::answers::Refusal;
use super::{App, ServeError, Source};
use crate::export::Problem;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// Requests answered at once; the next is told to come again. A browser opens six connections.
pub const REQUESTS_AT_ONCE: usize = 64;
/// Bytes of an address at the most, `?` and what follows it included; hyper itself ends at 64 KB, without a word.
const LONGEST_ADDRESS: usize = 16 << 10;
/// A token that is shorter could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// Given to everybody: they hold nothing of what was recorded.
const OPEN_PATHS: [&str; 4] = ["/", "/healthz", "/readyz", "/api/openapi.json"];

/// Digest of the token that a request must bring.
#[derive(Clone, Debug)]
pub struct Token([u8; 32]);

impl Token {
    /// The file's text without white space at its ends. An empty path is no token.
    pub fn read(path: &Path) -> Result<Option<Self>, ServeError> {
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let wrong = |why: String| ServeError::Token { path: path.into(), why };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let text = text.trim();
        if text.len() < SHORTEST_TOKEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong(format!("it must hold {SHORTEST_TOKEN} or more printable characters")));
        }
        Ok(Some(Self::of(text)))
    }

    fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    fn is(&self, text: &str) -> bool {
        let other = Self::of(text);
        self.0.iter().zip(&other.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

pub async fn harden(request: Request, next: Next) -> Response {
    let is_head = request.method() == Method::HEAD;
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    if !is_head {
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    response
}

pub async fn admit<S: Source>(State(app): State<Arc<App<S>>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if let Err(problem) = is_admitted(&app, request.uri().path(), headers) {
        let mut response = Refusal(problem).into_response();
        if response.status() == 401 {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        return response;
    }
    let length = request.uri().path_and_query().map_or(0, |address| address.as_str().len());
    if length > LONGEST_ADDRESS {
        return Refusal(Problem::long_address(LONGEST_ADDRESS as u64, length as u64)).into_response();
    }
    let Ok(_turn) = app.requests.clone().try_acquire_owned() else {
        let detail = format!("{REQUESTS_AT_ONCE} requests are being answered; try again in some seconds");
        return Refusal(Problem::unavailable(detail)).into_response();
    };
    next.run(request).await
}

fn is_admitted<S>(app: &App<S>, path: &str, headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).map(|h: &HeaderValue| h.to_str().unwrap_or("?"));
    let host = text(header::HOST);
    // Every browser sends a host: a request without is no page's.
    if let Some(host) = host
        && app.token.is_none()
        && !is_own_host(host, app.bound)
    {
        let detail = format!("the host {host:?} is not this agent; use localhost or 127.0.0.1");
        return Err(Problem::refused(detail));
    }
    if let Some(origin) = text(header::ORIGIN)
        && !is_own_origin(origin, host)
    {
        return Err(Problem::refused(format!("a page of {origin:?} may not ask this agent")));
    }
    let Some(token) = &app.token else { return Ok(()) };
    let given = text(header::AUTHORIZATION).and_then(|h| h.split_once(' '));
    let is_given = given.is_some_and(|(s, t)| s.eq_ignore_ascii_case("bearer") && token.is(t.trim()));
    if is_given || OPEN_PATHS.contains(&path) { Ok(()) } else { Err(Problem::no_token()) }
}

fn is_own_origin(origin: &str, host: Option<&str>) -> bool {
    origin
        .split_once("://")
        .is_some_and(|(_, authority)| host.is_some_and(|h| h.eq_ignore_ascii_case(authority)))
}

fn is_own_host(host: &str, bound: Option<IpAddr>) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    let is_known = |ip: IpAddr| ip.is_loopback() || Some(ip) == bound;
    bare.eq_ignore_ascii_case("localhost") || bare.parse().is_ok_and(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_ours() {
        let bound = Some(IpAddr::from([10, 1, 2, 3]));
        for ours in ["localhost", "LOCALHOST:8050", "127.0.0.1:8050", "[::1]:8050", "[::1]", "10.1.2.3:1"] {
            assert!(is_own_host(ours, bound), "{ours}");
        }
        for other in [
            "evil.example",
            "evil.example:8050",
            "localhost.evil.example",
            "10.1.2.4",
            "",
            "127.0.0.1.nip.io:80",
        ] {
            assert!(!is_own_host(other, bound), "{other}");
        }
    }

    #[test]
    fn an_origin_is_ours_when_it_is_the_host_that_was_asked() {
        assert!(is_own_origin("http://localhost:8050", Some("localhost:8050")));
        for (origin, host) in [
            ("http://localhost:9000", Some("localhost:8050")),
            ("https://evil.example", Some("localhost:8050")),
            ("null", Some("localhost:8050")),
            ("http://localhost:8050", None),
        ] {
            assert!(!is_own_origin(origin, host), "{origin}");
        }
    }

    #[test]
    fn a_token_is_itself_and_nothing_else() {
        let token = Token::of("0123456789abcdef");
        assert!(token.is("0123456789abcdef"));
        for other in ["", "0123456789abcde", "0123456789abcdef0", "0123456789abcdeF"] {
            assert!(!token.is(other), "{other}");
        }
    }
}
