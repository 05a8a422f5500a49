//! The one HTTP request that xtask makes: GET from an agent on this machine.
//! Must never follow a redirect or talk to anything but a loopback address. Called by `demo`.

use anyhow::{Context as _, Result, bail};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub struct Reply {
    pub status: u16,
    pub body: String,
}

/// HTTP/1.0, so that the body comes whole and the connection ends with it.
pub fn get(address: SocketAddr, path: &str) -> Result<Reply> {
    if !address.ip().is_loopback() {
        bail!("{address} is not on this machine");
    }
    // an emulated machine needs seconds for each file that it reads for an answer
    let limit = Duration::from_mins(2);
    let what = || format!("GET http://{address}{path}");
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(what)?;
    stream.set_read_timeout(Some(limit)).with_context(what)?;
    stream.set_write_timeout(Some(limit)).with_context(what)?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(what)?;
    let mut bytes = Vec::new();
    stream.take(16 << 20).read_to_end(&mut bytes).with_context(what)?;
    parse(&String::from_utf8_lossy(&bytes)).with_context(what)
}

fn parse(text: &str) -> Result<Reply> {
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let status =
        head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).context("the answer has no status")?;
    Ok(Reply { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn answers_are_split_and_junk_is_refused() {
        let reply = parse("HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\n{}\r\n\r\n").expect("an answer");
        assert_eq!((reply.status, reply.body.as_str()), (503, "{}\r\n\r\n"));
        assert!(parse("HTTP/1.0 200 OK\r\n").is_err());
        assert!(parse("\r\n\r\n").is_err());
    }
}
