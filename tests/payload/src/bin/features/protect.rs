//! What keeps supervisor code from user pages, and user code from the tables: SMEP, SMAP, CR0.WP, protection keys, UMIP.

mod keys;
mod user;

use payload::fact;

use crate::control::{self, cr0, cr4, has, set_cr0, set_cr4};
use crate::pages::{self, ACCESSED, ALL, DIRTY, NO_EXECUTE, PRESENT, TARGET, USER, WRITE};
use crate::trial::{self, Mode, Outcome, Registers};

const READ: &[u8] = &[0x8a, 0x07]; // MOV AL, [RDI]
const STORE: &[u8] = &[0x88, 0x07]; // MOV [RDI], AL
const FETCH: &[u8] = &[0xff, 0xd7]; // CALL RDI
/// What an access may be.
const KINDS: [(&str, &[u8]); 3] = [("read", READ), ("write", STORE), ("fetch", FETCH)];
const ALIGNMENT_CHECK: u64 = 1 << 18;

pub(crate) fn all() {
    announced_bits();
    reserved_bits();
    rights();
    supervisor("SMEP", control::HAS_SMEP, control::SMEP);
    supervisor("SMAP", control::HAS_SMAP, control::SMAP);
    implicit();
    keys::all();
    user::all();
}

/// An access of the target page.
fn access(mode: Mode, code: &[u8], flags: u64) -> Outcome {
    // A RET to fetch.
    // SAFETY: the target's data.
    unsafe { pages::data(TARGET).write_volatile(0xc3) };
    let registers = Registers { rdi: pages::at(TARGET), flags, ..Registers::default() };
    trial::run(mode, code, registers)
}

/// Bits of CR4, and what announces them. LA57, VMXE, SMXE and CET have rules of their own.
const ANNOUNCED: [(u64, control::Feature); 12] = [
    (control::UMIP, control::HAS_UMIP),
    (control::PCIDE, control::HAS_PCID),
    (control::OSXSAVE, control::HAS_XSAVE),
    (control::SMEP, control::HAS_SMEP),
    (control::SMAP, control::HAS_SMAP),
    (control::PKE, control::HAS_PKU),
    (control::FSGSBASE, (7, 1, 0)),
    (control::PKS, (7, 2, 31)),
    (control::LA57, (7, 2, 16)),
    (control::CET, (7, 2, 7)),
    (control::VMXE, (1, 2, 5)),
    (control::SMXE, (1, 2, 6)),
];
const SPECIAL: u64 = control::LA57 | control::CET | control::VMXE | control::SMXE;

fn announced_bits() {
    let before = cr4();
    for (bit, feature) in ANNOUNCED {
        fact!("protect: CPUID announces what CR4 bit {} is for", bit.trailing_zeros(); "{}", has(feature));
    }
    for (bit, feature) in ANNOUNCED.into_iter().filter(|(bit, _)| bit & SPECIAL == 0) {
        if has(feature) {
            let seen = set_cr4(before | bit);
            let kept = cr4() & bit != 0;
            set_cr4(before);
            let works = seen.fine() && kept;
            fact!("protect: CR4 bit {} is as CPUID says", bit.trailing_zeros(); "{works}");
        }
    }
    for (name, code) in [
        ("MOV CR1", [0x0f, 0x20, 0xc8]),
        ("MOV CR5", [0x0f, 0x20, 0xe8]),
        ("MOV CR7", [0x0f, 0x20, 0xf8]),
    ] {
        fact!("protect: {name}"; "{}", trial::kernel(&code, 0));
    }
    fact!("protect: MOV of CR4 at CPL 3"; "{}", trial::user(&[0x0f, 0x20, 0xe0], 0));
}

/// Reserved bits of CR0 and CR4, and those that do not go together.
fn reserved_bits() {
    if control::qemu() {
        return;
    }
    let (control_0, control_4) = (cr0(), cr4());
    for (bit, feature) in ANNOUNCED {
        let refused = has(feature) || {
            let seen = set_cr4(control_4 | bit);
            set_cr4(control_4);
            (seen.after.vector, seen.after.error) == (13, 0)
        };
        fact!("protect: CR4 bit {} is refused if CPUID is silent", bit.trailing_zeros(); "{refused}");
    }
    let reserved =
        [15, 26, 29, 30, 31, 33, 63].map(|bit| set_cr4(control_4 | 1 << bit).after.vector);
    set_cr4(control_4);
    fact!("protect: CR4 bits 15, 26, 29, 30, 31, 33, 63"; "{reserved:?}");
    let low = [6, 15, 17, 19, 28].map(|bit| {
        let seen = set_cr0(control_0 | 1 << bit);
        let kept = cr0() >> bit & 1;
        set_cr0(control_0);
        (seen.after.vector, kept)
    });
    fact!("protect: CR0 bits 6, 15, 17, 19, 28"; "{low:?}");
    for (name, value) in [
        ("bit 32", control_0 | 1 << 32),
        ("NW and without CD", control_0 & !(1 << 30) | 1 << 29),
        ("PG and without PE", control_0 & !1),
        ("PE and without PG in 64-bit code", control_0 & !(1 << 31)),
    ] {
        fact!("protect: CR0 with {name}"; "{}", set_cr0(value));
        set_cr0(control_0);
    }
    fact!("protect: CR4 without PAE in long mode"; "{}", set_cr4(control_4 & !(1 << 5)));
    fact!("protect: CR4 with a change of LA57 in long mode"; "{}", set_cr4(control_4 | control::LA57));
}

/// What a page's own bits allow, by CPL and CR0.WP.
fn rights() {
    let before = cr0();
    for (name, flags) in [
        ("user, writable", ALL),
        ("user, read-only", PRESENT | USER),
        ("user, no execute", ALL | NO_EXECUTE),
        ("supervisor, writable", PRESENT | WRITE),
        ("supervisor, read-only", PRESENT),
        ("not present", 0),
    ] {
        // Dirty before: Bochs 3.0 panics where a write without WP makes a read-only page so.
        pages::map(TARGET, flags | ACCESSED | DIRTY);
        for protect in [0, control::WP] {
            set_cr0(before & !control::WP | protect);
            for (mode, level) in [(Mode::Kernel, 0), (Mode::User, 3)] {
                let [read, write, fetch] = KINDS.map(|(_, code)| access(mode, code, 0));
                fact!("protect: {name}, CPL {level}, WP={}: read, write, fetch", u8::from(protect != 0);
                    "{read}, {write}, {fetch}");
            }
        }
    }
    set_cr0(before);
    pages::map(TARGET, ALL);
}

/// SMEP or SMAP on and off, with AC and without.
fn supervisor(name: &str, feature: control::Feature, bit: u64) {
    if !has(feature) {
        return;
    }
    let (control_0, control_4) = (cr0(), cr4());
    for on in [false, true] {
        set_cr4(if on { control_4 | bit } else { control_4 });
        for (flags, ac) in [(0, 0), (ALIGNMENT_CHECK, 1)] {
            for protect in [0, control::WP] {
                set_cr0(control_0 & !control::WP | protect);
                for (mode, level) in [(Mode::Kernel, 0), (Mode::User, 3)] {
                    let [read, write, fetch] = KINDS.map(|(_, code)| access(mode, code, flags));
                    fact!("protect: {name}={} AC={ac} WP={} CPL {level}, a user page: read, write, fetch",
                        u8::from(on), u8::from(protect != 0); "{read}, {write}, {fetch}");
                }
            }
        }
    }
    pages::map(TARGET, PRESENT | USER);
    let read_only = KINDS.map(|(_, code)| access(Mode::Kernel, code, ALIGNMENT_CHECK));
    let [read, write, fetch] = read_only;
    fact!("protect: {name}=1 AC=1 WP=1, a user page for reading: read, write, fetch"; "{read}, {write}, {fetch}");
    pages::map(TARGET, ALL);
    set_cr0(control_0);
    set_cr4(control_4);
}

/// Accesses that are a supervisor's whatever the CPL, and do not look at AC.
fn implicit() {
    if !has(control::HAS_SMAP) {
        return;
    }
    let before = cr4();
    // A data segment for CPL 3 in the LDT, whose page is the user's.
    // SAFETY: the LDT's data.
    unsafe { pages::data(pages::LDT).cast::<u64>().write_volatile(0x00cf_f200_0000_ffff) };
    let lldt = trial::kernel(&[0x0f, 0x00, 0xd7], trial::LDT_SELECTOR);
    fact!("protect: LLDT"; "{lldt}");
    let load: &[u8] = &[0x8e, 0xc7]; // MOV ES, EDI
    let limit: &[u8] = &[0x0f, 0x03, 0xc7]; // LSL EAX, EDI
    for on in [false, true] {
        set_cr4(if on { before | control::SMAP } else { before });
        for (flags, ac) in [(0, 0), (ALIGNMENT_CHECK, 1)] {
            for (mode, level) in [(Mode::Kernel, 0), (Mode::User, 3)] {
                for (name, code) in [("MOV ES", load), ("LSL", limit)] {
                    let registers = Registers { rdi: 7, flags, ..Registers::default() };
                    fact!("protect: SMAP={} AC={ac} CPL {level}, {name} by a descriptor in a user page", u8::from(on);
                        "{}", trial::run(mode, code, registers));
                }
            }
        }
    }
    fact!("protect: STAC at CPL 3"; "{}", trial::user(&[0x0f, 0x01, 0xcb], 0));
    let stac = trial::kernel(&[0x0f, 0x01, 0xcb], 0);
    let clac = trial::run(
        Mode::Kernel,
        &[0x0f, 0x01, 0xca],
        Registers { flags: ALIGNMENT_CHECK, ..Registers::default() },
    );
    fact!("protect: flags after STAC, CLAC"; "{:#x}, {:#x}", stac.after.flags & 0x4_0cd5, clac.after.flags & 0x4_0cd5);
    set_cr4(before);
    trial::kernel(&[0x0f, 0x00, 0xd7], 0);
}
