//! What the code and the handlers have written down, as text.

use core::fmt;

use super::{BODIES, END_OF_BODIES, SEGMENT, get};

/// What a note begins with: a value; an event with a 16-bit frame; one with a 32-bit frame.
pub(crate) const VALUE: u32 = 0x5600_0000;
pub(crate) const EVENT_16: u32 = 0x1600_0000;
pub(crate) const EVENT_32: u32 = 0x3200_0000;
const KIND: u32 = 0xff00_0000;

/// The notes of one trial.
pub(crate) struct Seen {
    pub(super) begin: u16,
    pub(super) end: u16,
    /// Where its code begins.
    pub(super) body: u16,
}

impl Seen {
    /// An instruction pointer: from the code's begin where it is in it.
    fn place(&self, code_segment: u32, at: u32) -> (u32, u32) {
        let own = u32::from(BODIES)..u32::from(END_OF_BODIES);
        let near = code_segment != 0 && own.contains(&at);
        (code_segment, if near { at.wrapping_sub(self.body.into()) } else { at })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = self.begin;
        if at == self.end {
            return f.write_str("nothing");
        }
        while at < self.end {
            let word = |index: u16| get::<u32>(at + 4 * index);
            let (kind, vector) = (word(0) & KIND, word(0) & 0xff);
            let [error, ip, cs, flags, sp, handler] = [1, 2, 3, 4, 5, 6].map(word);
            let (cs, ip) = self.place(cs, ip);
            at += match kind {
                VALUE => {
                    write!(f, "{:x} ", word(1))?;
                    8
                }
                EVENT_16 | EVENT_32 => {
                    write!(f, "#{vector}")?;
                    if error != 0 {
                        write!(f, "({error:x})")?;
                    }
                    let own = u32::from(SEGMENT);
                    if cs != own {
                        write!(f, " {cs:x}:")?;
                    }
                    write!(f, " at {ip:x} flags {flags:x}>{handler:x} sp {sp:x}")?;
                    if kind == EVENT_16 {
                        f.write_str("; ")?;
                        28
                    } else {
                        let [ss, es, ds, fs, gs] = [7, 8, 9, 10, 11].map(word);
                        write!(f, " ss {ss:x} es {es:x} ds {ds:x} fs {fs:x} gs {gs:x}; ")?;
                        48
                    }
                }
                _ => return write!(f, "a note that nobody makes: {:x}", word(0)),
            };
        }
        Ok(())
    }
}
