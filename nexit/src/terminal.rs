//! The user's terminal: each key goes to the machine's serial line as it is typed.
//!
//! Invariant: a terminal that was taken is given back as it was when its [`Terminal`] goes, which is
//! before the program ends, also by a signal that can be caught.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Sender};
use std::thread;

use rustix::process::getpgrp;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr,
    tcgetpgrp, tcsetattr,
};

use crate::failure::{Failure, Result};

/// Ctrl-A, which opens an order to the line itself.
const ESCAPE: u8 = 0x01;
/// Behind Ctrl-A: end the run. All other orders are the hypervisor's (`docs/console.md`).
const QUIT: u8 = b'x';

/// A terminal that gives each key at once and uncooked. Its output stays cooked: the program's own
/// messages end their lines with a mere newline.
#[derive(Debug)]
pub(crate) struct Terminal<F: AsFd> {
    terminal: F,
    before: Termios,
}

impl<F: AsFd> Terminal<F> {
    /// Takes `input`, if it is a terminal and this program may: a background job that tried would be
    /// stopped.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(crate) fn take(input: F) -> Result<Option<Self>> {
        if !isatty(&input) || tcgetpgrp(&input).is_ok_and(|foreground| foreground != getpgrp()) {
            return Ok(None);
        }
        let refused = |error| Failure::Failed(format!("cannot set the terminal: {error}"));
        let before = tcgetattr(&input).map_err(refused)?;
        let mut raw = before.clone();
        raw.input_modes -= InputModes::BRKINT
            | InputModes::ICRNL
            | InputModes::IGNCR
            | InputModes::INLCR
            | InputModes::ISTRIP
            | InputModes::IXON;
        raw.local_modes -=
            LocalModes::ECHO | LocalModes::ICANON | LocalModes::IEXTEN | LocalModes::ISIG;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&input, OptionalActions::Now, &raw).map_err(refused)?;
        Ok(Some(Self { terminal: input, before }))
    }
}

impl<F: AsFd> Drop for Terminal<F> {
    fn drop(&mut self) {
        // What was typed for the guest and not read is not for the user's shell.
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Carries bytes to the machine, from whoever has a sender of them. A machine that does not read keeps nobody waiting.
pub(crate) fn carry(mut machine: impl Write + Send + 'static) -> Sender<Vec<u8>> {
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        for bytes in receiver {
            // A machine that is gone ends the run by itself.
            let _ = machine.write_all(&bytes).and_then(|()| machine.flush());
        }
    });
    sender
}

/// Passes on what is typed, and calls `quit` when the user wants to end the run. Without `quit` no key is special.
pub(crate) fn forward(
    mut keyboard: impl Read + Send + 'static,
    machine: Sender<Vec<u8>>,
    quit: Option<impl Fn() + Send + 'static>,
) {
    thread::spawn(move || {
        let (mut keys, mut buffer) = (Keys::default(), [0; 256]);
        loop {
            match keyboard.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let typed = buffer.get(..length).unwrap_or_default();
                    let Some(quit) = &quit else {
                        let _ = machine.send(typed.to_vec());
                        continue;
                    };
                    let typed = keys.feed(typed);
                    let _ = machine.send(typed.bytes);
                    if typed.quit {
                        return quit();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
}

/// Looks for `Ctrl-A x`. Ctrl-A waits here for the key that follows it.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

/// What was typed.
#[derive(PartialEq, Eq, Debug)]
struct Typed {
    /// For the machine.
    bytes: Vec<u8>,
    /// The user wants to end the run; what was typed behind that is not for the machine.
    quit: bool,
}

impl Keys {
    fn feed(&mut self, typed: &[u8]) -> Typed {
        let mut bytes = Vec::with_capacity(typed.len());
        for byte in typed {
            if std::mem::take(&mut self.escaped) {
                if *byte == QUIT {
                    return Typed { bytes, quit: true };
                }
                bytes.extend([ESCAPE, *byte]);
            } else if *byte == ESCAPE {
                self.escaped = true;
            } else {
                bytes.push(*byte);
            }
        }
        Typed { bytes, quit: false }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(typed: &[u8]) -> (Vec<u8>, bool) {
        let Typed { bytes, quit } = Keys::default().feed(typed);
        (bytes, quit)
    }

    #[test]
    fn only_ctrl_a_x_is_kept_from_the_machine() {
        assert_eq!(feed(b"ab\x01xc"), (b"ab".to_vec(), true));
        assert_eq!(feed(b"x\x011\x01m\x03"), (b"x\x011\x01m\x03".to_vec(), false));
    }

    #[test]
    fn a_ctrl_a_that_was_typed_twice_does_not_end_the_run() {
        assert_eq!(feed(b"\x01\x01x"), (b"\x01\x01x".to_vec(), false));
        assert_eq!(feed(b"\x01\x01\x01x"), (b"\x01\x01".to_vec(), true));
    }

    proptest! {
        #[test]
        fn cutting_what_is_typed_elsewhere_changes_nothing(
            typed in prop::collection::vec(prop::sample::select(b"\x01xa".as_slice()), 0..20),
            cut in 1..4_usize,
        ) {
            let whole = feed(&typed);
            let (mut keys, mut bytes, mut quit) = (Keys::default(), Vec::new(), false);
            for piece in typed.chunks(cut) {
                let typed = keys.feed(piece);
                bytes.extend(typed.bytes);
                quit = typed.quit;
                if quit {
                    break;
                }
            }
            prop_assert_eq!((bytes, quit), whole);
        }
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        let file = tempfile::tempfile().unwrap();
        assert!(Terminal::take(file).unwrap().is_none());
    }
}
