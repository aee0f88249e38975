//! Where the hypervisor was when it failed: the return addresses on the stack, in the log. `nexit symbolize` says which
//! functions they are in.

use core::fmt;

use arch::Hpa;
use arrayvec::ArrayVec;
use debug::backtrace::Code;

use crate::console::logln;
use crate::memory;

/// So many return addresses are logged: those of the innermost calls, and of what these have called before.
const MAX_LOGGED: usize = 32;
/// So many stand in a line.
const LINE: usize = 8;

/// Logs them, and the instruction that failed, where it is known.
pub(crate) fn log(at: Option<u64>, stack: u64) {
    if let Some(at) = at {
        logln!("backtrace: at {at:#x}");
    }
    let Some(range) = memory::stack_of(stack) else {
        return logln!("backtrace: none, as {stack:#x} is in no stack");
    };
    let code = memory::code();
    // SAFETY: the code, which nobody writes.
    let bytes = unsafe { cpu::physical::bytes(code.start, code.length as usize) };
    let code = Code { start: code.start.as_u64(), bytes };
    let mut found = ArrayVec::<u64, MAX_LOGGED>::new();
    for place in (stack & !7..range.end().as_u64()).step_by(8) {
        // SAFETY: an aligned word of this CPU's own stack, which is mapped.
        let word = unsafe { cpu::physical::pointer::<u64>(Hpa::new(place)).read_volatile() };
        if code.returns_to(word) && found.try_push(word).is_err() {
            break;
        }
    }
    for line in found.chunks(LINE) {
        logln!("backtrace: from{}", Addresses(line));
    }
}

struct Addresses<'a>(&'a [u64]);

impl fmt::Display for Addresses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|address| write!(f, " {address:#x}"))
    }
}
