//! Ports of this machine's loopback, and a relay between two addresses.
//! Must never listen where another machine can reach it unless told the address. Called by `agent`, `scenario` and `kubernetes`.

use anyhow::{Context as _, Result};
use std::io::copy;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

/// A port that is free now; between this and whoever binds it nobody but a scanner of ports would take it.
pub fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on the loopback")?;
    listener.local_addr().context("a listener without an address")
}

/// Relays each connection to `at` to one of its own to `to`, until the process ends. Two threads a connection.
pub fn relay(at: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"))?;
    thread::spawn(move || {
        for from in listener.incoming().flatten() {
            // refused there is closed here, which says the same to whoever asks
            let Ok(onward) = TcpStream::connect(to) else { continue };
            let (Ok(back_from), Ok(back_to)) = (onward.try_clone(), from.try_clone()) else { continue };
            thread::spawn(move || pour(&from, &onward));
            thread::spawn(move || pour(&back_from, &back_to));
        }
    });
    Ok(())
}

fn pour(mut from: &TcpStream, mut to: &TcpStream) {
    // However it ends, the other side hears of it.
    let _ = copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::{free_port, relay};
    use std::io::{Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};

    #[test]
    fn what_is_said_through_a_relay_is_answered_through_it() {
        let server = TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
        let at = free_port().expect("a port");
        relay(at, server.local_addr().expect("an address")).expect("a relay");
        let answering = std::thread::spawn(move || {
            let (mut peer, _) = server.accept().expect("a connection");
            let mut text = String::new();
            peer.read_to_string(&mut text).expect("a question");
            peer.write_all(format!("{text}, too").as_bytes()).expect("an answer");
        });
        let mut client = TcpStream::connect(at).expect("the relay");
        client.write_all(b"hello").expect("said");
        client.shutdown(Shutdown::Write).expect("the end of it");
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "hello, too");
        answering.join().expect("no panic");
    }
}
