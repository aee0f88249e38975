//! XSAVE in all its forms, and what guards the floating-point and vector registers.

use core::fmt;

use cpu::instructions::cpuid;
use payload::fact;

use crate::control::{self, Value, cr0, cr4, has, refused, set_cr0, set_cr4};
use crate::pages::{self, ALL, PRESENT, TARGET, USER};
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
    legacy();
    guards();
    if has(control::HAS_XSAVE) {
        switched_off();
        set_cr4(control_4 | control::OSFXSR | control::OSXMMEXCPT | control::OSXSAVE);
        extended_control_register();
        sizes();
        saved();
        restored();
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

fn extended() -> u32 {
    cpuid(0xd, 1).eax
}

/// FXSAVE, FXRSTOR and MXCSR.
fn legacy() {
    let before = cr4();
    set_cr4(before | control::OSFXSR | control::OSXMMEXCPT);
    // FNINIT; XORPS XMM0, XMM0; FLD1; MOVMSKPS EAX, XMM0.
    trial::kernel(&[0xdb, 0xe3, 0x0f, 0x57, 0xc0, 0xd9, 0xe8], 0);
    fill(FILL);
    fact!("xsave: FXSAVE"; "{}", on(FXSAVE, 0));
    fact!("xsave: FXSAVE: control and status, MXCSR and its mask, ST0"; "{:#x}, {:#x}, {:#x} {:#x}",
        word(0) & 0xff_ffff_ffff, word(MXCSR), word(32), word(40) & 0xffff);
    fact!("xsave: FXSAVE: 0x140, 0x1a0, 0x1d0"; "{:#x}, {:#x}, {:#x}", word(0x140), word(0x1a0), word(0x1d0));
    fact!("xsave: FXRSTOR"; "{}", on(FXRSTOR, 0));
    let reserved = refused(|bit| {
        set_word(MXCSR, bit & 0xffff_ffff);
        on(FXRSTOR, 0).fine()
    });
    fact!("xsave: FXRSTOR, bits of MXCSR that are refused"; "{reserved:#x}");
    let reserved = refused(|bit| {
        set_word(0, bit & 0xffff_ffff);
        on(LDMXCSR, 0).fine()
    });
    fact!("xsave: LDMXCSR, bits that are refused"; "{reserved:#x}");
    set_word(0, 0x1f80);
    on(LDMXCSR, 0);
    for (name, code) in [("FXSAVE", FXSAVE), ("FXRSTOR", FXRSTOR)] {
        fill(0);
        set_word(MXCSR, 0x1f80);
        fact!("xsave: {name} at 8 behind 16"; "{}", at(code, AREA.address() + 8, 0));
        fact!("xsave: {name} at 1 behind 16"; "{}", at(code, AREA.address() + 1, 0));
        fact!("xsave: {name} in no page"; "{}", at(code, pages::at(pages::HOLE), 0));
        fact!("xsave: {name} that ends in no page"; "{}", at(code, pages::at(pages::HOLE) - 256, 0));
    }
    pages::map(TARGET, PRESENT | USER);
    let registers = Registers { rdi: pages::at(TARGET), ..Registers::default() };
    fact!("xsave: FXSAVE at CPL 3 in a page for reading"; "{}", trial::run(Mode::User, FXSAVE, registers));
    pages::map(TARGET, ALL);
    set_cr4(before);
}

/// CR0's EM, TS, MP and NE and CR4's OSFXSR and OSXMMEXCPT.
fn guards() {
    const CODES: [(&str, &[u8]); 8] = [
        ("FLD1", &[0xd9, 0xe8]),
        ("FWAIT", &[0x9b]),
        ("FNINIT", &[0xdb, 0xe3]),
        ("XORPS", &[0x0f, 0x57, 0xc0]),
        ("EMMS", &[0x0f, 0x77]),
        ("FXSAVE", FXSAVE),
        ("FXRSTOR", FXRSTOR),
        ("LDMXCSR", &[0x0f, 0xae, 0x57, 0x18]),
    ];
    let (control_0, control_4) = (cr0(), cr4());
    fill(0);
    set_word(MXCSR, 0x1f80);
    for fxsr in [0, control::OSFXSR] {
        set_cr4(control_4 & !control::OSFXSR | fxsr);
        for bits in 0..8 {
            let [monitor, emulate, switched] = [bits & 1, bits >> 1 & 1, bits >> 2];
            let changed =
                (monitor * control::MP) | (emulate * control::EM) | (switched * control::TS);
            set_cr0(control_0 & !(control::MP | control::EM | control::TS) | changed);
            let seen = CODES.map(|(_, code)| on(code, 0).after.vector);
            fact!("xsave: OSFXSR={} TS={switched} EM={emulate} MP={monitor}: FLD1, FWAIT, FNINIT, XORPS, EMMS, FXSAVE, FXRSTOR, LDMXCSR", u8::from(fxsr != 0);
                "{seen:?}");
        }
    }
    set_cr0(control_0);
    // FNINIT; FLDCW [RDI]; FLD1; FLDZ; FDIVP; FWAIT. The exception of division by zero is not masked.
    const DIVIDE: &[u8] = &[0xdb, 0xe3, 0xd9, 0x2f, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b];
    set_word(0, 0x37b);
    fact!("xsave: x87 divides by zero, FWAIT"; "{}", on(DIVIDE, 0));
    // FNSTSW AX, which does not wait.
    fact!("xsave: x87's status"; "{:#x}", trial::kernel(&[0xdf, 0xe0], 0).after.rax & 0xffff);
    for (name, code) in
        [("FLD1", &[0xd9, 0xe8][..]), ("FNSTSW", &[0xdf, 0xe0]), ("EMMS", &[0x0f, 0x77])]
    {
        fact!("xsave: after x87's error, {name}"; "{}", trial::kernel(code, 0));
    }
    set_cr4(control_4 | control::OSFXSR);
    fact!("xsave: after x87's error, XORPS"; "{}", trial::kernel(&[0x0f, 0x57, 0xc0], 0));
    fact!("xsave: after x87's error, FNINIT and FLD1"; "{}", trial::kernel(&[0xdb, 0xe3, 0xd9, 0xe8], 0));
    // LDMXCSR [RDI]; XORPS XMM0, XMM0; CVTSI2SS XMM1, EDI; DIVSS XMM1, XMM0; STMXCSR [RDI].
    const DIVIDE_SSE: &[u8] = &[
        0x0f, 0xae, 0x17, 0x0f, 0x57, 0xc0, 0xf3, 0x0f, 0x2a, 0xcf, 0xf3, 0x0f, 0x5e, 0xc8, 0x0f,
        0xae, 0x1f,
    ];
    for (exceptions, set) in [(0, 0), (1, control::OSXMMEXCPT)] {
        set_cr4(control_4 & !control::OSXMMEXCPT | control::OSFXSR | set);
        set_word(0, 0x1f80 & !0x1200);
        fact!("xsave: OSXMMEXCPT={exceptions}: SSE divides by zero"; "{}", on(DIVIDE_SSE, 0));
    }
    set_word(0, 0x1f80);
    fact!("xsave: SSE divides by zero, masked: MXCSR"; "{}, {:#x}", on(DIVIDE_SSE, 0), word(0) & 0xffff);
    set_word(0, 0x1f80);
    on(LDMXCSR, 0);
    trial::kernel(&[0xdb, 0xe3], 0);
    set_cr4(control_4);
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
    for value in [X87 | 3 << 3, 7 | 7 << 5, 7 | 3 << 5, 7 | 3 << 17, supported(), !0] {
        fact!("xsave: XCR0={value:#x}"; "{}, {}", set_xcr0(value), xcr(0));
        set_xcr0(X87);
    }
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
    for value in [X87, X87 | SSE, X87 | SSE | AVX, supported()] {
        if !set_xcr0(value).fine() {
            continue;
        }
        let [of_xcr0, one] = [cpuid(0xd, 0), cpuid(0xd, 1)];
        fact!("xsave: XCR0={value:#x}: leaf 0xD EAX, EBX, ECX, EDX"; "{:#x}, {:#x}, {:#x}, {:#x}",
            of_xcr0.eax, of_xcr0.ebx, of_xcr0.ecx, of_xcr0.edx);
        fact!("xsave: XCR0={value:#x}: subleaf 1 EAX"; "{:#x}", one.eax);
        fact!("xsave: XCR0={value:#x}: subleaf 1 EBX"; "{:#x}", one.ebx);
        fact!("xsave: XCR0={value:#x}: subleaf 1 ECX, EDX"; "{:#x}, {:#x}", one.ecx, one.edx);
        fill(FILL);
        let seen = on(XSAVE, !0);
        let last = (0..AREA_BYTES / 8).rev().find(|at| word(at * 8) != 0xa5a5_a5a5_a5a5_a5a5);
        let reached = last.map_or(0, |at| at * 8 + 8);
        fact!("xsave: XCR0={value:#x}: XSAVE stays within EBX"; "{seen}, {}", reached <= of_xcr0.ebx as usize);
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

/// The blocks of 64 bytes that differ from what was there, a bit each.
struct Written;

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written =
            |block: &usize| (0..8).any(|at| word(block * 64 + at * 8) != 0xa5a5_a5a5_a5a5_a5a5);
        let mut blocks = (0..AREA_BYTES / 64).filter(written).peekable();
        while let Some(first) = blocks.next() {
            let mut last = first;
            while blocks.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            write!(f, "{:#x}-{:#x} ", first * 64, last * 64 + 63)?;
        }
        write!(f, "XSTATE_BV={:#x} XCOMP_BV={:#x}", word(HEADER), word(COMPACTED))
    }
}

/// Every component in its initial state.
fn initial() {
    fill(0);
    set_word(MXCSR, 0x1f80);
    on(XRSTOR, !0);
}

/// FLD1, and ones in XMM0, or in YMM0 as well.
fn something(avx: bool) {
    trial::kernel(&[0xd9, 0xe8, 0x66, 0x0f, 0x76, 0xc0], 0);
    if avx {
        // VPCMPEQD XMM0, XMM0, XMM0; VINSERTF128 YMM0, YMM0, XMM0, 1.
        trial::kernel(&[0xc5, 0xf9, 0x76, 0xc0, 0xc4, 0xe3, 0x7d, 0x18, 0xc0, 0x01], 0);
    }
}

fn forms() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    let features = extended();
    let list: [(&str, &[u8], u32); 4] = [
        ("XSAVE", XSAVE, 0),
        ("XSAVEOPT", XSAVEOPT, HAS_XSAVEOPT),
        ("XSAVEC", XSAVEC, HAS_XSAVEC),
        ("XSAVES", XSAVES, HAS_XSAVES),
    ];
    let there = list.into_iter().filter(move |(_, _, feature)| features & feature == *feature);
    there.map(|(name, code, _)| (name, code))
}

fn clear_header() {
    (0..8).for_each(|at| set_word(HEADER + at * 8, 0));
}

fn saved() {
    let most = supported() & (X87 | SSE | AVX);
    set_xcr0(most);
    for (name, code) in forms() {
        for components in [0, X87, SSE, AVX, !0] {
            initial();
            fill(FILL);
            clear_header();
            fact!("xsave: {name} of {components:#x}, all initial"; "{}, {Written}", on(code, components));
            initial();
            something(most & AVX != 0);
            fill(FILL);
            clear_header();
            fact!("xsave: {name} of {components:#x}, all in use"; "{}, {Written}", on(code, components));
        }
        fact!("xsave: {name} at 32 behind 64"; "{}", at(code, AREA.address() + 32, 1));
        fact!("xsave: {name} at 1 behind 64"; "{}", at(code, AREA.address() + 1, 1));
        fact!("xsave: {name} in no page"; "{}", at(code, pages::at(pages::HOLE), 1));
        fact!("xsave: {name} that ends in no page"; "{}", at(code, pages::at(pages::HOLE) - 512, 1));
        fact!("xsave: {name} where no address is"; "{}", at(code, 1 << 63, 1));
        let registers = Registers { rdi: pages::at(TARGET), rax: 1, ..Registers::default() };
        fact!("xsave: {name} at CPL 3"; "{}", trial::run(Mode::User, code, registers));
        let mut prefixed = [0xf0; 5];
        for (to, from) in prefixed.iter_mut().skip(1).zip(code) {
            *to = *from;
        }
        fact!("xsave: {name} with LOCK"; "{}", on(&prefixed, 1));
    }
    for (name, code, feature) in [
        ("XSAVEOPT", XSAVEOPT, HAS_XSAVEOPT),
        ("XSAVEC", XSAVEC, HAS_XSAVEC),
        ("XSAVES", XSAVES, HAS_XSAVES),
    ] {
        if extended() & feature == 0 {
            fact!("xsave: {name}, not announced"; "{}", on(code, 1));
        }
    }
    if extended() & HAS_XGETBV_1 != 0 {
        initial();
        something(most & AVX != 0);
        fact!("xsave: XINUSE of what is in use"; "{}", xcr(1));
    }
}

fn restored() {
    let most = supported() & (X87 | SSE | AVX);
    set_xcr0(most);
    initial();
    something(most & AVX != 0);
    fill(0);
    on(XSAVE, !0);
    trial::kernel(&[0xdb, 0xe3, 0x0f, 0x57, 0xc0], 0);
    fact!("xsave: XRSTOR of what was saved"; "{}", on(XRSTOR, !0));
    fill(FILL);
    clear_header();
    on(XSAVE, !0);
    fact!("xsave: saved once more"; "{Written}, {:#x}, {:#x}, {:#x}", word(40) & 0xffff, word(0xa0), word(576));
    let names = [("XRSTOR", XRSTOR, false), ("XRSTORS", XRSTORS, true)];
    for (name, code, supervisor) in names {
        if supervisor && extended() & HAS_XSAVES == 0 {
            fact!("xsave: {name}, not announced"; "{}", on(code, 1));
            continue;
        }
        let compacted = extended() & HAS_XSAVEC != 0;
        for (form, high) in [("standard", 0), ("compacted", 1 << 63)] {
            let header = |at: usize, value: u64| {
                fill(0);
                set_word(MXCSR, 0x1f80);
                set_word(COMPACTED, high | if high == 0 { 0 } else { most });
                set_word(at, word(at) | value);
                on(code, most).fine()
            };
            let all = header(HEADER, 0);
            fact!("xsave: {name}, {form}, announced {compacted}"; "{all}");
            if !all {
                continue;
            }
            let in_use = refused(|bit| header(HEADER, bit));
            let layout = refused(|bit| header(COMPACTED, bit));
            fact!("xsave: {name}, {form}: bits of XSTATE_BV, XCOMP_BV that are refused"; "{in_use:#x}, {layout:#x}");
            let rest: [bool; 6] =
                core::array::from_fn(|at| header(HEADER + 16 + 8 * at, 1 << (8 * at + 3)));
            fact!("xsave: {name}, {form}: a bit in bytes 16 to 63 of the header"; "{rest:?}");
            let control = refused(|bit| {
                fill(0);
                set_word(HEADER, SSE);
                set_word(COMPACTED, high | if high == 0 { 0 } else { most });
                set_word(MXCSR, bit & 0xffff_ffff);
                on(code, most).fine()
            });
            fact!("xsave: {name}, {form}: bits of MXCSR that are refused"; "{control:#x}");
        }
        fill(0);
        set_word(MXCSR, 0x1f80);
        fact!("xsave: {name} at 32 behind 64"; "{}", at(code, AREA.address() + 32, 1));
        fact!("xsave: {name} in no page"; "{}", at(code, pages::at(pages::HOLE), 1));
        let registers = Registers { rdi: pages::at(TARGET), rax: 1, ..Registers::default() };
        // SAFETY: the target's data.
        unsafe { pages::data(TARGET).write_bytes(0, 4096) };
        fact!("xsave: {name} at CPL 3"; "{}", trial::run(Mode::User, code, registers));
    }
    initial();
    // STMXCSR [RDI].
    on(&[0x0f, 0xae, 0x1f], 0);
    fact!("xsave: MXCSR after XRSTOR of what is initial"; "{:#x}", word(0) & 0xffff_ffff);
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
