//! Asking a running agent over HTTP.
//!
//! Plain HTTP to the address that was given, never through a proxy: the agent listens on loopback.

use super::{Failure, Place};
use crate::export::Problem;
use crate::viewer::path_segment;
use anyhow::Context as _;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;
use ureq::Body;
use ureq::http::Response;

/// The longest export takes some ten seconds; beyond this something hangs.
const ANSWER_WITHIN: Duration = Duration::from_mins(3);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// More than the agent ever sends: 64 MiB, and a third more as base64.
const MAX_ANSWER: u64 = 256 << 20;
/// Of an answer that says what is wrong.
const MAX_REFUSAL: u64 = 1 << 20;

/// One request, and its answer where there is one; without `within` that may go on for ever.
fn request(place: &Place, path: &str, within: Option<Duration>) -> Result<Response<Body>, Failure> {
    let server = place.server.as_str();
    let host = server.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    if !host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' '])) {
        let detail = format!(
            "--server {server}: give it as http://HOST:PORT (there is no TLS on the agent's own port)"
        );
        return Err(Failure::Usage(detail));
    }
    let url = format!("{}{path}", server.trim_end_matches('/'));
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(within)
        .timeout_connect(Some(CONNECT_WITHIN))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .into();
    let mut request = agent.get(&url);
    if let Some(file) = &place.token_file {
        let token = std::fs::read_to_string(file)
            .map_err(|e| Failure::Usage(format!("--token-file {}: {e}", file.display())))?;
        request = request.header("authorization", format!("Bearer {}", token.trim()));
    }
    let response = request.call().map_err(|e| unreachable(server, &e))?;
    let status = response.status().as_u16();
    if status == 200 {
        return Ok(response);
    }
    let mut text = Vec::new();
    let body = response.into_body().into_reader();
    body.take(MAX_REFUSAL).read_to_end(&mut text).map_err(|e| unreachable(server, &e))?;
    Err(refused(server, status, &text))
}

fn unreachable(server: &str, e: &dyn std::fmt::Display) -> Failure {
    anyhow::anyhow!(
        "no answer from {server}: {e}; is the agent running there? (--server names another, --data reads its folder)"
    )
    .into()
}

/// Gives the answer to `take`, a piece at a time.
fn read(
    server: &str,
    response: Response<Body>,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut body, mut bytes) = (response.into_body().into_reader(), 0);
    let mut piece = vec![0; 64 << 10];
    loop {
        let n = body.read(&mut piece).map_err(|e| unreachable(server, &e))?;
        if n == 0 {
            return Ok(());
        }
        bytes += n as u64;
        if bytes > MAX_ANSWER {
            return Err(
                anyhow::anyhow!("{server} sent more than {MAX_ANSWER} bytes: is it an fgm agent?").into()
            );
        }
        take(&piece[..n])?;
    }
}

/// What the agent says in its problem document, as a failure with the right exit code.
fn refused(server: &str, status: u16, body: &[u8]) -> Failure {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let slug = problem["type"].as_str().and_then(|kind| kind.strip_prefix(Problem::TYPE));
    match slug {
        None => {
            let detail = format!("{server} answered {status} and no explanation: is it an fgm agent?");
            return anyhow::anyhow!(detail).into();
        }
        Some(Problem::NO_SUCH_PATH) => {
            return anyhow::anyhow!(
                "{server} is an fgm agent without this API; name the address that `listen` has, not that of health_listen"
            )
            .into();
        }
        Some(_) => {}
    }
    let detail = problem["detail"].as_str().unwrap_or("no detail").to_owned();
    let accepted: Vec<&str> =
        problem["accepted"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match status {
        400 => Problem::bad_query(detail, &accepted).into(),
        404 => Problem::not_found(detail).into(),
        _ => anyhow::anyhow!("{server} answered {status}: {}", super::in_our_words(&detail)).into(),
    }
}

/// The first and the last instant of which a running agent holds closed rows, where it says so.
pub fn held(place: &Place) -> Option<(i64, i64)> {
    let status = json(place, "/api/status").ok()?;
    status["store"]["from_us"].as_i64().zip(status["store"]["to_us"].as_i64())
}

/// Calls `take` with the name and the data of each server-sent event, until it fails or the agent goes.
pub fn follow(
    place: &Place,
    mut take: impl FnMut(&str, &Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let server = place.server.as_str();
    let response = request(place, "/api/live", None)?;
    let mut body = response.into_body().into_reader();
    let (mut name, mut data) = (String::new(), String::new());
    for line in BufReader::new(&mut body).lines() {
        let line = line.map_err(|e| unreachable(server, &e))?;
        if let Some(text) = line.strip_prefix("event:") {
            text.trim().clone_into(&mut name);
        } else if let Some(text) = line.strip_prefix("data:") {
            data.push_str(text.trim());
        } else if line.is_empty() && !data.is_empty() {
            if let Ok(value) = serde_json::from_str(&data) {
                take(&name, &value)?;
            }
            data.clear();
        }
    }
    Err(anyhow::anyhow!("{server} ended the stream: the agent stops, or was restarted").into())
}

/// A path with its query.
pub fn path(path: &str, pairs: &[(String, String)]) -> String {
    let query: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={}", path_segment(v))).collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

pub fn json(place: &Place, path: &str) -> Result<Value, Failure> {
    let server = place.server.as_str();
    let mut body = Vec::new();
    read(server, request(place, path, Some(ANSWER_WITHIN))?, |piece| {
        body.extend_from_slice(piece);
        Ok(())
    })?;
    serde_json::from_slice(&body)
        .map_err(|e| anyhow::anyhow!("{server} sent no JSON ({e}): is it an fgm agent?").into())
}

/// Writes the answer `into` what it is given, and gives that back.
pub fn export<W: Write>(place: &Place, pairs: &[(String, String)], mut into: W) -> Result<W, Failure> {
    let server = place.server.as_str();
    let response = request(place, &path("/api/export", pairs), Some(ANSWER_WITHIN))?;
    // any page of another server would do as HTML
    if !response.headers().contains_key("content-disposition") {
        return Err(anyhow::anyhow!(
            "{server} answered with something else than an export: is it an fgm agent?"
        )
        .into());
    }
    read(server, response, |piece| Ok(into.write_all(piece).context("the export's file")?))?;
    Ok(into)
}
