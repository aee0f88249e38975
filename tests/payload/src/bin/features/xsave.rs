//! XSAVE in all its forms, and what guards the floating-point and vector registers.

mod float;
mod saved;

use cpu::instructions::cpuid;
use payload::fact;

use crate::control::{self, Value, cr0, cr4, has, refused, set_cr0, set_cr4};
use crate::trial::{self, Mode, Outcome, Place, Registers};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// What leaf 0xD subleaf 1 EAX announces.
const HAS_XSAVEOPT: u32 = 1;
const HAS_XSAVEC: u32 = 1 << 1;
const HAS_XGETBV_1: u32 = 1 << 2;
const HAS_XSAVES: u32 = 1 << 3;
const IA32_XSS: u32 = 0xda0;
/// The name of all that CPUID has.
const ALL: &str = "all";

const AREA_BYTES: usize = 16384;
#[repr(C, align(4096))]
struct Bytes([u8; AREA_BYTES]);
static AREA: Place<Bytes> = Place::new(Bytes([0; AREA_BYTES]));
/// Where the header is, and XSTATE_BV and XCOMP_BV in it.
const HEADER: usize = 512;
const COMPACTED: usize = HEADER + 8;
const MXCSR: usize = 24;
/// What an area is filled with before something is saved in it.
const FILL: u8 = 0xa5;

/// What has an operand at [RDI], and the components in EDX:EAX.
const XSAVE: &[u8] = &[0x48, 0x0f, 0xae, 0x27];
const XSAVEOPT: &[u8] = &[0x48, 0x0f, 0xae, 0x37];
const XSAVEC: &[u8] = &[0x48, 0x0f, 0xc7, 0x27];
const XSAVES: &[u8] = &[0x48, 0x0f, 0xc7, 0x2f];
const XRSTOR: &[u8] = &[0x48, 0x0f, 0xae, 0x2f];
const XRSTORS: &[u8] = &[0x48, 0x0f, 0xc7, 0x1f];
const FXSAVE: &[u8] = &[0x48, 0x0f, 0xae, 0x07];
const FXRSTOR: &[u8] = &[0x48, 0x0f, 0xae, 0x0f];
const LDMXCSR: &[u8] = &[0x0f, 0xae, 0x17];
const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];

pub(crate) fn all() {
    let (control_0, control_4) = (cr0(), cr4());
    set_cr0(control_0 & !(control::EM | control::TS) | control::MP | control::NE);
    float::legacy();
    float::guards();
    if has(control::HAS_XSAVE) {
        switched_off();
        set_cr4(control_4 | control::OSFXSR | control::OSXMMEXCPT | control::OSXSAVE);
        extended_control_register();
        sizes();
        saved::save();
        saved::restore();
        supervisor_state();
        set_xcr0(X87);
    }
    set_cr0(control_0);
    set_cr4(control_4);
}

fn byte(at: usize) -> *mut u8 {
    AREA.0.get().cast::<u8>().wrapping_add(at)
}

fn fill(value: u8) {
    // SAFETY: the area is used by the trials alone.
    unsafe { byte(0).write_bytes(value, AREA_BYTES) };
}

fn word(at: usize) -> u64 {
    // SAFETY: as above.
    unsafe { byte(at).cast::<u64>().read_volatile() }
}

fn set_word(at: usize, value: u64) {
    // SAFETY: as above.
    unsafe { byte(at).cast::<u64>().write_volatile(value) };
}

/// An instruction on the area with these components.
fn on(code: &[u8], components: u64) -> Outcome {
    at(code, AREA.address(), components)
}

fn at(code: &[u8], address: u64, components: u64) -> Outcome {
    let registers = Registers {
        rdi: address,
        rax: components & 0xffff_ffff,
        rdx: components >> 32,
        ..Registers::default()
    };
    trial::run(Mode::Kernel, code, registers)
}

fn set_xcr0(value: u64) -> Outcome {
    at(XSETBV, 0, value)
}

fn xcr(number: u64) -> Value {
    let registers = Registers { rcx: number, ..Registers::default() };
    Value::of(trial::run(Mode::Kernel, XGETBV, registers))
}

/// The components that XCR0 may have.
fn supported() -> u64 {
    u64::from(control::register(0xd, 0, 3)) << 32 | u64::from(control::register(0xd, 0, 0))
}

/// Those of XCR0 whose features CPUID announces.
fn announced() -> u64 {
    const FEATURES: [(u64, u32, u32, u32, u32); 7] = [
        (AVX, 1, 0, 2, 28),
        (3 << 3, 7, 0, 1, 14),            // MPX
        (7 << 5, 7, 0, 1, 16),            // AVX-512
        (1 << 9, 7, 0, 2, 3),             // PKU
        (3 << 17, 7, 0, 3, 24),           // AMX
        (1 << 19, 7, 1, 3, 21),           // APX
        (1 << 62, 0x8000_0001, 0, 2, 15), // LWP
    ];
    let there = FEATURES.iter().filter(|(_, leaf, subleaf, register, bit)| {
        control::register(*leaf, *subleaf, *register) >> bit & 1 != 0
    });
    there.fold(X87 | SSE, |all, (components, ..)| all | components)
}

fn extended() -> u32 {
    cpuid(0xd, 1).eax
}

/// With CR4.OSXSAVE = 0.
fn switched_off() {
    let before = cr4();
    set_cr4(before & !control::OSXSAVE | control::OSFXSR);
    for (name, code) in [
        ("XGETBV", XGETBV),
        ("XSETBV", XSETBV),
        ("XSAVE", XSAVE),
        ("XRSTOR", XRSTOR),
        ("XSAVEOPT", XSAVEOPT),
        ("XSAVEC", XSAVEC),
        ("XSAVES", XSAVES),
        ("XRSTORS", XRSTORS),
        ("VZEROUPPER", &[0xc5, 0xf8, 0x77]),
    ] {
        fill(0);
        fact!("xsave: OSXSAVE=0: {name}"; "{}", on(code, 1));
    }
    set_cr4(before);
}

fn extended_control_register() {
    fact!("xsave: XCR0 at first"; "{}", xcr(0));
    fact!("xsave: XGETBV of 2, of 1<<32"; "{}, {}", xcr(2), xcr(1 << 32));
    let in_use = xcr(1);
    let told = if extended() & HAS_XGETBV_1 != 0 { "announced" } else { "not announced" };
    match in_use {
        Value::Read(_) => fact!("xsave: XGETBV of 1, {told}"; "fine"),
        Value::Raised(seen) => fact!("xsave: XGETBV of 1, {told}"; "{seen}"),
    }
    fact!("xsave: XSETBV of 1"; "{}",
        trial::run(Mode::Kernel, XSETBV, Registers { rax: 1, rcx: 1, ..Registers::default() }));
    let user = Registers { rax: 1, ..Registers::default() };
    fact!("xsave: XSETBV at CPL 3"; "{}", trial::run(Mode::User, XSETBV, user));
    fact!("xsave: XGETBV at CPL 3"; "{}", trial::run(Mode::User, XGETBV, Registers::default()));
    for base in [0, X87, X87 | SSE, X87 | SSE | AVX] {
        let bits = refused(|bit| set_xcr0(base | bit).fine());
        fact!("xsave: bits of XCR0 that are refused beside {base:#x}"; "{bits:#x}");
    }
    fact!("xsave: bits of XCR0 that CPUID does not have"; "{:#x}", !supported());
    let none = !announced();
    fact!("xsave: components that no shown feature announces"; "{:#x}", supported() & none);
    let taken = !refused(|bit| {
        set_xcr0(X87 | bit).fine()
            || set_xcr0(7 | bit).fine()
            || set_xcr0(X87 | 3 << 3 | bit).fine()
    });
    fact!("xsave: and that XCR0 takes"; "{:#x}", taken & none);
    set_xcr0(X87);
    for value in [X87 | 3 << 3, 7 | 7 << 5, 7 | 3 << 5, 7 | 3 << 17, !0] {
        fact!("xsave: XCR0={value:#x}"; "{}, {}", set_xcr0(value), xcr(0));
        set_xcr0(X87);
    }
    fact!("xsave: XCR0={ALL}"; "{}, {}", set_xcr0(supported()), xcr(0));
    set_xcr0(X87);
    // VZEROUPPER is AVX; XORPS is SSE.
    for value in [X87, X87 | SSE, X87 | SSE | AVX] {
        if !set_xcr0(value).fine() {
            continue;
        }
        fact!("xsave: XCR0={value:#x}: XORPS, VZEROUPPER, VXORPS of YMM"; "{}, {}, {}",
            trial::kernel(&[0x0f, 0x57, 0xc0], 0), trial::kernel(&[0xc5, 0xf8, 0x77], 0),
            trial::kernel(&[0xc5, 0xfc, 0x57, 0xc0], 0));
    }
    let before = cr0();
    set_cr0(before | control::TS);
    fact!("xsave: TS=1: VZEROUPPER, XSAVE, XRSTOR, XGETBV"; "{}, {}, {}, {}",
        trial::kernel(&[0xc5, 0xf8, 0x77], 0), on(XSAVE, 1), on(XRSTOR, 1), xcr(0));
    set_cr0(before | control::EM);
    fact!("xsave: EM=1: VZEROUPPER, XSAVE, XGETBV"; "{}, {}, {}",
        trial::kernel(&[0xc5, 0xf8, 0x77], 0), on(XSAVE, 1), xcr(0));
    set_cr0(before);
}

/// Leaf 0xD.
fn sizes() {
    for (name, value) in
        [("0x1", X87), ("0x3", X87 | SSE), ("0x7", X87 | SSE | AVX), (ALL, supported())]
    {
        if !set_xcr0(value).fine() {
            continue;
        }
        let [of_xcr0, one] = [cpuid(0xd, 0), cpuid(0xd, 1)];
        fact!("xsave: XCR0={name}: leaf 0xD EAX, EBX, ECX, EDX"; "{:#x}, {:#x}, {:#x}, {:#x}",
            of_xcr0.eax, of_xcr0.ebx, of_xcr0.ecx, of_xcr0.edx);
        fact!("xsave: XCR0={name}: subleaf 1 EAX"; "{:#x}", one.eax);
        fact!("xsave: XCR0={name}: subleaf 1 EBX"; "{:#x}", one.ebx);
        fact!("xsave: XCR0={name}: subleaf 1 ECX, EDX"; "{:#x}, {:#x}", one.ecx, one.edx);
        fill(FILL);
        let seen = on(XSAVE, !0);
        let last = (0..AREA_BYTES / 8).rev().find(|at| word(at * 8) != 0xa5a5_a5a5_a5a5_a5a5);
        let reached = last.map_or(0, |at| at * 8 + 8);
        fact!("xsave: XCR0={name}: XSAVE stays within EBX"; "{seen}, {}", reached <= of_xcr0.ebx as usize);
    }
    for component in 2..63 {
        let answer = cpuid(0xd, component);
        let supervisor = answer.ecx & 1 != 0;
        if answer.eax != 0 {
            let kind = if supervisor { "of XSS" } else { "of XCR0" };
            fact!("xsave: component {component}, {kind}: bytes, offset, flags"; "{:#x}, {:#x}, {:#x}",
                answer.eax, answer.ebx, answer.ecx);
        }
    }
}

/// IA32_XSS.
fn supervisor_state() {
    let told = if extended() & HAS_XSAVES != 0 { "announced" } else { "not announced" };
    fact!("xsave: IA32_XSS, {told}"; "{}", control::read_msr(IA32_XSS));
    if extended() & HAS_XSAVES == 0 {
        return;
    }
    let bits = refused(|bit| control::write_msr(IA32_XSS, bit).fine());
    control::write_msr(IA32_XSS, 0);
    let announced = u64::from(cpuid(0xd, 1).edx) << 32 | u64::from(cpuid(0xd, 1).ecx);
    fact!("xsave: bits of IA32_XSS that CPUID does not have"; "{:#x}", !announced);
    fact!("xsave: bits of IA32_XSS that are refused"; "{bits:#x}");
    fact!("xsave: IA32_XSS after it"; "{}", control::read_msr(IA32_XSS));
}
