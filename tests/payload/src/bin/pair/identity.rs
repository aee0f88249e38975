//! Identifiers and topology as CPUID and the local APIC have them, on each CPU; and two CPUs whose local APICs are in
//! different modes.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use cpu::instructions::cpuid;

use crate::ipi::arrivals;
use crate::other::{self, ASSERT, NMI};
use crate::{fact, ipi, local, start};

/// What CPU 1 has seen.
static SEEN: [AtomicU32; 8] = [const { AtomicU32::new(0) }; 8];

/// Highest basic and extended leaf.
fn has(leaf: u32) -> bool {
    leaf <= cpuid(leaf & 0x8000_0000, 0).eax
}

/// Initial APIC ID, x2APIC ID, the register; leaf 1F's and leaf 8000001E's; leaf 1 EBX without its lowest byte; levels.
fn look() -> [u32; 8] {
    let register = local::read(local::ID);
    let register = if local::in_x2apic_mode() { register } else { register >> 24 };
    let first = cpuid(1, 0).ebx;
    let levels = [0, 1].map(|level| if has(0xb) { cpuid(0xb, level) } else { cpuid(0, 0) });
    let topology_extensions = cpuid(0x8000_0001, 0).ecx >> 22 & 1 != 0;
    let of = |leaf: u32| has(leaf).then(|| cpuid(leaf, 0));
    [
        first >> 24,
        levels[0].edx,
        register,
        of(0x1f).map_or(0, |answer| answer.edx),
        of(0x8000_001e).filter(|_| topology_extensions).map_or(0, |answer| answer.eax),
        first >> 16 & 0xff,
        (levels[0].ebx & 0xffff) << 16 | levels[0].eax,
        (levels[1].ebx & 0xffff) << 16 | levels[1].eax,
    ]
}

extern "C" fn look_there(_: u64) -> u64 {
    for (place, value) in SEEN.iter().zip(look()) {
        place.store(value, SeqCst);
    }
    0
}

pub(crate) fn all() {
    let mode = local::mode();
    let own = look();
    other::run(look_there, 0);
    let there: [u32; 8] = core::array::from_fn(|index| SEEN[index].load(SeqCst));
    for (cpu, seen) in [own, there].iter().enumerate() {
        let [initial, extended, register, ..] = seen;
        fact!("identity: {mode}: CPU {cpu}: leaf 1's APIC ID, leaf B's, the register's"; "{initial}, {extended}, {register}");
        fact!("identity: {mode}: CPU {cpu}: leaf 1F's, and leaf 8000001E's"; "{}, {}", seen[3], seen[4]);
        fact!("identity: {mode}: CPU {cpu}: logical processors by leaf 1"; "{}", seen[5]);
        fact!("identity: {mode}: CPU {cpu}: leaf B: logical processors and shift by level"; "{:#x}, {:#x}", seen[6], seen[7]);
    }
    let htt = cpuid(1, 0).edx >> 28 & 1;
    fact!("identity: {mode}: HTT"; "{htt}");
    if other::is_intel() {
        let cache = cpuid(4, 0).eax;
        fact!("identity: {mode}: leaf 4: identifiers for cores, and that share the first cache"; "{}, {}", (cache >> 26) + 1, (cache >> 14 & 0xfff) + 1);
    } else {
        let sizes = cpuid(0x8000_0008, 0).ecx;
        fact!("identity: {mode}: leaf 80000008: threads, and bits of identifiers"; "{}, {}", (sizes & 0xff) + 1, sizes >> 12 & 15);
    }
}

/// CPU 0 in xAPIC mode and CPU 1 in x2APIC mode: each is reached as its own mode has it.
pub(crate) fn mixed() {
    other::run(start::enter_x2apic_mode, 0);
    let told = |name: &str, [own, there]: [crate::trap::Came; 2]| {
        fact!("mixed: {name}"; "{own}; {there}");
    };
    told("from xAPIC mode to x2APIC mode", arrivals(1, || local::send(1, ipi::FIXED)));
    told("from xAPIC mode, all but self", arrivals(1, || local::send(0, 3 << 18 | ipi::FIXED)));
    told("from xAPIC mode, an NMI", arrivals(1, || local::send(1, NMI)));
    let answers = |name: &str, to: u32, what: u32, expected: usize| {
        let sent = u64::from(to) << 32 | u64::from(what);
        crate::trap::interrupts_on();
        other::run(send, sent);
        crate::trap::wait_until(|| crate::trap::count(0) + crate::trap::count(1) >= expected);
        ipi::mark_own();
        crate::trap::interrupts_off();
        told(name, [crate::trap::take_came(0), crate::trap::take_came(1)]);
    };
    answers("from x2APIC mode to xAPIC mode", 0, ASSERT | 0x51, 1);
    answers("from x2APIC mode, all but self", 5, 3 << 18 | ASSERT | 0x51, 1);
    answers("from x2APIC mode, an NMI", 0, NMI, 1);
}

extern "C" fn send(what: u64) -> u64 {
    local::send((what >> 32) as u32, what as u32);
    0
}
