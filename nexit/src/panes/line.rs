//! The machine's serial line, which is opened again when it goes away.

use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use crate::attach::{self, Line};
use crate::cli::LineArgs;
use crate::failure::Result;

/// How long it takes until the line is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What happens to the line.
pub(super) enum Event {
    /// It is open: here one writes.
    Open(Box<dyn Write + Send>),
    Bytes(Vec<u8>),
    /// It is gone, for this reason, and is tried again.
    Lost(String),
}

/// Opens the line and keeps it open, in the background: what happens to it is sent as `event` makes it.
///
/// # Errors
/// It cannot be opened now. Later this is tried again.
pub(super) fn follow<E: Send + 'static>(
    line: LineArgs,
    events: Sender<E>,
    event: fn(Event) -> E,
) -> Result<()> {
    let first = attach::open(&line)?;
    thread::spawn(move || {
        let mut open: Result<Line> = Ok(first);
        let mut reason = String::new();
        loop {
            let sent = match open {
                Ok(Line { from, to }) => {
                    reason.clear();
                    events
                        .send(event(Event::Open(to)))
                        .and_then(|()| events.send(event(Event::Lost(read(from, &events, event)))))
                }
                // Said once, not each second.
                Err(failure) if failure.to_string() != reason => {
                    reason = failure.to_string();
                    events.send(event(Event::Lost(reason.clone())))
                }
                Err(_) => Ok(()),
            };
            if sent.is_err() {
                return;
            }
            thread::sleep(AGAIN);
            open = attach::open(&line);
        }
    });
    Ok(())
}

/// Sends what the line brings until it ends; says why it did.
fn read<E>(mut line: Box<dyn Read + Send>, events: &Sender<E>, event: fn(Event) -> E) -> String {
    let mut buffer = [0; 4096];
    loop {
        match line.read(&mut buffer) {
            Ok(0) => return "the other side has closed it".to_owned(),
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                if events.send(event(Event::Bytes(bytes))).is_err() {
                    return String::new();
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_line_that_goes_is_opened_again_and_nothing_is_lost_meanwhile() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (sender, events) = mpsc::channel();
        let line = LineArgs { line: Some(listener.local_addr().unwrap().to_string()), baud: 0 };
        follow(line, sender, |event| event).unwrap();
        for round in 0..2 {
            let (mut machine, _) = listener.accept().unwrap();
            let Ok(Event::Open(mut writer)) = events.recv() else { panic!("round {round}") };
            writer.write_all(b"key").unwrap();
            let mut key = [0; 3];
            machine.read_exact(&mut key).unwrap();
            machine.write_all(b"word").unwrap();
            drop(machine);
            let mut said = Vec::new();
            let lost = loop {
                match events.recv() {
                    Ok(Event::Bytes(bytes)) => said.extend(bytes),
                    Ok(Event::Lost(reason)) => break reason,
                    _ => panic!("round {round}"),
                }
            };
            assert_eq!((key, said), (*b"key", b"word".to_vec()));
            assert!(!lost.is_empty());
        }
    }
}
