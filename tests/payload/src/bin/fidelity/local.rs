//! The local APIC: its registers in both modes, priorities by TPR and by CR8, EOI.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::msr::IA32_APIC_BASE;
use cpu::instructions::{cpuid, read_msr, write_msr};

pub(crate) use payload::local_apic::{
    ENABLE, PAGE, X2APIC, base, in_x2apic_mode, mode, read, write,
};

use crate::fact;
use crate::trap::{self, Seen, Told};

pub(crate) const TPR: u16 = 0x80;
pub(crate) const PPR: u16 = 0xa0;
const EOI: u16 = 0xb0;
const SVR: u16 = 0xf0;
pub(crate) const ICR: u16 = 0x300;
const TIMER: u16 = 0x320;
const INITIAL_COUNT: u16 = 0x380;

/// The handlers end their interrupts themselves.
static ENDS: AtomicBool = AtomicBool::new(true);

/// What [`attempt`] writes: the register, and the value.
static WHERE: AtomicU64 = AtomicU64::new(0);
static VALUE: AtomicU64 = AtomicU64::new(0);

/// Writes a register, in x2APIC mode all its 64 bits; what is raised.
pub(crate) fn attempt(register: u16, value: u64) -> Option<Seen> {
    WHERE.store(register.into(), Ordering::Relaxed);
    VALUE.store(value, Ordering::Relaxed);
    trap::run(write_all, 0)
}

extern "C" fn write_all(_: u64) {
    let (register, value) = (WHERE.load(Ordering::Relaxed), VALUE.load(Ordering::Relaxed));
    if in_x2apic_mode() {
        // SAFETY: a #GP ends it.
        unsafe { write_msr(0x800 + (register as u32 >> 4), value) };
    } else {
        write(register as u16, value as u32);
    }
}

/// Which bits of a register are kept and which are refused, one at a time beside these. One that cannot be read keeps
/// none.
pub(crate) fn bits(register: u16, with: u64) -> [u64; 2] {
    let (mut kept, mut refused) = (0, 0);
    for bit in 0..if in_x2apic_mode() { 64 } else { 32 } {
        let value = with ^ 1 << bit;
        if attempt(register, value).is_some() {
            refused |= 1 << bit;
        } else if register != EOI && u64::from(read(register)) >> bit & 1 == value >> bit & 1 {
            kept |= 1 << bit;
        }
    }
    [kept, refused]
}

/// Whether the handlers end their interrupts themselves.
pub(crate) fn ends(themselves: bool) {
    ENDS.store(themselves, Ordering::Relaxed);
}

pub(crate) fn end() {
    write(EOI, 0);
}

/// An interrupt has come.
pub(crate) fn came(_: u8) {
    if ENDS.load(Ordering::Relaxed) {
        write(EOI, 0);
    }
}

/// Sends this to the own CPU, which is the one with identifier 0 and runs alone.
pub(crate) fn send(low: u32) {
    if in_x2apic_mode() {
        write(ICR, low);
    } else {
        write(0x310, 0);
        write(ICR, low);
    }
}

pub(crate) fn cr8() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr8", out(reg) value) };
    value
}

pub(crate) fn set_cr8(value: u64) {
    // SAFETY: the handlers take whatever it lets through.
    unsafe { asm!("mov cr8, {}", in(reg) value) };
}

/// The mode of Intel's manual, "Local APIC State After Power-Up or Reset".
pub(crate) fn enter_xapic_mode() {
    if in_x2apic_mode() {
        // A guest of Nexit begins in x2APIC mode.
        let off = base() & !(ENABLE | X2APIC);
        for value in [off, off | ENABLE] {
            // SAFETY: the payload's own.
            unsafe { write_msr(IA32_APIC_BASE, value) };
        }
    }
    write(SVR, 0x1ff);
}

/// Enables it in whatever mode it is.
pub(crate) fn enable() {
    write(SVR, 0x1ff);
}

pub(crate) fn of_intel() -> bool {
    cpuid(0, 0).ebx.to_le_bytes() == *b"Genu"
}

/// Software-disables it.
pub(crate) fn disable() {
    write(SVR, 0xff);
}

pub(crate) fn enter_x2apic_mode() {
    // SAFETY: the payload's own.
    unsafe { write_msr(IA32_APIC_BASE, base() | ENABLE | X2APIC) };
    write(SVR, 0x1ff);
}

/// Registers that keep what is written to them, and what of it.
pub(crate) fn registers() {
    let mode = mode();
    // What the firmware, or what came before, has left there.
    for entry in [TIMER, 0x350, 0x360] {
        write(entry, 1 << 16);
    }
    for (name, register, values) in [
        ("TPR", TPR, [0xff_u32, 0x3a]),
        ("SVR", SVR, [0x1ff, 0x13f]),
        ("LVT timer", TIMER, [0x1_00ff, 0x3_0040]),
        ("LVT LINT0", 0x350, [0x1_0700, 0x1_8031]),
        ("LVT error", 0x370, [0x1_00fe, 0x1_0042]),
        ("divide configuration", 0x3e0, [0xb, 3]),
        ("initial count", INITIAL_COUNT, [0, 0]),
        ("ESR", 0x280, [0, 0]),
    ] {
        let before = read(register);
        let seen = values.map(|value| {
            write(register, value);
            read(register)
        });
        write(register, if register == SVR { 0x1ff } else { before });
        fact!("apic: {mode}: {name} after {:x?}", values; "{seen:x?}");
    }
    // TMR keeps what came last.
    let words =
        |first: u16| -> [u32; 8] { core::array::from_fn(|word| read(first + 16 * word as u16)) };
    fact!("apic: {mode}: ISR and IRR"; "{:x?}", [words(0x100), words(0x200)]);
    write(SVR, 0xff);
    fact!("apic: {mode}: software-disabled, LVT timer after 0x40"; "{:#x}", {
        write(TIMER, 0x40);
        read(TIMER)
    });
    write(SVR, 0x1ff);
    fact!("apic: {mode}: enabled again, LVT timer"; "{:#x}", read(TIMER));
}

/// TPR and CR8 are one register.
pub(crate) fn priorities() {
    let mode = mode();
    set_cr8(15);
    fact!("priority: {mode}: TPR after CR8 = 15"; "{:#x}", read(TPR));
    send(0x53);
    fact!("priority: {mode}: 0x53 at CR8 = 15"; "{}", trap::listen());
    set_cr8(5);
    fact!("priority: {mode}: 0x53 at CR8 = 5"; "{}", trap::listen());
    set_cr8(4);
    fact!("priority: {mode}: 0x53 at CR8 = 4"; "{}", trap::listen());
    write(TPR, 0x6a);
    fact!("priority: {mode}: CR8 after TPR = 0x6A"; "{}", cr8());
    fact!("priority: {mode}: TPR and PPR after TPR = 0x6A"; "{:x?}", [read(TPR), read(PPR)]);
    send(0x63);
    fact!("priority: {mode}: 0x63 at TPR = 0x6A"; "{}", trap::listen());
    set_cr8(0);
    fact!("priority: {mode}: TPR after CR8 = 0"; "{:#x}", read(TPR));
    fact!("priority: {mode}: 0x63 at CR8 = 0"; "{}", trap::listen());
    set_cr8(7);
    send(0x53);
    send(0x73);
    fact!("priority: {mode}: 0x53, 0x73 at CR8 = 7"; "{}", trap::listen());
    set_cr8(6);
    fact!("priority: {mode}: 0x53, 0x73 at CR8 = 6"; "{}", trap::listen());
    write(TPR, 0);
    fact!("priority: {mode}: 0x53 at TPR = 0"; "{}", trap::listen());
    fact!("priority: {mode}: CR8 at TPR = 0"; "{}", cr8());
    // It comes where CR8 falls with interrupts on, before the next instruction but one.
    set_cr8(15);
    send(0x53);
    // SAFETY: the handlers take whatever comes.
    unsafe { asm!("sti", "nop", "mov cr8, {}", "nop", "cli", in(reg) 2_u64) };
    fact!("priority: {mode}: 0x53 when CR8 falls with IF = 1"; "{}", trap::take_came());
    set_cr8(0);
    ENDS.store(false, Ordering::Relaxed);
    send(0x73);
    let first = trap::listen();
    send(0x53);
    send(0x83);
    fact!("priority: {mode}: 0x73, then 0x53, 0x83 without EOI"; "{first}, {}", trap::listen());
    fact!("priority: {mode}: PPR in service"; "{:#x}", read(PPR));
    write(EOI, 0);
    write(EOI, 0);
    fact!("priority: {mode}: 0x53 after two EOIs"; "{}", trap::listen());
    write(EOI, 0);
    ENDS.store(true, Ordering::Relaxed);
    fact!("priority: {mode}: PPR at the end"; "{:#x}", read(PPR));
    fact!("priority: {mode}: CR8 = 16"; "{}", Told(trap::bytes(&[0x44, 0x0f, 0x22, 0xc7], 16)));
}

/// A single step over the write that sends an interrupt to the own CPU: the trap comes first.
pub(crate) fn step_over_ipi() {
    // MOV EAX, 53H; XOR EDX, EDX; STI; PUSHF; TF in it; POPF; then WRMSR or MOV [RDI], EAX; NOP; NOP; CLI.
    const BEFORE: [u8; 15] =
        [0xb8, 0x53, 0, 0, 0, 0x31, 0xd2, 0xfb, 0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d];
    let mode = mode();
    let (write, argument): (&[u8], u64) = if in_x2apic_mode() {
        (&[0x0f, 0x30, 0x90, 0x90, 0xfa], 0)
    } else {
        write(0x310, 0);
        (&[0x89, 0x07, 0x90, 0x90, 0xfa], PAGE + u64::from(ICR))
    };
    // MOV ECX, 83FH.
    let mut code = [0xb9, 0x3f, 0x08, 0, 0].into_iter().chain(BEFORE).chain(write.iter().copied());
    let code: [u8; 25] = core::array::from_fn(|_| code.next().unwrap_or(0x90));
    let seen = Told(trap::bytes(&code, argument));
    let first = trap::take_came();
    fact!("priority: {mode}: a single step over a self-IPI"; "{seen}, {first}, {}", trap::listen());
}

/// A vector that cannot be sent, to the own CPU: ESR, and the interrupt of its LVT entry.
pub(crate) fn errors() {
    const ESR: u16 = 0x280;
    const LVT_ERROR: u16 = 0x370;
    let mode = mode();
    let told = |name: &str, words: u64| {
        // An emulator may deliver that vector: an exception, for its handler.
        let seen = trap::run(send_and_listen, words);
        if seen.is_some() {
            write(EOI, 0);
        }
        let seen = Told(seen);
        let came = trap::take_came();
        let before = read(ESR);
        write(ESR, 0);
        let after = read(ESR);
        fact!("error: {mode}: {name}"; "{seen}, {came}, ESR {before:#x}, then {after:#x}");
    };
    write(ESR, 0);
    write(ESR, 0);
    write(LVT_ERROR, 0x1_0043);
    told("vector 5 by ICR, masked", 5);
    write(LVT_ERROR, 0x43);
    told("vector 5 by ICR", 5);
    told("twice without a write of ESR between", 5 << 32 | 5);
    told("vector 15 by the shorthand", 0x4_000f);
    if in_x2apic_mode() {
        told("vector 5 by SELF IPI", SELF_IPI | 5);
    } else if of_intel() {
        // QEMU, which has the AMD CPU here, keeps this error in ESR for ever.
        told("a register that is not there is read", READ | 0x40);
        told("a register that is not there is written", WRITE | 0x3f0);
        told("the version is written", WRITE | 0x30);
        told("EOI is read", READ | u64::from(EOI));
    }
    write(LVT_ERROR, 3);
    told("vector 5, and the entry's is 3", 5);
    write(LVT_ERROR, 0x1_0043);
    write(ESR, 0);
    write(ESR, 0);
}

/// Not by ICR.
const SELF_IPI: u64 = 1 << 63;
/// No IPI, but this register is read, or written.
const READ: u64 = 1 << 62;
const WRITE: u64 = 1 << 61;

/// Sends this, one or two, and lets in what comes of it.
extern "C" fn send_and_listen(words: u64) {
    let second = (words & !(SELF_IPI | READ | WRITE)) >> 32;
    if words & READ != 0 {
        let _ = read(words as u16);
    } else if words & WRITE != 0 {
        write(words as u16, 0);
    } else if words & SELF_IPI != 0 {
        // SAFETY: the register is there in x2APIC mode.
        unsafe { write_msr(0x83f, words & 0xff) };
    } else {
        send(words as u32);
    }
    if second != 0 {
        send(second as u32);
    }
    // SAFETY: the table has a gate for each vector.
    unsafe { asm!("sti") };
    trap::wait();
    // SAFETY: as above.
    unsafe { asm!("cli") };
}

/// Which of the MSRs 0x800 to 0x83F can be read, and which can be written with 0 and with all ones.
pub(crate) fn msrs() {
    for (name, what) in [("read", 0_u64), ("written with 0", 1), ("written with ones", 2)] {
        let mut allowed = 0_u64;
        for msr in 0..64_u32 {
            // EOI, ICR, and SELF IPI would do something.
            let skipped = what == 2 && matches!(msr, 0xb | 0x30 | 0x3f) || what == 1 && msr == 0x30;
            let seen = trap::run(access, what << 32 | u64::from(0x800 + msr));
            if seen.is_none() && !skipped {
                allowed |= 1 << msr;
            }
        }
        fact!("apic: x2APIC: MSRs 0x800 to 0x83F that can be {name}"; "{allowed:#018x}");
        write(SVR, 0x1ff);
        write(TPR, 0);
    }
    let _ = trap::listen();
}

/// Reads or writes an MSR: its number, and in the high half 0 to read, 1 to write 0, 2 to write ones.
pub(crate) extern "C" fn access(what: u64) {
    let msr = what as u32;
    if what >> 32 == 0x100 || matches!((what >> 32, msr), (1 | 2, 0x830) | (2, 0x80b | 0x83f)) {
        return;
    }
    match what >> 32 {
        // SAFETY: a #GP ends it.
        0 => drop(core::hint::black_box(unsafe { read_msr(msr) })),
        // SAFETY: as above.
        1 => unsafe { write_msr(msr, 0) },
        // SAFETY: as above.
        _ => unsafe { write_msr(msr, !0) },
    }
}

/// Last of all, as QEMU cannot switch it on again.
pub(crate) fn off_and_on() {
    let of = |leaf| cpu::instructions::cpuid(leaf, 0).edx >> 9 & 1;
    let (shown, by_other) = (|| of(1), || of(0x8000_0001));
    fact!("cpuid: local APIC while it is on"; "{}", shown());
    fact!("cpuid: local APIC by leaf 80000001 while it is on"; "{}", by_other());
    // SAFETY: the payload's own.
    unsafe { write_msr(IA32_APIC_BASE, base() & !(ENABLE | X2APIC)) };
    fact!("cpuid: local APIC while it is off"; "{}", shown());
    fact!("cpuid: local APIC by leaf 80000001 while it is off"; "{}", by_other());
    crate::apic_base::msrs_of_x2apic_mode("off");
    // SAFETY: as above.
    unsafe { write_msr(IA32_APIC_BASE, base() | ENABLE) };
    fact!("cpuid: local APIC while it is on again"; "{}", shown());
    fact!("cpuid: local APIC by leaf 80000001 while it is on again"; "{}", by_other());
}
