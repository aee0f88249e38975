//! `netbench rr ADDRESS COUNT`: COUNT requests of one byte to a server that sends back what it gets, each
//! answered before the next. `netbench stream ADDRESS COUNT`: reads COUNT times all that the server at
//! ADDRESS sends.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;

use guest_tools::marker;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, address, count] = arguments.as_slice() else { return usage() };
    let Ok(count) = count.parse() else { return usage() };
    let done = match kind.as_str() {
        "rr" => requests(address, count),
        "stream" => streams(address, count),
        _ => return usage(),
    };
    match done {
        Ok(bytes) => {
            println!("operations={count} bytes={bytes}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("netbench: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: netbench rr|stream ADDRESS COUNT");
    ExitCode::from(2)
}

fn requests(address: &str, count: u64) -> io::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    // The first exchange starts the server.
    let mut byte = [0];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    marker::open::<{ marker::WORK }>();
    for _ in 0..count {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    marker::close::<{ marker::WORK }>();
    Ok(count)
}

fn streams(address: &str, count: u64) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0;
    marker::open::<{ marker::WORK }>();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address)?;
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                length => bytes += length as u64,
            }
        }
    }
    marker::close::<{ marker::WORK }>();
    Ok(bytes)
}
