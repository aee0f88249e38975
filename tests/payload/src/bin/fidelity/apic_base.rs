//! IA32_APIC_BASE: where the page is, which bits are reserved, which changes of mode are allowed, and what is left of the
//! registers behind them.

use arch::Hpa;
use arch::msr::IA32_APIC_BASE;
use cpu::instructions::write_msr;
use cpu::physical::pointer;

use crate::fact;
use crate::local::{self, ENABLE, PAGE, TPR, X2APIC, base, mode, read, write};
use crate::trap::{self, Seen, Told};

const BOOTSTRAP: u64 = 1 << 8;
/// Where nothing is.
const ELSEWHERE: u64 = 0xfef0_0000;
const VERSION: u64 = 0x30;
const DIVIDE: u64 = 0x3e0;

fn set(value: u64) -> Option<Seen> {
    trap::run(write_base, value)
}

extern "C" fn write_base(value: u64) {
    // SAFETY: the payload's own; a #GP ends it.
    unsafe { write_msr(IA32_APIC_BASE, value) };
}

fn page(at: u64) -> u32 {
    // SAFETY: nothing is there, or the local APIC.
    unsafe { pointer::<u32>(Hpa::new(at)).read_volatile() }
}

fn write_page(at: u64, value: u32) {
    // SAFETY: as above.
    unsafe { pointer::<u32>(Hpa::new(at)).write_volatile(value) };
}

/// In xAPIC mode, which it is in behind it, too.
pub(crate) fn in_xapic_mode() {
    let at = base();
    for bit in [0, 1, 7, 9] {
        fact!("apic base: xAPIC: reserved bit {bit}"; "{}", Told(set(at | 1 << bit)));
        let _ = set(at);
    }
    for bit in [52, 63] {
        fact!("apic base: xAPIC: an address with bit {bit}"; "{}", Told(set(at | 1 << bit)));
        let _ = set(at);
    }
    let seen = set(at & !BOOTSTRAP);
    fact!("apic base: xAPIC: without the bootstrap processor's bit"; "{}, {:#x}", Told(seen), base());
    let _ = set(at);
    moved(at);
    fact!("apic base: xAPIC: x2APIC mode and not enabled"; "{}, {:#x}", Told(set(at & !ENABLE | X2APIC)), base());
    msrs_of_x2apic_mode("xAPIC");
}

/// There are none in another mode (SDM "x2APIC Register Address Space").
pub(crate) fn msrs_of_x2apic_mode(mode: &str) {
    for msr in 0x800..0x840 {
        fact!("apic base: {mode}: MSR {msr:#x} is read"; "{}", Told(trap::run(local::access, msr)));
        let written = trap::run(local::access, 1 << 32 | msr);
        fact!("apic base: {mode}: MSR {msr:#x} is written"; "{}", Told(written));
    }
}

fn moved(at: u64) {
    write(TPR, 0x35);
    let version = page(PAGE + VERSION);
    let seen = set(at & 0xfff | ELSEWHERE);
    fact!("apic base: xAPIC: the page elsewhere"; "{}, {:#x}", Told(seen), base());
    fact!("apic base: xAPIC: version there"; "{}", page(ELSEWHERE + VERSION) == version);
    fact!("apic base: xAPIC: TPR there"; "{:#x}", page(ELSEWHERE + u64::from(TPR)));
    fact!("apic base: xAPIC: version where it was"; "{:#x}", page(PAGE + VERSION));
    write_page(ELSEWHERE + DIVIDE, 0xa);
    write_page(PAGE + DIVIDE, 3);
    fact!("apic base: xAPIC: divide configuration, written at both"; "{:#x}", page(ELSEWHERE + DIVIDE));
    write_page(ELSEWHERE + 0x310, 0);
    write_page(ELSEWHERE + u64::from(local::ICR), 0x57);
    let requested = page(ELSEWHERE + 0x220) >> 23 & 1;
    let _ = set(at);
    fact!("apic base: xAPIC: an interrupt that was sent there"; "{requested}, {}", {
        write(TPR, 0);
        trap::listen()
    });
    fact!("apic base: xAPIC: back again"; "{:#x}, {}", base(), read(0x30) == version);
}

/// In x2APIC mode, in which it stays.
pub(crate) fn in_x2apic_mode() {
    let at = base();
    write(TPR, 0x2a);
    fact!("apic base: x2APIC: to xAPIC mode"; "{}, {:#x}", Told(set(at & !X2APIC)), base());
    fact!("apic base: x2APIC: not enabled, and x2APIC mode"; "{}, {:#x}", Told(set(at & !ENABLE)), base());
    fact!("apic base: x2APIC: a reserved bit"; "{}", Told(set(at | 1 << 9)));
    fact!("apic base: x2APIC: the same again"; "{}, TPR {:#x}", Told(set(at)), read(TPR));
    let seen = set(at & 0xfff | ELSEWHERE);
    fact!("apic base: x2APIC: another page"; "{}, {:#x}", Told(seen), base());
    let _ = set(at);
    write(TPR, 0);
}

/// What is kept from xAPIC mode to x2APIC mode. In xAPIC mode; ends in the other.
pub(crate) fn to_x2apic_mode() {
    write(TPR, 0x12);
    write(0x320, 0x1_0077);
    write(0x350, 0x1_0466);
    write(0x3e0, 9);
    write(0xd0, 0xff00_0000);
    local::enter_x2apic_mode();
    let kept = [TPR, 0xf0, 0x320, 0x350, 0x3e0].map(read);
    fact!("apic base: from xAPIC to x2APIC: TPR, SVR, LVT timer, LINT0, divide configuration"; "{kept:x?}");
    fact!("apic base: from xAPIC to x2APIC: LDR"; "{:#x}", read(0xd0));
    write(TPR, 0);
    write(0x320, 0x1_0000);
    write(0x350, 0x1_0000);
}

/// The registers after it was switched off in x2APIC mode and on again, in xAPIC mode. Last of all, as the emulators'
/// own is off for ever.
pub(crate) fn off_and_on() {
    let seen = set(base() | ENABLE | X2APIC);
    let at = base();
    fact!("apic base: xAPIC, to x2APIC mode"; "{}, {at:#x}", Told(seen));
    for (register, value) in [(TPR, 0x45), (0x320, 0x1_0099), (0x370, 0x1_0098), (0x3e0, 0xb)] {
        write(register, value);
    }
    fact!("apic base: off"; "{}, {:#x}", Told(set(at & !(ENABLE | X2APIC))), base());
    // Off, there is no page, and there are no MSRs.
    fact!("apic base: off: version in its page"; "{:#x}", page(PAGE + VERSION));
    fact!("apic base: off: the MSR of the version"; "{}", Told(trap::run(local::access, 0x803)));
    let seen = set(at);
    fact!("apic base: off: at once to x2APIC mode"; "{}, {:#x}", Told(seen), base());
    let seen = set(at & !X2APIC);
    fact!("apic base: on again"; "{}, {:#x}, {}", Told(seen), base(), mode());
    let on = base() & ENABLE != 0;
    fact!("apic base: on again, and it is on"; "{on}");
    for (name, register) in [
        ("TPR", 0x80_u16),
        ("PPR", 0xa0),
        ("LDR", 0xd0),
        ("DFR", 0xe0),
        ("SVR", 0xf0),
        ("ESR", 0x280),
        ("ICR", 0x300),
        ("LVT timer", 0x320),
        ("LVT LINT0", 0x350),
        ("LVT error", 0x370),
        ("initial count", 0x380),
        ("current count", 0x390),
        ("divide configuration", 0x3e0),
    ] {
        fact!("apic base: on again: {name}"; "{:#x}", page(PAGE + u64::from(register)));
    }
    let words = |first: u64| -> [u32; 8] {
        core::array::from_fn(|word| page(PAGE + first + 16 * word as u64))
    };
    fact!("apic base: on again: ISR and IRR"; "{:x?}", [words(0x100), words(0x200)]);
}
