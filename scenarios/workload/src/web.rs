//! The shop: a visitor asks the frontend, which asks the backend, which asks the store, by HTTP. Must never need a name, a file
//! or a library but its own address and that of the next one. Called by `main`.
//!
//! One request a connection, one at a time: what is watched is the containers, not the protocol.
#![expect(
    clippy::disallowed_methods,
    reason = "the ban keeps the agent on its own clock; this is not the agent"
)]

use crate::{memory, say};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::thread;
use std::time::{Duration, Instant};

/// For one step of one request.
const PATIENCE: Duration = Duration::from_secs(5);
const MOST_HEAD: u64 = 16 << 10;

/// Answers each request, after asking `upstream` where there is one; `keep` bytes of memory stay with each.
pub fn serve(listen: &str, upstream: Option<&str>, bytes: usize, keep: usize) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    say(&format!("listens on {listen}"));
    let _held = memory::touched(bytes);
    let mut orders: Vec<Vec<u8>> = Vec::new();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if read(&mut stream).is_err() {
            continue;
        }
        if keep > 0 {
            orders.push(memory::touched(keep));
        }
        let (status, body) = match upstream.map(get) {
            None => (200, format!("{} orders", orders.len())),
            Some(Ok((200, body))) => (200, body),
            Some(Ok((status, _))) => (502, format!("upstream says {status}")),
            Some(Err(e)) => (502, format!("upstream: {e}")),
        };
        // A client that went away meanwhile has lost its own answer only.
        let _ = answer(&mut stream, status, &body);
    }
    Ok(())
}

/// Asks again and again, each `every`, and tells how it was answered. Fails when nothing ever was.
pub fn visit(to: &str, every: Duration, length: Duration) -> Result<(), String> {
    let start = Instant::now();
    let (mut good, mut bad) = (0_u32, 0_u32);
    while start.elapsed() < length {
        match get(to) {
            Ok((200, _)) => good += 1,
            _ => bad += 1,
        }
        thread::sleep(every);
    }
    say(&format!("{good} answers, {bad} failures"));
    if good == 0 { Err(format!("{to} never answered")) } else { Ok(()) }
}

fn timed(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

/// The request's head, which ends with an empty line.
fn read(stream: &mut TcpStream) -> io::Result<()> {
    timed(stream)?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() as u64 > MOST_HEAD {
            return Err(ErrorKind::InvalidData.into());
        }
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, status: u16, body: &str) -> io::Result<()> {
    let reason = if status == 200 { "OK" } else { "Bad Gateway" };
    let length = body.len();
    let text =
        format!("HTTP/1.1 {status} {reason}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(text.as_bytes())
}

fn get(to: &str) -> io::Result<(u16, String)> {
    let address = to.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    timed(&stream)?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.take(MOST_HEAD).read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(ErrorKind::InvalidData)?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::{answer, get, read};
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn an_answer_comes_through_two_servers_and_a_missing_one_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            read(&mut stream).expect("a request");
            answer(&mut stream, 502, "upstream says 500").expect("an answer");
        });
        assert_eq!(get(&address).expect("an answer"), (502, "upstream says 500".to_owned()));
        server.join().expect("ends");
        assert!(get(&address).is_err(), "nobody is there now");
    }
}
