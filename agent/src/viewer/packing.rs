//! Answers packed as the client takes them: zstd or gzip, for texts that are worth it.
//!
//! An answer is made whole before its first byte, so it is packed whole, on a blocking thread. Streams (`/api/live`) and
//! Parquet, which is packed already, go as they are. Called by `viewer`'s routers.

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, Write};

/// Fewer bytes fit into one packet anyway.
const LEAST: usize = 1024;
/// An export is 64 MB at the most, and a third more in a report.
const MOST: usize = 256 << 20;
/// Fast, and JSON of buckets still becomes a tenth.
const ZSTD_LEVEL: i32 = 1;
const TEXTS: [&str; 5] =
    ["application/json", "application/problem+json", "text/html", "text/csv", "text/plain"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Zstd,
    Gzip,
}

impl Coding {
    fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    /// What a client takes, as RFC 9110 has it; zstd where it takes both alike.
    fn taken(headers: &HeaderMap) -> Option<Self> {
        let lists = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|h| h.to_str().ok());
        let named: Vec<(&str, f32)> = lists
            .flat_map(|list| list.split(','))
            .map(|one| {
                let (name, rest) = one.split_once(';').unwrap_or((one, ""));
                let weight = rest.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse);
                (name.trim(), weight.unwrap_or(0.0))
            })
            .collect();
        let weight = |coding: Self| {
            let of = |name: &str| named.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, q)| *q);
            of(coding.as_str()).or_else(|| of("*")).unwrap_or(0.0)
        };
        let (zstd, gzip) = (weight(Self::Zstd), weight(Self::Gzip));
        if zstd <= 0.0 && gzip <= 0.0 {
            return None;
        }
        Some(if zstd >= gzip { Self::Zstd } else { Self::Gzip })
    }

    fn pack(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
        }
    }
}

pub async fn pack(request: Request, next: Next) -> Response {
    let coding = Coding::taken(request.headers());
    let mut response = next.run(request).await;
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if !TEXTS.contains(&kind.split(';').next().unwrap_or_default().trim()) {
        return response;
    }
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
    let size = response.body().size_hint().exact().and_then(|n| usize::try_from(n).ok());
    let (Some(coding), Some(LEAST..)) = (coding, size) else { return response };
    let (mut head, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, MOST).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let plain = bytes.clone();
    match tokio::task::spawn_blocking(move || coding.pack(&plain)).await {
        Ok(Ok(packed)) => {
            head.headers.remove(header::CONTENT_LENGTH);
            head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
            // The tag is that of the text; packed it is the same text and other bytes.
            let weak = head.headers.get(header::ETAG).and_then(|t| t.to_str().ok()).map(|t| format!("W/{t}"));
            if let Some(weak) = weak.and_then(|tag| HeaderValue::from_str(&tag).ok()) {
                head.headers.insert(header::ETAG, weak);
            }
            Response::from_parts(head, Body::from(packed))
        }
        _ => Response::from_parts(head, Body::from(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_takes() {
        let taken = |list: &'static str| {
            Coding::taken(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(list))]))
        };
        for (list, wanted) in [
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip", Some(Coding::Gzip)),
            ("GZIP;q=0.5, zstd;q=0.1", Some(Coding::Gzip)),
            ("zstd;q=0, gzip;q=0", None),
            ("br", None),
            ("*", Some(Coding::Zstd)),
            ("*;q=0.5, zstd;q=0", Some(Coding::Gzip)),
            ("identity", None),
            ("gzip;q=nonsense", None),
        ] {
            assert_eq!(taken(list), wanted, "{list}");
        }
        assert_eq!(Coding::taken(&HeaderMap::new()), None);
    }
}
