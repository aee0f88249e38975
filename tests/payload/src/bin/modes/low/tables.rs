//! Descriptors, gates and vectors.

use arch::Hpa;
use cpu::physical::pointer;

use super::entry::{STUB, STUB_32, places};
use super::{
    CR4, DATA_SEGMENT, EFLAGS, GATES, GDT, GDTR, IDTR, LEAVE, MODE, Mode, NOTE, OTHER_VECTORS,
    SCRATCH, SEGMENT, STACK_SEGMENT, TSS, VECTORS, linear, set,
};

pub(crate) const CODE_32: u16 = 0x08;
pub(crate) const DATA_32: u16 = 0x10;
pub(crate) const CODE_64: u16 = 0x18;
pub(crate) const CODE_16: u16 = 0x20;
pub(crate) const DATA_16: u16 = 0x28;
pub(crate) const STACK_16: u16 = 0x30;
pub(crate) const TASK: u16 = 0x38;
const SHORT: u16 = 0x40;
const ABSENT: u16 = 0x48;
const CALL_GATE_16: u16 = 0x50;
const CALL_GATE_32: u16 = 0x58;
const CONFORMING_16: u16 = 0x60;
const EXPAND_DOWN: u16 = 0x68;
const READ_ONLY: u16 = 0x70;
const LAST: u16 = READ_ONLY;
/// Where the stack of the handlers of virtual-8086 mode ends.
pub(crate) const TASK_STACK: u32 = 0x3_3000;

/// Offsets in the TSS: the redirection bits of software interrupts, the I/O permissions, and their end.
const REDIRECTION: u16 = 0x68;
const PERMISSIONS: u16 = REDIRECTION + 32;
const TSS_END: u16 = PERMISSIONS + 0x81;

/// What a trial in virtual-8086 mode is run with: bits of a trial's options.
pub(crate) mod option {
    /// EFLAGS: IOPL, IF, VIF.
    pub(crate) const EFLAGS: u64 = 0x000b_7202;
    /// CR4.VME.
    pub(crate) const VME: u64 = 1 << 32;
    /// Software interrupts go to real-mode vectors.
    pub(crate) const REDIRECTED: u64 = 1 << 33;
    /// Ports 0x80 to 0x87 are not permitted.
    pub(crate) const NO_PORTS: u64 = 1 << 34;
    /// The TSS ends before the permissions.
    pub(crate) const NO_MAP: u64 = 1 << 35;
    /// An interrupt waits.
    pub(crate) const INTERRUPT: u64 = 1 << 36;
}

const fn segment(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (base as u64, limit as u64);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access as u64) << 40
        | (limit >> 16 & 15) << 48
        | (flags as u64) << 52
        | (base >> 24) << 56
}

/// A gate of this type, present, to be used from any privilege level.
const fn gate(offset: u32, selector: u16, kind: u8) -> u64 {
    let offset = offset as u64;
    offset & 0xffff | (selector as u64) << 16 | (0xe0 | kind as u64) << 40 | (offset >> 16) << 48
}

/// Writes what is not so already: under a hypervisor each write to a table in use may exit.
fn put<T: Copy + PartialEq>(at: u32, value: T) {
    let place = pointer::<T>(Hpa::new(at.into()));
    // SAFETY: RAM below 1 MiB that this module alone uses.
    if unsafe { place.read_volatile() } != value {
        // SAFETY: as above.
        unsafe { place.write_volatile(value) };
    }
}

/// Everything that the way to `mode` needs, but what to run.
pub(super) fn prepare(mode: Mode, options: u64) {
    let places = places();
    let (leave, data_segment) = match mode {
        Mode::Real => (places.leave_real, SEGMENT),
        Mode::Protected16 => (places.leave_16, DATA_16),
        Mode::Virtual8086 => (places.leave_virtual, SEGMENT),
    };
    set(MODE, mode as u32);
    set(NOTE, u32::from(places.note));
    set(LEAVE, u32::from(leave));
    set(DATA_SEGMENT, u32::from(data_segment));
    set(EFLAGS, (options & option::EFLAGS) as u32 | 1 << 17 | 2);
    // PAE stays, as in long mode before.
    set(CR4, 1 << 5 | u32::from(options & option::VME != 0));
    set(SCRATCH, [0_u32; 64]);
    for table in [0, OTHER_VECTORS] {
        for vector in 0..256 {
            let offset = u32::from(places.stubs_real) + STUB * vector;
            put(table + 4 * vector, offset | u32::from(SEGMENT) << 16);
        }
    }
    descriptors(options);
    gates(mode);
    task(options);
    for (at, limit, base) in
        [(VECTORS, 0x3ff, 0), (GDTR, LAST + 7, linear(GDT)), (IDTR, 0x7ff, GATES)]
    {
        set(at, limit);
        set(at + 2, u64::from(base));
    }
}

fn descriptors(options: u64) {
    let base = u32::from(SEGMENT) << 4;
    let task_end = if options & option::NO_MAP == 0 { TSS_END } else { PERMISSIONS };
    let call = places().stubs_16 as u32 + STUB * 31;
    for (selector, descriptor) in [
        (0, 0),
        (CODE_32, segment(0, 0xf_ffff, 0x9b, 0xc)),
        (DATA_32, segment(0, 0xf_ffff, 0x93, 0xc)),
        (CODE_64, segment(0, 0xf_ffff, 0x9b, 0xa)),
        (CODE_16, segment(base, 0xffff, 0x9b, 0)),
        (DATA_16, segment(base, 0xffff, 0x93, 0)),
        (STACK_16, segment(u32::from(STACK_SEGMENT) << 4, 0xffff, 0x93, 0)),
        (TASK, segment(linear(TSS), u32::from(task_end) - 1, 0x89, 0)),
        (SHORT, segment(base, 0xff, 0x93, 0)),
        (ABSENT, segment(base, 0xffff, 0x13, 0)),
        (CALL_GATE_16, gate(call, CODE_16, 4)),
        (CALL_GATE_32, gate(call, CODE_16, 12)),
        (CONFORMING_16, segment(base, 0xffff, 0x9f, 0)),
        (EXPAND_DOWN, segment(base, 0xff, 0x97, 0)),
        (READ_ONLY, segment(base, 0xffff, 0x91, 0)),
    ] {
        set(GDT + selector, descriptor);
    }
}

/// Vectors whose gates in 16-bit protected mode are others.
pub(crate) const TRAP_GATE: u32 = 0x41;
pub(crate) const GATE_ABSENT: u32 = 0x42;
pub(crate) const GATE_TO_DATA: u32 = 0x43;

fn gates(mode: Mode) {
    let places = places();
    for vector in 0..256 {
        let gate = if mode == Mode::Protected16 {
            let stubs = if vector < 32 { places.stubs_16 } else { places.stubs_real };
            let at = u32::from(stubs) + STUB * vector;
            match vector {
                TRAP_GATE => gate(at, CODE_16, 7),
                GATE_ABSENT => gate(at, CODE_16, 6) & !(0x80 << 40),
                GATE_TO_DATA => gate(at, DATA_16, 6),
                _ => gate(at, CODE_16, 6),
            }
        } else {
            gate(linear(places.stubs_32) + STUB_32 * vector, CODE_32, 14)
        };
        put(GATES + 8 * vector, gate);
    }
}

fn task(options: u64) {
    set(TSS, [0_u8; TSS_END as usize]);
    set(TSS + 4, TASK_STACK);
    set(TSS + 8, u32::from(DATA_32));
    set(TSS + 0x66, PERMISSIONS);
    let redirected = if options & option::REDIRECTED == 0 { 0xff_u8 } else { 0 };
    set(TSS + REDIRECTION, [redirected; 32]);
    if options & option::NO_PORTS != 0 {
        set(TSS + PERMISSIONS + 0x80 / 8, 0xff_u8);
    }
    set(TSS + PERMISSIONS + 0x80, 0xff_u8);
}
