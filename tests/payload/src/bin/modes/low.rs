//! Out of long mode to where code has 16 bits, and back: pieces of code below 1 MiB, each run in real mode, in 16-bit
//! protected mode or in virtual-8086 mode, and what they and the handlers of their exceptions write down.
//!
//! A group of pieces is one block of assembly ([`trials!`](crate::trials)), which is copied to [`BODIES`].

use core::ffi::{CStr, c_char};
use core::ptr::copy_nonoverlapping;

use arch::Hpa;
use arch::msr::IA32_X2APIC_EOI;
use cpu::instructions::write_msr;
use cpu::physical::pointer;
use payload::fact;

pub(crate) mod entry;
mod seen;
mod tables;

pub(crate) use seen::Seen;

/// The segment of all code and data: what is below is an offset in it.
pub(crate) const SEGMENT: u16 = 0x1000;
/// The stack's segment, and where it begins.
pub(crate) const STACK_SEGMENT: u16 = 0x2000;
pub(crate) const STACK: u16 = 0x1000;
/// A second table of real-mode vectors, and the table of gates in protected mode.
pub(crate) const OTHER_VECTORS: u32 = 0x3_0000;
pub(crate) const GATES: u32 = 0x3_1000;

/// What lies at the begin: INT3 twice, for code that runs over the segment's end.
const BEGIN: u16 = 0xcccc;
/// Variables.
pub(crate) const NEXT: u16 = 0x38;
/// Offsets of what a piece of code may call or jump to.
pub(crate) const NOTE: u16 = 0x04;
pub(crate) const LEAVE: u16 = 0x08;
/// What DS is for this segment.
pub(crate) const DATA_SEGMENT: u16 = 0x0c;
/// From how many events the handler returns, and how far behind where they came.
pub(crate) const RETURNS: u16 = 0x10;
pub(crate) const SKIP: u16 = 0x14;
pub(crate) const BODY: u16 = 0x18;
pub(crate) const MODE: u16 = 0x1c;
pub(crate) const EFLAGS: u16 = 0x20;
pub(crate) const CR4: u16 = 0x24;
pub(crate) const SAVED_CR3: u16 = 0x28;
pub(crate) const SAVED_CR4: u16 = 0x2c;
pub(crate) const SAVED_STACK: u16 = 0x30;
/// Limit and base of tables.
pub(crate) const VECTORS: u16 = 0x40;
pub(crate) const GDTR: u16 = 0x50;
pub(crate) const IDTR: u16 = 0x60;
pub(crate) const SAVED_GDTR: u16 = 0x70;
pub(crate) const SAVED_IDTR: u16 = 0x80;
const SELF_IPI: u32 = 0x83f;
/// For the pieces of code.
pub(crate) const SCRATCH: u16 = 0x100;
const GDT: u16 = 0x200;
const TSS: u16 = 0x400;
const CODE: u16 = 0x1000;
pub(crate) const BODIES: u16 = 0x4000;
const END_OF_BODIES: u16 = 0x8000;
const NOTES: u16 = 0xa000;
const END_OF_NOTES: u16 = 0xc000;

/// Where the code runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Real,
    Protected16,
    Virtual8086,
}

/// A piece of code, as the assembly lists it.
#[repr(C)]
pub(crate) struct Trial {
    name: *const c_char,
    code: *const u8,
    options: u64,
}

/// The pieces of a group, and their list.
pub(crate) struct Group {
    pub(crate) mode: Mode,
    pub(crate) name: &'static str,
    pub(crate) code: [*const u8; 2],
    pub(crate) trials: [*const Trial; 2],
}

/// Pieces of code, each begun by `trial "NAME"`; `leave` ends it early, `tell` writes EAX down, and `address LABEL` moves its
/// offset to AX.
#[macro_export]
macro_rules! trials {
    ($group:literal; $($line:literal),+ $(,)?) => {
        core::arch::global_asm!(
            concat!(".pushsection .rodata.", $group, ", \"a\""),
            ".code16",
            ".set returns, {returns}",
            ".set skip, {skip}",
            ".set scratch, {scratch}",
            ".set vectors, {vectors}",
            ".set gdtr, {gdtr}",
            ".macro address label",
            ".byte 0xb8",
            concat!(".short \\label - ", $group, "_code + {bodies}"),
            ".endm",
            ".macro leave",
            "jmp word ptr cs:[{leave}]",
            ".endm",
            ".macro tell",
            "call word ptr cs:[{note}]",
            ".endm",
            ".macro trial name, options=0",
            "leave",
            concat!(".pushsection .rodata.", $group, "_names, \"a\""),
            "77: .asciz \"\\name\"",
            ".popsection",
            concat!(".pushsection .rodata.", $group, "_list, \"a\""),
            ".quad 77b, 78f, \\options",
            ".popsection",
            "78:",
            ".endm",
            concat!(".pushsection .rodata.", $group, "_list, \"a\""),
            ".balign 8",
            concat!(".global ", $group, "_list"),
            concat!($group, "_list:"),
            ".popsection",
            concat!(".global ", $group, "_code"),
            concat!($group, "_code:"),
            $($line,)+
            "leave",
            ".purgem address",
            ".purgem leave",
            ".purgem tell",
            ".purgem trial",
            concat!(".global ", $group, "_code_end"),
            concat!($group, "_code_end:"),
            ".code64",
            ".popsection",
            concat!(".pushsection .rodata.", $group, "_list, \"a\""),
            concat!(".global ", $group, "_list_end"),
            concat!($group, "_list_end:"),
            ".popsection",
            bodies = const $crate::low::BODIES,
            leave = const $crate::low::LEAVE,
            note = const $crate::low::NOTE,
            returns = const $crate::low::RETURNS,
            skip = const $crate::low::SKIP,
            scratch = const $crate::low::SCRATCH,
            vectors = const $crate::low::VECTORS,
            gdtr = const $crate::low::GDTR,
        );
    };
}

/// The group of that name in assembly, which is declared here.
#[macro_export]
macro_rules! group {
    ($mode:expr, $name:literal, $code:ident, $code_end:ident, $list:ident, $list_end:ident) => {{
        unsafe extern "C" {
            static $code: u8;
            static $code_end: u8;
            static $list: $crate::low::Trial;
            static $list_end: $crate::low::Trial;
        }
        $crate::low::Group {
            mode: $mode,
            name: $name,
            code: [&raw const $code, &raw const $code_end],
            trials: [&raw const $list, &raw const $list_end],
        }
    }};
}

/// Writes a value into the segment.
pub(crate) fn set<T>(offset: u16, value: T) {
    let at = pointer::<T>(at(offset));
    // SAFETY: RAM below 1 MiB that this module alone uses.
    unsafe { at.write_unaligned(value) };
}

pub(crate) fn get<T>(offset: u16) -> T {
    let at = pointer::<T>(at(offset));
    // SAFETY: as above.
    unsafe { at.read_unaligned() }
}

const fn linear(offset: u16) -> u32 {
    ((SEGMENT as u32) << 4) + offset as u32
}

fn at(offset: u16) -> Hpa {
    Hpa::new(linear(offset).into())
}

impl Group {
    /// Runs all of them, and says what they saw.
    pub(crate) fn run(&self) {
        let [begin, end] = self.code;
        let length = end as usize - begin as usize;
        assert!(
            BODIES as usize + length <= END_OF_BODIES as usize,
            "the code of {} is too long",
            self.name
        );
        let to = pointer::<u8>(at(BODIES));
        // SAFETY: the group's own bytes, and room for them.
        unsafe { copy_nonoverlapping(begin, to, length) };
        entry::copy();
        let [first, end] = self.trials;
        let count = (end as usize - first as usize) / size_of::<Trial>();
        for index in 0..count {
            // SAFETY: the list's entries, one behind the other.
            let trial = unsafe { &*first.wrapping_add(index) };
            // SAFETY: the list's names end with 0.
            let name = unsafe { CStr::from_ptr(trial.name) }.to_str().unwrap_or_default();
            let offset = BODIES + (trial.code as usize - begin as usize) as u16;
            fact!("{}: {name}", self.name; "{}", run(self.mode, offset, trial.options));
        }
    }
}

/// Runs the code at `offset`.
fn run(mode: Mode, offset: u16, options: u64) -> Seen {
    tables::prepare(mode, options);
    set(NEXT, u32::from(NOTES));
    set(0, BEGIN);
    set(RETURNS, 0_u32);
    set(SKIP, 0_u32);
    set(BODY, u32::from(offset));
    let interrupt = options & tables::option::INTERRUPT != 0;
    if interrupt {
        // SAFETY: interrupts are off, and whoever switches them on has a gate for it.
        unsafe { write_msr(SELF_IPI, 0x50) };
    }
    entry::enter();
    if interrupt {
        // SAFETY: it has come.
        unsafe { write_msr(IA32_X2APIC_EOI, 0) };
    }
    let end = get::<u16>(NEXT).min(END_OF_NOTES);
    Seen { begin: NOTES, end, body: offset }
}
