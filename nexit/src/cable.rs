//! Frames on a machine's serial line ([`mux::frame`]): what debuggers say beside the consoles.

use std::io::{self, Read, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mux::frame::{Channel, Kind, MAX_PAYLOAD, Splitter, encode};
use mux::{ESCAPE, MARK};

use crate::attach::Line;
use crate::failure::{Failure, Result};

/// How long the hypervisor may take to say which guests there are, and how often it is asked meanwhile.
const ANSWER: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(2);
/// After the first guest the others come at once.
const REST: Duration = Duration::from_millis(500);

type To = Arc<Mutex<Box<dyn Write + Send>>>;

/// The frames of a line. What is not in frames is not looked at.
pub(crate) struct Cable {
    to: To,
    frames: Receiver<(Channel, Vec<u8>)>,
}

/// To one guest's gdb stub.
pub(crate) struct Writer {
    to: To,
    channel: Channel,
}

impl Cable {
    pub(crate) fn new(line: Line) -> Self {
        let (sender, frames) = mpsc::channel();
        let mut from = line.from;
        thread::spawn(move || {
            let (mut splitter, mut buffer) = (Splitter::new(MARK), [0; 4096]);
            let mut gone = false;
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                for byte in buffer.get(..length).unwrap_or_default() {
                    splitter.push(*byte, &mut |_| {}, &mut |channel, payload| {
                        gone |= sender.send((channel, payload.to_vec())).is_err();
                    });
                }
                if gone {
                    return;
                }
            }
        });
        Self { to: Arc::new(Mutex::new(line.to)), frames }
    }

    /// To the gdb stub of the guest of this index.
    pub(crate) fn writer(&self, guest: u8) -> Writer {
        Writer { to: Arc::clone(&self.to), channel: Channel { kind: Kind::Gdb, guest } }
    }

    /// The next bytes from the gdb stub of a guest; none where nothing came in that time.
    ///
    /// # Errors
    /// The line has ended.
    pub(crate) fn next(&self, guest: u8, wait: Duration) -> Result<Option<Vec<u8>>> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.frames.recv_timeout(left) {
                Ok((channel, bytes)) if channel == (Channel { kind: Kind::Gdb, guest }) => {
                    return Ok(Some(bytes));
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::Failed("the line has ended".to_owned()));
                }
            }
        }
    }

    /// The index of the guest of this name, which gdb can reach.
    ///
    /// # Errors
    /// Nobody answers, or there is no such guest, or it has no gdb on this line.
    pub(crate) fn find(&self, guest: &str) -> Result<u8> {
        let guests = self.guests(ANSWER)?;
        let names = || guests.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>();
        let found = guests.iter().find(|(_, name, _)| name == guest);
        let Some((index, _, reachable)) = found else {
            let names = names().join(", ");
            return Err(Failure::Usage(format!(
                "there is no guest \"{guest}\": the guests are {names}"
            )));
        };
        if *reachable {
            return Ok(*index);
        }
        let text = "has no gdb on this line: write gdb = \"console\" in its [[guest]]";
        Err(Failure::Usage(format!("guest \"{guest}\" {text}")))
    }

    /// The guests: index, name, whether gdb can reach it. The first is told within this time.
    fn guests(&self, answer: Duration) -> Result<Vec<(u8, String, bool)>> {
        let (mut asked, mut guests) = (None::<Instant>, Vec::new());
        // When all is told; moves with each guest that is told.
        let mut until = Instant::now() + answer;
        loop {
            if guests.is_empty() && asked.is_none_or(|then| then.elapsed() >= AGAIN) {
                send(&self.to, Channel { kind: Kind::Names, guest: 0 }, &[])
                    .map_err(|error| Failure::Failed(format!("cannot ask for guests: {error}")))?;
                asked = Some(Instant::now());
            }
            // Looked at in each round, not only where nothing comes: a line on which others talk is never silent.
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return if guests.is_empty() { Err(nobody()) } else { Ok(guests) };
            }
            match self.frames.recv_timeout(left.min(REST)) {
                Ok((Channel { kind: Kind::Names, guest }, payload)) => {
                    let is_new = guests.iter().all(|(index, ..)| *index != guest);
                    if let (true, Some((reachable, name))) = (is_new, payload.split_first()) {
                        let name = String::from_utf8_lossy(name).into_owned();
                        guests.push((guest, name, *reachable == 1));
                        until = Instant::now() + REST;
                    }
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(nobody()),
            }
        }
    }
}

fn nobody() -> Failure {
    let text = "nobody says which guests there are: is the line that of Nexit's console, does its machine run, and \
                is nobody else reading from it?";
    Failure::Failed(text.to_owned())
}

/// One frame, at once.
fn send(to: &To, channel: Channel, payload: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::new();
    encode(ESCAPE, channel, payload, &mut |byte| bytes.push(byte));
    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
    to.write_all(&bytes).and_then(|()| to.flush())
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes.get(..MAX_PAYLOAD).unwrap_or(bytes);
        send(&self.to, self.channel, piece).map(|()| piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::UnixStream;

    use mux::Mux;

    use super::*;

    /// A line with the hypervisor's end of it: guests `a`, and `b` whose gdb gets back what it sends, behind a word of a
    /// console.
    pub(crate) fn echo() -> Line {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || serve(theirs));
        Line { from: Box::new(ours.try_clone().unwrap()), to: Box::new(ours) }
    }

    fn serve(mut line: UnixStream) {
        let mut mux = Mux::new();
        ["a", "b"].iter().for_each(|name| mux.add_guest((*name).to_owned()));
        mux.add_debugger(1);
        let mut buffer = [0; 512];
        while let Ok(length @ 1..) = line.read(&mut buffer) {
            let mut out = Vec::new();
            for byte in &buffer[..length] {
                mux.typed(*byte, &mut |byte| out.push(byte));
                mux.guest_output(0, b'.', &mut |byte| out.push(byte));
                let bytes: Vec<u8> = std::iter::from_fn(|| mux.from_debugger(1)).collect();
                if !bytes.is_empty() {
                    mux.to_debugger(1, &bytes, &mut |byte| out.push(byte));
                }
            }
            if line.write_all(&out).is_err() {
                return;
            }
        }
    }

    #[test]
    fn a_guest_is_found_by_its_name_and_its_stub_is_talked_to() {
        let cable = Cable::new(echo());
        let error = |name| cable.find(name).unwrap_err().to_string();
        assert_eq!(error("c"), "there is no guest \"c\": the guests are a, b");
        assert!(error("a").contains("gdb = \"console\""));
        assert_eq!(cable.find("b"), Ok(1));
        let long = [b'x'; 3 * MAX_PAYLOAD];
        cable.writer(1).write_all(&long).unwrap();
        let mut heard = Vec::new();
        while heard.len() < long.len() {
            heard.extend(cable.next(1, ANSWER).unwrap().unwrap());
        }
        assert_eq!(heard, long);
    }

    /// A line on which guest `a` is told, or nothing, and then a frame for another guest's gdb comes every 50 ms.
    fn busy(tells: bool) -> Line {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let asked = (&theirs).read_exact(&mut [0]);
            let frame = |kind, guest, payload: &[u8]| {
                let mut bytes = Vec::new();
                encode(MARK, Channel { kind, guest }, payload, &mut |byte| bytes.push(byte));
                (&theirs).write_all(&bytes)
            };
            let mut sent =
                asked.and_then(|()| if tells { frame(Kind::Names, 0, b"\x01a") } else { Ok(()) });
            while sent.is_ok() {
                thread::sleep(Duration::from_millis(50));
                sent = frame(Kind::Gdb, 1, b"+");
            }
        });
        Line { from: Box::new(ours.try_clone().unwrap()), to: Box::new(ours) }
    }

    #[test]
    fn what_others_say_on_the_line_keeps_nobody_waiting() {
        assert_eq!(Cable::new(busy(true)).find("a"), Ok(0));
        let error = Cable::new(busy(false)).guests(REST).unwrap_err().to_string();
        assert!(error.starts_with("nobody says which guests there are"), "{error}");
    }

    #[test]
    fn the_end_of_a_line_is_said() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let cable =
            Cable::new(Line { from: Box::new(ours.try_clone().unwrap()), to: Box::new(ours) });
        drop(theirs);
        assert_eq!(cable.next(0, ANSWER), Err(Failure::Failed("the line has ended".to_owned())));
        assert!(cable.find("a").is_err());
    }
}
